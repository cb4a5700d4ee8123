"""Spans become typed placeholders, numbered by what they hide; JSON stays JSON.

The same value has the same placeholder throughout a record, also a name that is only part of one
already seen. Numbers begin anew in each record, so placeholders of two records cannot be joined.
"""

import json
import re
from collections.abc import Iterable, Iterator

from feedback.pii.rules import PLACEHOLDER, Kind, Span

_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|true|false|null', re.DOTALL)
_JSON_ESCAPE = re.compile(r"\\u[0-9a-fA-F]{4}|\\.")
_WORD = re.compile(r"\w+")


class Numbering:
    """Which placeholder stands for which value, for one record."""

    def __init__(self, texts: Iterable[str]) -> None:
        """Numbers already used by placeholders in the texts are not given again."""
        self._known: dict[tuple[str, str], str] = {}
        self._people: list[tuple[frozenset[str], str]] = []
        self._last: dict[str, int] = {}
        for text in texts:
            for match in PLACEHOLDER.finditer(text):
                kind, _, number = match.group()[1:-1].rpartition("_")
                self._last[kind] = max(self._last.get(kind, 0), int(number))

    def placeholder(self, kind: str, value: str) -> str:
        """`<KIND_n>`, the same n for the same value whatever its case and spacing."""
        words = _WORD.findall(value.casefold())
        key = (kind, " ".join(words) if kind == Kind.PERSON else "".join(words))
        if key not in self._known:
            name = self._person(frozenset(words)) if kind == Kind.PERSON else None
            self._known[key] = name or self._next(kind)
        return self._known[key]

    def _next(self, kind: str) -> str:
        self._last[kind] = self._last.get(kind, 0) + 1
        return f"<{kind}_{self._last[kind]}>"

    def _person(self, words: frozenset[str]) -> str:
        """A person whose name holds these words, or is held by them, is that person."""
        for known, name in self._people:
            if words <= known or (known <= words and known):
                return name
        name = self._next(Kind.PERSON)
        self._people.append((words, name))
        return name


def is_json(text: str) -> bool:
    """Whether the text is a JSON object or array."""
    if text.lstrip()[:1] not in ("{", "["):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def redacted(text: str, spans: list[Span], numbering: Numbering) -> str:
    """The text with each span (of the text as written, not overlapping) replaced."""
    pieces: list[str] = []
    position = 0
    for span in spans:
        start = max(span.start, position)
        if start >= span.end:
            continue
        pieces.append(text[position:start])
        pieces.append(numbering.placeholder(span.kind, text[start : span.end]))
        position = span.end
    return "".join(pieces) + text[position:]


def redacted_json(text: str, spans: list[Span], numbering: Numbering) -> str:
    """The same for JSON: only insides of strings are replaced, and a number becomes a string.

    Raises ValueError when the result is not JSON, in which case nothing may be stored.
    """
    pieces: list[str] = []
    position = 0
    for token, inside in _inside_tokens(text, spans):
        pieces.append(text[position : token.start()])
        pieces.append(_new_token(token, inside, numbering))
        position = token.end()
    result = "".join(pieces) + text[position:]
    json.loads(result)
    return result


def _inside_tokens(text: str, spans: list[Span]) -> Iterator[tuple[re.Match[str], list[Span]]]:
    """JSON tokens with the spans that touch each, both in order of the text."""
    index = 0
    for token in _JSON_TOKEN.finditer(text):
        while index < len(spans) and spans[index].end <= token.start():
            index += 1
        touching = []
        ahead = index
        while ahead < len(spans) and spans[ahead].start < token.end():
            touching.append(spans[ahead])
            ahead += 1
        if touching:
            yield token, touching


def _new_token(token: re.Match[str], spans: list[Span], numbering: Numbering) -> str:
    text, value = token.string, token.group()
    if value[0] != '"':
        if value in ("true", "false", "null"):
            return value
        return f'"{numbering.placeholder(spans[0].kind, value)}"'
    first, last = token.start() + 1, token.end() - 1
    escapes = [match.span() for match in _JSON_ESCAPE.finditer(text, first, last)]
    pieces = ['"']
    position = first
    for span in spans:
        start = _before_escape(max(span.start, position), escapes)
        end = _after_escape(min(span.end, last), escapes)
        if start >= end or not any(c.isalnum() for c in text[start:end]):
            continue
        pieces.append(text[position:start])
        pieces.append(numbering.placeholder(span.kind, text[start:end]))
        position = end
    return "".join(pieces) + text[position:last] + '"'


def _before_escape(offset: int, escapes: list[tuple[int, int]]) -> int:
    return next((low for low, high in escapes if low < offset < high), offset)


def _after_escape(offset: int, escapes: list[tuple[int, int]]) -> int:
    return next((high for low, high in escapes if low < offset < high), offset)
