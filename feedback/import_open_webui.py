"""One record of Open WebUI's feedback export as an item: a thumb, or a choice among siblings.

The conversation is a tree of messages in the snapshot: the prompt is the way from the root to the
answer that was rated, its siblings are what else was said to the same question. Its scale of 1 to
10 (`details.rating`) is not ours and is left. Pure; import_data.py writes what comes out of here.
"""

from typing import Any

from feedback.export_columns import Row, What
from feedback.imported import Item, judged
from feedback.imported_fields import object_of
from feedback.schemas import MAX_OUTPUTS

_THUMBS = {"1": "up", "-1": "down"}
_MAX_DEPTH = 256


def open_webui(what: What, row: object) -> Item:
    """Understand one record. Raises ValueError, which says what is wrong with it."""
    if not isinstance(row, dict):
        raise ValueError("it is not a JSON object")
    data, meta = object_of(row, "data"), object_of(row, "meta")
    messages, system = _conversation(row)
    name = meta.get("message_id")
    said = messages.get(name) if isinstance(name, str) else None
    if said is None:
        raise ValueError("the answer that it is about is not in its snapshot")
    thumb = _THUMBS.get(str(data.get("rating")))
    words = [str(data[part]) for part in ("reason", "comment") if data.get(part)]
    if thumb is None and not words and what == "comparisons":
        raise ValueError("its rating is neither 1 nor -1, and it says nothing else")
    person = row.get("user_id")
    return judged(
        {
            "prompt": [*system, *_way_to(said, messages)],
            "completion": _text(said),
            "user": person,
            "rater": person,
            "created_at": row.get("created_at"),
            "thumb": thumb,
            "comment": "\n".join(words),
            "rivals": _rivals(said, messages, data, meta) if what == "comparisons" else [],
        }
    )


def _conversation(row: Row) -> tuple[dict[str, Row], list[Row]]:
    """The messages by id, and the system message if there is one.

    The snapshot holds the record of the chat, in which the chat is; older files have it flat.
    """
    snapshot = object_of(row, "snapshot")
    chat = object_of(snapshot, "chat")
    chat = object_of(chat, "chat") or chat
    history = object_of(chat, "history") or object_of(snapshot, "history")
    found = history.get("messages") or chat.get("messages") or {}
    listed = found.values() if isinstance(found, dict) else found
    if not listed or not isinstance(found, dict | list):
        raise ValueError("it has no snapshot of the conversation, so there is no text")
    system = object_of(chat, "params").get("system") or chat.get("system")
    before = [{"role": "system", "content": system}] if isinstance(system, str) else []
    return {str(m.get("id")): m for m in listed if isinstance(m, dict)}, before


def _way_to(said: Row, messages: dict[str, Row]) -> list[Row]:
    """What was said before an answer, from the root. Raises ValueError."""
    way: list[Row] = []
    at = messages.get(str(said.get("parentId")))
    while at is not None:
        way.append({"role": at.get("role"), "content": _text(at)})
        if len(way) > _MAX_DEPTH:
            raise ValueError(f"its conversation is longer than {_MAX_DEPTH} messages")
        at = messages.get(str(at.get("parentId")))
    if not way:
        raise ValueError("the snapshot does not have the question of this answer")
    return way[::-1]


def _rivals(said: Row, messages: dict[str, Row], data: Row, meta: Row) -> list[str]:
    """Other answers to the same question that this one won against, or lost to.

    In an arena, or where several models answered, a thumb is a choice. Where an answer was asked
    for again, only a thumb up is one. One that has the same thumb was neither better nor worse.
    """
    if not (meta.get("arena") or data.get("sibling_model_ids") or str(data.get("rating")) == "1"):
        return []
    texts = [
        _text(other)
        for other in messages.values()
        if other.get("parentId") == said.get("parentId")
        and other.get("role") == said.get("role")
        and str(object_of(other, "annotation").get("rating")) != str(data.get("rating"))
    ]
    different = [text for text in dict.fromkeys(texts) if text and text != _text(said)]
    return different[: MAX_OUTPUTS - 1]


def _text(message: Row) -> str:
    """The text of a message, or of the parts of it that are text."""
    content: Any = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "\n".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""
