"""The Parquet files of the archive: written once, read by token, by user or by time, never changed.

Rows are sorted by token, and tokens of one API key by time, so that a look-up touches few row
groups; each page carries a checksum that every read verifies. On a local disk a file is whole and
durable when it has its name. Knows no Redis; archive_manifest.py says which files count.
"""

import hashlib
import io
import os
import secrets
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.fs as filesystems
import pyarrow.parquet as parquet

from core.errors import ArchiveBroken
from feedback.archive_manifest import FileEntry, Row


class SweptUp(OSError):
    """Another process that compacts took a file that was being written for a stray one."""


SCHEMA = pa.schema(
    [
        ("token", pa.string()),
        ("user", pa.string()),
        ("tenant", pa.string()),
        ("created_ms", pa.int64()),
        ("counted", pa.bool_()),
        ("record", pa.string()),
    ]
)
_GROUP_ROWS = 500
_KEY_CHARS = 6
"""So many characters of a token are its version and API key (core/ids.py)."""
_MOST_RANGES = 16
_CACHED_FILES = 64


@dataclass(frozen=True, slots=True)
class Rest:
    """What is left of a file without some rows."""

    removed: tuple[str, ...]
    """Their tokens."""
    counted: int
    """How many of them were prompts that count."""
    file: tuple[str, FileEntry] | None
    """None when nothing is left."""


def write(root: str, rows: Sequence[Row]) -> tuple[str, FileEntry]:
    """A new file, on the disk when this returns; it counts once the manifest has it."""
    columns = zip(*sorted(rows), strict=True)
    arrays = [pa.array(column, type_.type) for column, type_ in zip(columns, SCHEMA, strict=True)]
    return _write_table(root, pa.Table.from_arrays(arrays, schema=SCHEMA))


def tokens_in(root: str, name: str, wanted: Collection[str]) -> list[str]:
    """Those of the tokens that the file has."""
    found = compute.is_in(pa.array(wanted, pa.string()), value_set=_tokens(root, name))
    return [t for t, is_there in zip(wanted, found.to_pylist(), strict=True) if is_there]


