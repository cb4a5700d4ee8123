"""The raters of a tenant: how much each has done, how far they agree, how right they are on gold.

Reads tasks and feedback and asks agreement.py; knows no HTTP. Raters are keyed hashes; one that is
a key has its name.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from pydantic import BaseModel

from core import metrics
from core.auth import list_keys
from core.keyring import Keyring
from core.records import Answer, Completion, Feedback, LabelingTask
from core.redis_client import Redis, redis_errors
from core.setting_groups import FeedbackSettings
from feedback import labeling, store
from feedback.agreement import (
    Share,
    Verdict,
    accuracy,
    alpha,
    alpha_by_rater,
    alpha_by_week,
    by_rater,
    by_week,
    pairwise,
)
from feedback.intake import speaker
from feedback.speakers import with_speakers

INDEXES = ("training", "evaluation", "gold-training", "gold-evaluation")


class Progress(BaseModel):
    """`GET /v1/labeling/progress`: what this rater has done."""

    done_today: int
    """Since midnight, UTC."""
    done: int
    skipped: int
    gold_accuracy: float | None = None
    """For admins: the share of pairs with a known order that they ordered so."""


class WeekOfRaters(BaseModel):
    """Agreement on what was complete in one ISO week."""

    week: str
    agreement: float | None
    pairs: int
    alpha: float | None


class RaterFigures(BaseModel):
    """One rater. Agreement is with all others, over `pairs` pairs of answers."""

    rater: str
    """A keyed hash."""
    name: str | None
    """Of the key, where the rater is one."""
    heldout: bool
    tasks: int
    skipped: int
    agreement: float | None
    pairs: int
    alpha: float | None
    """Over the answers that this rater has rated."""
    gold_accuracy: float | None
    gold_pairs: int


class Raters(BaseModel):
    """`GET /v1/raters`: agreement in all, by week and by rater."""

    agreement: float | None
    """Of the pairs that two raters ordered, ties left out: the share they ordered alike."""
    pairs: int
    alpha: float | None
    """Krippendorff's alpha of the ratings, ordinal."""
    weeks: list[WeekOfRaters]
    raters: list[RaterFigures]


async def progress(redis: Redis, rater: str, *, gold: bool) -> Progress:
    """What one rater has done. Raises Unavailable."""
    tasks = await labeling.seen_tasks(redis, rater)
    midnight = datetime.fromtimestamp(time.time(), UTC).replace(hour=0, minute=0, second=0)
    mine = [(task, answer) for task in tasks for answer in task.answers if answer.rater == rater]
    done = [answer for _, answer in mine if answer.ranking]
    right = gold_shares(tasks).get(rater, Share())
    return Progress(
        done_today=sum(answer.answered_at >= int(midnight.timestamp()) for answer in done),
        done=len(done),
        skipped=len(mine) - len(done),
        gold_accuracy=right.value if gold else None,
    )


async def raters_of(
    redis: Redis, tenant: str, *, keyring: Keyring, settings: FeedbackSettings
) -> Raters:
    """The figures of a tenant's raters. Raises Unavailable."""
    everything = await labeling.tasks_in(redis, *INDEXES)
    tasks = [task for task in everything if task.tenant == tenant]
    feedback = [f for f in await store.get_all(redis) if f.tenant == tenant]
    about = {output.token for said in feedback for output in said.outputs}
    completions = await store.completions(redis, sorted(about))
    found = verdicts(tasks, feedback, completions, settings=settings)
    with redis_errors():
        known = [key for key in await list_keys(redis) if key.tenant == tenant]
    names = {
        speaker(key, None, keyring=keyring, settings=settings).rater: key.name for key in known
    }
    total = pairwise(found)
    return Raters(
        agreement=total.value,
        pairs=total.of,
        alpha=alpha(found),
        weeks=_weeks(found),
        raters=_figures(tasks, found, feedback, names),
    )


def verdicts(
    tasks: Iterable[LabelingTask],
    feedback: Iterable[Feedback],
    completions: Mapping[str, Completion],
    *,
    settings: FeedbackSettings,
) -> list[Verdict]:
    """What raters said, of tasks and through the feedback routes; skips and what is gone is not."""
    found = [
        Verdict(answer.rater, answer.answered_at, _ranks(answer.ranking), dict(answer.ratings))
        for task in tasks
        for answer in task.answers
        if answer.ranking and not answer.held
    ]
    for said in with_speakers(feedback, completions, settings=settings):
        names = [f"{output.token}/{output.choice}" for output in said.outputs]
        if said.withdrawn or said.held:
            continue
        if said.kind == "ranking":
            order = [[names[place] for place in tie] for tie in said.ranking]
            found.append(Verdict(said.rater, said.updated_at, ranks=_ranks(order)))
        elif said.rating is not None:
            found.append(Verdict(said.rater, said.updated_at, ratings={names[0]: said.rating}))
    return found


def observe_agreement(found: Sequence[Verdict]) -> None:
    """Set the gauge, where two raters have ordered the same answers."""
    if (value := pairwise(found).value) is not None:
        metrics.RATER_AGREEMENT.set(value)


def gold_shares(tasks: Iterable[LabelingTask]) -> dict[str, Share]:
    """By rater, of the pairs with a known order those that they ordered so."""
    shares: dict[str, Share] = defaultdict(Share)
    for task in tasks:
        for answer in task.answers:
            if task.gold and answer.ranking:
                shares[answer.rater] += accuracy(task.gold, answer.ranking)
    return dict(shares)


def _weeks(found: Sequence[Verdict]) -> list[WeekOfRaters]:
    ordered, rated = by_week(found), alpha_by_week(found)
    return [
        WeekOfRaters(
            week=week,
            agreement=ordered.get(week, Share()).value,
            pairs=ordered.get(week, Share()).of,
            alpha=rated.get(week),
        )
        for week in sorted(ordered.keys() | rated.keys())
    ]


def _figures(
    tasks: Sequence[LabelingTask],
    found: Sequence[Verdict],
    feedback: Iterable[Feedback],
    names: Mapping[str, str],
) -> list[RaterFigures]:
    agree, right, rated = by_rater(found), gold_shares(tasks), alpha_by_rater(found)
    answers: list[Answer] = [answer for task in tasks for answer in task.answers]
    done = Counter(answer.rater for answer in answers if answer.ranking)
    skipped = Counter(answer.rater for answer in answers if not answer.ranking)
    heldout = {answer.rater for answer in answers if answer.heldout_rater}
    heldout |= {said.rater for said in feedback if said.heldout_rater}
    everybody = {verdict.rater for verdict in found} | done.keys() | skipped.keys()
    return [
        RaterFigures(
            rater=rater,
            name=names.get(rater),
            heldout=rater in heldout,
            tasks=done[rater],
            skipped=skipped[rater],
            agreement=agree.get(rater, Share()).value,
            pairs=agree.get(rater, Share()).of,
            alpha=rated.get(rater),
            gold_accuracy=right.get(rater, Share()).value,
            gold_pairs=right.get(rater, Share()).of,
        )
        for rater in sorted(everybody, key=lambda r: (-done[r], r))
    ]


def _ranks(ranking: Sequence[Sequence[str]]) -> dict[str, int]:
    return {name: rank for rank, tie in enumerate(ranking, 1) for name in tie}
