"""Ranking tasks for raters: opened by learning, leased one by one, answered or skipped.

A task is leased to one rater and goes back when the lease runs out; nobody gets a task again that
they answered or skipped. Evaluation tasks go to held-out raters only, training tasks to the
others. Each step reads the task, decides, and writes unless somebody was faster
(core/lua/replace_labeling_task.lua). Knows no HTTP; labeling_routes.py shows tasks to people.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from zlib import crc32

from core import keys
from core.errors import Conflict, NotFound, Unprocessable
from core.records import Answer, LabelingTask
from core.redis_client import Redis, held, promise, redis_errors, script
from core.registry import milliseconds
from core.setting_groups import FeedbackSettings
from feedback.labeling_rules import (
    DONE,
    Mode,
    Step,
    answer_of,
    answered,
    check_lease,
    check_outputs,
    index_of,
    indexes_for,
    is_free,
    is_held,
    rankings_of,
    skipped,
)
from feedback.quarantine import NOTES
from feedback.schemas import MAX_OUTPUTS
from feedback.store import Once

MIN_OUTPUTS = 4
_ATTEMPTS = 20
_PAGE = 32


async def open_tasks(redis: Redis, tasks: Sequence[LabelingTask]) -> None:
    """Offer tasks to raters. Those that were opened before stay as they are.

    Raises Unprocessable when a task has not 4 to 9 different outputs, Unavailable.
    """
    for task in tasks:
        names = {output.output_id for output in task.outputs}
        if not MIN_OUTPUTS <= len(task.outputs) <= MAX_OUTPUTS or len(names) < len(task.outputs):
            raise Unprocessable(f"a task has {MIN_OUTPUTS} to {MAX_OUTPUTS} different outputs")
    with redis_errors():
        async with redis.pipeline(transaction=True) as step:
            for task in tasks:
                step.set(keys.labeling_task(task.id), task.model_dump_json(), nx=True)
                step.zadd(keys.labeling_open(index_of(task)), {task.id: 0}, nx=True)
                step.sadd(keys.labeling_of(task.run_id), task.id)
            await step.execute()


async def next_task(
    redis: Redis, *, tenant: str, rater: str, heldout: bool, settings: FeedbackSettings
) -> LabelingTask | None:
    """Lease a task to a rater; one they hold already comes first. None when there is none.

    Raises Unavailable.
    """
    mode: Mode = "evaluation" if heldout else "training"
    with redis_errors():
        num_seen = int(await redis.scard(keys.labeling_seen(rater)))
        indexes = indexes_for(mode, rater, num_seen=num_seen, gold_share=settings.gold_share)
        for index in indexes:
            if own := await _find(redis, index, rater, tenant=tenant, leased=True):
                return own[1]
        for _ in range(_ATTEMPTS):
            found = await _find_free(redis, indexes, rater, tenant=tenant)
            if found is None:
                return None
            raw, task = found
            until = milliseconds() + settings.lease_seconds * 1000
            lease = task.model_copy(update={"leased_by": rater, "leased_until": until / 1000})
            step = Step(lease, until)
            if await _replace(redis, raw, step, rater=rater, run=script) == "done":
                return lease
    return None


async def get_task(redis: Redis, task_id: str, *, tenant: str) -> LabelingTask:
    """One task of a tenant. Raises NotFound, Unavailable."""
    with redis_errors():
        return (await _read(redis, task_id, tenant=tenant))[1]


async def answer_task(
    redis: Redis,
    *,
    task_id: str,
    tenant: str,
    answer: Answer,
    reply: str,
    same: Callable[[Answer, Answer], bool],
    once: Once | None = None,
) -> str:
    """Record a rater's answer; returns the reply. The same answer again changes nothing.

    Raises NotFound, Unprocessable (the outputs are not the task's), Conflict (leased to somebody
    else, answered otherwise before, closed), Unavailable.
    """

    def decide(task: LabelingTask) -> Step | None:
        earlier = answer_of(task, answer.rater)
        if earlier and same(earlier, answer):
            return None
        check_outputs(task, answer)
        check_lease(task, answer.rater, answered=earlier is not None)
        return answered(task, answer, now=milliseconds())

    return await _change(
        redis, task_id, decide, tenant=tenant, rater=answer.rater, reply=reply, once=once
    )


async def skip_task(
    redis: Redis,
    *,
    task_id: str,
    tenant: str,
    skip: Answer,
    reply: str,
    once: Once | None = None,
) -> str:
    """Give a task back, never to see it again; `skip` is an answer without a ranking.

    Raises NotFound, Conflict (not leased to this rater), Unavailable.
    """

    def decide(task: LabelingTask) -> Step | None:
        if any(a.rater == skip.rater and not a.ranking for a in task.answers):
            return None
        check_lease(task, skip.rater, answered=answer_of(task, skip.rater) is not None)
        return skipped(task, skip, now=milliseconds())

    return await _change(
        redis, task_id, decide, tenant=tenant, rater=skip.rater, reply=reply, once=once
    )


async def tasks_of(redis: Redis, run_id: str) -> list[LabelingTask]:
    """The tasks that a run opened, by id, with their answers; skips are left out."""
    with redis_errors():
        ids = sorted(raw.decode() for raw in await redis.smembers(keys.labeling_of(run_id)))
        raw = await redis.mget([keys.labeling_task(i) for i in ids]) if ids else []
    tasks = [LabelingTask.model_validate_json(text) for text in raw if text]
    return [t.model_copy(update={"answers": rankings_of(t)}) for t in tasks]


def sealed_notes(task: LabelingTask) -> list[str]:
    """What raters wrote about a task and the filter has not cleared yet."""
    return [answer.sealed_notes for answer in task.answers if answer.sealed_notes]


async def replace_notes(redis: Redis, raw: bytes, new: LabelingTask, *, done: bool) -> bool:
    """Write a task whose bytes were `raw` with filtered notes; False when it has changed.

    `done` when none of its notes waits any more. Raises Unavailable.
    """
    with redis_errors():
        replaced = await script(
            redis,
            "replace_feedback",
            [
                keys.labeling_task(new.id),
                keys.feedback_text(),
                keys.quarantine(),
                keys.counts(),
            ],
            [NOTES + new.id, raw, new.model_dump_json(), "rankings", 0, 0, "1" if done else "0"],
        )
    return bool(replaced)


async def close_tasks(redis: Redis, run_id: str) -> None:
    """Offer a run's tasks no longer. Answers that were given stay."""
    with redis_errors():
        for raw in await redis.smembers(keys.labeling_of(run_id)):
            for mode in ("training", "evaluation"):
                await redis.zadd(keys.labeling_open(mode), {raw: DONE}, xx=True)


