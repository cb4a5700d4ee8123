"""Connections to Redis that survive cancellation and follow the master.

Two things that redis-py's own do not: a cancellation that comes while something is sent is never
forgotten, and where Sentinels are named, a connection goes to the master of the moment each time it
is opened, and leaves one that is a replica by now. core/redis_client.py makes pools of them.
"""

import asyncio
from typing import Any

import redis
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.retry import Retry as BlockingRetry

from core.redis_address import Address, tls_options_of

MAX_CONNECTIONS = 64
"""More calls at one time wait for a connection, as long as a command may take."""
_SENTINEL_SECONDS = 1.0
"""How long one Sentinel may take before the next is asked."""


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


class Master:
    """Where the master is, by the Sentinels. Callers who ask at one time share one answer."""

    def __init__(self, address: Address, *, timeout: float) -> None:
        options = {**sentinel_options(address, timeout=timeout), "retry": Retry(NoBackoff(), 0)}
        self._service = address.service
        self._watching = [
            Redis(host=host, port=port, **options) for host, port in address.sentinels
        ]
        self._asking: asyncio.Task[tuple[str, int]] | None = None
        self._last: tuple[str, int] | None = None
        self.pool: BlockingConnectionPool | None = None

    async def find(self) -> tuple[str, int]:
        """Host and port. Raises redis' ConnectionError when no Sentinel knows a living master."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._find())
            self._asking.add_done_callback(_look)
        return await asyncio.shield(self._asking)

    async def close(self) -> None:
        """Close the lines to the Sentinels."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])
        for client in self._watching:
            await client.aclose()

    async def _find(self) -> tuple[str, int]:
        found = await self._ask()
        if self._last not in (None, found) and self.pool is not None:
            await self.pool.disconnect(inuse_connections=False)  # they go to the old master
        self._last = found
        return found

    async def _ask(self) -> tuple[str, int]:
        """By the first Sentinel that knows; it is asked first the next time."""
        for client in tuple(self._watching):
            try:
                said = await client.sentinel_get_master_addr_by_name(self._service)
            except (redis.ConnectionError, redis.TimeoutError):
                continue
            if said is not None:
                self._watching.remove(client)
                self._watching.insert(0, client)
                host, port = said
                return host.decode() if isinstance(host, bytes) else str(host), int(port)
        raise redis.ConnectionError(
            f"none of {len(self._watching)} Sentinels knows a master of {self._service!r}"
        )


class _Following(AbstractConnection):  # type: ignore[misc]  # it has no types
    """Goes to the master of the moment whenever it is opened."""

    host: str
    port: int

    def __init__(self, *, master: Master, **options: Any) -> None:
        super().__init__(**options)
        self._master = master

    async def _connect(self) -> None:
        self.host, self.port = await self._master.find()
        await super()._connect()

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)
        except redis.ResponseError as error:
            if not is_read_only(error):
                raise
            await self.disconnect(nowait=True)
            raise redis.ConnectionError("this Redis is no longer the master") from error


def sentinel_options(address: Address, *, timeout: float = _SENTINEL_SECONDS) -> dict[str, Any]:
    """How a Sentinel is asked, as arguments of redis-py's client: once, then the next one is."""
    user, password = address.sentinel_login
    seconds = min(timeout, _SENTINEL_SECONDS)
    options: dict[str, Any] = {
        "socket_timeout": seconds,
        "socket_connect_timeout": seconds,
        "username": user,
        "password": password,
        "retry": BlockingRetry(NoBackoff(), 0),
    }
    return options | ({"ssl": True, **tls_options_of(address)} if address.is_tls else {})


def is_read_only(error: redis.ResponseError) -> bool:
    """Whether a replica says so; of a script's command it is in the middle of the text."""
    return isinstance(error, redis.ReadOnlyError) or "READONLY" in str(error)


def make_pool(address: Address, *, timeout: float) -> tuple[BlockingConnectionPool, Master | None]:
    """A bounded pool, and who finds the master for it. Commands are not retried."""
    master = Master(address, timeout=timeout) if address.sentinels else None
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
    if master is not None:
        bases = (_Following, *bases)
        pool.connection_kwargs["master"] = master
        master.pool = pool
    pool.connection_class = type(f"Our{kind.__name__}", bases, {"wait": address.wait})
    return pool, master


def _look(task: "asyncio.Task[tuple[str, int]]") -> None:
    """Whoever asked may have gone; that it failed is then nobody's concern."""
    if not task.cancelled():
        task.exception()
