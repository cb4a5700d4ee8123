"""Writes a snapshot folder as feedback/snapshot.py lays it out, from a few plain values."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet

_ANSWER = pa.struct(
    [
        ("completion_id", pa.string()),
        ("choice", pa.int32()),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("rank", pa.int32()),
    ]
)
_COMMON = [
    ("messages", pa.string()),
    ("user", pa.string()),
    ("split", pa.string()),
    ("rater", pa.string()),
    ("heldout_rater", pa.bool_()),
]
_SCHEMAS = {
    "rankings": pa.schema(
        [
            ("group_id", pa.string()),
            *_COMMON,
            ("answers", pa.list_(_ANSWER)),
            ("weight", pa.float64()),
        ]
    ),
    "ratings": pa.schema(
        [
            *_COMMON,
            ("text", pa.string()),
            ("finish_reason", pa.string()),
            ("kind", pa.string()),
            ("value", pa.float64()),
        ]
    ),
    "demonstrations": pa.schema([*_COMMON, ("text", pa.string())]),
    "prompts": pa.schema(
        [
            ("prompt_id", pa.string()),
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
}


def write_snapshot(folder: Path, **rows: list[dict]) -> Path:
    """Rows of rankings, ratings, demonstrations, prompts, unranked; what is left out is empty."""
    folder.mkdir(parents=True)
    for name, schema in _SCHEMAS.items():
        table = pa.Table.from_pylist(rows.get(name, []), schema=schema)
        parquet.write_table(table, folder / f"{name}.parquet")
    counts = {name: len(rows.get(name, [])) for name in _SCHEMAS}
    manifest = {"sha256": "0" * 64, "created_at": 0, "counts": counts, "heldout_raters": []}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def chat(text: str) -> str:
    """The messages column of a one-turn chat."""
    return json.dumps([{"role": "user", "content": text}])


def ranking(
    group: str,
    prompt: str,
    answers: dict[str, int],
    *,
    split: str = "train",
    rater: str = "r1",
    heldout: bool = False,
    weight: float = 1.0,
    finish_reason: str = "stop",
) -> dict:
    """One row of rankings.parquet; `answers` maps each text to its rank."""
    return {
        "group_id": group,
        "messages": chat(prompt),
        "user": f"user-{group}",
        "split": split,
        "rater": rater,
        "heldout_rater": heldout,
        "weight": weight,
        "answers": [
            {
                "completion_id": f"{group}-{text}",
                "choice": 0,
                "text": text,
                "finish_reason": finish_reason,
                "rank": rank,
            }
            for text, rank in answers.items()
        ],
    }


def rating(prompt: str, text: str, kind: str, value: float, **other) -> dict:
    """One row of ratings.parquet."""
    return {
        "messages": chat(prompt),
        "user": "u",
        "split": "train",
        "rater": "r1",
        "heldout_rater": False,
        "text": text,
        "finish_reason": "stop",
        "kind": kind,
        "value": value,
        **other,
    }


def unranked(token: str, prompt: str, *texts: str, created_at: float = 0.0) -> dict:
    """One row of unranked.parquet."""
    row = {"prompt_id": token, "messages": chat(prompt), "user": "u"}
    return {**row, "created_at": created_at, "texts": texts}


def demonstration(prompt: str, text: str, **other) -> dict:
    """One row of demonstrations.parquet."""
    row = rating(prompt, text, "", 0.0, **other)
    return {name: row[name] for name in _SCHEMAS["demonstrations"].names}
