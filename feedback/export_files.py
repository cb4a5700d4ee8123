"""An export on the disk, written in batches, there whole or not at all.

JSON lines; for Argilla one JSON list, as its `records.from_json` reads it; Parquet.
"""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as parquet

from core.errors import InstructLoopError
from feedback.export_columns import Row, What
from feedback.export_shapes import FORMATS, Format

_BATCH = 1000
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_TOLD = [
    ("rater", pa.string()),
    ("user", pa.string()),
    ("split", pa.string()),
    ("heldout_rater", pa.bool_()),
    ("created_at", pa.string()),
]
_COLUMNS: dict[What, list[tuple[str, Any]]] = {
    "comparisons": [
        ("feedback_id", pa.string()),
        ("prompt", _MESSAGES),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("chosen_id", pa.string()),
        ("rejected_id", pa.string()),
        *_TOLD,
        ("group_id", pa.string()),
        ("chosen_rank", pa.int32()),
        ("rejected_rank", pa.int32()),
        ("ranked_answers", pa.int32()),
        ("ranked_pairs", pa.int32()),
        ("chosen_finish_reason", pa.string()),
        ("rejected_finish_reason", pa.string()),
        ("metadata", pa.string()),
    ],
    "ratings": [
        ("feedback_id", pa.string()),
        ("prompt", _MESSAGES),
        ("completion", pa.string()),
        ("completion_id", pa.string()),
        ("thumb", pa.string()),
        ("rating", pa.int32()),
        ("signal", pa.string()),
        ("flags", pa.string()),
        ("comment", pa.string()),
        *_TOLD,
        ("finish_reason", pa.string()),
        ("metadata", pa.string()),
    ],
    "demonstrations": [
        ("feedback_id", pa.string()),
        ("prompt", _MESSAGES),
        ("completion", pa.string()),
        *_TOLD,
    ],
    "prompts": [
        ("completion_id", pa.string()),
        ("messages", _MESSAGES),
        ("completion", pa.string()),
        ("policy_version", pa.string()),
        ("created_at", pa.string()),
        ("user", pa.string()),
        ("split", pa.string()),
        ("finish_reason", pa.string()),
        ("other_completions", pa.list_(pa.string())),
        ("metadata", pa.string()),
    ],
}
"""Flags and tags are JSON in a text: readers of Parquet want columns of fixed names."""


def write_export(
    rows: Iterable[Row],
    path: Path,
    *,
    what: What,
    form: Format,
    force: bool,
    progress: Callable[[int], None],
) -> int:
    """Write rows to a new file of mode 0600; how many. `progress` is told the rows so far.

    Raises InstructLoopError when the file is there and not to be replaced, or cannot be written.
    """
    if path.exists() and not force:
        raise InstructLoopError(f"{path} is there already: choose another, or give --force")
    shaped = (FORMATS[form](what, row) for row in rows)
    beside: Path | None = None
    try:
        beside = _beside(path)
        if form == "parquet":
            count = _write_parquet(shaped, beside, pa.schema(_COLUMNS[what]), progress)
        else:
            ends = (b"[\n", b",\n", b"\n]\n") if form == "argilla" else (b"", b"\n", b"\n")
            count = _write_json(shaped, beside, ends, progress)
        beside.replace(path)
    except OSError as error:
        raise InstructLoopError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        if beside is not None:
            beside.unlink(missing_ok=True)
    return count


def _beside(path: Path) -> Path:
    """A new file next to it, for our eyes only, of a name that nobody can have taken."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    os.close(handle)
    return Path(name)


def _write_json(
    rows: Iterator[Row],
    path: Path,
    ends: tuple[bytes, bytes, bytes],
    progress: Callable[[int], None],
) -> int:
    """Rows as JSON, with what stands before all of them, between two, and after all."""
    begin, between, end = ends
    count = 0
    with path.open("wb") as file:
        file.write(begin)
        while batch := list(islice(rows, _BATCH)):
            file.write((between if count else b"") + between.join(map(orjson.dumps, batch)))
            count += len(batch)
            progress(count)
        file.write(end if count or begin else b"")
        file.flush()
        os.fsync(file.fileno())
    return count


def _write_parquet(
    rows: Iterator[Row], path: Path, schema: Any, progress: Callable[[int], None]
) -> int:
    count = 0
    with parquet.ParquetWriter(path, schema) as writer:
        while batch := list(islice(rows, _BATCH)):
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
            count += len(batch)
            progress(count)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return count
