"""What a backup is on a disk: files, and a manifest with the hash of each, which is written last.

A backup is a folder or a tar file; both come into being beside their name and get it when they are
whole, so that one that was broken off is never taken for one. Knows no Redis.
"""

import fcntl
import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, field_validator

from core.errors import InstructLoopError

MANIFEST = "manifest.json"
REDIS = "redis.rdb"
STATE = "state/"
SETTINGS = "instructloop.toml"
_CHUNK = 1 << 20

Told = Callable[[int], None]
"""Hears how many bytes were done since."""


class Line(BaseModel):
    """A file of a backup."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    bytes: int
    sha256: str
    mode: int

    @field_validator("path")
    @classmethod
    def _stay_inside(cls, path: str) -> str:
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts or str(PurePosixPath(path)) != path:
            raise ValueError("leads out of the backup")
        return path


class Manifest(BaseModel):
    """What a backup holds, and what it does not."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    made_at: str
    release: str
    schema_version: str
    erasures_read: int
    """Bytes of the erasures' log that this Redis had taken in: a log that is longer says more."""
    unreadable: dict[str, int]
    """How much raw text waited for the filter: its keys are not here, so that it is gone."""
    left_out: tuple[str, ...]
    files: tuple[Line, ...]


class Readable(Protocol):
    """A file, or what reads like one."""

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes."""


class Sink(Protocol):
    """Where the files of a backup go."""

    def add(self, name: str, file: Readable, size: int, mode: int) -> None:
        """Take exactly `size` bytes of a file in."""


class _Folder:
    def __init__(self, root: Path) -> None:
        self._root = root

    def add(self, name: str, file: Readable, size: int, mode: int) -> None:
        copy_new(file, self._root / name, mode)


class _Tar:
    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar

    def add(self, name: str, file: Readable, size: int, mode: int) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mode = size, mode
        self._tar.addfile(member, file)


class Hashed:
    """A file that is read through: counts, hashes, and says how far it is."""

    def __init__(self, file: Readable, told: Told) -> None:
        self._file, self._told = file, told
        self._sha256 = hashlib.sha256()
        self.bytes = 0

    def read(self, size: int = -1, /) -> bytes:
        piece = self._file.read(size)
        self._sha256.update(piece)
        self.bytes += len(piece)
        self._told(len(piece))
        return piece

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()


def put(sink: Sink, name: str, source: Path, told: Told) -> Line:
    """Copy a file in; its line for the manifest. Raises FileNotFoundError, InstructLoopError."""
    with source.open("rb") as file:
        stat = os.fstat(file.fileno())
        hashed, mode = Hashed(file, told), stat.st_mode & 0o777
        try:
            sink.add(name, hashed, stat.st_size, mode)
        except OSError as error:
            raise cannot_write(name, error) from None
    if hashed.bytes != stat.st_size:
        raise InstructLoopError(f"{source} changed while it was copied: try again")
    return Line(path=name, bytes=hashed.bytes, sha256=hashed.sha256, mode=mode)


def put_manifest(sink: Sink, manifest: Manifest) -> None:
    """The last file of all. Raises InstructLoopError."""
    text = manifest.model_dump_json(indent=1).encode()
    try:
        sink.add(MANIFEST, io.BytesIO(text), len(text), 0o600)
    except OSError as error:
        raise cannot_write(MANIFEST, error) from None


@contextmanager
def new_backup(out: Path) -> Iterator[Sink]:
    """A folder, or for a name that ends in `.tar` a file, that gets its name when all went well.

    Raises InstructLoopError when something of that name is there.
    """
    if os.path.lexists(out):
        raise InstructLoopError(f"{out} is there already: choose another --out")
    with beside(out, "backup") as folder:
        if out.suffix != ".tar":
            yield _Folder(folder)
            settle(folder, out)
            return
        path = folder / "backup.tar"
        with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "w+b") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                yield _Tar(tar)
            file.flush()
            os.fsync(file.fileno())
        settle(path, out)


@contextmanager
def beside(target: Path, what: str) -> Iterator[Path]:
    """An empty folder next to `target`, ours alone, gone when the block ends.

    What a killed one has left there is swept up. Raises InstructLoopError.
    """
    target = target.absolute()
    folder = target.with_name(f".{target.name}.{what}-unfinished")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise cannot_write(str(folder), error) from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InstructLoopError(f"another process writes {target} now") from None
        _empty(folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(handle)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def settle(made: Path, target: Path) -> None:
    """Down to the disk, then by its name. Raises InstructLoopError."""
    folders = [made, *made.rglob("*")] if made.is_dir() else []
    try:
        for folder in filter(Path.is_dir, folders):
            _sync(folder)
        os.rename(made, target)
        _sync(target.absolute().parent)
    except OSError as error:
        raise cannot_write(str(target), error) from None


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def copy_new(file: Readable, target: Path, mode: int) -> None:
    """Into a new file, down to the disk. Raises OSError."""
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as copy:
        shutil.copyfileobj(file, copy, _CHUNK)
        copy.flush()
        os.fsync(copy.fileno())


def keep(source: Path, target: Path) -> None:
    """A log that lies apart, copied as it is. Raises InstructLoopError."""
    try:
        with source.open("rb") as file:
            copy_new(file, target, 0o600)
    except OSError as error:
        raise cannot_write(str(target), error) from None


def cannot_write(name: str, error: OSError) -> InstructLoopError:
    """The line that a person gets who has no disk left."""
    return InstructLoopError(
        f"cannot write {name} ({error.strerror or error}): free some disk or choose another place; "
        "nothing was left behind"
    )