async def task_counts(redis: Redis) -> dict[str, int]:
    """How many tasks are open, leased and done; for the gauge `labeling_tasks`."""
    now = milliseconds()
    counts = {"open": 0, "leased": 0, "done": 0}
    with redis_errors():
        for name in (keys.labeling_open("training"), keys.labeling_open("evaluation")):
            counts["open"] += await redis.zcount(name, "-inf", now)
            counts["leased"] += await redis.zcount(name, f"({now}", f"({DONE}")
            counts["done"] += await redis.zcount(name, DONE, DONE)
    return counts


async def seen_tasks(redis: Redis, rater: str) -> list[LabelingTask]:
    """The tasks that a rater has answered or skipped, by id. Raises Unavailable."""
    with redis_errors():
        ids = sorted(raw.decode() for raw in await redis.smembers(keys.labeling_seen(rater)))
        raw = await redis.mget([keys.labeling_task(i) for i in ids]) if ids else []
    return [LabelingTask.model_validate_json(text) for text in raw if text]


async def tasks_in(redis: Redis, *indexes: str) -> list[LabelingTask]:
    """All tasks of some indexes (`training`, `gold-training`, ...). Raises Unavailable."""
    found: list[LabelingTask] = []
    with redis_errors():
        for index in indexes:
            ids = [raw.decode() for raw in await redis.zrange(keys.labeling_open(index), 0, -1)]
            raw = await redis.mget([keys.labeling_task(i) for i in ids]) if ids else []
            found += [LabelingTask.model_validate_json(text) for text in raw if text]
    return found


