"""Copies of versions that this machine fetched (core/policy_store.py): which are in use, which go.

A copy has a mark beside it, made before it is fetched and so known after a crash, too. Who loads or
serves a copy holds a shared lock on its mark, which the kernel drops with the process; only what
nobody holds is removed. A folder without a mark is no copy: it was made here, or a worker reads it,
and learning/rounds/collect.py has rules for it. Which copies are wanted is the caller's to say.
Knows no Redis and no store.
"""

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

MARKS = ".copies"
_OPTIONS = os.O_RDWR | os.O_CLOEXEC
log = logging.getLogger(__name__)


@dataclass(slots=True)
class Copies:
    """The copies in a folder of versions, and those that this process holds."""

    local: Path
    _held: dict[str, int] = field(default_factory=dict)
    """Open file of each mark that is locked."""

    def hold(self, version: str) -> None:
        """Keep a version's copy, here or still to be fetched, until it is let go.

        Does nothing for a folder that is no copy. What a dead process left of it is removed.
        Raises OSError.
        """
        if version in self._held:
            return
        mark = self._mark(version)
        while not self._is_no_copy(version):
            file, is_new = _opened(mark)
            if _locked(file, fcntl.LOCK_EX | fcntl.LOCK_NB):  # nobody fetches it either
                self._remove_parts(version)
            fcntl.flock(file, fcntl.LOCK_SH)
            if is_new and (self.local / version).is_dir():
                mark.unlink(missing_ok=True)  # a worker brought it meanwhile, for itself
            if os.fstat(file).st_nlink:
                self._held[version] = file
                return
            os.close(file)  # it was removed, or became a worker's, while this one waited

    def own(self, version: str) -> None:
        """Make a version that is held no copy any more: nothing here removes it then."""
        file = self._held.pop(version, None)
        if file is not None:
            if os.fstat(file).st_nlink:
                self._mark(version).unlink(missing_ok=True)
            os.close(file)

    def release(self, *, but: Collection[str]) -> None:
        """Let go of all but these."""
        for version in [of for of in self._held if of not in but]:
            file = self._held.pop(version)
            with suppress(OSError):  # then it counts as older than it is
                os.utime(file, ns=(time.time_ns(),) * 2)  # finer than the kernel's own
            os.close(file)

    def is_copy(self, version: str) -> bool:
        """Whether the folder, if there is one, was fetched."""
        return self._mark(version).exists()

    def size(self) -> int:
        """Bytes of all copies together."""
        return sum(_size(self.local / version) for version in self._oldest_first())

    def trim(self, keep: Collection[str], *, most: int, most_bytes: int | None) -> list[str]:
        """Remove copies that are neither to keep nor held by anybody, oldest first.

        At most `most` of those stay, fewer where all copies together are over `most_bytes`.
        Returns what went. Raises OSError.
        """
        sizes = {version: _size(self.local / version) for version in self._oldest_first()}
        spare = [version for version in sizes if version not in keep and version not in self._held]
        gone: list[str] = []
        while spare and (len(spare) > most or _is_over(sizes.values(), most_bytes)):
            version = spare.pop(0)
            if self.drop(version):
                del sizes[version]
                gone.append(version)
        return gone

    def drop(self, version: str) -> bool:
        """Remove a copy; False if somebody holds it, this process too. Raises OSError."""
        mark = self._mark(version)
        try:
            file = os.open(mark, _OPTIONS)
        except FileNotFoundError:
            return False
        try:
            if not (_locked(file, fcntl.LOCK_EX | fcntl.LOCK_NB) and os.fstat(file).st_nlink):
                return False
            folder = self.local / version
            if folder.is_dir():  # never seen half gone: it would be taken for a bad version
                folder.rename(self.local / f".trimmed-{version}")
            self._remove_parts(version)
            mark.unlink()
        finally:
            os.close(file)
        log.info("removed this machine's copy of %s", version)
        return True

    def _is_no_copy(self, version: str) -> bool:
        return (self.local / version).is_dir() and not self.is_copy(version)

    def _mark(self, version: str) -> Path:
        return self.local / MARKS / version

    def _oldest_first(self) -> list[str]:
        """All copies, in the order in which they were last let go."""
        marks = self.local / MARKS
        if not marks.is_dir():
            return []
        let_go: dict[str, int] = {}
        for path in marks.iterdir():
            with suppress(FileNotFoundError):  # another engine of this machine removes it now
                let_go[path.name] = path.stat().st_mtime_ns
        return sorted(let_go, key=let_go.__getitem__)

    def _remove_parts(self, version: str) -> None:
        """What is left of it by processes that ended while they fetched or removed it."""
        for path in (self.local / f".trimmed-{version}", *self.local.glob(f".fetched-{version}-*")):
            shutil.rmtree(path, ignore_errors=True)


def _opened(mark: Path) -> tuple[int, bool]:
    """The file, and whether it was made now."""
    mark.parent.mkdir(parents=True, exist_ok=True)
    try:
        return os.open(mark, _OPTIONS | os.O_CREAT | os.O_EXCL, 0o600), True
    except FileExistsError:
        return os.open(mark, _OPTIONS | os.O_CREAT, 0o600), False


def _locked(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind)
    except BlockingIOError:
        return False
    return True


def _size(folder: Path) -> int:
    try:
        return sum(path.stat().st_size for path in folder.glob("*") if path.is_file())
    except FileNotFoundError:  # another engine of this machine removes it now
        return 0


def _is_over(sizes: Collection[int], most: int | None) -> bool:
    return most is not None and sum(sizes) > most
