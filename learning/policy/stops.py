"""When a PPO run ends itself: what broke, in words for people. Nothing is released then.

The limits are learning/policy/diagnostics.py's; learning/policy/train.py asks after each optimiser
step and each gathering of answers.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from core.errors import InstructLoopError
from learning.policy.diagnostics import collapse, fault
from learning.policy.run import PolicyRun
from learning.policy.updates import PolicyStep


class Diverged(InstructLoopError):
    """The run broke: its numbers are not finite, or the policy jumped or says one thing always."""


@contextmanager
def divergence_named(run: PolicyRun) -> Iterator[None]:
    """Turn the optimiser's refusal of a gradient that is not finite into an error for people."""
    try:
        yield
    except FloatingPointError as error:
        raise _diverged(run, str(error)) from error


def stop_if_broken(run: PolicyRun, step: PolicyStep) -> None:
    """Raise Diverged after a step of the policy that no healthy run takes."""
    reason = fault(step.policy, grad_norm=step.grad_norm)
    if reason is not None:
        raise _diverged(run, reason)


def stop_if_collapsed(run: PolicyRun) -> None:
    """Raise Diverged where the answers that were just gathered show a broken policy."""
    now = run.figures
    first = run.history[0] if run.history else now
    reason = collapse(
        reward=now["reward"],
        kl_per_token=now["kl_per_token"],
        entropy=now["entropy"],
        first=first["entropy"],
    )
    if reason is not None:
        raise _diverged(run, reason)


def _diverged(run: PolicyRun, reason: str) -> Diverged:
    return Diverged(f"PPO diverged in iteration {run.iteration + 1}: {reason}")
