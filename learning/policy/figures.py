"""The figures of a PPO run: of an iteration, and of the whole.

Names here are those of the progress file, of `figures.json` and of the policy's card. Knows how to
count and average, nothing of models.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from time import monotonic
from typing import Any

from transformers import PreTrainedTokenizerBase

from core.hyperparameters import PolicySettings
from learning.policy.experience import Experience
from learning.policy.run import PolicyRun
from learning.policy.updates import PolicyStep, PtxBatch, text_loss
from learning.training.lora import without_adapters
from learning.training.text_quality import is_broken

_SECONDS = "seconds_"
_TRAINING = ("value", "policy")


@contextmanager
def timed(run: PolicyRun, part: str) -> Iterator[None]:
    """Add the seconds of the block to the iteration's figures."""
    began = monotonic()
    yield
    name = f"{_SECONDS}{part}"
    run.figures[name] = run.figures.get(name, 0.0) + monotonic() - began


def experience_figures(
    experience: Experience, *, settings: PolicySettings, tokenizer: PreTrainedTokenizerBase
) -> dict[str, float]:
    """What an iteration's answers say of the policy that wrote them."""
    rollouts, kl = experience.rollouts, experience.kl
    gap = experience.engine_gap(settings.importance_cap)
    texts = [
        str(tokenizer.decode(list(answer), skip_special_tokens=True))
        for group in rollouts.groups
        for answer in group.answers
    ]
    return {
        "reward": float(experience.scores.mean()),
        "reward_sd": float(experience.scores.std(correction=0)),
        "kl_to_anchor": kl.per_answer,
        "kl_per_token": kl.per_token,
        "kl_k3_per_token": kl.k3_per_token,
        "entropy": experience.entropy,
        "answer_tokens": rollouts.num_tokens / rollouts.num_answers,
        "ended_share": float(rollouts.ended.float().mean()),
        "broken_share": sum(map(is_broken, texts)) / len(texts),
        **{f"engine_{name}": value for name, value in asdict(gap).items()},
    }


def step_figures(step: PolicyStep) -> dict[str, float]:
    """One optimiser step of the policy."""
    policy = {name: float(value) for name, value in asdict(step.policy).items()}
    policy["policy_loss"] = policy.pop("loss")
    return policy | {"ptx_loss": step.ptx_loss, "grad_norm": step.grad_norm}


def iteration_figures(
    experience_part: dict[str, float], steps: Sequence[dict[str, float]]
) -> dict[str, float]:
    """An iteration's figures with the means of its steps; ratios keep their extremes."""
    figures = dict(experience_part)
    if not steps:
        return figures
    for name in steps[0]:
        figures[name] = sum(step[name] for step in steps) / len(steps)
    figures["ratio_max"] = max(step["ratio_max"] for step in steps)
    figures["ratio_min"] = min(step["ratio_min"] for step in steps)
    first = steps[0]
    figures["first_ratio_error"] = max(first["ratio_max"] - 1.0, 1.0 - first["ratio_min"])
    return figures


def throughput(figures: dict[str, float], experience: Experience) -> dict[str, float]:
    """Tokens a second: answers for each second that was spent on waiting for them, and tokens that
    went through a backward pass."""
    rollouts = experience.rollouts
    read = sum(group.num_tokens for group in rollouts.groups)
    training = sum(figures.get(f"{_SECONDS}{part}", 0.0) for part in _TRAINING)
    return {
        "rollout_tokens_per_second": rollouts.num_tokens / figures[f"{_SECONDS}rollouts"],
        "training_tokens_per_second": 2.0 * read / training if training else 0.0,
    }


def learned_figures(run: PolicyRun, text: PtxBatch) -> dict[str, float]:
    """How many weights of the policy learned, and what that did to its loss on other text."""
    with without_adapters(run.models.reference) as anchor:
        before = text_loss(anchor, text)
    return {
        "trained_parameters": float(sum(p.numel() for p in run.policy_optimiser.parameters)),
        "ptx_loss_before": before,
        "ptx_loss_after": text_loss(run.models.policy, text),
    }


def summary(run: PolicyRun, *, ema_decay: float) -> dict[str, Any]:
    """The figures of the whole run: the last iteration's, the sums, and all iterations."""
    last = run.history[-1]
    names = sorted({name for figures in run.history for name in figures})
    seconds = {
        name: round(sum(figures.get(name, 0.0) for figures in run.history), 2)
        for name in names
        if name.startswith(_SECONDS)
    }
    return {
        **{name: value for name, value in last.items() if not name.startswith(_SECONDS)},
        **seconds,
        "reward_first": run.history[0]["reward"],
        "ptx_coef": run.ptx_coef or 0.0,
        "kl_coef": run.kl_coef,
        "ema_decay": ema_decay,
        "optimiser_steps": run.policy_steps,
        "stopped": run.stopped,
        "iterations": run.history,
    }
