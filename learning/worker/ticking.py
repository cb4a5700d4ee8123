"""What is due, looked at every second: ingest, a new round, the next stage of the current run.

Starts nothing itself but a run's record; the names it gives are tasks of learning/worker/tasks.py.
Called twice in a second, or by two beats, it does no harm: leases and the one current run see to
that.
"""

import logging
import time
from contextlib import suppress

from core import audit_log, keys, lease, loop, metrics
from core.audit_log import AuditBroken
from core.errors import Conflict
from core.keyring import Keyring
from core.records import STAGES
from core.redis_client import Redis, redis_errors
from core.room import room_of
from core.settings import Settings
from feedback import erasure, labeling, quarantine
from feedback.compaction import compaction_due
from feedback.erasing import log_is_unread
from feedback.retention import retention_due
from learning.canary import watch as canary_watch
from learning.rounds import freshness
from learning.rounds.decisions import Facts, reason_for_round
from learning.worker import redis_memory
from learning.worker.sampling_tasks import sampling_due
from learning.worker.webhooks import webhooks_due

_log = logging.getLogger(__name__)


async def due_tasks(redis: Redis, settings: Settings) -> list[str]:
    """The tasks that should be started now, by the names that learning/worker/tasks.py gives them.

    Raises Unavailable when Redis does not answer.
    """
    with redis_errors():
        await loop.heartbeat(redis)
        no_room = room_of(settings.state_dir, settings.room).lacking("learning")
        await loop.note_room(redis, no_room)
        if settings.learning.enabled and no_room is None:
            await _start_round_when_due(redis, settings)
        for state, number in (await labeling.task_counts(redis)).items():
            metrics.LABELING_TASKS.labels(state).set(number)
        await redis_memory.look(redis)
        await _mirror_audit(redis, settings)
        await freshness.look(redis, settings)
        due = []
        if await _ingest_due(redis, settings):
            due.append("ingest")
        if await _stage_due(redis):
            due.append("run_stage")
        if settings.learning.enabled and no_room is None and await sampling_due(redis, settings):
            due.append("sample_tasks")
        if await canary_watch.look_due(redis):
            due.append("watch_canary")
        if await webhooks_due(redis, settings, now=time.time()):
            due.append("send_webhooks")
        return due


async def _mirror_audit(redis: Redis, settings: Settings) -> None:
    """Keep the audit log outside Redis up to date; one that somebody changed holds up nothing."""
    try:
        await audit_log.mirror(redis, Keyring(settings.secrets), settings.state_dir)
    except (AuditBroken, OSError) as error:
        _log.error("the audit log is not copied: %s; see `instructloop audit --verify`", error)


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
        or await compaction_due(redis, settings.log, now=time.time())
        or await retention_due(redis)
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
