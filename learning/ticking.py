"""What is due, looked at every second: ingest, a new round, the next stage of the current run.

Starts nothing itself but a run's record; the names it gives are tasks of learning/tasks.py. Called
twice in a second, or by two beats, it does no harm: leases and the one current run see to that.
"""

import time
from contextlib import suppress

from core import keys, lease, loop, metrics
from core.errors import Conflict
from core.records import STAGES
from core.redis_client import Redis, redis_errors
from core.settings import Settings
from feedback import erasure, labeling, quarantine
from feedback.erasing import log_is_unread
from learning.rounds import Facts, reason_for_round
from learning.sampling_tasks import sampling_due


async def due_tasks(redis: Redis, settings: Settings) -> list[str]:
    """The tasks that should be started now: `ingest`, `run_stage`, `sample_tasks`.

    Raises Unavailable when Redis does not answer.
    """
    with redis_errors():
        await loop.heartbeat(redis)
        await _start_round_when_due(redis, settings)
        for state, number in (await labeling.task_counts(redis)).items():
            metrics.LABELING_TASKS.labels(state).set(number)
        due = []
        if await _ingest_due(redis, settings):
            due.append("ingest")
        if await _stage_due(redis):
            due.append("run_stage")
        if await sampling_due(redis, settings):
            due.append("sample_tasks")
        return due


async def _ingest_due(redis: Redis, settings: Settings) -> bool:
    backlog = await redis.xlen(keys.inbox())
    metrics.LOG_BACKLOG.set(backlog)
    quarantined = await quarantine.look(redis, now=time.time())
    due = (
        backlog
        or quarantined.is_due
        or await redis.scard(keys.feedback_text())
        or not await redis.exists(keys.day_keys_checked())
        or await erasure.is_open(redis)
        or await log_is_unread(redis, settings.state_dir)
    )
    return bool(due) and not await redis.exists(keys.ingest_lease())


async def _stage_due(redis: Redis) -> bool:
    if not await redis.exists(keys.run_current()) or await lease.is_held(redis):
        return False
    notes = await loop.read_notes(redis)
    return time.time() >= notes.retry_at or bool(notes.cancel)


async def _start_round_when_due(redis: Redis, settings: Settings) -> None:
    notes = await loop.read_notes(redis)
    facts = Facts(
        now=time.time(),
        paused=notes.paused,
        running=bool(await redis.exists(keys.run_current())),
        comparisons=await loop.comparison_count(redis),
        consumed=notes.consumed,
        tried=notes.tried,
        last_round=notes.last_round,
    )
    reason = reason_for_round(
        facts,
        min_new_comparisons=settings.learning.min_new_comparisons,
        interval_seconds=settings.learning.interval_seconds,
    )
    if reason is None or await redis.get(keys.target()) is None:
        return
    with suppress(Conflict):  # a person or another beat was faster
        await loop.request_run(redis, stages=STAGES, wanted_by=f"the loop: {reason}")
