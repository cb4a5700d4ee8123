"""What was said by an erased person or about their answers: feedback and labeling tasks go.

A vote on an erased answer goes with it, whoever gave it: it cannot be joined any more. A ranking
that also orders other people's answers keeps those. Each record is removed by one atomic script
that also counts it, so a repetition counts nothing twice.
"""

import re
from collections.abc import Collection, Iterator, Sequence

from core import keys
from core.records import Feedback, LabelingTask
from core.redis_client import Redis, script
from feedback import store
from feedback.erasure import Job
from feedback.labeling_rules import num_pairs
from feedback.quarantine import NOTES

_BATCH = 500
_TOKEN = re.compile(rb'"token":"([^"]+)"')
_LATE_TASKS_MS = 3_600_000
"""A round that is under way may still open tasks from what it read before."""
_INDEXES = ("training", "evaluation", "gold-training", "gold-evaluation")


async def erase_feedback(redis: Redis, job: Job) -> bool:
    """All that this user said as a rater, and all about their answers; False: do it again."""
    tokens = {raw.decode() for raw in await redis.smembers(keys.erasure_tokens(job.id))}
    marks = [mark.encode() for mark in (job.user, *job.raters)]
    ids = [raw.decode() for raw in await redis.zrange(keys.feedback_index(), 0, -1)]
    unchanged = True
    for batch in _batches(ids):
        raws = await redis.mget([keys.feedback(i) for i in batch])
        concerned = [raw for raw in raws if raw and _concerns(raw, marks, tokens)]
        unchanged &= await _erase_all(redis, concerned, job=job, tokens=tokens)
    await redis.hdel(keys.held_decisions(), job.user, *job.raters)
    return unchanged


async def erase_feedback_about(redis: Redis, token: str) -> None:
    """What was said about an answer of an erased user that came late and was not recorded."""
    for _ in range(3):
        ids = [raw.decode() for raw in await redis.smembers(keys.feedback_of(token))]
        raws = await redis.mget([keys.feedback(i) for i in ids]) if ids else []
        if await _erase_all(redis, [raw for raw in raws if raw], job=None, tokens={token}):
            break
    await redis.delete(keys.feedback_of(token))


async def remove_feedback(redis: Redis, raws: Sequence[bytes]) -> int:
    """Remove records that are still as they were read; how many. The totals go on counting them."""
    async with redis.pipeline(transaction=False) as step:
        for raw in raws:
            said = Feedback.model_validate_json(raw)
            await _replace_said(step, raw, said, None, None, comparisons=0, number=0)
            step.hdel(keys.held_decisions(), said.id)
        replies = await step.execute()
    return sum(replies[::2])


def without(said: Feedback, job: Job | None, tokens: Collection[str]) -> Feedback | None:
    """What may stay of a piece of feedback; None when nothing may."""
    theirs = job is not None and bool({said.rater, said.user} & {job.user, *job.raters})
    if job and theirs and said.updated_at * 1000 <= job.at:
        return None
    left = [i for i, output in enumerate(said.outputs) if output.token not in tokens]
    if len(left) == len(said.outputs):
        return said
    if said.kind != "ranking" or len(left) < 2 or said.withdrawn:
        return None
    place = {old: new for new, old in enumerate(left)}
    ties = [tuple(place[p] for p in tie if p in place) for tie in said.ranking]
    return said.model_copy(
        update={
            "outputs": tuple(said.outputs[i] for i in left),
            "ranking": tuple(tie for tie in ties if tie),
        }
    )


async def erase_tasks(redis: Redis, job: Job) -> bool:
    """Tasks that show this user's prompts, and this user's answers to others; False: again."""
    ids: set[str] = set()
    for index in _INDEXES:
        ids |= {raw.decode() for raw in await redis.zrange(keys.labeling_open(index), 0, -1)}
    marks = [mark.encode() for mark in (job.user, *job.raters)]
    unchanged = True
    for batch in _batches(sorted(ids)):
        raws = await redis.mget([keys.labeling_task(i) for i in batch])
        async with redis.pipeline(transaction=False) as step:
            for raw in raws:
                if raw and any(mark in raw for mark in marks):
                    await _erase_task(step, raw, job)
            unchanged &= all(await step.execute())
    await redis.delete(*(keys.labeling_seen(rater) for rater in job.raters))
    return unchanged


