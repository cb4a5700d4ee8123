"""One line of somebody's data as we understand it: TRL's forms, Argilla's records, our exports.

What other services export is understood in import_open_webui.py and import_langfuse.py.

A prompt is text or a conversation; an answer is text, or a conversation that ends with it; without
a prompt `chosen` and `rejected` share all but their last message. Pure; import_data.py writes what
comes out of here. Everything has a bound.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import ValidationError

from feedback.export_columns import Row, What
from feedback.imported_fields import (
    MAX_COMMENT,
    Part,
    finish_reasons,
    judgement,
    listed,
    object_of,
    part_of,
    tags,
)
from feedback.schemas import DemonstrationRequest
from feedback.texts import Messages

MAX_TEXT = 200_000
_MAX_NAME = 200
_LATEST = datetime(2100, 1, 1, tzinfo=UTC).timestamp()
"""Later than that are milliseconds, and what no calendar can hold."""


@dataclass(frozen=True, slots=True)
class Item:
    """What a line says: the better answer comes first."""

    prompt: Messages
    answers: tuple[str, ...]
    user: str = ""
    rater: str = ""
    heldout: bool | None = None
    known_as: str = ""
    """The id that this had in the service it was exported from."""
    created_at: float | None = None
    ranking: tuple[tuple[int, ...], ...] = ()
    """Positions into `answers`, best first, an inner one is a tie; empty: as they come."""
    thumb: Literal["up", "down"] | None = None
    """Of the first answer, as is all that follows but what is said otherwise."""
    comment: str = ""
    rating: int | None = None
    flags: dict[str, bool] = field(default_factory=dict)
    signal: Literal["regenerate", "copy"] | None = None
    finish_reasons: tuple[str, ...] = ()
    """Of each answer; empty: all ended."""
    metadata: dict[str, str] = field(default_factory=dict)
    """Tags of the request."""
    part: Part | None = None


def parse(what: What, row: object) -> Item:
    """Understand one line. Raises ValueError, which says what is wrong with it."""
    if not isinstance(row, dict):
        raise ValueError("it is not a JSON object")
    if "fields" in row:
        row = _from_argilla(row)
    wanted = _ANSWERS[what]
    prompt = row.get("prompt", row.get("messages"))
    said = [_answer(row, name) for name in wanted]
    if prompt is None:
        prompt = _shared(row, wanted)
    if row.get("plain") is True and isinstance(prompt, list) and len(prompt) == 1:
        prompt = _answer({"prompt": prompt}, "prompt")  # a text, shown as a conversation
    if what == "prompts" and isinstance(row.get("completion"), str | list):
        others = row.get("other_completions") or []
        said = [_answer({"it": text}, "it") for text in [row["completion"], *listed(others)]]
    if what == "comparisons" and said[0] == said[1]:
        raise ValueError("chosen and rejected are the same")
    return Item(
        prompt=_prompt(prompt),
        answers=tuple(said),
        user=_name(row, "user"),
        rater=_name(row, "rater"),
        heldout=_flag(row.get("heldout_rater")),
        known_as=_name(row, "completion_id" if what == "prompts" else "feedback_id"),
        created_at=_moment(row.get("created_at")),
        finish_reasons=finish_reasons(row, wanted),
        metadata=tags(row),
        part=part_of(row) if what == "comparisons" else None,
        **(judgement(row) if what == "ratings" else {}),
    )


_ANSWERS: dict[What, tuple[str, ...]] = {
    "comparisons": ("chosen", "rejected"),
    "ratings": ("completion",),
    "demonstrations": ("completion",),
    "prompts": (),
}


def judged(row: Row) -> Item:
    """An answer with what somebody thinks of it, in our words. Raises ValueError.

    `rivals` are other answers to the prompt: a thumb up is better than all, a thumb down worse.
    """
    answer, thumb, comment = _answer(row, "completion"), row.get("thumb"), row.get("comment") or ""
    if not answer.strip():
        raise ValueError("its answer has no text")
    if len(comment) > MAX_COMMENT:
        raise ValueError(f"its comment is longer than {MAX_COMMENT} characters")
    rivals = tuple(_answer({"answer": text}, "answer") for text in row.get("rivals", ()))
    others = tuple(range(1, len(rivals) + 1))
    order = ((0,), others) if thumb == "up" else (others, (0,))
    return Item(
        prompt=_prompt(row["prompt"]),
        answers=(answer, *rivals),
        user=_name(row, "user"),
        rater=_name(row, "rater"),
        created_at=_moment(row.get("created_at")),
        ranking=order if rivals else (),
        thumb=thumb,
        comment=comment,
    )


def _from_argilla(row: Row) -> Row:
    """Argilla's record as a row; what a person answered counts more than a suggestion."""
    fields, metadata = row["fields"], row.get("metadata") or {}
    if not isinstance(fields, dict) or not isinstance(metadata, dict):
        raise ValueError("fields and metadata of an Argilla record are objects")
    flat = {**metadata, "prompt": fields.get("prompt", fields.get("instruction"))}
    said = _argilla_answers(row)
    flat |= {n: said[n] for n in ("thumb", "rating", "comment") if n in said}
    if "response_a" in fields:
        pair = ["response_a", "response_b"]
        best = said.get("preference")
        if best not in pair:
            raise ValueError("nobody said which of the two is better")
        pair.remove(str(best))
        return flat | {"chosen": fields[best], "rejected": fields[pair[0]]}
    return flat | {"completion": said.get("completion", fields.get("completion"))}


