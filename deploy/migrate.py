"""Brings what an earlier release left to the schemas of this one: the state folder, then Redis.

One process at a time does it, while no process of the earlier release lives: there is no way to do
it in spite of one, because what that one writes afterwards would be lost. The steps themselves are
in core/schema_steps.py. `up` does this before it starts anything; where processes are started one
by one, and in the chart, `instructloop migrate` is the command.
"""

import asyncio
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from core import keys
from core.errors import StartError, Unavailable
from core.redis_check import info_of
from core.redis_client import Redis, redis_errors
from core.schema import (
    FOLDER_SCHEMA,
    REDIS,
    check,
    mark_folder,
    of_folder,
    of_redis,
)
from core.schema_steps import FOLDER_STEPS, REDIS_STEPS, FolderStep, RedisStep, Told

QUIET_SECONDS = 5
"""A living gateway, worker or engine touches some key every second."""
PATIENCE_SECONDS = 30.0
_LOCK_SECONDS = 10
_LOCK_WAIT_SECONDS = 11.0
_LOOK_SECONDS = 0.25
_NOTED_AGAIN_SECONDS = 2
"""So long after a save that Redis knows again who reads: everybody who lives has, by then."""

Say = Callable[[str], None]
Begin = Callable[[str, int], Told]
"""A bar of so many keys."""
Step = TypeVar("Step", FolderStep, RedisStep)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long nobody may have touched a key, and how long that is waited for, in seconds."""

    quiet: int
    longest: float


# --- the folder ------------------------------------------------------------------------------


def folder_forward(
    state_dir: Path, *, say: Say, dry_run: bool = False, steps: Sequence[FolderStep] = FOLDER_STEPS
) -> bool:
    """Bring a state folder to this release's schema; whether there was anything to do.

    Raises StartError for a later one's.
    """
    said = of_folder(state_dir)
    to_do = [] if said is None else _to_do(said, f"the state folder {state_dir}", steps)
    for step in to_do:
        say(f"the state folder, schema {step.since} to {step.since + 1}: {step.says}")
        if not dry_run:
            step.run(state_dir)
            mark_folder(state_dir, step.since + 1)
    return bool(to_do)


def _to_do(said: str, where: str, steps: Sequence[Step]) -> list[Step]:
    """The steps from there to here, in their order. Raises StartError where they lead nowhere."""
    reads = steps[-1].since + 1 if steps else FOLDER_SCHEMA
    wanted = range(int(said), reads) if said.isascii() and said.isdigit() else range(0)
    if not wanted:
        check(said, where, reads)
    by_schema = {step.since: step for step in steps}
    if not by_schema.keys() >= set(wanted):
        raise StartError(
            f"{where} holds schema {said}, too old for this release, which comes from "
            f"{min(by_schema, default=reads)}: run the releases between the two first"
        )
    return [by_schema[since] for since in wanted]


# --- Redis -----------------------------------------------------------------------------------


async def until_redis_answers(redis: Redis, *, seconds: float) -> None:
    """Return once it does. Raises StartError when it does not in that time."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with redis_errors():
                await redis.ping()
            return
        except Unavailable as error:
            if time.monotonic() > deadline:
                raise StartError(
                    f"{error.message}: start it, or correct INSTRUCTLOOP_REDIS_URL; our own runs "
                    "while `up` does, which also migrates it"
                ) from None
        await asyncio.sleep(_LOOK_SECONDS)


async def redis_forward(
    redis: Redis,
    *,
    say: Say,
    begin: Begin,
    dry_run: bool = False,
    patience: Patience | None = None,
    steps: Sequence[RedisStep] = REDIS_STEPS,
) -> bool:
    """Bring a Redis to this release's schema; whether there was anything to do.

    Raises StartError for a later release's, and while somebody of the earlier one uses it.
    """
    said = await of_redis(redis)
    to_do = [] if said is None else _to_do(said, REDIS, steps)
    if dry_run:
        for step in to_do:
            say(f"{_title(step)} ({await step.count(redis)} keys)")
            if touched := await _touched(redis, step, QUIET_SECONDS):
                say(f"not now: {touched}")
    elif to_do:
        async with _alone(redis) as hold:
            for step in _to_do(await of_redis(redis) or "", REDIS, steps):
                calm = patience or Patience(QUIET_SECONDS, PATIENCE_SECONDS)
                await _nobody_left(redis, step, calm, hold)
                await _take(redis, step, say=say, begin=begin, hold=hold)
    return bool(to_do)


