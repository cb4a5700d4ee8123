"""The lease on learning: one worker at a time, each with a fencing token newer than all before.

Atomic steps on Redis; learning/rounds/lease_keeper.py keeps a lease while a stage runs. Knows no
runs.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from core import keys
from core.redis_client import Redis, promise, script

SECONDS = 10.0
"""A worker that dies holds up the loop this long."""


async def take(redis: Redis, *, seconds: float = SECONDS) -> int | None:
    """The fencing token of the lease, which makes all older ones stale; None while it is held.

    Replicas have it before it is used: after a failover no other worker is given the same.
    """
    return int(await _lease(redis, "take", seconds, 0, run=promise)) or None


async def keep(redis: Redis, token: int, *, seconds: float = SECONDS) -> bool:
    """Hold the lease for that much longer; False when it is not this token's any more."""
    return bool(await _lease(redis, "keep", seconds, token))


async def drop(redis: Redis, token: int) -> None:
    """Give the lease back, if it is still this token's."""
    await _lease(redis, "drop", 0, token)


async def is_held(redis: Redis) -> bool:
    """Whether some worker runs a stage now."""
    return bool(await redis.exists(keys.learning_lease()))


async def _lease(
    redis: Redis,
    action: str,
    seconds: float,
    token: int,
    *,
    run: Callable[..., Awaitable[Any]] = script,
) -> Any:
    names = [keys.learning_lease(), keys.fence()]
    return await run(redis, "lease", names, [action, int(seconds * 1000), token])
