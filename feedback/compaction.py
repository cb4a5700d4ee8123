"""Completions move from Redis to the archive, so that Redis does not grow with the log.

A batch is written to a file, the file is registered, and then the records leave Redis: whoever is
killed between finds them in both places, and the next batch lets go of what the archive has. A file
that was not registered is swept up. Whoever calls holds the ingest lease; should two do it all the
same, the manifest's generation lets only one register, and nothing is deleted that it names.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from core import keys, metrics
from core.records import Completion
from core.redis_client import Redis, redis_errors, script
from core.setting_groups import LogSettings
from core.settings import Settings
from feedback import archive_files
from feedback.archive import known_tokens
from feedback.archive_manifest import (
    Manifest,
    Row,
    Told,
    archive_root,
    change,
    move_root,
    read_manifest,
)

LEAST = 1_000
"""Completions that are worth a file."""
MOST = 5_000
_FILES_AT_ONCE = 4
_CHUNK = 100
"""Records that leave Redis in one step, which holds up everybody else."""
_DAY_MS = 86_400_000
_log = logging.getLogger(__name__)


async def compaction_due(redis: Redis, log: LogSettings, *, now: float, least: int = LEAST) -> int:
    """How many of the oldest completions are to move now; fewer than `least` wait."""
    with redis_errors():
        here = int(await redis.zcard(keys.logged()))
        if here < least:
            return 0
        before = int(now * 1000) - log.archive_after_days * _DAY_MS
        old = int(await redis.zcount(keys.logged(), "-inf", before))
    number = max(old, here - log.keep_in_redis)
    return number if number >= least else 0


async def compact(
    redis: Redis, settings: Settings, *, now: float, least: int = LEAST, most: int = MOST
) -> int:
    """Move what is due, as far as four files go; how many completions left Redis.

    Raises OSError where the archive cannot be written, ArchiveBroken, Unavailable.
    """
    await prepare(redis, settings)
    moved = 0
    for _ in range(_FILES_AT_ONCE):
        due = await compaction_due(redis, settings.log, now=now, least=least)
        if not due:
            break
        with redis_errors():
            raw = await redis.zrange(keys.logged(), 0, min(due, most) - 1)
        if not await _move(redis, [token.decode() for token in raw]):
            break
        moved += len(raw)
    return moved


async def prepare(redis: Redis, settings: Settings) -> None:
    """Say where the archive is, sweep up; the first time find the completions that there are."""
    manifest = await read_manifest(redis)
    root = archive_root(settings)
    if not manifest.root:
        await _index_completions(redis)
    if manifest.root != root:
        await move_root(redis, root)
    await sweep(redis)
    observe(await read_manifest(redis))


async def sweep(redis: Redis) -> int:
    """Delete files that were never registered, or are no more; how many.

    None while one that is registered is missing: a restored Redis may lack what lies there.
    """
    manifest = await read_manifest(redis)
    names = await asyncio.to_thread(archive_files.names_in, manifest.root) if manifest.root else {}
    if not {*names} - manifest.files.keys():
        return 0
    if missing := sorted(manifest.files.keys() - {*names}):
        _log.error("%s is missing in the archive in %s", missing[0], manifest.root)
        return 0
    if not await change(redis, manifest):  # whoever is about to register one of them cannot now
        return 0
    stray = {*names} - (await read_manifest(redis)).files.keys()
    for name in stray:
        await asyncio.to_thread(archive_files.remove, manifest.root, name)
    return len(stray)


async def remove_rows(
    redis: Redis,
    tokens: Collection[str] = (),
    *,
    before_ms: int | None = None,
    tell: Callable[[str, archive_files.Rest], Told],
) -> bool:
    """Write each file anew without some rows, or what is older; False: somebody else was faster.

    `tell` says, for a file and what is gone from it, what becomes true together with the change.
    """
    for name in (await read_manifest(redis)).files:
        manifest = await read_manifest(redis)
        entry = manifest.files.get(name)
        near = [token for token in tokens if entry and entry.may_have(token)]
        if entry is None or not (near or (before_ms is not None and entry.first_ms < before_ms)):
            continue
        rest = await asyncio.to_thread(
            archive_files.without, manifest.root, name, tokens=near, before_ms=before_ms
        )
        if rest is None:
            continue
        if not await change(redis, manifest, remove=name, add=rest.file, told=tell(name, rest)):
            return False
        with redis_errors():
            for chunk in _chunks(rest.removed):
                await redis.hdel(keys.archive_broken(), *chunk)
        await asyncio.to_thread(archive_files.remove, manifest.root, name)
    await sweep(redis)
    return True


async def drop_doubles(redis: Redis, tokens: Sequence[str]) -> None:
    """Let go in Redis of those of the completions that the archive has, too."""
    known = sorted(await known_tokens(redis, tokens))
    await _drop(redis, await _records(redis, known))


def observe(manifest: Manifest) -> None:
    """Tell the metrics."""
    metrics.ARCHIVE_ROWS.set(sum(entry.rows for entry in manifest.files.values()))
    metrics.ARCHIVE_BYTES.set(sum(entry.bytes for entry in manifest.files.values()))


async def _move(redis: Redis, tokens: Sequence[str]) -> bool:
    """One batch; False when the archive changed meanwhile."""
    manifest = await read_manifest(redis)
    raw = await _records(redis, tokens)
    gone = [token for token in tokens if token not in raw]
    known = await known_tokens(redis, tokens)
    rows = [_row(text) for token, text in raw.items() if token not in known]
    if rows:
        try:
            file = await asyncio.to_thread(archive_files.write, manifest.root, rows)
        except archive_files.SweptUp:
            return False
        if not await change(redis, manifest, add=file):
            return False
    await _drop(redis, raw)
    if gone:
        with redis_errors():
            await redis.zrem(keys.logged(), *gone)
    observe(await read_manifest(redis))
    return True


def _row(text: bytes) -> Row:
    record = Completion.model_validate_json(text)
    return Row(
        token=record.token,
        user=record.user,
        tenant=record.tenant,
        created_ms=int(record.created_at * 1000),
        counted=record.counted,
        record=text.decode(),
    )


async def _records(redis: Redis, tokens: Sequence[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with redis_errors():
        for chunk in _chunks(tokens):
            raw = await redis.mget([keys.completion(token) for token in chunk])
            found |= {t: text for t, text in zip(chunk, raw, strict=True) if text}
    return found


async def _drop(redis: Redis, records: Mapping[str, bytes]) -> None:
    """Records that the archive has leave Redis; that an answer broke off is remembered there."""
    for chunk in _chunks([*records]):
        found = [Completion.model_validate_json(records[token]) for token in chunk]
        await drop_completions(redis, [(one, one.error or "") for one in found])


async def drop_completions(
    redis: Redis, those: Sequence[tuple[Completion, str]], *, audit: str = ""
) -> None:
    """Take completions out of Redis in one step, each with what is to be remembered as broken."""
    names = [keys.logged(), keys.prompts(), keys.archive_broken(), keys.audit()]
    args: list[str | bytes | int | float] = [audit]
    for one, broken in those:
        names += [keys.completion(one.token), keys.user_completions(one.user)]
        args += [one.token, broken]
    with redis_errors():
        await script(redis, "drop_completions", names, args)


async def _index_completions(redis: Redis) -> None:
    """Find the completions that were recorded before there was an index of them."""
    with redis_errors():
        names: list[str] = []
        async for name in redis.scan_iter(match=keys.completion("*"), count=1000):
            names.append(name.decode())
        for chunk in _chunks(names):
            raw = await redis.mget(chunk)
            found = [Completion.model_validate_json(text) for text in raw if text]
            moments = {one.token: int(one.created_at * 1000) for one in found}
            if moments:
                await redis.zadd(keys.logged(), moments, nx=True)


def _chunks(items: Sequence[str]) -> Iterator[Sequence[str]]:
    return (items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK))