def _argilla_answers(row: Row) -> Row:
    said = {n: _value_of(n, v) for n, v in object_of(row, "suggestions").items()}
    listed = {n: v if isinstance(v, list) else [v] for n, v in object_of(row, "responses").items()}
    return said | {n: _value_of(n, v[0]) for n, v in listed.items() if v and v[0]}


def _value_of(name: str, said: Any) -> Any:
    if said is not None and not isinstance(said, dict):
        raise ValueError(f"{name} of an Argilla record is an object with a value")
    return (said or {}).get("value")


def _answer(row: Row, name: str) -> str:
    """The text of an answer: itself, or the last message of a conversation."""
    value = row.get(name)
    if isinstance(value, list) and value:
        last = value[-1]
        value = last.get("content") if isinstance(last, dict) else None
    if not isinstance(value, str):
        raise ValueError(f"{name} is missing, or no text")
    if len(value) > MAX_TEXT:
        raise ValueError(f"{name} is longer than {MAX_TEXT} characters")
    return value


def _shared(row: Row, names: tuple[str, ...]) -> Any:
    """The prompt that conversations without one share: all but their last message."""
    talks = [row.get(name) for name in names]
    if not talks or not all(isinstance(talk, list) and len(talk) > 1 for talk in talks):
        raise ValueError("there is no prompt")
    openings = [talk[:-1] for talk in talks if isinstance(talk, list)]
    if any(opening != openings[0] for opening in openings):
        raise ValueError("the conversations answer different prompts")
    return openings[0]


def _prompt(value: Any) -> Messages:
    """Text or messages, within the bounds of a demonstration's prompt."""
    if isinstance(value, list):
        only = value[0] if len(value) == 1 and isinstance(value[0], dict) else {}
        if only.get("role") == "prompt":
            value = only.get("content")
    field = "messages" if isinstance(value, list) else "prompt"
    try:
        body = DemonstrationRequest.model_validate({field: value, "text": "-"})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or field
        raise ValueError(f"{where}: {first['msg']}") from None
    if body.messages is not None:
        return [{"role": m.role, "content": m.content} for m in body.messages]
    if body.prompt is None:
        raise ValueError("there is no prompt")
    return {"prompt": body.prompt}


def _name(row: Row, field: str) -> str:
    value = row.get(field) or ""
    if not isinstance(value, str) or len(value) > _MAX_NAME:
        raise ValueError(f"{field} is no text of at most {_MAX_NAME} characters")
    return value


def _flag(value: Any) -> bool | None:
    if isinstance(value, str):  # metadata of Argilla
        return {"true": True, "false": False}.get(value.lower())
    return value if isinstance(value, bool) else None


def _moment(value: Any) -> float | None:
    """Seconds since 1970, of a number or ISO 8601; a time without a zone is UTC."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime):  # Parquet has times of its own
        value = (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _LATEST:
        raise ValueError("created_at is no time: ISO 8601, or seconds since 1970")
    return float(value)