def records(root: str, name: str, wanted: Collection[str]) -> list[str]:
    """The records of those tokens that the file has, as JSON."""
    places = compute.index_in(pa.array(wanted, pa.string()), value_set=_tokens(root, name))
    groups = sorted({int(place) // _GROUP_ROWS for place in places.drop_null().to_pylist()})
    if not groups:
        return []
    with _opened(root, name) as file:
        table = file.read_row_groups(groups, columns=["token", "record"])
    mask = compute.is_in(table["token"], value_set=pa.array(wanted, pa.string()))
    found: list[str] = table.filter(mask)["record"].to_pylist()
    return found


def tokens_of_users(root: str, name: str, users: Collection[str]) -> list[tuple[str, int, bool]]:
    """Token, milliseconds and whether it counts, of all rows of these users."""
    with _opened(root, name) as file:
        table = file.read(columns=["token", "created_ms", "counted", "user"])
    mask = compute.is_in(table["user"], value_set=pa.array(users, pa.string()))
    return _triples(table.filter(mask))


def prompts_since(root: str, name: str, since_ms: int) -> list[tuple[str, int, bool]]:
    """Token, milliseconds and True, of the prompts that count and are not older."""
    with _opened(root, name) as file:
        table = file.read(columns=["token", "created_ms", "counted"])
    young = compute.greater_equal(table["created_ms"], since_ms)
    return _triples(table.filter(compute.and_(table["counted"], young)))


def without(
    root: str, name: str, *, tokens: Collection[str] = (), before_ms: int | None = None
) -> Rest | None:
    """The file again without these tokens and without what is older; None when it has none."""
    with _opened(root, name) as file:
        table = file.read()
    gone = compute.is_in(table["token"], value_set=pa.array(tokens, pa.string()))
    if before_ms is not None:
        gone = compute.or_(gone, compute.less(table["created_ms"], before_ms))
    removed = table.filter(gone)
    if not len(removed):
        return None
    left = table.filter(compute.invert(gone))
    counted = int(compute.sum(removed["counted"]).as_py() or 0)
    file_left = _write_table(root, left) if len(left) else None
    return Rest(tuple(removed["token"].to_pylist()), counted, file_left)


def is_whole(root: str, name: str, entry: FileEntry) -> bool:
    """Whether a file is, byte for byte, what the manifest says. Raises ArchiveBroken."""
    system, path = _place(root, name)
    try:
        with system.open_input_file(path) as file:
            return hashlib.sha256(file.read()).hexdigest() == entry.sha256
    except OSError as error:
        raise _broken(root, name, error) from error


def names_in(root: str) -> set[str]:
    """The names of everything in the folder, whether it counts or not."""
    system, path = _place(root, "")
    chosen = filesystems.FileSelector(path, allow_not_found=True)
    return {info.base_name for info in system.get_file_info(chosen)}


def remove(root: str, name: str) -> None:
    """Delete a file; one that is gone already is fine."""
    system, path = _place(root, name)
    try:
        system.delete_file(path)
    except FileNotFoundError:
        return


def _write_table(root: str, table: Any) -> tuple[str, FileEntry]:
    sink = io.BytesIO()
    parquet.write_table(
        table, sink, row_group_size=_GROUP_ROWS, compression="zstd", write_page_checksum=True
    )
    content = sink.getvalue()
    moments = compute.min_max(table["created_ms"]).as_py()
    entry = FileEntry(
        rows=len(table),
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        first_ms=moments["min"],
        last_ms=moments["max"],
        ranges=ranges_of(table["token"].to_pylist()),
    )
    name = f"{entry.first_ms:013d}-{secrets.token_hex(8)}.parquet"
    _put(root, name, content)
    return name, entry


def ranges_of(tokens: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Lowest and highest of sorted tokens for each API key; of many keys, of all together."""
    ranges: dict[str, tuple[str, str]] = {}
    for token in tokens:
        low, _ = ranges.get(token[:_KEY_CHARS], (token, token))
        ranges[token[:_KEY_CHARS]] = (low, token)
    if len(ranges) > _MOST_RANGES:
        return ((tokens[0], tokens[-1]),)
    return tuple(ranges.values())


def _put(root: str, name: str, content: bytes) -> None:
    if "://" in root:  # an object store shows an object when all of it is there
        system, path = _place(root, name)
        with system.open_output_stream(path) as stream:
            stream.write(content)
        return
    os.makedirs(root, mode=0o700, exist_ok=True)
    beside, path = os.path.join(root, f".{name}.partial"), os.path.join(root, name)
    with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.replace(beside, path)
    except FileNotFoundError as error:
        raise SweptUp(f"{beside} went before it had its name") from error
    folder = os.open(root, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _place(root: str, name: str) -> tuple[Any, str]:
    """A file system and the path in it."""
    if "://" in root:
        system, path = filesystems.FileSystem.from_uri(root)
        return system, f"{path}/{name}".rstrip("/")
    return filesystems.LocalFileSystem(), os.path.join(root, name)


@contextmanager
def _opened(root: str, name: str) -> Iterator[Any]:
    """A file to read. Raises FileNotFoundError, ArchiveBroken."""
    system, path = _place(root, name)
    try:
        with (
            system.open_input_file(path) as raw,
            parquet.ParquetFile(raw, page_checksum_verification=True) as file,
        ):
            yield file
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise _broken(root, name, error) from error


def _broken(root: str, name: str, error: Exception) -> ArchiveBroken:
    return ArchiveBroken(
        f"{name} of the archive in {root} cannot be read ({type(error).__name__}): "
        "bring it back from a backup"
    )


@lru_cache(maxsize=_CACHED_FILES)
def _tokens(root: str, name: str) -> Any:
    """The tokens of a file in its order; a name always means the same content."""
    with _opened(root, name) as file:
        return file.read(columns=["token"])["token"].combine_chunks()


def _triples(table: Any) -> list[tuple[str, int, bool]]:
    columns = (table[name].to_pylist() for name in ("token", "created_ms", "counted"))
    return list(zip(*columns, strict=True))
