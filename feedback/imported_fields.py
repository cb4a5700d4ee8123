"""Columns of a line beside prompt and answers: what was said of an answer, its rank, tags.

Our exports have them, in JSON where a format knows only text; other files may have some. Pure;
imported.py reads the rest of a line.
"""

from dataclasses import dataclass
from typing import Any

import orjson

from core.records import FLAGS
from feedback.export_columns import Row

MAX_COMMENT = 10_000
_MAX_TAGS = 100
_ENDS = ("stop", "length")


@dataclass(frozen=True, slots=True)
class Part:
    """Which part of a ranking a pair is, as our exports say it; see import_rankings.py."""

    ranks: tuple[int, int]
    """Of the better answer and of the worse one."""
    answers: int
    pairs: int


def object_of(row: Row, name: str) -> Row:
    """An object within a row, empty where there is none. Raises ValueError."""
    value = row.get(name) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not an object")
    return value


def judgement(row: Row) -> dict[str, Any]:
    """What a row says of its answer: at least one of thumb, rating, flags, comment, signal."""
    thumb, signal, comment = row.get("thumb"), row.get("signal"), row.get("comment") or ""
    if thumb is None and row.get("rating") is None and isinstance(row.get("label"), bool):
        thumb = "up" if row["label"] else "down"  # TRL's unpaired preference
    rating = _whole(row, "rating")
    flags = {n: v for n, v in _object(row, "flags").items() if v is not None}
    if thumb not in (None, "up", "down") or signal not in (None, "regenerate", "copy"):
        raise ValueError("thumb is up or down, signal is regenerate or copy")
    if rating is not None and not 1 <= rating <= 7:
        raise ValueError("rating is a number from 1 to 7")
    if not set(flags) <= set(FLAGS) or not all(isinstance(v, bool) for v in flags.values()):
        raise ValueError("flags are true or false, by the names that the routes take")
    if not isinstance(comment, str) or len(comment) > MAX_COMMENT:
        raise ValueError(f"its comment is no text of at most {MAX_COMMENT} characters")
    said = {"thumb": thumb, "rating": rating, "flags": flags, "comment": comment, "signal": signal}
    if not any(said.values()):
        raise ValueError("it says nothing of the answer")
    if signal and (thumb or rating or flags or comment):
        raise ValueError("a signal comes alone")
    return said


def part_of(row: Row) -> Part | None:
    """Which part of a ranking a pair is; None where the row does not say. Raises ValueError."""
    names = ("chosen_rank", "rejected_rank", "ranked_answers", "ranked_pairs")
    better, worse, answers, pairs = (_whole(row, name) for name in names)
    if better is None or worse is None or answers is None or pairs is None:
        return None
    if better >= worse:
        raise ValueError("chosen_rank is not before rejected_rank")
    return Part((better, worse), answers, pairs)


def finish_reasons(row: Row, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """How each answer ended; one that does not say came to its end."""
    names = [f"{n}_finish_reason" for n in wanted] if len(wanted) > 1 else ["finish_reason"]
    return tuple(str(row[n]) if row.get(n) in _ENDS else "stop" for n in names)


def tags(row: Row) -> dict[str, str]:
    """The tags of the request; what others call metadata and has another form is left out."""
    try:
        found = {n: v for n, v in _object(row, "metadata").items() if v is not None}
    except ValueError:
        return {}
    texts = [*found, *found.values()]
    ours = len(found) <= _MAX_TAGS and all(isinstance(t, str) and len(t) < 1000 for t in texts)
    return found if ours else {}


def _object(row: Row, name: str) -> Row:
    """An object, or one that is written as JSON. Raises ValueError."""
    value = row.get(name)
    if isinstance(value, str):
        value = _read(value, name)
    return object_of({name: value}, name)


def _read(text: str, name: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        raise ValueError(f"{name} is not JSON") from None


def _whole(row: Row, name: str) -> int | None:
    """A whole number, as a number or written out. Raises ValueError."""
    value = row.get(name)
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise ValueError(f"{name} is no whole number")
    return value


def listed(value: Any) -> list[Any]:
    """A list, or one that is written as JSON. Raises ValueError."""
    if isinstance(value, str):  # metadata of Argilla
        value = _read(value, "other_completions")
    if not isinstance(value, list):
        raise ValueError("other_completions is no list")
    return value
