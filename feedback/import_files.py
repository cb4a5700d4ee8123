"""A file of somebody's data as numbered lines: JSONL, a JSON list, Parquet, and Langfuse's CSV.

Knows nothing of what the lines say; import_data.py takes them in.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import orjson

from core.errors import InstructLoopError

_BATCH = 200
_MAX_LINE = 4 * 1024 * 1024
_MAX_LIST = 256 * 1024 * 1024
Line = tuple[int, object]
"""Its number, counted from 1, and the value or the ValueError that says why there is none."""
Origin = Literal["trl", "open-webui", "langfuse"]
"""Whose form a file has; `trl` stands for Argilla's and our own, too."""


def read_lines(path: Path, origin: Origin = "trl") -> Iterator[Line]:
    """Lines of a JSONL or Parquet file, or records of a JSON list; of Langfuse also CSV.

    Raises InstructLoopError.
    """
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise InstructLoopError(f"{path} cannot be read: {error.strerror}") from None
    if origin == "langfuse" and path.stat().st_size > _MAX_LIST:  # it is held in memory
        raise InstructLoopError(f"{path} is over {_MAX_LIST} bytes: give it in parts")
    if start == b"PAR1":
        return _parquet_rows(path)
    if start.lstrip().startswith(b"["):
        return _list_items(path)
    if origin == "langfuse":
        return _object_or_lines(path) if start.lstrip().startswith(b"{") else _csv_rows(path)
    return _json_lines(path)


def _json_lines(path: Path) -> Iterator[Line]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_MAX_LINE):
            number += 1
            if len(line) == _MAX_LINE and not line.endswith(b"\n"):
                while rest := file.readline(_MAX_LINE):
                    if rest.endswith(b"\n"):
                        break
                yield number, ValueError(f"it is longer than {_MAX_LINE} bytes")
            elif line.strip():
                yield number, _parsed(line)


def _parsed(line: bytes) -> object:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return ValueError(f"it is not JSON: {error}")


def _object_or_lines(path: Path) -> Iterator[Line]:
    """A trace that was downloaded, a reply of the API, or JSON lines."""
    read = _parsed(path.read_bytes())
    if not isinstance(read, dict):
        return _json_lines(path)
    rows = read.get("data")
    return iter(enumerate(rows if isinstance(rows, list) else [read], start=1))


def _list_items(path: Path) -> Iterator[Line]:
    if path.stat().st_size > _MAX_LIST:
        raise InstructLoopError(f"{path} is one list of over {_MAX_LIST} bytes: give JSON lines")
    read = _parsed(path.read_bytes())
    if isinstance(read, ValueError):
        raise InstructLoopError(f"{path} is not JSON: one object on each line, or one list")
    assert isinstance(read, list)
    yield from enumerate(read, start=1)


def _csv_rows(path: Path) -> Iterator[Line]:
    """Rows by the line that they begin on. Raises InstructLoopError."""
    csv.field_size_limit(_MAX_LINE)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restkey="", strict=True)
        try:
            while True:
                number = reader.line_num + 1
                row = next(reader, None)
                if row is None:
                    return
                number = max(number, 2)
                whole = "" not in row and None not in row.values()
                yield number, row if whole else ValueError("it has not one value for each column")
        except (csv.Error, UnicodeDecodeError) as error:
            raise InstructLoopError(f"{path} is not CSV: {error}") from None


def _parquet_rows(path: Path) -> Iterator[Line]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        batches = parquet.ParquetFile(path).iter_batches(batch_size=_BATCH)
        rows = (row for batch in batches for row in batch.to_pylist())
        yield from enumerate(rows, start=1)
    except (pa.ArrowInvalid, UnicodeDecodeError, OSError) as error:
        raise InstructLoopError(f"{path} is not a Parquet file: {error}") from None
