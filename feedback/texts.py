"""Where the words are in a record: every string that may hold personal data, and back again.

One walk over JSON serves both ways: it collects the texts for the filter, and puts the filtered
ones in their places. Words of the API itself (field names, roles, types) are not text; everything
else is, tool-call arguments, unknown fields and long numbers included. A tool call's arguments are
JSON inside a string; the filter takes them as one text and keeps them JSON. Knows no filter.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Messages = list[dict[str, Any]] | dict[str, str]

_FIELDS = frozenset(
    {"role", "content", "name", "type", "text", "refusal", "prompt", "tool_calls", "tool_call_id"}
    | {"id", "index", "function", "arguments", "image_url", "input_audio", "file", "url"}
    | {"detail", "data", "format", "finish_reason", "tokens", "reasoning"}
)
_VOCABULARY = {
    "role": {"system", "developer", "user", "assistant", "tool", "function"},
    "type": {"text", "function", "image_url", "input_audio", "file", "refusal"},
}
_SHORTEST_NUMBER = 6  # digits; a shorter number names nobody


def texts_of(value: Any) -> list[str]:
    """All texts in a JSON value, in the order in which `with_texts` wants them back."""
    found: list[str] = []

    def collect(text: str) -> str:
        found.append(text)
        return text

    _walk(value, collect, "")
    return found


def with_texts(value: Any, texts: Sequence[str]) -> Any:
    """The same value with its texts replaced, one by one. Raises ValueError on a wrong count."""
    waiting: Iterator[str] = iter(texts)

    def replace(_: str) -> str:
        try:
            return next(waiting)
        except StopIteration:
            raise ValueError("fewer texts came back than went in") from None

    rewritten = _walk(value, replace, "")
    if next(waiting, None) is not None:
        raise ValueError("more texts came back than went in")
    return rewritten


def plain_messages(messages: Messages) -> Messages | None:
    """A prompt as training reads it: role and text only; None when it holds more than text."""
    if isinstance(messages, dict):
        return {"prompt": messages.get("prompt", "")}
    plain = [{"role": m.get("role", "user"), "content": _plain_content(m)} for m in messages]
    return None if any(m["content"] is None for m in plain) else plain


def prompt_json(messages: Messages) -> str:
    """A prompt as one canonical string."""
    return json.dumps(messages, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _plain_content(message: dict[str, Any]) -> str | None:
    content = message.get("content")
    if message.get("tool_calls"):
        return None
    if isinstance(content, list):
        parts = [p.get("text") if isinstance(p, dict) else None for p in content]
        return None if None in parts else "\n".join(str(p) for p in parts)
    return content if isinstance(content, str) else None


def _walk(value: Any, change: Callable[[str], str], name: str) -> Any:
    if isinstance(value, str):
        return _string(value, change, name)
    if isinstance(value, list):
        return [_walk(item, change, name) for item in value]
    if isinstance(value, dict):
        return {_key(key, change): _walk(item, change, key) for key, item in value.items()}
    if isinstance(value, bool) or value is None:
        return value
    return _number(value, change)


def _key(key: str, change: Callable[[str], str]) -> str:
    return key if key in _FIELDS else change(key)


def _string(text: str, change: Callable[[str], str], name: str) -> str:
    return text if text in _VOCABULARY.get(name, ()) else change(text)


def _number(value: float, change: Callable[[str], str]) -> Any:
    """A long number is a text too: it may be a phone or a card."""
    digits = str(value)
    if len(digits) < _SHORTEST_NUMBER:
        return value
    changed = change(digits)
    return value if changed == digits else changed
