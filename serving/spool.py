"""A bounded file of sealed entries, for as long as Redis cannot take them.

One file for each gateway process, locked while the process lives; what a dead process left is
adopted by the next one. A record is `length(4) | crc32(4) | number(8) | sealed`; a torn end, from a
crash in the middle of a write, is ignored. Writing waits for the disk, so `serving/inbox.py` does
it in a thread, and reads and writes share no file position. Knows nothing of what is sealed.
"""

import fcntl
import os
import re
import secrets
import struct
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_HEAD = struct.Struct(">IIQ")
_NAME = re.compile(r"\d{13}-([0-9a-f]{16})\.spool")


class SpoolFull(Exception):
    """The bound is reached; the entries are not kept."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A sealed completion and its number within the gateway process that wrote it."""

    number: int
    sealed: bytes


class Spool:
    """One file: written at its end, read from its front, emptied once all of it is read."""

    def __init__(self, path: Path, writer: str, descriptor: int, max_bytes: int) -> None:
        self.writer = writer
        self._path = path
        self._descriptor = descriptor
        self._max_bytes = max_bytes
        self._read_at = 0
        self._end = _sound_end(descriptor)

    @property
    def drained(self) -> bool:
        """Whether everything in it was read."""
        return self._read_at == self._end

    @property
    def unread_bytes(self) -> int:
        """How much waits in it."""
        return self._end - self._read_at

    def write(self, entries: Sequence[Entry]) -> None:
        """Append, durably. Raises SpoolFull or OSError; then none of them is kept."""
        data = b"".join(_record(entry) for entry in entries)
        if self._end + len(data) > self._max_bytes:
            raise SpoolFull
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(self._descriptor, data[written:], self._end + written)
            os.fdatasync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, self._end)
            raise
        self._end += len(data)

    def read(self, max_bytes: int) -> list[Entry]:
        """The next entries, at least one if any is left; `advance` says that they are done."""
        entries: list[Entry] = []
        at = self._read_at
        while at < self._end and (not entries or at - self._read_at < max_bytes):
            length, _, number = _HEAD.unpack(os.pread(self._descriptor, _HEAD.size, at))
            entries.append(Entry(number, os.pread(self._descriptor, length, at + _HEAD.size)))
            at += _HEAD.size + length
        return entries

    def advance(self, done: Sequence[Entry]) -> None:
        """These were delivered."""
        self._read_at += sum(_HEAD.size + len(entry.sealed) for entry in done)

    def empty(self) -> None:
        """Start over, once all is read and nothing is being written."""
        assert self.drained
        os.ftruncate(self._descriptor, 0)
        self._read_at = self._end = 0

    def close(self) -> None:
        """Release the file; one with nothing left in it goes."""
        if self.drained:
            self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


def new_spool(folder: Path, max_bytes: int) -> Spool:
    """The spool of this process."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    writer = secrets.token_hex(8)
    path = folder / f"{int(time.time() * 1000):013d}-{writer}.spool"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return Spool(path, writer, descriptor, max_bytes)


def orphans(folder: Path) -> list[Spool]:
    """The spools that dead processes left, oldest first, locked for this process."""
    found = []
    for path in sorted(folder.glob("*.spool")):
        match = _NAME.fullmatch(path.name)
        if match is None:
            continue
        descriptor = os.open(path, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # its process lives
            os.close(descriptor)
            continue
        found.append(Spool(path, match[1], descriptor, max_bytes=0))
    return found


def _record(entry: Entry) -> bytes:
    check = zlib.crc32(entry.sealed)
    return _HEAD.pack(len(entry.sealed), check, entry.number) + entry.sealed


def _sound_end(descriptor: int) -> int:
    """Where the last whole record ends."""
    at = 0
    while len(head := os.pread(descriptor, _HEAD.size, at)) == _HEAD.size:
        length, check, _ = _HEAD.unpack(head)
        body = os.pread(descriptor, length, at + _HEAD.size)
        if len(body) != length or zlib.crc32(body) != check:
            break
        at += _HEAD.size + length
    return at
