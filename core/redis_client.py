"""The door to Redis: connecting, atomic scripts, promises that replicas keep.

Others take the client that `connect` gives and the key names of core/keys.py. What a connection is
stands in core/redis_connection.py, where it goes in core/redis_finders.py, scripts on lines of
their own in core/redis_scripts.py, whether this Redis keeps its word in core/redis_check.py.
Errors of the connection reach callers as `core.errors.Unavailable`, through `redis_errors`.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

import redis
from redis.asyncio import Redis

from core.errors import Unavailable
from core.keyring import Keyring
from core.redis_address import NODE_OF_CLUSTER, read_address, with_options, with_settings
from core.redis_connection import make_pool
from core.redis_scripts import Batches, Line, digest, not_held, source, wait_of, waiting
from core.settings import Settings

_LOOK_SECONDS = 0.05
_NOT_NOW = re.compile(r"(?:^|-)(?:OOM|MISCONF|LOADING|NOREPLICAS|READONLY|MASTERDOWN|UNBLOCKED)\b")
"""What goes away by itself, at the front of an error, or of one within a script."""
_NOT_US = re.compile(r"\bNOPERM\b|ACL failure in script|user executing the script can't")
_MAY_NOT = "Redis refuses our user; docs/redis.md has the rules for it (ACL SETUSER)"
__all__ = [
    "Batches",
    "Line",
    "Redis",
    "connect",
    "held",
    "limits_url",
    "local_redis_url",
    "promise",
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
    What the settings say of TLS and of replicas is in the URL. Raises StartError.
    """
    if settings.redis_url:
        url = with_settings(settings.redis_url, settings)
    else:
        password = Keyring(settings.state_dir / "secrets").token("redis.password")
        url = local_redis_url(settings.state_dir, password, database=database)
    if not settings.redis_wait_replicas:
        return url
    return with_options(
        url,
        {
            "wait_replicas": str(settings.redis_wait_replicas),
            "wait_seconds": f"{settings.redis_wait_seconds:g}",
        },
    )


def limits_url(settings: Settings) -> str | None:
    """The Redis of the limits, if they have one of their own."""
    url = settings.redis_limits_url
    return None if url is None else with_settings(url, settings)


def socket_path(state_dir: Path) -> Path:
    """The socket of our own Redis."""
    return state_dir.resolve() / "redis" / "redis.sock"


@asynccontextmanager
async def connect(url: str, *, timeout: float = 5.0) -> AsyncIterator[Redis]:
    """A client for the length of a `with` block. Commands are not retried: callers decide.

    Raises StartError for a URL that cannot be (core/redis_address.py says which can).
    """
    pool, finder = make_pool(read_address(url), timeout=timeout)
    client = Redis.from_pool(pool)
    try:
        yield client
    finally:
        await client.aclose()
        if finder is not None:
            await finder.close()


@contextmanager
def redis_errors() -> Iterator[None]:
    """Turn a lost, loading, full or read-only Redis into Unavailable (503, with Retry-After).

    So is one whose rules are not for us: whoever mends them need start nothing again.
    """
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError, redis.ReadOnlyError, OSError) as error:
        raise Unavailable(f"Redis does not answer: {type(error).__name__}; try again") from error
    except redis.exceptions.MovedError as error:
        raise Unavailable(NODE_OF_CLUSTER) from error
    except redis.ResponseError as error:
        if isinstance(error, redis.exceptions.NoPermissionError) or _NOT_US.search(str(error)):
            raise Unavailable(f"{_MAY_NOT}: {error}") from error
        if isinstance(error, redis.OutOfMemoryError) or _NOT_NOW.search(str(error)):
            raise Unavailable(f"Redis cannot write now: {error}") from error
        raise


async def script(
    client: Redis, name: str, key_names: list[str], args: list[str | bytes | int | float]
) -> Any:
    """Run core/lua/NAME.lua: one atomic step. It is loaded again after a restart of Redis."""
    run = client.register_script(source(name))
    return await cast(Awaitable[Any], run(keys=key_names, args=args))


async def promise(
    client: Redis, name: str, key_names: list[str], args: list[str | bytes | int | float]
) -> Any:
    """Like `script`, for what a reply promises: when it returns, enough replicas have it, too.

    How many is said by the client's URL. Raises NOREPLICAS as Redis does, which `redis_errors`
    turns into Unavailable: it may have been written, so what runs twice must do no harm.
    """
    if not wait_of(client).replicas:
        return await script(client, name, key_names, args)
    command = (len(key_names), *key_names, *args)
    said = await _held(client, "EVALSHA", digest(name), *command)
    if isinstance(said, redis.exceptions.NoScriptError):
        said = await _held(client, "EVAL", source(name), *command)
    if isinstance(said, Exception):
        raise said
    return said


async def held(client: Redis) -> None:
    """Return once enough replicas have all that is in this Redis. Raises NOREPLICAS."""
    if wait_of(client).replicas:
        await _held(client, "PING")


async def _held(client: Redis, *command: str | bytes | int | float) -> Any:
    """What a command says, or its error, once replicas have it, on one connection."""
    wait = wait_of(client)
    async with client.pipeline(transaction=False) as step:
        for one in (command, *waiting(wait)):
            step.execute_command(*one)
        said, *after = await step.execute(raise_on_error=False)
    broken = not_held(wait, after)
    if broken is not None and not isinstance(said, redis.exceptions.NoScriptError):
        raise broken
    return said


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
