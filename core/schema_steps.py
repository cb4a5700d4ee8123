"""How data come from one schema to the next: one function a step, in the order of the numbers.

A step says of itself what it changes and which keys living processes of the release before touch
every second. It may be killed anywhere and run again: what was done is not done twice. It spells
names as they were and will be, since core/keys.py knows only today's. Who runs steps, when, and
that nobody else works meanwhile, is deploy/migrate.py's.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.errors import StartError
from core.redis_client import Redis

_BATCH = 1000

Told = Callable[[int], None]
"""Hears how many keys were done since."""


@dataclass(frozen=True, slots=True)
class RedisStep:
    """From schema `since` of Redis to the next."""

    since: int
    says: str
    """What changes, as a line."""
    touched: tuple[str, ...]
    """Keys that processes of the release before read or write every second while they live."""
    count: Callable[[Redis], Awaitable[int]]
    """How many keys are still to do."""
    run: Callable[[Redis, Told], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class FolderStep:
    """From schema `since` of the state folder to the next."""

    since: int
    says: str
    run: Callable[[Path], None]


# --- Redis, 1 to 2: one hash tag -------------------------------------------------------------

_OLD, _NEW = b"il:", b"{il}:"
_OLD_SCHEMA = _OLD + b"schema"
_SAID_AGAIN = _OLD + b"replicas"
"""Engines say themselves again; one of this release may have done so before it was to start."""


async def _left_of_1(redis: Redis) -> int:
    return sum([len(names) async for names in _names_of_1(redis)])


async def _tag_all(redis: Redis, told: Told) -> None:
    """Rename every key, values, expiry and groups of streams as they are.

    From the first moment a process of either release refuses to start: ours finds schema 1, the
    first release's finds a later one's. Raises StartError when a key is there under both names, and
    before anything is changed where this user may not rename.
    """
    await _refuse_without_right(redis)
    await redis.set(_NEW + b"schema", "1", nx=True)
    await redis.set(_OLD_SCHEMA, "2")
    there_already: list[bytes] = []
    async for names in _names_of_1(redis):
        async with redis.pipeline(transaction=False) as step:
            for name in names:
                step.renamenx(name, _NEW + name.removeprefix(_OLD))
            said = await step.execute(raise_on_error=False)
        there_already += _not_renamed(names, said)
        told(len(names))
    if _SAID_AGAIN in there_already:
        there_already.remove(_SAID_AGAIN)
        await redis.delete(_SAID_AGAIN)
    if there_already:
        raise StartError(
            f"{len(there_already)} keys are there under their old name and under the new one, such "
            f"as {there_already[0].decode()}: some process wrote meanwhile. Stop all, delete the "
            "one of the two that is wrong, and migrate again; nothing is lost until then"
        )


async def _refuse_without_right(redis: Redis) -> None:
    async with redis.pipeline(transaction=False) as look:
        look.renamenx(_OLD + b"no such key", _NEW + b"no such key")
        (said,) = await look.execute(raise_on_error=False)
    if isinstance(said, Exception) and "no such key" not in str(said):
        raise StartError(f"cannot rename keys of this Redis ({said}): allow RENAMENX")


async def _names_of_1(redis: Redis) -> AsyncIterator[list[bytes]]:
    names: list[bytes] = []
    async for name in redis.scan_iter(match=_OLD + b"*", count=_BATCH):
        if name != _OLD_SCHEMA:
            names.append(name)
        if len(names) == _BATCH:
            yield names
            names = []
    yield names


def _not_renamed(names: Sequence[bytes], said: Sequence[object]) -> list[bytes]:
    """Those whose new name is taken. One that expired before its turn is an error that is none."""
    for answer in said:
        if isinstance(answer, Exception) and "no such key" not in str(answer):
            raise answer
    return [name for name, done in zip(names, said, strict=True) if done in (False, 0)]


REDIS_STEPS = (
    RedisStep(
        since=1,
        says="every key that begins with il: begins with {il}: instead, values as they are",
        touched=("il:api-keys", "il:target", "il:loop", "il:replicas"),
        count=_left_of_1,
        run=_tag_all,
    ),
)
FOLDER_STEPS: tuple[FolderStep, ...] = ()
