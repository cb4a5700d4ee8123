"""What the filter could not clear: kept sealed, tried again ever more rarely, never dropped.

A name waits as long again as it has waited already, at least a minute and at most a day. The hash
of `keys.quarantine` says what is here; the two indexes beside it say since when and when next, and
are mended when they do not agree with it, because other scripts take names out of the hash only.
Knows no filter; ingest.py tries again what is due.
"""

from dataclasses import dataclass
from typing import Any

from core import keys, metrics
from core.redis_client import Redis

PROMPT = "prompt:"
"""How names of completions begin; then comes the id of their entry in the inbox."""
NOTES = "notes:"
"""How names of labeling notes begin; then comes the task. Those of feedback are its id."""
FIRST_DELAY_SECONDS = 60.0
LONGEST_DELAY_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True)
class Waiting:
    """What is in quarantine."""

    texts: int
    oldest_seconds: float
    is_due: bool
    """Whether something may be tried again, or an index has to be mended."""


def delay_after(seconds: float) -> float:
    """How long something that has been here for so long waits until the next attempt."""
    return min(max(seconds, FIRST_DELAY_SECONDS), LONGEST_DELAY_SECONDS)


def put(step: Any, name: str, sealed: bytes | str, *, now: float) -> None:
    """Add to a transaction what brings a text here; one that is here keeps its times."""
    step.hset(keys.quarantine(), name, sealed)
    step.zadd(keys.quarantine_since(), {name: _millis(now)}, nx=True)
    step.zadd(keys.quarantine_retry(), {name: _millis(now + FIRST_DELAY_SECONDS)}, nx=True)


async def look(redis: Redis, *, now: float) -> Waiting:
    """What waits, also as metrics. Cheap: every tick looks."""
    texts = int(await redis.hlen(keys.quarantine()))
    known = int(await redis.zcard(keys.quarantine_since()))
    oldest = await redis.zrange(keys.quarantine_since(), 0, 0, withscores=True)
    due = int(await redis.zcount(keys.quarantine_retry(), "-inf", _millis(now)))
    seconds = max(now - oldest[0][1] / 1000, 0.0) if texts and oldest else 0.0
    metrics.QUARANTINE_TEXTS.set(texts)
    metrics.QUARANTINE_OLDEST_SECONDS.set(seconds)
    return Waiting(texts, seconds, bool(due) or known != texts)


async def take_due(redis: Redis, *, now: float, limit: int) -> list[tuple[str, bytes]]:
    """Up to `limit` names whose time has come, with what is sealed, the longest overdue first.

    Each has its next time already when it is given out, so that one that kills the process which
    tries it does not come first again.
    """
    await _mend(redis, now=now)
    names = await redis.zrangebyscore(
        keys.quarantine_retry(), "-inf", _millis(now), start=0, num=limit
    )
    if not names:
        return []
    since = await redis.zmscore(keys.quarantine_since(), names)
    later = {
        name: _millis(now + delay_after(now - (came or 0) / 1000))
        for name, came in zip(names, since, strict=True)
    }
    await redis.zadd(keys.quarantine_retry(), later, xx=True)
    sealed = await redis.hmget(keys.quarantine(), names)
    return [(n.decode(), text) for n, text in zip(names, sealed, strict=True) if text is not None]


async def _mend(redis: Redis, *, now: float) -> None:
    """Let the indexes name what is here, and nothing else."""
    indexed = set(await redis.zrange(keys.quarantine_since(), 0, -1))
    here = set(await redis.hkeys(keys.quarantine()))
    if indexed == here:
        return
    async with redis.pipeline(transaction=True) as step:
        for name in indexed - here:
            step.zrem(keys.quarantine_since(), name)
            step.zrem(keys.quarantine_retry(), name)
        for name in here - indexed:
            step.zadd(keys.quarantine_since(), {name: _millis(now)}, nx=True)
            step.zadd(keys.quarantine_retry(), {name: _millis(now)}, nx=True)
        await step.execute()


def _millis(moment: float) -> int:
    return int(moment * 1000)
