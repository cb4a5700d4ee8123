"""Which files the archive of completions has: a hash in Redis, changed by one atomic script.

A file that is not in it does not exist, whatever lies in the folder; a file never changes, but is
replaced by another of another name. Every change counts a generation up, and needs the one that
its maker had read: two writers cannot both be right. Light; archive_files.py knows Parquet.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from core import keys
from core.redis_client import Redis, redis_errors, script
from core.settings import Settings

_ROOT, _GENERATION = b"#root", b"#generation"


class Row(NamedTuple):
    """A completion in the archive."""

    token: str
    user: str
    tenant: str
    created_ms: int
    counted: bool
    record: str
    """Completion JSON, byte for byte as it was in Redis."""


class FileEntry(BaseModel):
    """What the manifest says of a file."""

    model_config = ConfigDict(frozen=True)

    rows: int
    bytes: int
    sha256: str
    """Of the file, for whoever checks a backup; readers rely on the checksums of its pages."""
    first_ms: int
    last_ms: int
    """When the oldest and the newest row were asked."""
    ranges: tuple[tuple[str, str], ...]
    """Lowest and highest tokens, by API key as far as these are few: what else is not in it."""

    def may_have(self, token: str) -> bool:
        """Whether a token is within the ranges."""
        return any(low <= token <= high for low, high in self.ranges)


@dataclass(frozen=True, slots=True)
class Manifest:
    """The archive at one moment."""

    root: str = ""
    """An absolute folder, or `s3://bucket/path` and the like."""
    generation: int = 0
    files: Mapping[str, FileEntry] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Told:
    """What else is true the moment a change is: counts, a receipt, a line of the audit log."""

    prompts: int = 0
    job_id: str = ""
    removed: int = 0
    audit: str = ""


def archive_root(settings: Settings) -> str:
    """Where the archive is to lie: the setting, or a folder in the state folder."""
    chosen = settings.log.archive
    if chosen is None:
        return str((settings.state_dir / "archive").resolve())
    return chosen


async def read_manifest(redis: Redis) -> Manifest:
    """The archive as it is now. Raises Unavailable."""
    with redis_errors():
        raw = await redis.hgetall(keys.archive())
    files = {
        name.decode(): FileEntry.model_validate_json(text)
        for name, text in raw.items()
        if not name.startswith(b"#")
    }
    root = raw.get(_ROOT, b"").decode()
    return Manifest(root, int(raw.get(_GENERATION, 0)), dict(sorted(files.items())))


async def move_root(redis: Redis, root: str) -> None:
    """Say where the files lie from now on; moving them is their owner's."""
    with redis_errors():
        await redis.hset(keys.archive(), _ROOT, root)


async def change(
    redis: Redis,
    seen: Manifest,
    *,
    remove: str = "",
    add: tuple[str, FileEntry] | None = None,
    told: Told | None = None,
) -> bool:
    """Exchange a file for another, or either alone; False when the manifest is not as `seen`."""
    told = told or Told()
    name, entry = (add[0], add[1].model_dump_json()) if add else ("", "")
    with redis_errors():
        done = await script(
            redis,
            "change_archive",
            [keys.archive(), keys.counts(), keys.erasure(told.job_id), keys.audit()],
            [
                seen.generation,
                remove,
                name,
                entry,
                told.prompts,
                told.removed if told.job_id else 0,
                told.audit,
            ],
        )
    return bool(done)
