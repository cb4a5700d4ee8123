"""The erasure of a person, done: step by step, each of which may be killed and is done again.

Steps: the log outside Redis, sealed entries, tokens, feedback, labeling, completions, the archive,
files of training, Redis's own file, the receipt. What is left of a person is a tombstone, the
receipt and the audit log, all by keyed hash. Whoever calls holds the ingest lease, so that nothing
is recorded meanwhile and no two do it. The log outside Redis is read again from where this Redis
had read it: after a restore from a backup everybody who was erased since is erased again.
"""

import asyncio
import json
import logging
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import keys
from core.errors import ArchiveBroken, NotFound
from core.keyring import Keyring
from core.redis_client import Redis, redis_errors, rewrite_file, script
from core.registry import audit_entry
from core.settings import Settings
from feedback import erasure
from feedback.erasure import Job
from feedback.erasure_files import erase_files
from feedback.erasure_records import (
    collect_tokens,
    erase_archived,
    erase_completions,
    erase_sealed,
)
from feedback.erasure_said import erase_feedback, erase_tasks

FILE = "erasures.log"
_log = logging.getLogger(__name__)
_REWRITE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Erasing:
    """The collaborators of a step."""

    redis: Redis
    keyring: Keyring
    settings: Settings


Step = Callable[[Erasing, Job], Awaitable[bool]]
"""False when it has to wait; then it is done again later."""


async def erase_what_is_due(redis: Redis, keyring: Keyring, settings: Settings) -> int:
    """Go on with every open erasure as far as it goes; how many are finished by it.

    To be called by the holder of the ingest lease. Raises Unavailable.
    """
    work = Erasing(redis, keyring, settings)
    with redis_errors():
        await _read_log(work)
        if not await erasure.is_open(redis):
            return 0
        waiting = (await redis.hgetall(keys.erasures_open())).values()
        finished = [await _advance_or_say_why_not(work, raw.decode()) for raw in waiting]
    return sum(finished)


async def log_is_unread(redis: Redis, state_dir: Path) -> bool:
    """Whether the log outside Redis holds more than this Redis knows: it was restored."""
    size = _size(state_dir / FILE)
    return bool(size) and size > int(await redis.get(keys.erasures_read()) or 0)


async def _advance_or_say_why_not(work: Erasing, erasure_id: str) -> bool:
    """One that cannot go on (a file that cannot be read) holds up neither others nor ingest."""
    try:
        return await _advance(work, erasure_id)
    except ArchiveBroken as error:
        _log.error("%s cannot go on, it is tried again: %s", erasure_id, error.message)
        return False
    except (OSError, ValueError, NotFound) as error:
        _log.error("%s cannot go on, it is tried again: %s", erasure_id, type(error).__name__)
        return False


async def _advance(work: Erasing, erasure_id: str) -> bool:
    """Do the steps that are left; True when it is finished."""
    job = await erasure.read_job(work.redis, erasure_id)
    for name, step in _left(job):
        if not await step(work, job):
            return False
        await work.redis.hset(keys.erasure(job.id), "done", f"{job.at}:{name}")
    return await _finish(work, job)


def _left(job: Job) -> list[tuple[str, Step]]:
    """The steps after the last one that was done for this moment."""
    at, _, done = job.done.partition(":")
    names = list(_STEPS)
    start = names.index(done) + 1 if at == str(job.at) and done in _STEPS else 0
    return [(name, _STEPS[name]) for name in names[start:]]


async def _write_log(work: Erasing, job: Job) -> bool:
    """One line outside Redis, on the disk before anything is removed."""
    line = {"id": job.id, "tenant": job.tenant, "user": job.user, "at": job.at}
    line |= {"raters": sorted(job.raters), "started": job.started}
    text = json.dumps(line, sort_keys=True)
    path = work.settings.state_dir / FILE
    await asyncio.to_thread(_append, path, text)
    await work.redis.set(keys.erasures_read(), _size(path))
    return True


