"""Which layout of records and folders this release reads: two numbers, kept with the data.

Redis has its own (`keys.schema()`) and so has the state folder (`schema`); both are looked at
whenever a process starts. One grows when a release writes what the one before cannot read. That
release says in core/schema_steps.py how to come from the old layout; `instructloop migrate` does
it. A release meets data of a later one after a downgrade: it refuses, because it would misread or
spoil them.
"""

import os
import secrets
from collections.abc import Awaitable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from core import keys
from core.errors import StartError
from core.redis_scripts import source

if TYPE_CHECKING:
    from core.redis_client import Redis

SCHEMA = 2
"""Of Redis. 1 began every key with `il:`."""
FOLDER_SCHEMA = 1
"""Of the state folder, whose layout is that of the first release."""
FILE = "schema"
REDIS = "this Redis"
_DATA = ("secrets", "policies", "runs")
"""What a folder in use has: without a mark it is of the first release, or out of a backup of it."""


def check_folder(state_dir: Path) -> None:
    """Mark a new state folder with this release's schema. Raises StartError for another one's."""
    said = of_folder(state_dir)
    if said is not None:
        check(said, f"the state folder {state_dir}", FOLDER_SCHEMA)
    if not (state_dir / FILE).exists():
        mark_folder(state_dir, FOLDER_SCHEMA)


def of_folder(state_dir: Path) -> str | None:
    """Which schema a state folder says it holds; None where nothing was ever kept."""
    path = state_dir / FILE
    if path.exists():
        return path.read_text().strip()
    return "1" if any((state_dir / name).exists() for name in _DATA) else None


def mark_folder(state_dir: Path, schema: int) -> None:
    """Durably, so that no later release meets a folder of this one without it.

    Raises StartError for a folder that cannot be written to.
    """
    path = state_dir / FILE
    beside = path.with_name(f".{FILE}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with beside.open("w") as file:
            file.write(f"{schema}\n")
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)
    except OSError as error:
        raise StartError(
            f"cannot write to {path.parent} ({error.strerror}): choose another --state-dir"
        ) from None


async def of_redis(redis: "Redis", *, mark_new: bool = False) -> str | None:
    """Which schema a Redis says it holds; None where nothing was ever kept, unless it is marked."""
    names, mark = (keys.schema(), keys.first_schema()), SCHEMA if mark_new else ""
    run = cast(Awaitable[bytes | None], redis.eval(source("schema"), 1, *names, mark))
    said = await run
    return None if said is None else said.decode()


async def refuse_other(redis: "Redis", *, mark_new: bool = False) -> None:
    """Raises StartError for a Redis with another schema than this release's."""
    said = await of_redis(redis, mark_new=mark_new)
    if said is not None:
        check(said, REDIS, SCHEMA)


def check(said: str, where: str, reads: int) -> None:
    """Raise StartError unless `said` is the schema that this release reads; `where` it stands."""
    if not (said.isascii() and said.isdigit()):
        raise StartError(
            f"{where} does not say which schema it holds: restore it from a backup, or use another"
        )
    if int(said) > reads:
        raise StartError(
            f"{where} holds schema {said}, a later release's; this one reads {reads}: run the "
            "release that wrote it, or restore a backup from before the upgrade"
        )
    if int(said) < reads:
        raise StartError(
            f"{where} holds schema {said}, an earlier release's; this one reads {reads}: stop what "
            "runs of the earlier one, then `instructloop migrate`, which `up` does by itself"
        )
