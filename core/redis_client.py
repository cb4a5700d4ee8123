"""The door to Redis: connecting, checking that it keeps its word, and atomic scripts.

The only module that imports redis. Others take the client that `connect` gives and the key names
of core/keys.py. Errors of the connection reach callers as `core.errors.Unavailable`, through
`redis_errors`.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import redis
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from core import keys
from core.errors import StartError, Unavailable
from core.keyring import Keyring
from core.settings import Settings

LUA = Path(__file__).parent / "lua"
SCHEMA_VERSION = "1"
MAX_CONNECTIONS = 64
"""More calls at one time wait for a connection, as long as a command may take."""
_LOOK_SECONDS = 0.05
_BATCH = 128
__all__ = [
    "Batches",
    "Line",
    "Redis",
    "check_redis",
    "connect",
    "local_redis_url",
    "redis_errors",
    "redis_url",
    "rewrite_file",
    "script",
]


def local_redis_url(state_dir: Path, password: str, *, database: int = 0) -> str:
    """Where the Redis that `up` starts listens: a socket in a folder of mode 0700."""
    return f"unix://:{password}@{socket_path(state_dir)}?db={database}"


def redis_url(settings: Settings, *, database: int = 0) -> str:
    """The Redis of the records: the setting, or our own in the state folder.

    The password of our own is read from its file, so that it is in no environment or command line.
    """
    if settings.redis_url:
        return settings.redis_url
    password = Keyring(settings.state_dir / "secrets").token("redis.password")
    return local_redis_url(settings.state_dir, password, database=database)


def socket_path(state_dir: Path) -> Path:
    """The socket of our own Redis."""
    return state_dir.resolve() / "redis" / "redis.sock"


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


@asynccontextmanager
async def connect(url: str, *, timeout: float = 5.0) -> AsyncIterator[Redis]:
    """A client for the length of a `with` block. Commands are not retried: callers decide."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=MAX_CONNECTIONS,
        timeout=timeout,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=15,
    )
    kind = pool.connection_class  # the URL chose it: a socket, TCP or TLS
    pool.connection_class = type(f"Cancellable{kind.__name__}", (_Cancellable, kind), {})
    client = Redis.from_pool(pool)
    try:
        yield client
    finally:
        await client.aclose()


@contextmanager
def redis_errors() -> Iterator[None]:
    """Turn a lost, loading, full or read-only Redis into Unavailable (503, with Retry-After)."""
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError, redis.ReadOnlyError, OSError) as error:
        raise Unavailable(f"Redis does not answer: {type(error).__name__}; try again") from error
    except redis.ResponseError as error:
        if str(error).startswith(("OOM", "MISCONF", "LOADING", "NOREPLICAS")):
            raise Unavailable(f"Redis cannot write now: {error}") from error
        raise


@cache
def _source(name: str) -> str:
    return (LUA / f"{name}.lua").read_text()


@cache
def _digest(name: str) -> str:
    """Redis's name for a script."""
    return hashlib.sha1(_source(name).encode(), usedforsecurity=False).hexdigest()


async def script(
    client: Redis, name: str, key_names: list[str], args: list[str | bytes | int | float]
) -> Any:
    """Run core/lua/NAME.lua: one atomic step. It is loaded again after a restart of Redis."""
    run = client.register_script(_source(name))
    return await cast(Awaitable[Any], run(keys=key_names, args=args))


async def rewrite_file(client: Redis, *, seconds: float) -> bool | None:
    """Let Redis write its append-only file anew: commands whose effect is gone leave the disk.

    True when it has (or keeps no such file), False when it is not done in time, None when this
    Redis does not let us.
    """
    info = await client.info("persistence")
    if not info.get("aof_enabled"):
        return True
    if info["aof_rewrite_in_progress"]:  # it began before: it may hold what is gone by now
        await _until_rewritten(client, seconds)
    try:
        await client.bgrewriteaof()
    except redis.ResponseError as error:
        return False if "progress" in str(error) else None
    return await _until_rewritten(client, seconds)


async def _until_rewritten(client: Redis, seconds: float) -> bool:
    for _ in range(int(seconds / _LOOK_SECONDS)):
        info = await client.info("persistence")
        if not info["aof_rewrite_in_progress"] and not info["aof_rewrite_scheduled"]:
            return bool(info["aof_last_bgrewrite_status"] == "ok")
        await asyncio.sleep(_LOOK_SECONDS)
    return False


class Line:
    """One connection, kept for one caller who runs scripts, one at a time, that may run twice.

    It saves what a shared client does around every command, which takes as long as Redis itself.
    """

    def __init__(self, client: Redis) -> None:
        pool = client.connection_pool
        self._connection = pool.connection_class(**pool.connection_kwargs)

    async def script(
        self, name: str, key_names: list[str], args: list[str | bytes | int | float]
    ) -> Any:
        """Like `script`. A connection that Redis has closed meanwhile is opened again, once."""
        command = (len(key_names), *key_names, *args)
        kept = self._connection.is_connected
        try:
            return await self._run(name, command)
        except redis.ConnectionError:
            if not kept:
                raise
        return await self._run(name, command)

    async def close(self) -> None:
        """Close the connection; another call would open it again."""
        await self._connection.disconnect()

    async def _run(self, name: str, command: Sequence[str | bytes | int | float]) -> Any:
        try:
            return await self._call("EVALSHA", _digest(name), *command)
        except redis.exceptions.NoScriptError:
            return await self._call("EVAL", _source(name), *command)

    async def _call(self, *command: str | bytes | int | float) -> Any:
        await self._connection.send_command(*command)
        return await self._connection.read_response()


