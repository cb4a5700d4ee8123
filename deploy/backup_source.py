"""A backup that is read: its manifest, and its files, each of which is proven as it is copied out.

Knows no Redis, and nothing of where the files belong.
"""

import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Protocol

from pydantic import ValidationError

from core.errors import InstructLoopError
from deploy.backup_files import (
    MANIFEST,
    Hashed,
    Line,
    Manifest,
    Told,
    cannot_write,
    copy_new,
)


class Source(Protocol):
    """A backup that is read."""

    def open(self, name: str) -> IO[bytes]:
        """A file of it. Raises KeyError, OSError."""


class _FolderSource:
    def __init__(self, root: Path) -> None:
        self._root = root

    def open(self, name: str) -> IO[bytes]:
        path = self._root / name
        if path.is_symlink() or not path.is_file():
            raise KeyError(name)
        return path.open("rb")


class _TarSource:
    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar

    def open(self, name: str) -> IO[bytes]:
        member = self._tar.getmember(name)
        file = self._tar.extractfile(member) if member.isreg() else None
        if file is None:
            raise KeyError(name)
        return file


@contextmanager
def open_backup(path: Path) -> Iterator[Source]:
    """A folder or a tar file. Raises InstructLoopError for what is neither."""
    if path.is_dir():
        yield _FolderSource(path)
        return
    with ExitStack() as stack:
        try:
            tar = stack.enter_context(tarfile.open(path, "r:"))
        except (OSError, tarfile.TarError) as error:
            raise InstructLoopError(f"{path} is no backup: {error}") from None
        yield _TarSource(tar)


def read_backup(source: Source, path: Path) -> Manifest:
    """What it holds. Raises InstructLoopError for a backup that was broken off or is not ours."""
    try:
        with source.open(MANIFEST) as file:
            return Manifest.model_validate_json(file.read())
    except (KeyError, OSError, tarfile.TarError):
        raise InstructLoopError(
            f"{path} has no {MANIFEST}: it is no backup, or one that was broken off"
        ) from None
    except ValidationError:
        raise InstructLoopError(
            f"the {MANIFEST} of {path} was changed, or a newer release wrote it"
        ) from None


def take(source: Source, line: Line, target: Path, told: Told) -> None:
    """Copy a file out, and prove it. Raises InstructLoopError."""
    try:
        opened = source.open(line.path)
    except (KeyError, OSError, tarfile.TarError):
        raise InstructLoopError(f"{line.path} is missing in the backup") from None
    with opened:
        hashed = Hashed(opened, told)
        try:
            copy_new(hashed, target, line.mode & 0o777)
        except tarfile.TarError:
            raise InstructLoopError(f"{line.path} of the backup is cut off") from None
        except OSError as error:
            raise cannot_write(str(target), error) from None
    if (hashed.bytes, hashed.sha256) != (line.bytes, line.sha256):
        raise InstructLoopError(f"{line.path} of the backup is not as it was written: use another")
