"""Decisions about rounds of learning: is one due, what comes next, what does an exit mean.

Pure: facts in, a decision out, time given. Knows no Redis, no clock, no process.
learning/worker/tasks.py and learning/rounds/runner.py act on the answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from core.records import SFT_STAGES, STAGES, Run
from core.stages import complete_stages
from learning.training.stage import EXIT_CHECKPOINTED, EXIT_DONE, EXIT_NOT_ENOUGH_DATA

RETRY_DELAYS = (2.0, 30.0)
"""Seconds before the second and the third attempt at a stage; there is no fourth."""

_CHOICES: dict[str, tuple[str, ...]] = {
    "all": STAGES,
    "sft": SFT_STAGES,
    "reward-model": ("snapshot", "reward_model"),
    "policy": ("policy",),
    "evaluate": ("evaluate", "vote", "gate"),
}
"""What `train --stage NAME` runs. `policy` builds on the newest reward model and its snapshot,
`sft` asks the newest reward model for its judgement, `evaluate` judges the newest candidate of PPO.
"""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the decision whether to start a round rests on. Times in seconds."""

    now: float
    paused: bool
    running: bool
    comparisons: int
    consumed: int
    """Comparisons at the start of the last round that came to a verdict."""
    tried: int
    """Comparisons at the start of the last round, whatever became of it."""
    last_round: float | None


def reason_for_round(
    facts: Facts, *, min_new_comparisons: int, interval_seconds: float
) -> str | None:
    """Why a round should start now, or None.

    Enough new comparisons since the last round, or the interval is over and something new was
    said. A round that failed is only tried again after the interval.
    """
    if facts.paused or facts.running:
        return None
    fresh = facts.comparisons - facts.tried
    if fresh >= min_new_comparisons:
        return f"{fresh} new comparisons"
    unlearned = facts.comparisons - facts.consumed
    is_time = facts.last_round is not None and facts.now - facts.last_round >= interval_seconds
    if is_time and unlearned > 0:
        return f"on schedule, with {unlearned} new comparisons"
    return None


def stages_for(names: Sequence[str]) -> tuple[str, ...]:
    """The stages that a person's choice means, in their order.

    `names` are choices of `train --stage` or names of stages. Raises Unprocessable for an unknown
    name, and for a gap between stages.
    """
    wanted: set[str] = set()
    for name in names:
        wanted |= set(_CHOICES.get(name, (name,)))
    return complete_stages(wanted)


def stages_named(name: str) -> tuple[str, ...]:
    """What `train --stage NAME` runs. Raises Unprocessable."""
    return stages_for([name])


def next_stage(run: Run) -> str | None:
    """The stage after the current one; None when it was the last."""
    after = run.stages[run.stages.index(run.stage) + 1 :]
    return after[0] if after else None


Meaning = Literal["done", "not_enough_data", "again", "failed"]


def meaning_of_exit(code: int) -> Meaning:
    """What a stage's exit says: see learning/training/stage.py. A death by signal is a failure."""
    known: dict[int, Meaning] = {
        EXIT_DONE: "done",
        EXIT_NOT_ENOUGH_DATA: "not_enough_data",
        EXIT_CHECKPOINTED: "again",
    }
    return known.get(code, "failed")


def describe_exit(code: int, *, last_line: str) -> str:
    """A failed exit in words, with the last line that the stage wrote."""
    if code in (-9, 137):
        what = "it was killed (SIGKILL): often the memory was not enough"
    elif code < 0:
        what = f"it was ended by signal {-code}"
    else:
        what = f"it ended with code {code}"
    return f"{what}; its log ends: {last_line}" if last_line else what


@dataclass(frozen=True, slots=True)
class Retry:
    """Failures so far, and when to try again; `delay` None gives the run up. Seconds."""

    failures: int
    delay: float | None


def after_failure(failures: int, *, fraction: float, failed_fraction: float) -> Retry:
    """What follows one more failure at `fraction` of a stage; the one before was at the other.

    A failure further on than the one before counts as the first: a machine that is taken away
    now and then does not end a run that gets ahead between.
    """
    counted = 1 if fraction > failed_fraction else failures + 1
    over = counted > len(RETRY_DELAYS)
    return Retry(counted, None if over else RETRY_DELAYS[counted - 1])