class Batches:
    """One connection for many callers who run scripts that may run twice.

    What is asked while a batch is on its way goes with the next one, so that Redis syncs its file
    once for all of it, and what a shared client does around every command is done once. Replies
    come when Redis has answered: nobody is told anything earlier.
    """

    def __init__(self, client: Redis) -> None:
        pool = client.connection_pool
        self._connection = pool.connection_class(**pool.connection_kwargs)
        self._waiting: list[_Call] = []
        self._sending: asyncio.Task[None] | None = None

    async def script(
        self, name: str, key_names: list[str], args: list[str | bytes | int | float]
    ) -> Any:
        """Like `script`. A connection that Redis has closed meanwhile is opened again, once."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Call(name, (len(key_names), *key_names, *args), answer))
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send())
        return await answer

    async def close(self) -> None:
        """End, once everything that was asked is answered; another call would begin again."""
        if self._sending is not None:
            await self._sending
        await self._connection.disconnect()

    async def _send(self) -> None:
        try:
            while self._waiting:
                calls, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
                try:
                    await self._exchange(calls)
                except (redis.RedisError, OSError) as error:
                    # those behind them need not find out one batch after the other
                    self._fail_all(calls, error)
                finally:
                    _fail(calls, redis.ConnectionError("the batch was broken off"))
        finally:  # whatever the reason is, nobody waits for ever
            self._fail_all((), redis.ConnectionError("the batches were broken off"))

    def _fail_all(self, calls: Sequence["_Call"], error: Exception) -> None:
        behind, self._waiting = self._waiting, []
        _fail([*calls, *behind], error)

    async def _exchange(self, calls: Sequence["_Call"]) -> None:
        """Answer them all. Raises what the connection does."""
        kept = self._connection.is_connected
        try:
            return await self._once(calls)
        except redis.ConnectionError:
            if not kept:
                raise
        await self._once([call for call in calls if not call.answer.done()])

    async def _once(self, calls: Sequence["_Call"]) -> None:
        unknown = await self._run(
            calls, [("EVALSHA", _digest(call.name), *call.command) for call in calls]
        )
        await self._run(unknown, [("EVAL", _source(call.name), *call.command) for call in unknown])

    async def _run(
        self, calls: Sequence["_Call"], commands: Sequence[tuple[str | bytes | int | float, ...]]
    ) -> list["_Call"]:
        """Send the commands, give out the answers; returns calls whose script Redis lacks."""
        unknown: list[_Call] = []
        if not calls:
            return unknown
        try:
            await self._connection.send_packed_command(self._connection.pack_commands(commands))
            for call in calls:
                try:
                    said = await self._connection.read_response()
                except redis.exceptions.NoScriptError:
                    unknown.append(call)
                except redis.ResponseError as error:
                    call.fail(error)
                else:
                    call.succeed(said)
        except BaseException:  # answers may be left in the line: nobody may read them as theirs
            await self._connection.disconnect(nowait=True)
            raise
        return unknown


@dataclass(frozen=True, slots=True)
class _Call:
    """A script that somebody waits for."""

    name: str
    command: tuple[str | bytes | int | float, ...]
    answer: "asyncio.Future[Any]"

    def succeed(self, said: Any) -> None:
        if not self.answer.done():  # whoever asked may have gone
            self.answer.set_result(said)

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


def _fail(calls: Iterable[_Call], error: Exception) -> None:
    for call in calls:
        call.fail(error)


async def check_redis(client: Redis) -> list[str]:
    """Whether this Redis may hold what people told us; returns warnings.

    Raises StartError when it does not answer or holds a schema that this release cannot read.
    An instance without AOF and `appendfsync always`, or one that evicts, is a warning; with
    `durability=strict` it also makes the feedback routes refuse.
    """
    try:
        await client.ping()
        await client.setnx(keys.schema(), SCHEMA_VERSION)
        known = (await client.get(keys.schema())).decode()
    except redis.RedisError as error:
        raise StartError(
            f"Redis does not answer ({error}): start it, or correct INSTRUCTLOOP_REDIS_URL"
        ) from None
    if known != SCHEMA_VERSION:
        raise StartError(
            f"this Redis holds schema {known}, this release reads {SCHEMA_VERSION}: "
            "run the release that wrote it, or another Redis"
        )
    return await _durability_warnings(client)


async def _durability_warnings(client: Redis) -> list[str]:
    wanted = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
    try:
        answers = {name: (await client.config_get(name)).get(name) for name in wanted}
    except redis.ResponseError:
        return ["this Redis does not let us read its settings: durability is not checked"]
    return [
        f"Redis has {name} = {answers[name]}, feedback needs {value}"
        for name, value in wanted.items()
        if answers[name] != value
    ]