def _title(step: RedisStep) -> str:
    return f"Redis, schema {step.since} to {step.since + 1}: {step.says}"


async def _take(redis: Redis, step: RedisStep, *, say: Say, begin: Begin, hold: "_Hold") -> None:
    say(_title(step))
    began, count = time.monotonic(), await step.count(redis)
    told, done = begin("keys", count), 0

    def heard(keys_done: int) -> None:
        nonlocal done
        done += keys_done
        told(keys_done)

    async with hold.kept():
        await step.run(redis, heard)
        await redis.set(keys.schema(), step.since + 1)
    say(f"{done} keys in {time.monotonic() - began:.1f} s; Redis has schema {step.since + 1}")


async def _nobody_left(redis: Redis, step: RedisStep, patience: Patience, hold: "_Hold") -> None:
    """Return once no key that living processes touch was touched for a while.

    Raises StartError when they go on. Nothing has been changed by then.
    """
    deadline, calm_since = time.monotonic() + patience.longest, math.inf
    while True:
        touched, now = await _touched(redis, step, patience.quiet), time.monotonic()
        calm_since = min(calm_since, now) if touched is None else math.inf
        if now - calm_since >= min(patience.quiet, _NOTED_AGAIN_SECONDS):
            return
        if touched is not None and now > deadline:
            raise StartError(f"{touched}, and migrate again; nothing was changed")
        await hold.keep()
        await asyncio.sleep(_LOOK_SECONDS)


async def _touched(redis: Redis, step: RedisStep, quiet: int) -> str | None:
    """What shows that somebody is there, and what to do, as words; None when nothing does."""
    saves = await info_of(redis, "persistence")
    if saves.get("rdb_bgsave_in_progress") or saves.get("aof_rewrite_in_progress"):
        return "Redis saves itself, and does not note meanwhile who reads what: wait until it has"
    async with redis.pipeline(transaction=False) as look:
        for name in step.touched:
            look.execute_command("OBJECT", "IDLETIME", name)
        said = await look.execute(raise_on_error=False)
    for name, idle in zip(step.touched, said, strict=True):
        if isinstance(idle, Exception) and "no such key" not in str(idle):
            raise StartError(
                f"cannot see who uses this Redis ({idle}): allow OBJECT IDLETIME, and have "
                "`maxmemory-policy noeviction`, under which Redis knows it"
            )
        if isinstance(idle, int) and idle < quiet:
            return (
                f"{name} was used {idle} s ago: processes of the earlier release still run. Stop "
                "gateways, engines, workers and beat"
            )
    return None


# --- one at a time ---------------------------------------------------------------------------


class _Hold:
    """That nobody else migrates; it ends by itself soon after this process was killed."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._ours = secrets.token_hex(8)

    async def take(self) -> bool:
        return bool(await self._redis.set(keys.migration(), self._ours, nx=True, ex=_LOCK_SECONDS))

    async def keep(self) -> None:
        await self._redis.expire(keys.migration(), _LOCK_SECONDS)

    async def drop(self) -> None:
        if await self._redis.get(keys.migration()) == self._ours.encode():
            await self._redis.delete(keys.migration())

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """For as long as a block takes."""

        async def keep_on() -> None:
            while True:
                await self.keep()
                await asyncio.sleep(_LOCK_SECONDS / 4)

        task = asyncio.create_task(keep_on())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def _alone(redis: Redis) -> AsyncIterator[_Hold]:
    """Raises StartError while another process migrates; one that was killed is waited for."""
    hold, deadline = _Hold(redis), time.monotonic() + _LOCK_WAIT_SECONDS
    while not await hold.take():
        if time.monotonic() > deadline:
            raise StartError("another process migrates this Redis now: wait until it is done")
        await asyncio.sleep(_LOOK_SECONDS)
    try:
        yield hold
    finally:
        await hold.drop()
