"""Draining the inbox: one worker at a time turns sealed text into records without PII.

The work is feedback/ingest.py's; here is the lease, so that two workers do not do it twice, and
what comes beside the inbox: erasures, before each batch; what waits in quarantine; what moves to
the archive or is too old; and the keys that nothing waits for any more.
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
from feedback.day_keys import destroy_when_due
from feedback.erasing import erase_what_is_due
from feedback.ingest import ingest_batch, retry_quarantine
from feedback.retention import keep_small
from feedback.sealed_texts import PiiFilter

_BATCH = 32
_RETRIES = 4
"""Texts of the quarantine that are tried again at a time: each may take the filter's whole time."""
_LEASE_MILLISECONDS = 10_000
_RENEW_SECONDS = 2.0


async def drain_inbox(
    redis: Redis, keyring: Keyring, settings: Settings, pii: PiiFilter, *, seconds: float
) -> int:
    """Ingest until nothing is left or the time is over; how many entries were done.

    Then try a few texts of the quarantine whose time has come, and destroy old day keys.

    0 at once when another worker is at it. Raises Unavailable when Redis went away, PiiFailed when
    the filter does not start: entries that were not recorded stay in the inbox.
    """
    owner = os.urandom(8).hex()
    with redis_errors():
        if not await redis.set(keys.ingest_lease(), owner, nx=True, px=_LEASE_MILLISECONDS):
            return 0
        renewing = asyncio.create_task(_renew(redis, owner))
        try:
            done = await _drain(redis, keyring, settings, pii, until=time.monotonic() + seconds)
            done += await retry_quarantine(redis, keyring, settings, pii, limit=_RETRIES)
            await keep_small(redis, settings, now=time.time())
            await destroy_when_due(
                redis,
                keyring,
                spool=settings.state_dir / "spool",
                sealed_days=settings.log.sealed_days,
                now=time.time(),
            )
            return done
        finally:
            renewing.cancel()
            await _lease(redis, "drop", owner)


async def erase_here(redis: Redis, keyring: Keyring, settings: Settings) -> bool:
    """Go on with erasures where no worker does; False while another holds the lease of ingest.

    Raises Unavailable, OSError.
    """
    owner = os.urandom(8).hex()
    with redis_errors():
        if not await redis.set(keys.ingest_lease(), owner, nx=True, px=_LEASE_MILLISECONDS):
            return False
        renewing = asyncio.create_task(_renew(redis, owner))
        try:
            await erase_what_is_due(redis, keyring, settings)
        finally:
            renewing.cancel()
            await _lease(redis, "drop", owner)
    return True


async def _drain(
    redis: Redis, keyring: Keyring, settings: Settings, pii: PiiFilter, *, until: float
) -> int:
    total = 0
    while time.monotonic() < until:
        await erase_what_is_due(redis, keyring, settings)
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
