"""Reading completions that are in Redis no more: by token, by user, by time.

Whoever reads looks into Redis first and then here: what moves meanwhile is seen twice, never not at
all. Files are read in a thread, and the library for it is loaded when there is something to read,
so that a gateway neither waits nor pays for it. compaction.py writes.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable
from types import ModuleType
from typing import TypeVar

from core.errors import ArchiveBroken
from core.records import Completion
from core.redis_client import Redis
from feedback.archive_manifest import FileEntry, Manifest, read_manifest

_ATTEMPTS = 5
Found = TypeVar("Found")


async def archived(redis: Redis, tokens: Collection[str]) -> dict[str, Completion]:
    """Those of the completions that are in the archive, by token.

    Raises ArchiveBroken, which names the file that is not as it should be, and Unavailable.
    """

    def read(files: ModuleType, root: str, name: str, entry: FileEntry) -> list[str]:
        wanted = [token for token in tokens if entry.may_have(token)]
        return list(files.records(root, name, wanted))

    found = await _read_all(redis, lambda entry: any(map(entry.may_have, tokens)), read)
    records = (Completion.model_validate_json(text) for texts in found for text in texts)
    return {record.token: record for record in records}


async def known_tokens(redis: Redis, tokens: Collection[str]) -> set[str]:
    """Those of the tokens that are in the archive."""

    def read(files: ModuleType, root: str, name: str, entry: FileEntry) -> list[str]:
        wanted = [token for token in tokens if entry.may_have(token)]
        return list(files.tokens_in(root, name, wanted))

    found = await _read_all(redis, lambda entry: any(map(entry.may_have, tokens)), read)
    return {token for names in found for token in names}


async def tokens_of(redis: Redis, users: Collection[str]) -> dict[str, int]:
    """Milliseconds by token: what the archive has of these users."""

    def read(files: ModuleType, root: str, name: str, _: FileEntry) -> list[tuple[str, int, bool]]:
        return list(files.tokens_of_users(root, name, users))

    found = await _read_all(redis, lambda _: bool(users), read)
    return {token: at for rows in found for token, at, _ in rows}


async def prompts_since(redis: Redis, since_ms: int) -> dict[str, int]:
    """Milliseconds by token: the prompts of the archive that count and are not older."""

    def read(files: ModuleType, root: str, name: str, _: FileEntry) -> list[tuple[str, int, bool]]:
        return list(files.prompts_since(root, name, since_ms))

    found = await _read_all(redis, lambda entry: entry.last_ms >= since_ms, read)
    return {token: at for rows in found for token, at, _ in rows}


async def _read_all(
    redis: Redis,
    wanted: Callable[[FileEntry], bool],
    read: Callable[[ModuleType, str, str, FileEntry], Found],
) -> list[Found]:
    """What `read` finds in each file that is wanted. One that was replaced meanwhile: again."""
    manifest = await read_manifest(redis)
    for _ in range(_ATTEMPTS):
        chosen = [name for name, entry in manifest.files.items() if wanted(entry)]
        if not chosen:
            return []
        try:
            return await asyncio.to_thread(_read_here, manifest, chosen, read)
        except FileNotFoundError as error:
            seen, manifest = manifest, await read_manifest(redis)
            if manifest.generation == seen.generation:
                raise ArchiveBroken(
                    f"{error.filename or error} is missing in the archive: bring it back from a "
                    "backup, or set INSTRUCTLOOP_LOG__ARCHIVE to where the files are now"
                ) from error
    raise ArchiveBroken("the archive is being rewritten all the time: try again")


def _read_here(
    manifest: Manifest,
    names: Iterable[str],
    read: Callable[[ModuleType, str, str, FileEntry], Found],
) -> list[Found]:
    from feedback import archive_files  # it loads pyarrow

    return [read(archive_files, manifest.root, name, manifest.files[name]) for name in names]
