"""Draining the inbox: one worker at a time turns sealed text into records without PII.

The work is feedback/ingest.py's; here are the lease, so that two workers do not do it twice, and
the filter process, which is kept because it takes a second to start.
"""

import asyncio
import os
import time
from contextlib import suppress

from core import keys
from core.errors import Unavailable
from core.keyring import Keyring
from core.redis_client import Redis, redis_errors, script
from core.settings import Settings
from feedback.ingest import ingest_batch
from feedback.sealed_texts import PiiFilter

_BATCH = 32
_LEASE_MILLISECONDS = 10_000
_RENEW_SECONDS = 2.0


async def drain_inbox(
    redis: Redis, keyring: Keyring, settings: Settings, pii: PiiFilter, *, seconds: float
) -> int:
    """Ingest until nothing is left or the time is over; how many entries were done.

    0 at once when another worker is at it. Raises Unavailable when Redis went away, PiiFailed when
    the filter does not start: entries that were not recorded stay in the inbox.
    """
    owner = os.urandom(8).hex()
    with redis_errors():
        if not await redis.set(keys.ingest_lease(), owner, nx=True, px=_LEASE_MILLISECONDS):
            return 0
        renewing = asyncio.create_task(_renew(redis, owner))
        try:
            return await _drain(redis, keyring, settings, pii, until=time.monotonic() + seconds)
        finally:
            renewing.cancel()
            await _lease(redis, "drop", owner)


async def _drain(
    redis: Redis, keyring: Keyring, settings: Settings, pii: PiiFilter, *, until: float
) -> int:
    total = 0
    while time.monotonic() < until:
        done = await ingest_batch(redis, keyring, settings, pii, limit=_BATCH)
        total += done
        if done == 0:
            break
    return total


async def _renew(redis: Redis, owner: str) -> None:
    while True:
        await asyncio.sleep(_RENEW_SECONDS)
        with suppress(Unavailable), redis_errors():
            await _lease(redis, "keep", owner)


async def _lease(redis: Redis, action: str, owner: str) -> None:
    await script(
        redis,
        "lease",
        [keys.ingest_lease(), keys.fence()],
        [action, _LEASE_MILLISECONDS, owner],
    )
