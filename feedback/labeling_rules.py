"""What may be done with a labeling task: who may answer, when it is done, what counts.

Pure: tasks and answers in, the next step out; labeling.py reads and writes them. A skip is kept as
an answer without a ranking.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from zlib import crc32

from core.errors import Conflict, Unprocessable
from core.records import Answer, LabelingTask

DONE = "+inf"
REJECTED = "rejected by a person"
MOST_REJECTED = 5
"""A task is offered no more once so many of its answers were rejected: it may be the task."""
Mode = Literal["training", "evaluation"]


@dataclass(frozen=True, slots=True)
class Step:
    """What a task becomes: a lease, an answer, a skip."""

    task: LabelingTask
    score: int | str
    """Milliseconds from which it may be leased, or `+inf`."""
    seen: bool = False
    rankings: int = 0
    comparisons: int = 0


def is_held(task: LabelingTask, rater: str, *, now: int) -> bool:
    """Whether this rater holds a lease at `now` (milliseconds)."""
    return task.leased_by == rater and now < task.leased_until * 1000


def is_free(task: LabelingTask, rater: str, *, now: int) -> bool:
    """Whether the task may be leased to this rater at `now` (milliseconds)."""
    leased = task.leased_by is not None and now < task.leased_until * 1000
    known = any(answer.rater == rater for answer in task.answers)
    return not leased and not known and not is_done(task)


def is_done(task: LabelingTask) -> bool:
    """Whether nobody is to be given it any more; a rejected answer is as none."""
    rankings = rankings_of(task)
    rejected = sum(answer.held == REJECTED for answer in rankings)
    return len(rankings) - rejected >= task.wanted or rejected >= MOST_REJECTED


def score_of(task: LabelingTask, *, now: int) -> int | str:
    """From when it may be leased, in milliseconds; `+inf` when it is done."""
    if is_done(task):
        return DONE
    return max(int(task.leased_until * 1000), now) if task.leased_by else now


def answered(task: LabelingTask, answer: Answer, *, now: int) -> Step:
    """The task with one more answer; open again while more raters are wanted."""
    done = _handed_in(task, answer)
    trains = task.mode == "training" and not task.gold
    return Step(
        done,
        score_of(done, now=now),
        seen=True,
        rankings=int(trains),
        comparisons=num_pairs(answer.ranking) if trains else 0,
    )


def skipped(task: LabelingTask, skip: Answer, *, now: int) -> Step:
    """The task open for others again."""
    return Step(_handed_in(task, skip), now, seen=True)


def index_of(task: LabelingTask) -> str:
    """Under which name it is offered: those whose right order is known are apart."""
    return f"gold-{task.mode}" if task.gold else task.mode


def indexes_for(mode: Mode, rater: str, *, num_seen: int, gold_share: float) -> tuple[str, str]:
    """Where to look for a rater's next task: for `gold_share` of the tasks gold comes first.

    Which ones follows from the rater and from how many tasks they have seen, so that asking again
    changes nothing and nobody can tell.
    """
    drawn = crc32(f"{rater}:{num_seen}".encode()) / 2**32
    gold = f"gold-{mode}"
    return (gold, mode) if drawn < gold_share else (mode, gold)


def num_pairs(ranking: Sequence[Sequence[str]]) -> int:
    """Untied pairs of a ranking with ties."""
    sizes = [len(tie) for tie in ranking]
    return (sum(sizes) ** 2 - sum(size * size for size in sizes)) // 2


def rankings_of(task: LabelingTask) -> tuple[Answer, ...]:
    """The answers to a task, without the skips."""
    return tuple(answer for answer in task.answers if answer.ranking)


def answer_of(task: LabelingTask, rater: str) -> Answer | None:
    """What this rater has answered."""
    return next((a for a in rankings_of(task) if a.rater == rater), None)


def check_outputs(task: LabelingTask, answer: Answer) -> None:
    """Raises Unprocessable unless each output is ranked once and nothing else is named."""
    names = [output.output_id for output in task.outputs]
    ranked = [name for tie in answer.ranking for name in tie]
    if sorted(ranked) != sorted(names):
        raise Unprocessable("the ranking must contain each output once", param="ranking")
    if not {*answer.ratings, *answer.flags} <= set(names):
        raise Unprocessable("an output is not of this task", param="outputs")


def check_lease(task: LabelingTask, rater: str, *, answered: bool) -> None:
    """Raises Conflict unless the task is this rater's to answer.

    A lease that has run out still counts while nobody else has taken the task.
    """
    if answered:
        raise Conflict("you have answered this task before, otherwise")
    if task.leased_by != rater:
        raise Conflict("this task is not leased to you: GET /v1/labeling/next gives another")


def _handed_in(task: LabelingTask, answer: Answer) -> LabelingTask:
    return task.model_copy(
        update={"answers": (*task.answers, answer), "leased_by": None, "leased_until": 0.0}
    )
