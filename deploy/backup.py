"""A backup of a running installation, and an installation made of a backup.

In it: all of Redis at one moment, versions with their cards, reward models, the archive if it lies
in the state folder, the keys that name and sign, the settings file. Left out on purpose: the keys
of days (what they sealed becomes unreadable, in backups too), the erasures' and the audit log (both
are kept apart and replayed, so that a restore brings no erased person back), logs, runs, sockets.
Redis comes first, then the folder; if versions or archive changed in between, it begins again.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from core import audit_log, keys, registry
from core.errors import InstructLoopError
from core.redis_client import Redis, redis_errors
from core.schema import FILE as SCHEMA_FILE
from core.schema import SCHEMA, check, of_redis
from core.settings import SETTINGS_FILE, Settings
from deploy import backup_files as files
from deploy.backup_files import Line, Manifest, Sink, Told
from deploy.backup_redis import save_rdb
from deploy.backup_source import open_backup, read_backup, take
from feedback import erasing
from feedback.archive_manifest import read_manifest

_ATTEMPTS = 3
_ADMIN_KEY = "admin.key"
_LIVE_SECRETS = ("redis.password", "engine-data.token", "engine-control.token", "engine.json")
"""Passwords between running processes: made anew at the next start."""
ERASURES, AUDIT = erasing.FILE, audit_log.FILE
KEPT_APART = (ERASURES, AUDIT)

Begin = Callable[[str, int], Told]
"""A bar of so many bytes (0: nobody knows)."""


class _Changed(Exception):
    """Versions or archive are not those of the copy of Redis any more."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What Redis says of the folder. All of it only ever grows or counts up."""

    versions: tuple[str, ...]
    collected: frozenset[str]
    archive_root: str
    archive_generation: int
    archive_files: tuple[str, ...]


async def make_backup(redis: Redis, settings: Settings, out: Path, begin: Begin) -> Manifest:
    """Write a backup while the service runs. Raises InstructLoopError, Unavailable."""
    for _ in range(_ATTEMPTS):
        with suppress(_Changed), redis_errors(), files.new_backup(out) as sink:
            return await _write(redis, settings, sink, out, begin)
    raise InstructLoopError(
        f"versions or archive changed during each of {_ATTEMPTS} attempts: try again later"
    )


async def _write(redis: Redis, settings: Settings, sink: Sink, out: Path, begin: Begin) -> Manifest:
    seen = await _facts(redis)
    about = await _about(redis)
    with files.beside(out, "redis") as folder:
        path = folder / files.REDIS
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            await save_rdb(redis, file, begin("Redis", 0))
        try:
            sources = {files.REDIS: path, **dict(_sources(settings, seen))}
            told = begin("files", sum(path.stat().st_size for path in sources.values()))
            lines = [files.put(sink, name, source, told) for name, source in sources.items()]
        except FileNotFoundError:
            raise _Changed from None
    if await _facts(redis) != seen:
        raise _Changed
    manifest = Manifest(**about, left_out=tuple(_left_out(settings, seen)), files=tuple(lines))
    files.put_manifest(sink, manifest)
    return manifest


async def _facts(redis: Redis) -> Facts:
    archive = await read_manifest(redis)
    return Facts(
        versions=tuple(card.version for card in await registry.cards(redis)),
        collected=await registry.collected(redis),
        archive_root=archive.root,
        archive_generation=archive.generation,
        archive_files=tuple(archive.files),
    )


async def _about(redis: Redis) -> dict[str, Any]:
    return {
        "made_at": registry.timestamp(),
        "release": version("instructloop"),
        "schema_version": await of_redis(redis) or "",
        "erasures_read": int(await redis.get(keys.erasures_read()) or 0),
        "unreadable": {
            "completions in the inbox": await redis.xlen(keys.inbox()),
            "comments and notes": await redis.scard(keys.feedback_text()),
            "texts in quarantine": await redis.hlen(keys.quarantine()),
        },
    }


def _sources(settings: Settings, seen: Facts) -> Iterator[tuple[str, Path]]:
    """Name in the backup -> file. A version that Redis does not list is not there."""
    state = settings.state_dir.resolve()
    for version_name in seen.versions:
        yield from _under(state, state / "policies" / version_name)
        yield from _under(state, state / "anchors" / version_name)
    for folder in sorted((state / "reward_models").glob("rm*")):
        yield from _under(state, folder)
    if _is_ours(state, seen):
        for name in seen.archive_files:
            yield f"{files.STATE}archive/{name}", state / "archive" / name
    for path in sorted(settings.secrets.glob("[!.]*")):
        if path.is_file() and not _is_live(path.name):  # `inbox/` has the keys of days
            yield f"{files.STATE}secrets/{path.name}", path
    for name in (_ADMIN_KEY, SCHEMA_FILE):
        if (state / name).exists():
            yield files.STATE + name, state / name
    if Path(SETTINGS_FILE).is_file():
        yield files.SETTINGS, Path(SETTINGS_FILE)


