"""The keys of past days: destroyed as soon as nothing waits that they seal.

What a key sealed is unreadable from then on, in old append-only files and backups too. Who needs a
key is read off the text itself, in the order in which text moves: spool, inbox, texts of feedback
and notes, quarantine; so what moves on during the look is met later in it. A gateway on another
machine may have a spool that is not seen here: keys are kept for `sealed_days` in any case.
"""

from collections.abc import AsyncIterator
from pathlib import Path

from core import keys
from core.keyring import Keyring, day_at, day_of
from core.records import Feedback, LabelingTask
from core.redis_client import Redis
from feedback.quarantine import NOTES, PROMPT
from feedback.sealing import texts_day

_LOOK_SECONDS = 3600
_PAGE = 100


async def destroy_when_due(
    redis: Redis, keyring: Keyring, *, spool: Path, sealed_days: int, now: float
) -> int:
    """Look once an hour, whoever asks; how many keys are gone by it. For one caller at a time."""
    if not await redis.set(keys.day_keys_checked(), 1, nx=True, ex=_LOOK_SECONDS):
        return 0
    return await destroy_unneeded(redis, keyring, spool=spool, sealed_days=sealed_days, now=now)


async def destroy_unneeded(
    redis: Redis, keyring: Keyring, *, spool: Path, sealed_days: int, now: float
) -> int:
    """Destroy the keys of days that are over for `sealed_days` and sealed nothing that waits."""
    last = day_at(now) - sealed_days
    old = {day for day in keyring.sealed_days() if day < last}
    if not old or _spooled(spool):
        return 0
    unneeded = old - await needed_days(redis)
    keyring.destroy_days(unneeded)
    return len(unneeded)


async def needed_days(redis: Redis) -> set[int]:
    """The days whose keys seal something that still has to be opened."""
    days = {day_of(sealed) async for sealed in _inbox(redis)}
    async for sealed in _unfiltered(redis):
        days.add(texts_day(sealed))
    async for name, kept in redis.hscan_iter(keys.quarantine(), count=_PAGE):
        if name.startswith(PROMPT.encode()):
            days.add(day_of(kept))
        else:
            days |= {texts_day(sealed) for sealed in kept.decode().split()}
    return days


def _spooled(folder: Path) -> bool:
    """Whether text waits in a gateway's file: it may be from any day."""
    return any(path.stat().st_size for path in folder.glob("*.spool"))


async def _inbox(redis: Redis) -> AsyncIterator[bytes]:
    after = "-"
    while entries := await redis.xrange(keys.inbox(), min=after, count=_PAGE):
        for _, fields in entries:
            yield fields.get(b"sealed", b"")
        after = f"({entries[-1][0].decode()}"


async def _unfiltered(redis: Redis) -> AsyncIterator[str]:
    """Sealed texts of feedback and notes that wait for the filter."""
    async for raw_name in redis.sscan_iter(keys.feedback_text(), count=_PAGE):
        name = raw_name.decode()
        if name.startswith(NOTES):
            raw = await redis.get(keys.labeling_task(name.removeprefix(NOTES)))
            answers = LabelingTask.model_validate_json(raw).answers if raw else ()
            sealed = [answer.sealed_notes for answer in answers]
        else:
            raw = await redis.get(keys.feedback(name))
            sealed = [Feedback.model_validate_json(raw).sealed] if raw else []
        for text in filter(None, sealed):
            yield text