async def _erase_task(step: Redis, raw: bytes, job: Job) -> None:
    old = LabelingTask.model_validate_json(raw)
    if old.user == job.user and old.created_at * 1000 <= job.at + _LATE_TASKS_MS:
        new, gone = None, old.answers
    else:
        gone = tuple(
            a for a in old.answers if a.rater in job.raters and a.answered_at * 1000 <= job.at
        )
        new = old.model_copy(update={"answers": tuple(a for a in old.answers if a not in gone)})
        if new.leased_by in job.raters:
            new = new.model_copy(update={"leased_by": None, "leased_until": 0.0})
        if new == old:
            return
    counts = old.mode == "training" and not old.gold
    counted = [answer for answer in gone if answer.ranking and counts]
    await script(
        step,
        "erase_said",
        [
            *_keys(keys.labeling_task(old.id), job),
            *(keys.labeling_open(index) for index in _INDEXES),
            keys.labeling_of(old.run_id),
        ],
        [
            raw,
            new.model_dump_json() if new else "",
            old.id,
            NOTES + old.id,
            "labeling",
            -sum(num_pairs(answer.ranking) for answer in counted),
            len(_INDEXES),
            "rankings",
            -len(counted),
        ],
    )


async def _erase_all(
    redis: Redis, raws: Sequence[bytes], *, job: Job | None, tokens: Collection[str]
) -> bool:
    records = [Feedback.model_validate_json(raw) for raw in raws]
    changes = [
        (raw, old, without(old, job, tokens)) for raw, old in zip(raws, records, strict=True)
    ]
    gone = [old.id for _, old, new in changes if new is None]
    if gone:
        await redis.hdel(keys.held_decisions(), *gone)
    async with redis.pipeline(transaction=False) as step:
        for raw, old, new in changes:
            if new != old:
                await _erase_one(step, raw, old, new, job)
        return all(await step.execute())


async def _erase_one(
    step: Redis, raw: bytes, old: Feedback, new: Feedback | None, job: Job | None
) -> None:
    change = (store.num_comparisons(new) if new else 0) - store.num_comparisons(old)
    number = 0 if new or old.withdrawn else -1
    await _replace_said(step, raw, old, new, job, comparisons=change, number=number)


async def _replace_said(
    step: Redis,
    raw: bytes,
    old: Feedback,
    new: Feedback | None,
    job: Job | None,
    *,
    comparisons: int,
    number: int,
) -> None:
    """The script that puts `new` in the place of `old`, and changes the totals by so much."""
    await script(
        step,
        "erase_said",
        [
            *_keys(keys.feedback(old.id), job),
            keys.feedback_index(),
            *(keys.feedback_of(token) for token in sorted({o.token for o in old.outputs})),
        ],
        [
            raw,
            store.stored(new) if new else "",
            old.id,
            old.id,
            "feedback" if job else "",
            comparisons,
            1,
            store.COUNTS[old.kind],
            number,
            *old.used_in,
        ],
    )


def _keys(record: str, job: Job | None) -> list[str]:
    return [
        record,
        keys.counts(),
        keys.feedback_text(),
        keys.quarantine(),
        keys.quarantine_since(),
        keys.quarantine_retry(),
        keys.erasure(job.id if job else ""),
    ]


def _concerns(raw: bytes, marks: Sequence[bytes], tokens: Collection[str]) -> bool:
    """Whether a record may have to go: a quick look, so that millions can be passed by."""
    if any(mark in raw for mark in marks):
        return True
    return any(found.decode() in tokens for found in _TOKEN.findall(raw))


def _batches(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[start : start + _BATCH] for start in range(0, len(ids), _BATCH))
