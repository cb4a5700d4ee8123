"""Parquet files of a snapshot: columns, the order of rows, and one hash over their content.

The hash is over the values, not the bytes of the files, so that another release of the Parquet
library gives the same one. Written by snapshot.py, read by learning/reward_model/dataset.py.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from feedback.rows import DemonstrationRow, PromptRow, RankingRow, RatingRow, UnrankedRow

_SAID = [
    ("feedback_id", pa.string()),
    ("messages", pa.string()),
    ("user", pa.string()),
    ("split", pa.string()),
    ("rater", pa.string()),
    ("heldout_rater", pa.bool_()),
]
_ANSWER = pa.struct(
    [
        ("completion_id", pa.string()),
        ("choice", pa.int32()),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("rank", pa.int32()),
    ]
)
SCHEMAS: dict[str, Any] = {
    "rankings": pa.schema(
        [
            ("group_id", pa.string()),
            *_SAID,
            ("answers", pa.list_(_ANSWER)),
            ("weight", pa.float64()),
        ]
    ),
    "ratings": pa.schema(
        [
            *_SAID,
            ("text", pa.string()),
            ("finish_reason", pa.string()),
            ("kind", pa.string()),
            ("value", pa.float64()),
            ("weight", pa.float64()),
        ]
    ),
    "demonstrations": pa.schema([*_SAID, ("text", pa.string()), ("weight", pa.float64())]),
    "prompts": pa.schema(
        [
            ("prompt_id", pa.string()),
            ("tenant", pa.string()),
            ("messages", pa.string()),
            ("user", pa.string()),
            ("split", pa.string()),
        ]
    ),
    "unranked": pa.schema(
        [
            ("prompt_id", pa.string()),
            ("messages", pa.string()),
            ("user", pa.string()),
            ("created_at", pa.float64()),
            ("texts", pa.list_(pa.string())),
        ]
    ),
    "fates": pa.schema(
        [("feedback_id", pa.string()), ("status", pa.string()), ("reason", pa.string())]
    ),
}
"""`fates` says what became of each piece of feedback; it is not part of the hash."""
HASHED = ("rankings", "ratings", "demonstrations", "prompts", "unranked")
Table = list[dict[str, Any]]


def table(
    rows: Sequence[RankingRow | RatingRow | DemonstrationRow | PromptRow | UnrankedRow],
) -> Table:
    """Rows as values of the columns, in an order that depends on nothing but them."""
    return sorted((_flat(asdict(row)) for row in rows), key=_canonical)


def content_sha256(tables: Mapping[str, Table]) -> str:
    """One hash over all rows that training reads."""
    digest = hashlib.sha256()
    for name in HASHED:
        digest.update(f"{name} {len(tables[name])}\n".encode())
        for row in tables[name]:
            digest.update(_canonical(row).encode() + b"\n")
    return digest.hexdigest()


def write_tables(tables: Mapping[str, Table], folder: Path) -> None:
    """One Parquet file for each table."""
    for name, rows in tables.items():
        parquet.write_table(
            pa.Table.from_pylist(rows, schema=SCHEMAS[name]), folder / f"{name}.parquet"
        )


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    return {**row.pop("said", {}), **row}


def _canonical(row: Mapping[str, Any]) -> str:
    return json.dumps(row, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
