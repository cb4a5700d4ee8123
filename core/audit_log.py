"""The audit log outside Redis: `audit.jsonl` in the state folder, one line an entry, only appended.

Each line carries the hash of the one before and a signature, so that nothing can be changed, taken
out or put in between without it showing. A worker copies from Redis what the file has not got yet;
the id of the stream's entry says what that is, so a kill in the middle doubles and loses nothing.
A Redis that does not know the last line was restored from a backup: it is given back what it lost.
Knows nothing of what the entries mean (core/registry.py).
"""

import asyncio
import base64
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from cryptography.exceptions import InvalidSignature
from pydantic import ValidationError

from core import keys
from core.errors import InstructLoopError
from core.keyring import Keyring, Verifier
from core.records import Record
from core.redis_client import Redis, script
from core.registry import stream_entry

FILE = "audit.jsonl"
BEGINNING = "0" * 64
"""What the first line names as the hash before it."""
_CHUNK = 65_536


class AuditBroken(InstructLoopError):
    """The audit log was changed by somebody else than us."""


class Line(Record):
    """One line of the file. `id` is that of the entry in Redis, which begins with milliseconds."""

    id: str
    entry: dict[str, Any]
    previous: str
    """`sha256` of the line before."""
    sha256: str
    signature: str
    """Of `sha256`, Ed25519, base64."""


async def mirror(redis: Redis, keyring: Keyring, state_dir: Path) -> int:
    """Append what Redis has and the file has not; how many lines that were. Safe to repeat.

    0 also when another process is at it. Raises AuditBroken when the last line is not ours.
    """
    path = state_dir / FILE
    newest = await redis.xrevrange(keys.audit(), count=1)
    last = await asyncio.to_thread(_last_line, path)
    if (last.id if last else None) == (newest[0][0].decode() if newest else None):
        return 0
    with _locked(path) as file:
        if file is None:
            return 0
        last = _tail(file)
        if last is not None and not await _knows(redis, last, path):
            return 0  # what is appended now would hide from the next look what Redis lacks
        after = f"({last.id}" if last else "-"
        found = await redis.xrange(keys.audit(), after)
        entries = [(name.decode(), stream_entry(fields)) for name, fields in found]
        await asyncio.to_thread(_append, file, chained(keyring, last, entries))
    return len(entries)


def chained(
    keyring: Keyring, last: Line | None, entries: Sequence[tuple[str, dict[str, Any]]]
) -> list[Line]:
    """The lines that come after `last` (pure, but for the key)."""
    lines = []
    previous = last.sha256 if last else BEGINNING
    for name, entry in entries:
        digest = _digest(name, entry, previous)
        signature = keyring.sign(digest.encode())
        lines.append(
            Line(id=name, entry=entry, previous=previous, sha256=digest, signature=signature)
        )
        previous = digest
    return lines


def read_lines(path: Path) -> list[Line]:
    """All lines, oldest first, none of them checked. Raises AuditBroken for what is no line."""
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]  # one that a crash has torn was never written
    return [_parsed(raw, number) for number, raw in enumerate(whole.splitlines(), 1)]


def check(lines: Sequence[Line], public_key: Verifier) -> None:
    """Prove that nothing was changed, taken out or put in. Raises AuditBroken with the line."""
    previous, before = BEGINNING, (-1, -1)
    for number, line in enumerate(lines, 1):
        if line.previous != previous:
            raise AuditBroken(f"line {number} of {FILE} does not follow the one before it")
        if line.sha256 != _digest(line.id, line.entry, line.previous) or not _signed(
            line, public_key
        ):
            raise AuditBroken(f"line {number} of {FILE} was changed after it was written")
        if _order(line.id) <= before:
            raise AuditBroken(f"line {number} of {FILE} is older than the one before it")
        previous, before = line.sha256, _order(line.id)


async def compare(redis: Redis, lines: Sequence[Line]) -> None:
    """Prove that Redis tells the same. Raises AuditBroken with the entry that differs."""
    told = {name.decode(): stream_entry(f) for name, f in await redis.xrange(keys.audit())}
    written = {line.id: line.entry for line in lines}
    for name in sorted({*told, *written}, key=_order):
        if name not in told:
            raise AuditBroken(f"entry {name} of {FILE} is not in Redis any more")
        if name not in written:
            raise AuditBroken(f"entry {name} of Redis was cut off from {FILE}")
        if told[name] != written[name]:
            raise AuditBroken(f"entry {name} says something else in Redis than in {FILE}")


# --- the file -------------------------------------------------------------------------------


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO | None]:
    """The file, ours alone; None while it is somebody else's."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield file


def _append(file: BinaryIO, lines: Sequence[Line]) -> None:
    """Down to the disk; first a line that a crash has torn is cut off."""
    file.seek(0)
    content = file.read()
    file.truncate(content.rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)
    file.write(b"".join(line.model_dump_json().encode() + b"\n" for line in lines))
    file.flush()
    os.fsync(file.fileno())


def _last_line(path: Path) -> Line | None:
    if not path.exists():
        return None
    with path.open("rb") as file:
        return _tail(file)


def _tail(file: BinaryIO) -> Line | None:
    """The last whole line, read from the end."""
    end = file.seek(0, os.SEEK_END)
    tail = b""
    while end and tail.count(b"\n") < 2 + (not tail.endswith(b"\n")):
        start = max(end - _CHUNK, 0)
        file.seek(start)
        tail, end = file.read(end - start) + tail, start
    whole = tail[: tail.rfind(b"\n") + 1].splitlines()
    return _parsed(whole[-1], None) if whole else None


def _parsed(raw: bytes, number: int | None) -> Line:
    try:
        return Line.model_validate_json(raw)
    except ValidationError:
        which = "the last line" if number is None else f"line {number}"
        raise AuditBroken(f"{which} of {FILE} is not one of ours") from None


# --- the chain ------------------------------------------------------------------------------


def _digest(name: str, entry: Mapping[str, Any], previous: str) -> str:
    text = json.dumps([name, entry, previous], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _signed(line: Line, public_key: Verifier) -> bool:
    try:
        public_key.verify(base64.b64decode(line.signature), line.sha256.encode())
    except (InvalidSignature, ValueError):
        return False
    return True


def _order(name: str) -> tuple[int, int]:
    milliseconds, _, number = name.partition("-")
    return int(milliseconds), int(number or 0)


# --- a Redis from a backup ------------------------------------------------------------------


async def _knows(redis: Redis, last: Line, path: Path) -> bool:
    """Whether Redis has this line, if only because it was given back to it."""
    if await redis.xrange(keys.audit(), last.id, last.id):
        return True
    return await _give_back(redis, read_lines(path))


async def _give_back(redis: Redis, lines: Sequence[Line]) -> bool:
    """Put the file's entries among those that a restored Redis has, in their order, in one step.

    False when somebody appends meanwhile: nothing is done, and the next look repeats it.
    """
    found = await redis.xrange(keys.audit())
    known = {name.decode(): stream_entry(fields) for name, fields in found}
    merged = {line.id: line.entry for line in lines} | known
    flat: list[str | bytes | int | float] = [found[-1][0].decode() if found else ""]
    for name in sorted(merged, key=_order):
        entry = dict(merged[name])
        moved = [str(entry.pop(end, "")) for end in ("from", "to")]
        flat += [name, json.dumps(entry, sort_keys=True), *moved]
    return bool(await script(redis, "replay_audit", [keys.audit()], flat))
