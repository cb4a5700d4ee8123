"""Connections to Redis that survive cancellation and follow the master.

Two things that redis-py's own do not: a cancellation that comes while something is sent is never
forgotten, and where Sentinels or a Cluster are named, a connection goes to the server of the moment
(core/redis_finders.py finds it) each time it is opened, and leaves one that is not the one to ask
any more. core/redis_client.py makes pools of them.
"""

import asyncio
from typing import Any

import redis
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AskError, ClusterDownError, TryAgainError

from core.redis_address import Address
from core.redis_finders import Finder, make_finder

MAX_CONNECTIONS = 64
"""More calls at one time wait for a connection, as long as a command may take."""
_ELSEWHERE = (redis.ReadOnlyError, AskError, TryAgainError, ClusterDownError)
"""Errors of a server that is not the one to ask, for now or for ever; MOVED is a kind of ASK."""


class _Cancellable(AbstractConnection):  # type: ignore[misc]  # it has no types
    """Sends under `asyncio.timeout`, which never forgets a cancellation.

    redis-py sends under `asyncio.wait_for`, and that of Python 3.11 swallows a cancellation which
    comes in the moment in which what it waits for is done. Without a timeout it does not use it.
    """

    socket_timeout: float | None

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        seconds, self.socket_timeout = self.socket_timeout, None
        try:
            async with asyncio.timeout(seconds):
                await super().send_packed_command(command, check_health)
        except TimeoutError as error:
            raise redis.TimeoutError("Timeout writing to socket") from error
        finally:
            self.socket_timeout = seconds


class _Following(AbstractConnection):  # type: ignore[misc]  # it has no types
    """Goes where the finder says whenever it is opened, and leaves who is not the one to ask."""

    host: str
    port: int

    def __init__(self, *, finder: Finder, **options: Any) -> None:
        super().__init__(**options)
        self._finder = finder

    async def _connect(self) -> None:
        self.host, self.port = await self._finder.find()
        try:
            await super()._connect()
        except OSError:
            self._finder.doubt()
            raise

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)
        except redis.ResponseError as error:
            if not is_elsewhere(error):
                raise
            self._finder.doubt()
            await self.disconnect(nowait=True)
            said = f"{type(error).__name__} from {self.host}:{self.port}"
            raise redis.ConnectionError(f"this Redis is not the one to ask: {said}") from error


def is_elsewhere(error: redis.ResponseError) -> bool:
    """Whether a server says that it is not the one; a script's command in the middle of the text.

    A script meets a key that has left the slot only if it removed that key itself: its keys are
    looked at before it runs.
    """
    said = str(error)
    return isinstance(error, _ELSEWHERE) or "READONLY" in said or "non local key" in said


def make_pool(address: Address, *, timeout: float) -> tuple[BlockingConnectionPool, Finder | None]:
    """A bounded pool, and who finds the server for it. Commands are not retried."""
    finder = make_finder(address, timeout=timeout)
    pool = BlockingConnectionPool.from_url(
        address.url,
        max_connections=MAX_CONNECTIONS,
        timeout=timeout,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=15,
    )
    kind = pool.connection_class  # the URL chose it: a socket, TCP or TLS
    bases: tuple[type, ...] = (_Cancellable, kind)
    if finder is not None:
        bases = (_Following, *bases)
        pool.connection_kwargs["finder"] = finder
        finder.pool = pool
    says = {"wait": address.wait, "cluster": bool(address.nodes)}
    pool.connection_class = type(f"Our{kind.__name__}", bases, says)
    return pool, finder
