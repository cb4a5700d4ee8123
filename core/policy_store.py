"""Where versions are kept beside the state folder: any place that fsspec reaches, by its URL.

An object store has no rename, so nothing there is ever in the place of anything: a version lies
under a prefix of the worker's own that wrote it, and counts only once the registry's script has
named that prefix (core/registry.py). Whoever needs a version and has no folder of it fetches it,
and proves it by the hash in its signed card before it appears. Without a URL there is only the
state folder and nothing of this happens. Knows no Redis.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from core import lineage
from core.errors import CorruptVersion, InstructLoopError, NotFound, Unavailable
from core.records import Card
from core.versions import weights_sha256

_KEPT = frozenset({"card.json", lineage.FILE})
"""What stays of a version whose weights are removed."""


@dataclass(frozen=True, slots=True)
class PolicyStore:
    """The folder of versions on this machine, and where they are kept for others; "" if nowhere."""

    local: Path
    url: str = ""

    def put(self, version: str, *, token: int) -> str:
        """Copy a version's folder there; the prefix to register, "" if there is nowhere.

        `token` is the writer's fencing token: no two writers have the same. Raises Unavailable.
        """
        if not self.url:
            return ""
        prefix = f"{version}-{token}"
        with _reached(self.url):
            files, root = self._files()
            files.makedirs(f"{root}/{prefix}", exist_ok=True)
            for path in sorted(p for p in (self.local / version).iterdir() if p.is_file()):
                files.put_file(str(path), f"{root}/{prefix}/{path.name}")
        return prefix

    def fetch(self, card: Card, prefix: str) -> Path:
        """The version's folder on this machine, copied here first where it is missing.

        Raises CorruptVersion when what lies there is not what the card names, NotFound when
        nothing does, Unavailable.
        """
        folder = self.local / card.version
        if folder.is_dir() or not (self.url and prefix):
            return folder
        partial = self.local / f".fetched-{card.version}-{os.getpid()}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            self._download(prefix, partial)
            if weights_sha256(partial) != card.weights_sha256:
                raise CorruptVersion(
                    f"{card.version}: what is kept under {prefix} is not what its card names."
                )
            _appear(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return folder

    def size(self, prefix: str) -> int:
        """Bytes kept under a prefix, 0 where the store does not say. Raises Unavailable."""
        if not (self.url and prefix):
            return 0
        with _reached(self.url):
            files, root = self._files()
            if not files.exists(f"{root}/{prefix}"):
                return 0
            return sum(of.get("size") or 0 for of in files.ls(f"{root}/{prefix}", detail=True))

    def lineage(self, card: Card, prefix: str) -> list[str]:
        """The ids that a version learned from, without its weights (core/lineage.py's errors)."""
        folder = self.local / card.version
        if (folder / lineage.FILE).exists() or not (self.url and prefix):
            return lineage.read_ids(folder, card)
        with tempfile.TemporaryDirectory() as name, _reached(self.url):
            files, root = self._files()
            if files.exists(f"{root}/{prefix}/{lineage.FILE}"):
                files.get_file(f"{root}/{prefix}/{lineage.FILE}", f"{name}/{lineage.FILE}")
            return lineage.read_ids(Path(name), card)

    def prefixes(self) -> list[str]:
        """All prefixes that are there, also those that nobody registered. Raises Unavailable."""
        if not self.url:
            return []
        with _reached(self.url):
            files, root = self._files()
            if not files.exists(root):
                return []
            return sorted(Path(name).name for name in files.ls(root, detail=False))

    def strip(self, prefix: str) -> None:
        """Remove the weights under a prefix; card and lineage stay. Raises Unavailable."""
        self._remove(prefix, but=_KEPT)

    def remove(self, prefix: str) -> None:
        """Remove all of a prefix that nobody registered. Raises Unavailable."""
        self._remove(prefix, but=())

    def _download(self, prefix: str, target: Path) -> None:
        with _reached(self.url):
            files, root = self._files()
            if not files.exists(f"{root}/{prefix}/card.json"):
                raise NotFound(f"nothing is kept under {prefix} any more")
            for name in files.ls(f"{root}/{prefix}", detail=False):
                files.get_file(name, str(target / Path(name).name))

    def _remove(self, prefix: str, *, but: Collection[str]) -> None:
        with _reached(self.url):
            files, root = self._files()
            if not files.exists(f"{root}/{prefix}"):
                return
            names = files.ls(f"{root}/{prefix}", detail=False)
            for name in names:
                if Path(name).name not in but:
                    files.rm_file(name)
            if not but and files.exists(f"{root}/{prefix}"):  # an empty prefix is no folder
                files.rm(f"{root}/{prefix}", recursive=True)

    def _files(self) -> tuple[Any, str]:
        files, root = fsspec.core.url_to_fs(self.url)
        files.invalidate_cache()
        return files, str(root).rstrip("/")


@contextmanager
def _reached(url: str) -> Iterator[None]:
    """Turn what a file system of others raises into Unavailable: the next look tries again.

    An edge: what a driver raises is its library's own, and need not be an OSError.
    """
    scheme = url.split("://")[0] if "://" in url else "file"
    try:
        yield
    except InstructLoopError:
        raise
    except Exception as error:
        raise Unavailable(
            f"the versions at policies_url ({scheme}) cannot be reached: {_what_to_do(error)}"
        ) from error


def _what_to_do(error: Exception) -> str:
    """Of an error of a file system; its own words may hold names and keys of the store."""
    if isinstance(error, ImportError):
        extra = "; pip install -r deploy/locks/s3.txt" if "s3fs" in str(error) else ""
        return f"fsspec asks for a package that is not here ({error}{extra})"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk that was written to is full"
    return type(error).__name__


def _appear(partial: Path, folder: Path) -> None:
    """Rename; what another process of this machine fetched first stays."""
    try:
        partial.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
