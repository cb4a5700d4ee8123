"""Scripts on lines of their own: one for one caller, or one for many callers at a time.

It saves what a shared client does around every command, and lets Redis sync its file, and wait for
replicas, once for many. core/redis_client.py gives these out; nothing here knows what a script
does.
"""

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import redis
from redis.asyncio import Redis

from core import keys
from core.redis_address import Wait

LUA = Path(__file__).parent / "lua"
_BATCH = 128
Argument = str | bytes | int | float


@cache
def source(name: str) -> str:
    """The text of core/lua/NAME.lua."""
    return (LUA / f"{name}.lua").read_text()


@cache
def digest(name: str) -> str:
    """Redis's name for a script."""
    return hashlib.sha1(source(name).encode(), usedforsecurity=False).hexdigest()


def wait_of(client: Redis) -> Wait:
    """What the client's URL says about replicas."""
    wait: Wait = getattr(client.connection_pool.connection_class, "wait", Wait())
    return wait


def waiting(wait: Wait) -> list[tuple[Argument, ...]]:
    """Commands that end once replicas have all that was written before them.

    Redis waits for what the connection itself has written, and a script that finds its work done
    has written nothing; so something is written first.
    """
    if not wait.replicas:
        return []
    milliseconds = int(wait.seconds * 1000)
    return [("SET", keys.promised(), b"1"), ("WAIT", wait.replicas, milliseconds)]


def not_held(wait: Wait, said: Sequence[Any]) -> redis.ResponseError | None:
    """What is wrong by the answers to `waiting`, as Redis itself would say it."""
    for answer in said:
        if isinstance(answer, redis.ResponseError):
            return answer
    if said and said[-1] < wait.replicas:
        return redis.ResponseError(
            f"NOREPLICAS {said[-1]} of {wait.replicas} replicas have it after {wait.seconds:g} s"
        )
    return None


class Line:
    """One connection, kept for one caller who runs scripts, one at a time, that may run twice.

    It saves what a shared client does around every command, which takes as long as Redis itself.
    """

    def __init__(self, client: Redis) -> None:
        pool = client.connection_pool
        self._connection = pool.connection_class(**pool.connection_kwargs)

    async def script(self, name: str, key_names: list[str], args: list[Argument]) -> Any:
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

    async def _run(self, name: str, command: Sequence[Argument]) -> Any:
        try:
            return await self._call("EVALSHA", digest(name), *command)
        except redis.exceptions.NoScriptError:
            return await self._call("EVAL", source(name), *command)

    async def _call(self, *command: Argument) -> Any:
        await self._connection.send_command(*command)
        return await self._connection.read_response()


class Batches:
    """One connection for many callers who run scripts that may run twice.

    What is asked while a batch is on its way goes with the next one, so that Redis syncs its file
    once for all of it, and what a shared client does around every command is done once. Replies
    come when Redis has answered, and as many replicas have it as the client's URL asks for: nobody
    is told anything earlier.
    """

    def __init__(self, client: Redis) -> None:
        pool = client.connection_pool
        self._connection = pool.connection_class(**pool.connection_kwargs)
        self._wait = wait_of(client)
        self._waiting: list[_Call] = []
        self._sending: asyncio.Task[None] | None = None

    async def script(self, name: str, key_names: list[str], args: list[Argument]) -> Any:
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
            calls, [("EVALSHA", digest(call.name), *call.command) for call in calls]
        )
        await self._run(unknown, [("EVAL", source(call.name), *call.command) for call in unknown])

    async def _run(
        self, calls: Sequence["_Call"], commands: Sequence[tuple[Argument, ...]]
    ) -> list["_Call"]:
        """Send the commands, give out the answers; returns calls whose script Redis lacks."""
        if not calls:
            return []
        try:
            after = waiting(self._wait)
            packed = self._connection.pack_commands([*commands, *after])
            await self._connection.send_packed_command(packed)
            said = [await self._answer() for _ in calls]
            held = [await self._answer() for _ in after]
        except BaseException:  # answers may be left in the line: nobody may read them as theirs
            await self._connection.disconnect(nowait=True)
            raise
        return _give_out(calls, said, broken=not_held(self._wait, held))

    async def _answer(self) -> Any:
        """What a script said, or the error that it ended with."""
        try:
            return await self._connection.read_response()
        except redis.ResponseError as error:
            return error


@dataclass(frozen=True, slots=True)
class _Call:
    """A script that somebody waits for."""

    name: str
    command: tuple[Argument, ...]
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


def _give_out(
    calls: Sequence[_Call], said: Sequence[Any], *, broken: redis.ResponseError | None
) -> list[_Call]:
    """Give each caller its answer, or what broke it; returns calls whose script Redis lacks."""
    unknown: list[_Call] = []
    for call, answer in zip(calls, said, strict=True):
        if isinstance(answer, redis.exceptions.NoScriptError):
            unknown.append(call)
        elif isinstance(answer, redis.ResponseError):
            call.fail(answer)
        elif broken is not None:
            call.fail(broken)
        else:
            call.succeed(answer)
    return unknown
