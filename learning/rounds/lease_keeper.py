"""Holding the learning lease: a thread renews it while a stage runs, and says when it is lost.

A thread of its own, so that a stage that computes in this process (snapshot, gate) is renewed too.
The clock here is the stricter judge: when renewing has not worked for almost the lease's length,
because Redis is away or this process was stopped, another worker may hold it, so it counts as lost.
Knows nothing of stages.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from core import lease as record
from core.errors import LeaseLost, Unavailable
from core.redis_client import Redis, connect, redis_errors

_MARGIN = 0.1
"""The share of the lease that clocks and scheduling may be off by."""


class Lease:
    """A lease that is being renewed. `token` fences everything that is written under it."""

    def __init__(self, redis_url: str, token: int, *, seconds: float, since: float) -> None:
        self.token = token
        self._redis_url = redis_url
        self._seconds = seconds
        self._renewed = since
        self._taken = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    @property
    def lost(self) -> bool:
        """Whether another worker may hold the lease by now."""
        silence = time.monotonic() - self._renewed
        return self._taken or silence > self._seconds * (1.0 - _MARGIN)

    def check(self) -> None:
        """Raises LeaseLost when it is lost: call it before anything that cannot be undone."""
        if self.lost:
            raise LeaseLost("the learning lease is lost: another worker may have taken over")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    def _renew(self) -> None:
        every = self._seconds / 5
        with asyncio.Runner() as runner:
            while not self._taken and not self._done.wait(every):
                runner.run(self._renew_once(timeout=every))

    async def _renew_once(self, *, timeout: float) -> None:
        began = time.monotonic()
        with suppress(Unavailable), redis_errors():
            async with connect(self._redis_url, timeout=timeout) as redis:
                if await record.keep(redis, self.token, seconds=self._seconds):
                    self._renewed = began
                else:
                    self._taken = True


@asynccontextmanager
async def leased(
    redis: Redis, redis_url: str, *, seconds: float = record.SECONDS
) -> AsyncIterator[Lease | None]:
    """The learning lease for the length of a `with` block; None when another worker holds it."""
    began = time.monotonic()
    token = await record.take(redis, seconds=seconds)
    if token is None:
        yield None
        return
    lease = Lease(redis_url, token, seconds=seconds, since=began)
    lease.start()
    try:
        yield lease
    finally:
        lease.stop()
        with suppress(Unavailable), redis_errors():
            await record.drop(redis, token)
