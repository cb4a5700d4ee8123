"""Exported rows in the forms that TRL and Argilla read; what a form has no room for stays beside.

Each form is a function from one row to one JSON object. Pure; export_files.py writes what comes
out.
"""

import json
from collections.abc import Callable
from typing import Any, Literal

from feedback.export_columns import Row, What

Format = Literal["trl", "argilla", "parquet", "jsonl"]


def _trl(what: What, row: Row) -> Row:
    """TRL's conversational forms: preference, prompt-completion, prompt-only.

    Ratings are its unpaired preference, whose `label` is the thumb, or whether the rating is above
    the middle. A text completion is shown as a conversation of one message and is marked `plain`:
    readers want one type in a column, and refuse a file in which some prompts are text.
    """
    prompt = row["messages"] if what == "prompts" else row["prompt"]
    plain = [message["role"] for message in prompt] == ["prompt"]
    answers = {"comparisons": ("chosen", "rejected"), "prompts": ()}
    shown: Row = {"prompt": [{**prompt[0], "role": "user"}] if plain else prompt}
    for name in answers.get(what, ("completion",)):
        shown[name] = [{"role": "assistant", "content": row[name]}]
    shown["plain"] = plain
    if what == "ratings":
        shown["label"] = _label(row)
    left = {n: v for n, v in row.items() if n not in shown and n != "messages"}
    return shown | left


def _label(row: Row) -> bool | None:
    if row["thumb"]:
        return bool(row["thumb"] == "up")
    return None if row["rating"] is None else bool(row["rating"] > 4)


def _argilla(what: What, row: Row) -> Row:
    """One record of Argilla's JSON: fields, metadata, and what was said as a suggestion."""
    fields: Row = {"prompt": row["messages"] if what == "prompts" else row["prompt"]}
    suggestions: Row = {}
    name = row["completion_id"] if what == "prompts" else row["feedback_id"]
    if what == "comparisons":
        fields |= {"response_a": row["chosen"], "response_b": row["rejected"]}
        suggestions["preference"] = _suggestion("response_a", row)
        name = f"{name}:{row['chosen_id']}:{row['rejected_id']}"
    elif what == "demonstrations":
        suggestions["completion"] = _suggestion(row["completion"], row)
    else:
        fields["completion"] = row["completion"]
        said = {n: row[n] for n in ("thumb", "rating", "comment") if row.get(n)}
        suggestions |= {n: _suggestion(value, row) for n, value in said.items()}
    shown = ("prompt", "chosen", "rejected", "completion", "messages", "comment")
    kept = {n: v for n, v in row.items() if n not in shown and v is not None}
    return {
        "id": name,
        "fields": fields,
        "metadata": {n: v if isinstance(v, str) else json.dumps(v) for n, v in kept.items()},
        "suggestions": suggestions,
        "responses": {},
        "vectors": {},
    }


def _suggestion(value: Any, row: Row) -> Row:
    return {"value": value, "score": None, "agent": row["rater"]}


def _as_it_is(_: What, row: Row) -> Row:
    return row


FORMATS: dict[Format, Callable[[What, Row], Row]] = {
    "trl": _trl,
    "argilla": _argilla,
    "parquet": _as_it_is,
    "jsonl": _as_it_is,
}
