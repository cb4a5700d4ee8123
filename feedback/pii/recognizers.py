"""Recognizers of one's own beside our rules: any object that speaks Presidio's protocol.

`log.pii_recognizers` names them, "package.module:ClassOrInstance"; the filter's process imports
them, so that one that hangs or crashes fails a record and nothing else. What one finds is hidden
as well; whatever it raises, or a span that is none, keeps the whole record back. Presidio itself is
not needed.
"""

import hashlib
import importlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from feedback.pii.rules import CUSTOM, Kind, Span

_OURS: dict[str, Kind] = {
    **{kind.value: kind for kind in Kind},
    "EMAIL_ADDRESS": Kind.EMAIL,
    "PHONE_NUMBER": Kind.PHONE,
    "CREDIT_CARD": Kind.CARD,
    "IBAN_CODE": Kind.IBAN,
    "IP_ADDRESS": Kind.IP,
    "US_SSN": Kind.NATIONAL_ID,
    "US_PASSPORT": Kind.PASSPORT,
    "US_BANK_NUMBER": Kind.ACCOUNT,
}
_SPEC = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_NO_LETTER = re.compile(r"[^A-Z]+")
_LONGEST_NAME = 40


class Result(Protocol):
    """What a recognizer finds: characters [start, end) of the text, and what they are."""

    entity_type: str
    start: int
    end: int
    score: float


class Recognizer(Protocol):
    """The part of Presidio's EntityRecognizer that we call."""

    def analyze(
        self, text: str, entities: list[str], nlp_artifacts: Any = None
    ) -> Iterable[Result]:
        """What is personal in the text."""


def load_recognizers(specs: Sequence[str]) -> tuple[Recognizer, ...]:
    """Import each and make an instance of a class. Raises ImportError, TypeError, ValueError."""
    return tuple(_load(spec) for spec in specs)


def recognizers_version(specs: Sequence[str]) -> str:
    """Changes with the list and with the files in which recognizers are; "" without any."""
    if not specs:
        return ""
    digest = hashlib.sha256()
    for spec in specs:
        source = getattr(sys.modules.get(spec.partition(":")[0]), "__file__", None)
        digest.update(spec.encode() + (Path(source).read_bytes() if source else b""))
    return f"+custom-{digest.hexdigest()[:12]}"


def recognized(recognizers: Sequence[Recognizer], text: str) -> Iterator[Span]:
    """Spans of all recognizers in one window. Raises what they raise, and ValueError."""
    for recognizer in recognizers:
        entities = list(getattr(recognizer, "supported_entities", None) or [])
        for result in recognizer.analyze(text, entities, None) or ():
            if not 0 <= result.start < result.end <= len(text):
                raise ValueError("a recognizer gave a span outside of its text")
            yield Span(int(result.start), int(result.end), kind_of(result.entity_type))


def kind_of(entity_type: str) -> str:
    """Our kind for the types that Presidio also has, else a custom one: letters and `_` alone."""
    name = entity_type.upper()
    if name in _OURS:
        return _OURS[name]
    return CUSTOM + (_NO_LETTER.sub("_", name).strip("_")[:_LONGEST_NAME].strip("_") or "ITEM")


def _load(spec: str) -> Recognizer:
    if not _SPEC.fullmatch(spec):
        raise ValueError("a recognizer is named package.module:ClassOrInstance")
    module, _, name = spec.partition(":")
    found = getattr(importlib.import_module(module), name)
    recognizer: Recognizer = found() if isinstance(found, type) else found
    if not callable(getattr(recognizer, "analyze", None)):
        raise TypeError("a recognizer needs a method analyze")
    return recognizer