def _is_live(name: str) -> bool:
    """A successor is named after its predecessor: core/keyring.py."""
    return re.sub(r"-[0-9]+(?=\.)", "", name) in _LIVE_SECRETS


def _under(state: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield files.STATE + path.relative_to(state).as_posix(), path


def _is_ours(state: Path, seen: Facts) -> bool:
    return seen.archive_root == str(state / "archive")


def _left_out(settings: Settings, seen: Facts) -> Iterator[str]:
    """What a person has to care for themselves."""
    state = settings.state_dir.resolve()
    if seen.archive_root and not _is_ours(state, seen):
        yield f"the archive in {seen.archive_root}"
    for name in seen.versions:
        if name not in seen.collected and not (state / "policies" / name).is_dir():
            yield f"the weights of {name}, which are not on this machine"
    for name in KEPT_APART:
        yield f"{name}: keep a copy apart, `restore` asks for it"


# --- the way back ----------------------------------------------------------------------------


def restore(
    source: Path, state_dir: Path, kept: Sequence[Path], begin: Begin, *, without_erasures: bool
) -> Manifest:
    """Make a state folder of a backup, whole or not at all. Raises InstructLoopError.

    `kept` are logs from elsewhere that go into it; those that lie in the target already stay.
    """
    state_dir = state_dir.absolute()
    _heal(state_dir)
    apart = {path.name: path for path in [*_there(state_dir), *kept]}
    with open_backup(source) as opened:
        manifest = read_backup(opened, source)
        _check_schema(manifest)
        _check_erasures(apart.get(ERASURES), manifest, without=without_erasures)
        size = sum(line.bytes for line in manifest.files)
        _check_room(state_dir, size)
        with files.beside(state_dir, "restore") as folder:
            made, told = folder / "state", begin("files", size)
            for line in manifest.files:
                take(opened, line, made / _place(line), told)
            for name, path in apart.items():
                files.keep(path, made / name)
            (made / "redis").chmod(0o700)
            _exchange(made, state_dir)
    return manifest


def _there(state_dir: Path) -> list[Path]:
    """The logs that lie in the target. Raises InstructLoopError when anything else does."""
    if not state_dir.exists():
        return []
    other = sorted(path.name for path in state_dir.iterdir() if path.name not in KEPT_APART)
    if other:
        raise InstructLoopError(
            f"{state_dir} is not empty ({other[0]}): restore to a new --state-dir; only "
            f"{' and '.join(KEPT_APART)} may lie there"
        )
    return list(state_dir.iterdir())


def _check_schema(manifest: Manifest) -> None:
    """An earlier one is brought forward by the next start. Raises StartError for a later one's."""
    said = manifest.schema_version or str(SCHEMA)
    if not said.isdigit() or int(said) > SCHEMA:
        check(said, "Redis in the backup", SCHEMA)


def _check_erasures(log: Path | None, manifest: Manifest, *, without: bool) -> None:
    """Nobody who was erased since may come back. Raises InstructLoopError."""
    if log is None and not without:
        raise InstructLoopError(
            f"who was erased since the backup of {manifest.made_at} would come back: give the "
            f"newest {ERASURES} with --erasures, or say --without-erasures if there is none"
        )
    if log is not None and log.stat().st_size < manifest.erasures_read:
        raise InstructLoopError(f"{log} is older than the backup: give the newest one")


def _check_room(state_dir: Path, size: int) -> None:
    parent = next(folder for folder in state_dir.parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if free < size:
        raise InstructLoopError(
            f"{free >> 20} MiB of disk are free in {parent}, {size >> 20} are needed"
        )


def _place(line: Line) -> str:
    """Where a file of the backup belongs. An append-only file may begin with an RDB file."""
    if line.path == files.REDIS:
        return "redis/appendonly.aof"
    return line.path.removeprefix(files.STATE)


def _exchange(made: Path, state_dir: Path) -> None:
    """The new folder by its name. What lies there, logs only, is in the new one too."""
    before = _before(state_dir)
    if state_dir.exists():
        os.rename(state_dir, before)
    files.settle(made, state_dir)
    shutil.rmtree(before, ignore_errors=True)


def _heal(state_dir: Path) -> None:
    """A restore was killed between its two renames: the logs go back to where they lay."""
    before = _before(state_dir)
    if before.exists() and not state_dir.exists():
        os.rename(before, state_dir)
    shutil.rmtree(before, ignore_errors=True)


def _before(state_dir: Path) -> Path:
    return state_dir.with_name(f".{state_dir.name}.before-restore")
