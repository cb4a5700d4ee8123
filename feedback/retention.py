"""What is older than the settings allow goes: completions from Redis and archive, and feedback.

Ages are counted in whole days, so that a file is written anew once a day at most. How many went is
in the audit log; the totals of `status` go on counting what once was said, and no tombstone is
written. Whoever calls holds the ingest lease.
"""

import logging

from core import keys
from core.errors import ArchiveBroken
from core.records import Completion
from core.redis_client import Redis, redis_errors
from core.registry import audit_entry
from core.settings import Settings
from feedback.archive_files import Rest
from feedback.archive_manifest import Told
from feedback.compaction import compact, compaction_due, drop_completions, prepare, remove_rows
from feedback.erasure_said import remove_feedback

_DAY_MS = 86_400_000
_log = logging.getLogger(__name__)
_LOOK_SECONDS = 3600
_RETRY_SECONDS = 60
_BATCH = 100
_BATCHES = 100
"""At one time; the rest goes at the next look."""


async def retention_due(redis: Redis) -> bool:
    """Whether somebody should look after the archive and for what is too old: once an hour."""
    return not await redis.exists(keys.retention_checked())


async def expire(redis: Redis, settings: Settings, *, now: float) -> int:
    """Remove what is too old; how many completions in Redis and pieces of feedback went.

    Raises OSError, ArchiveBroken, Unavailable.
    """
    await prepare(redis, settings)
    retention = settings.retention
    done, left = 0, False
    if retention.completions_days is not None:
        before = _day_start(now) - retention.completions_days * _DAY_MS
        gone = await _expire_completions(redis, before)
        done, left = done + gone, left or gone == _BATCH * _BATCHES
        left = not await _expire_rows(redis, before) or left
    if retention.feedback_days is not None:
        before = _day_start(now) - retention.feedback_days * _DAY_MS
        gone = await _expire_feedback(redis, before)
        done, left = done + gone, left or gone == _BATCH * _BATCHES
    if not left:
        with redis_errors():
            await redis.set(keys.retention_checked(), "1", ex=_LOOK_SECONDS)
    return done


async def keep_small(redis: Redis, settings: Settings, *, now: float) -> int:
    """What the worker does beside ingest: compaction and retention; how many records moved or went.

    An archive that cannot be written or read holds up nothing else. Raises Unavailable.
    """
    due = await compaction_due(redis, settings.log, now=now)
    old = await retention_due(redis)
    if not due and not old:
        return 0
    try:
        moved = await compact(redis, settings, now=now)
        return moved + (await expire(redis, settings, now=now) if old else 0)
    except (ArchiveBroken, OSError) as error:
        _log.error("the archive of completions: %s", error)
        with redis_errors():
            await redis.set(keys.retention_checked(), "1", ex=_RETRY_SECONDS)
        return 0


def _day_start(now: float) -> int:
    return int(now * 1000) // _DAY_MS * _DAY_MS


async def _expire_completions(redis: Redis, before_ms: int) -> int:
    total = 0
    for _ in range(_BATCHES):
        with redis_errors():
            raw = await redis.zrangebyscore(
                keys.logged(), "-inf", f"({before_ms}", start=0, num=_BATCH
            )
            if not raw:
                break
            tokens = [token.decode() for token in raw]
            found = await redis.mget([keys.completion(token) for token in tokens])
        records = [Completion.model_validate_json(text) for text in found if text]
        audit = audit_entry("expired", completions=str(len(records))) if records else ""
        await drop_completions(redis, [(record, "") for record in records], audit=audit)
        with redis_errors():
            await redis.zrem(keys.logged(), *tokens)
        total += len(tokens)
    return total


async def _expire_rows(redis: Redis, before_ms: int) -> bool:
    """Rows of the archive; False: somebody else changed it meanwhile."""

    def tell(name: str, rest: Rest) -> Told:
        return Told(audit=audit_entry("expired", completions=str(len(rest.removed)), file=name))

    return await remove_rows(redis, before_ms=before_ms, tell=tell)


async def _expire_feedback(redis: Redis, before_ms: int) -> int:
    total = 0
    for _ in range(_BATCHES):
        with redis_errors():
            raw = await redis.zrangebyscore(
                keys.feedback_index(), "-inf", f"({before_ms}", start=0, num=_BATCH
            )
            ids = [feedback_id.decode() for feedback_id in raw]
            if not ids:
                break
            texts = await redis.mget([keys.feedback(i) for i in ids])
            gone = await remove_feedback(redis, [text for text in texts if text])
            if gone:
                entry = audit_entry("expired", feedback=str(gone))
                await redis.xadd(keys.audit(), {"entry": entry})
        total += len(ids)
    return total