async def _find_free(
    redis: Redis, indexes: Sequence[str], rater: str, *, tenant: str
) -> tuple[bytes, LabelingTask] | None:
    for index in indexes:
        if found := await _find(redis, index, rater, tenant=tenant, leased=False):
            return found
    return None


async def _find(
    redis: Redis, index: str, rater: str, *, tenant: str, leased: bool
) -> tuple[bytes, LabelingTask] | None:
    """A task of this tenant that the rater holds, or else one they may be given."""
    now = milliseconds()
    low, high = (f"({now}", f"({DONE}") if leased else ("-inf", str(now))
    start = 0
    while ids := await redis.zrangebyscore(
        keys.labeling_open(index), low, high, start=start, num=_PAGE
    ):
        start += len(ids)
        seen = await redis.smismember(keys.labeling_seen(rater), ids)
        unseen = [i.decode() for i, was in zip(ids, seen, strict=True) if not was]
        raws = await redis.mget([keys.labeling_task(i) for i in unseen]) if unseen else []
        tasks = [(raw, LabelingTask.model_validate_json(raw)) for raw in raws if raw]
        fits = is_held if leased else is_free  # the index may be older than the task
        fitting = [
            (raw, task)
            for raw, task in tasks
            if task.tenant == tenant and fits(task, rater, now=now)
        ]
        if fitting:  # raters who ask at the same moment start at different tasks
            return fitting[crc32(rater.encode()) % len(fitting)]
    return None


async def _change(
    redis: Redis,
    task_id: str,
    decide: Callable[[LabelingTask], Step | None],
    *,
    tenant: str,
    rater: str,
    reply: str,
    once: Once | None,
) -> str:
    """Read the task, decide, write unless it changed; then again. None means: nothing to do."""
    with redis_errors():
        for _ in range(_ATTEMPTS):
            raw, task = await _read(redis, task_id, tenant=tenant)
            step = decide(task)
            if step is None:
                await held(redis)  # it was said before: by a call that may have ended in 503
                return reply
            outcome = await _replace(redis, raw, step, rater=rater, reply=reply, once=once)
            if outcome != "changed":
                return reply if outcome == "done" else outcome
    raise Conflict("this task is being changed by somebody else: try again")


async def _read(redis: Redis, task_id: str, *, tenant: str) -> tuple[bytes, LabelingTask]:
    raw = await redis.get(keys.labeling_task(task_id))
    task = LabelingTask.model_validate_json(raw) if raw else None
    if raw is None or task is None or task.tenant != tenant:
        raise NotFound("no such task")
    return raw, task


async def _replace(
    redis: Redis,
    raw: bytes,
    step: Step,
    *,
    rater: str,
    reply: str = "",
    once: Once | None = None,
    run: Callable[..., Awaitable[Any]] = promise,
) -> str:
    """`done`, `changed` (somebody was faster), or the reply to the same request before."""
    status, before = await run(
        redis,
        "replace_labeling_task",
        [
            keys.labeling_task(step.task.id),
            keys.labeling_open(index_of(step.task)),
            keys.labeling_seen(rater),
            keys.counts(),
            once.key if once else keys.idempotency(""),
            keys.feedback_text(),
        ],
        [
            raw,
            step.task.model_dump_json(),
            step.task.id,
            step.score,
            "1" if step.seen else "0",
            step.rankings,
            step.comparisons,
            once.digest if once else "",
            once.seconds if once else 0,
            reply,
            NOTES + step.task.id if step.seen and step.task.answers[-1].sealed_notes else "",
        ],
    )
    if status == b"conflict":
        raise Conflict("this Idempotency-Key was used for another request")
    return str((before if status == b"replayed" else status).decode())
