"""Langfuse's exported scores as items, each with the texts of the trace or observation it is of.

Texts are in the score's own row, in its `trace`, around it (a trace that was downloaded with its
scores), or in other rows of the same file. A score's name is a scale of its own, and so a rater of
its own. Judges that are models are left out. Pure; import_data.py writes what comes out of here.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from feedback.export_columns import Row, What
from feedback.import_files import Line
from feedback.imported import Item, judged
from feedback.imported_fields import object_of

_UP = {"true", "1", "up", "thumbs up", "thumbs-up", "thumbs_up", "good", "positive", "like"}
_DOWN = {"false", "0", "-1", "down", "thumbs down", "thumbs-down", "thumbs_down", "bad"}
_DOWN |= {"negative", "dislike"}
_INSIDE = ("content", "text", "output", "completion", "response", "answer", "message")


def with_texts_of(lines: Iterable[Line], what: What) -> Iterator[Line]:
    """Scores with the row that has their texts (`about`); for prompts, such rows themselves."""
    rows = [line for number, value in lines for line in _opened(number, value)]
    texts = _texts(row for _, row in rows if isinstance(row, dict))
    for number, row in rows:
        if not isinstance(row, dict):
            yield number, row
        elif _is_score(row) or (what == "prompts" and _is_exchange(row)):
            about = _about(row, texts)
            if what != "prompts" or about is row or (about or {}).get("id") not in texts:
                yield number, row | {"about": about}
        elif not {"input", "output"} & row.keys():
            yield number, ValueError("it is neither a score nor a trace with its texts")


def langfuse(what: What, row: object) -> Item:
    """Understand one row of `with_texts_of`. Raises ValueError, which says what is wrong."""
    if not isinstance(row, dict):
        raise ValueError("it is not a JSON object")
    about = row.get("about")
    if not isinstance(about, dict):
        raise ValueError("what it is about is not in the file, so there is no text")
    user = about.get("userId") or row.get("userId") or ""
    told: Row = {
        "prompt": _messages(_read(about["input"])),
        "completion": _answer(_read(about["output"])),
        "user": user,
        "created_at": _when(row) or _when(about),
    }
    if what == "prompts":
        return judged(told)
    if str(row.get("source")).upper() == "EVAL":
        raise ValueError("it is the score of an evaluator, and not the word of a person")
    thumb, text = _verdict(row)
    comment = "\n".join(str(part) for part in (text, row.get("comment")) if part)
    rater = f"{row.get('authorUserId') or user or 'langfuse'}:{row.get('name')}"
    return judged(told | {"rater": rater, "thumb": thumb, "comment": comment})


def _opened(number: int, value: object) -> Iterator[Line]:
    """A row, and the rows that are in it: a trace, its observations and scores."""
    if not isinstance(value, dict):
        yield number, value
        return
    row = {_camel(str(name)): v for name, v in value.items()}
    inner = [part for name in ("observations", "scores") for part in _rows_in(row.pop(name, None))]
    if not _is_score(row) and isinstance(row.get("trace"), dict):
        inner.append(row.pop("trace"))
    if not inner or _has_text(row):
        yield number, row
    for part in inner:
        yield from _opened(number, part)


def _texts(rows: Iterable[Row]) -> dict[str, Row]:
    """Rows with texts by id; the outermost observation stands for a trace that is not there."""
    texts: dict[str, Row] = {}
    for row in rows:
        if _has_text(row) and not _is_score(row):
            texts[str(row.get("id"))] = row
            if row.get("traceId") and not row.get("parentObservationId"):
                texts.setdefault(str(row["traceId"]), row)
    return texts


def _rows_in(value: object) -> list[Row]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


def _is_score(row: Row) -> bool:
    return "name" in row and ("value" in row or "stringValue" in row)


def _is_exchange(row: Row) -> bool:
    """Whether it is a prompt and an answer, and not what a tool was told."""
    return _has_text(row) and row.get("type", "GENERATION") == "GENERATION"


def _has_text(row: Row) -> bool:
    return bool(row.get("input")) and bool(row.get("output"))


def _about(row: Row, texts: dict[str, Row]) -> Row | None:
    """The row with the texts that a score is about: its own, else by id."""
    if _has_text(row):
        return row
    if row.get("observationId"):
        return texts.get(str(row["observationId"]))
    trace = object_of(row, "trace") if isinstance(row.get("trace"), dict) else {}
    trace = {_camel(str(name)): v for name, v in trace.items()}
    return trace if _has_text(trace) else texts.get(str(row.get("traceId")))


def _verdict(row: Row) -> tuple[str | None, str]:
    """The thumb that a score is, or the text. Raises ValueError for a scale we do not know."""
    kind = str(row.get("dataType") or "").upper()
    value, text = row.get("value"), row.get("stringValue")
    said = text if text not in (None, "") else value
    if kind == "TEXT":
        if not isinstance(said, str) or not said.strip():
            raise ValueError("it says nothing")
        return None, said
    try:
        word = f"{float(str(said)):g}"  # 1, 1.0 and "1"
    except ValueError:
        word = str(said).strip().casefold()
    if word in _UP:
        return "up", ""
    if word in _DOWN:
        return "down", ""
    raise ValueError("its value is no thumb (1, 0, -1, true, false, good, bad, ...)")


def _read(value: Any) -> Any:
    """What a string of JSON holds; any other as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "[", '"'):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return value


def _messages(value: Any) -> Any:
    """An input as a conversation: messages, or the one text that it has."""
    if isinstance(value, dict) and isinstance(value.get("messages"), list):
        value = value["messages"]
    if isinstance(value, dict) and "role" in value:
        value = [value]
    if isinstance(value, list) and all(isinstance(message, dict) for message in value):
        return [{"role": m.get("role"), "content": _answer(m)} for m in value]
    if isinstance(value, dict):
        texts = [v for v in value.values() if isinstance(v, str) and v]
        value = texts[0] if len(texts) == 1 else None
    return [{"role": "user", "content": value}] if isinstance(value, str) else None


def _answer(value: Any) -> Any:
    """The text of an output: itself, of a message, of the last of messages, of the first choice."""
    if isinstance(value, list):
        value = value[-1] if value else None
    if not isinstance(value, dict):
        return value
    if isinstance(value.get("choices"), list) and value["choices"]:
        return _answer(value["choices"][0])
    found = [value[name] for name in _INSIDE if value.get(name) is not None]
    if found and isinstance(found[0], list):  # the parts of a message
        parts = [part.get("text") for part in found[0] if isinstance(part, dict)]
        return "\n".join(part for part in parts if isinstance(part, str))
    return _answer(found[0]) if found else None


def _when(row: Row) -> str | None:
    stamp = row.get("timestamp")
    return stamp if isinstance(stamp, str) else None