def _append(path: Path, line: str) -> None:
    """The line, unless it is there; a torn last line is closed first."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    before = path.read_bytes() if path.exists() else b""
    if line.encode() in before.split(b"\n"):
        return
    lead = b"\n" if before and not before.endswith(b"\n") else b""
    with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab") as file:
        file.write(lead + line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


async def _read_log(work: Erasing) -> None:
    """Take in lines that this Redis does not know; they are from after its backup."""
    path = work.settings.state_dir / FILE
    if not await log_is_unread(work.redis, work.settings.state_dir):
        return
    read = int(await work.redis.get(keys.erasures_read()) or 0)
    content = path.read_bytes()
    for raw in content[read:].split(b"\n"):
        line = _parsed(raw)
        if line and line["at"] > int(await work.redis.hget(keys.erasure(line["id"]), "at") or 0):
            await erasure.open_job(
                work.redis,
                new=line["id"],
                user=line["user"],
                at=line["at"],
                fields={
                    "tenant": line["tenant"],
                    "raters": " ".join(line["raters"]),
                    "started": repr(line["started"]),
                },
            )
    await work.redis.set(keys.erasures_read(), len(content))


def _parsed(raw: bytes) -> dict[str, Any] | None:
    """A line of the log; None for one that a crash has torn."""
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


async def _sealed(work: Erasing, job: Job) -> bool:
    await erase_sealed(work.redis, work.keyring, job)
    return True


async def _tokens(work: Erasing, job: Job) -> bool:
    await collect_tokens(work.redis, job)
    return True


async def _feedback(work: Erasing, job: Job) -> bool:
    return await erase_feedback(work.redis, job)


async def _tasks(work: Erasing, job: Job) -> bool:
    return await erase_tasks(work.redis, job)


async def _completions(work: Erasing, job: Job) -> bool:
    await erase_completions(work.redis, work.keyring, work.settings.log, job)
    return True


async def _archive(work: Erasing, job: Job) -> bool:
    return await erase_archived(work.redis, job)


async def _files(work: Erasing, job: Job) -> bool:
    return await erase_files(work.redis, work.settings.state_dir, job)


async def _rewrite(work: Erasing, job: Job) -> bool:
    """Let Redis write its file anew, in which every old command still stands.

    A Redis that does not let us is noted on the receipt: its owner must do it.
    """
    done = await rewrite_file(work.redis, seconds=_REWRITE_SECONDS)
    if done is None:
        note = "note:Redis refused to rewrite its append-only file: have it rewritten"
        await work.redis.hset(keys.erasure(job.id), note, "1")
    return done is not False


_STEPS: dict[str, Step] = {
    "log": _write_log,
    "sealed": _sealed,
    "tokens": _tokens,
    "feedback": _feedback,
    "labeling": _tasks,
    "completions": _completions,
    "archive": _archive,
    "files": _files,
    "redis file": _rewrite,
}


async def _finish(work: Erasing, job: Job) -> bool:
    """Sign the receipt and tell the history of every policy that learned from this user."""
    fields = await erasure.fields_of(work.redis, job.id)
    now = time.time()
    plain = erasure.unsigned(fields, finished_at=now)
    said = erasure.signed(plain, work.keyring)
    about = {"erasure": job.id, "user": job.user, "tenant": job.tenant}
    why = "it was trained on records of a user who was erased since"
    entries = [audit_entry("erased", version=v, why=why, **about) for v in plain.versions]
    done = await script(
        work.redis,
        "finish_erasure",
        [
            keys.erasures_open(),
            keys.erasure(job.id),
            keys.erasure_tokens(job.id),
            keys.audit(),
        ],
        [
            job.user,
            job.at,
            repr(now),
            said.model_dump_json(),
            *(entries or [audit_entry("erased", **about)]),
        ],
    )
    return bool(done)
