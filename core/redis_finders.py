"""Who knows where connections go: Sentinels the master, nodes of a Cluster the owner of our slot.

All keys of the service begin with one hash tag (core/keys.py), so of a Cluster one slot is ours,
and at any moment one server owns it. Finds a host and a port; what a connection does with them is
core/redis_connection.py's.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import redis
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry as BlockingRetry

from core import keys
from core.redis_address import Address, tls_options_of

Place = tuple[str, int]
Ask = Callable[[Redis], Awaitable[Place | None]]
SLOT: int = key_slot(keys.PREFIX.encode())
"""Of a Cluster's 16,384, the one that has all keys of the service."""
_ASK_SECONDS = 1.0
"""How long one server may take before the next is asked."""


class Finder:
    """Where a pool's connections go, by servers that know: they are asked one after the other.

    Callers who ask at one time share one answer.
    """

    def __init__(self, knowing: Sequence[Redis], ask: Ask, *, unknown: str) -> None:
        self._knowing = list(knowing)
        self._ask_one = ask
        self._unknown = unknown
        self._asking: asyncio.Task[Place] | None = None
        self._last: Place | None = None
        self._doubted = False
        self.pool: BlockingConnectionPool | None = None

    async def find(self) -> Place:
        """Host and port. Raises redis' ConnectionError when nobody who answers knows."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._find())
            self._asking.add_done_callback(_look)
        return await asyncio.shield(self._asking)

    def doubt(self) -> None:
        """What was found led nowhere: who said it may be cut off, so others are asked before."""
        self._doubted = True

    async def close(self) -> None:
        """Close the lines to those who know."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])
        for client in self._knowing:
            await client.aclose()

    async def _find(self) -> Place:
        found = await self._ask()
        if self._last not in (None, found) and self.pool is not None:
            await self.pool.disconnect(inuse_connections=False)  # they go to another
        self._last = found
        return found

    async def _ask(self) -> Place:
        """By the first who knows; unless that is doubted, it is asked first the next time."""
        if self._doubted:
            self._doubted = False
            self._knowing.append(self._knowing.pop(0))
        why = ""
        for client in tuple(self._knowing):
            try:
                found = await self._ask_one(client)
            except (redis.ConnectionError, redis.TimeoutError):
                continue
            except redis.ResponseError as error:
                why = f" ({_place_of(client)} says: {error})"
                continue
            if found is not None:
                self._knowing.remove(client)
                self._knowing.insert(0, client)
                return found
        raise redis.ConnectionError(self._unknown + why)


def make_finder(address: Address, *, timeout: float) -> Finder | None:
    """Who finds the server for connections to an address; nobody where the URL names it."""
    if address.sentinels:
        ask: Ask = partial(_master, service=address.service)
        unknown = f"none of {len(address.sentinels)} Sentinels knows a master of "
        unknown += repr(address.service)
        options = sentinel_options(address, timeout=timeout)
    elif address.nodes:
        ask = _owner
        unknown = f"none of {len(address.nodes)} nodes knows a Cluster and the owner of slot {SLOT}"
        options = _options(address, address.login, timeout=timeout)
    else:
        return None
    options["retry"] = Retry(NoBackoff(), 0)
    knowing = [
        Redis(host=host, port=port, **options)
        for host, port in (*address.sentinels, *address.nodes)
    ]
    return Finder(knowing, ask, unknown=unknown)


def in_cluster(client: Redis) -> bool:
    """Whether the client's URL names nodes of a Cluster: no key may be outside our slot there."""
    return bool(getattr(client.connection_pool.connection_class, "cluster", False))


def sentinel_options(address: Address, *, timeout: float = _ASK_SECONDS) -> dict[str, Any]:
    """How a Sentinel is asked, as arguments of redis-py's client: once, then the next one is."""
    return _options(address, address.sentinel_login, timeout=timeout)


def _options(
    address: Address, login: tuple[str | None, str | None], *, timeout: float
) -> dict[str, Any]:
    user, password = login
    seconds = min(timeout, _ASK_SECONDS)
    options: dict[str, Any] = {
        "socket_timeout": seconds,
        "socket_connect_timeout": seconds,
        "username": user,
        "password": password,
        "retry": BlockingRetry(NoBackoff(), 0),
    }
    return options | ({"ssl": True, **tls_options_of(address)} if address.is_tls else {})


async def _master(client: Redis, *, service: str) -> Place | None:
    said = await client.sentinel_get_master_addr_by_name(service)
    return None if said is None else (_text(said[0]), int(said[1]))


async def _owner(client: Redis) -> Place | None:
    """By a node's view of its Cluster."""
    # in two words: redis-py would cut what it knows the name of to a form of its own
    for first, last, master, *_ in await client.execute_command("CLUSTER", "SLOTS"):
        if first <= SLOT <= last:
            host = _text(master[0] or "")  # a node that was never told its own says nothing
            return None if host == "?" else (host or _place_of(client)[0], int(master[1]))
    return None


def _place_of(client: Redis) -> Place:
    known = client.connection_pool.connection_kwargs
    return known["host"], known["port"]


def _text(said: bytes | str) -> str:
    return said.decode() if isinstance(said, bytes) else said


def _look(task: "asyncio.Task[Place]") -> None:
    """Whoever asked may have gone; that it failed is then nobody's concern."""
    if not task.cancelled():
        task.exception()
