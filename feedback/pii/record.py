"""All texts of one record at once: found in one, hidden in all, numbered together.

`filter_record` is pure but for the model and the clock; it stores nothing and logs nothing. Ingest
does not call it directly but through `worker.PiiWorker`, where it can be killed.
"""

import hashlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from feedback.pii import ner
from feedback.pii.name_cues import WORD
from feedback.pii.normalise import View, normalise
from feedback.pii.redact import Numbering, is_json, redacted, redacted_json
from feedback.pii.rules import PLACEHOLDER, Kind, Span
from feedback.pii.scan import Finder, clear_of_placeholders, scan, unite
from feedback.pii.words import MAYBE_NAMES, NOT_PEOPLE, STARTERS

_PASSES = 4
"""Hiding changes what stands around; passes go on until nothing new is found, at most so often."""

_PARTS = re.compile(r"['-]")


@dataclass(frozen=True, slots=True)
class Filtered:
    """The texts without personal data, how many spans of each kind were hidden, and by what."""

    texts: tuple[str, ...]
    counts: dict[str, int]
    version: str


@cache
def filter_version() -> str:
    """Changes with any rule, list, library or model of the filter."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    rules = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    return f"rules-{rules[:12]}+{ner.MODEL}-{ner.MODEL_VERSION}+stdnum-{version('python-stdnum')}"


@cache
def loaded_model() -> Any:
    """The model of this process, loaded at its first record."""
    return ner.load_model()


def filter_record(texts: Sequence[str], *, deadline_seconds: float) -> Filtered:
    """Replace personal data and secrets in the texts of one record by typed placeholders.

    The texts are a record's messages, completions, tool arguments (JSON stays valid JSON) and what
    people wrote about it, in any order that is kept. Raises DeadlinePassed, or ValueError when JSON
    would break; the caller stores no text then.
    """
    deadline = time.monotonic() + deadline_seconds
    numbering = Numbering(texts)
    people = ner.PeopleFinder(loaded_model())
    current = list(texts)
    jsons = [is_json(text) for text in texts]
    for _ in range(_PASSES):
        before = current
        current = _one_pass(before, jsons, numbering, people, deadline)
        if current == before:
            break
    return Filtered(tuple(current), _counts(texts, current), filter_version())


def _one_pass(
    texts: list[str], jsons: list[bool], numbering: Numbering, people: Finder, deadline: float
) -> list[str]:
    views = [normalise(text, is_json=flag) for text, flag in zip(texts, jsons, strict=True)]
    found = [scan(view, people=people, deadline=deadline) for view in views]
    names = _name_words(views, found)
    results = []
    for text, view, spans, flag in zip(texts, views, found, jsons, strict=True):
        if names:
            again = _recurring(view.text, names)
            spans = unite(_joined(view.text, [*spans, *clear_of_placeholders(view.text, again)]))
        replace = redacted_json if flag else redacted
        results.append(replace(text, [view.original(span) for span in spans], numbering))
    return results


def _name_words(views: list[View], found: list[list[Span]]) -> frozenset[str]:
    """Every telling word of every name found in the record, in the forms in which it may recur."""
    words: set[str] = set()
    for view, spans in zip(views, found, strict=True):
        for span in spans:
            if span.kind is Kind.PERSON:
                words.update(WORD.findall(view.text[span.start : span.end]))
    return frozenset(form for word in words if _is_telling(word) for form in _forms(word))


def _recurring(text: str, names: frozenset[str]) -> list[Span]:
    """Words of the text that are, or hold after a hyphen or an apostrophe, a word of a name."""
    return [
        Span(match.start(), match.end(), Kind.PERSON)
        for match in WORD.finditer(text)
        if match.group() in names or not names.isdisjoint(_PARTS.split(match.group()))
    ]


def _is_telling(word: str) -> bool:
    lower = word.lower()
    return len(word) >= 3 and not (lower in MAYBE_NAMES or lower in STARTERS or lower in NOT_PEOPLE)


def _forms(word: str) -> tuple[str, ...]:
    """As written and in capitals; what was written in lower case also capitalised."""
    return (
        (word, word.upper(), word.capitalize()) if not word.isupper() else (word, word.capitalize())
    )


def _joined(text: str, spans: list[Span]) -> list[Span]:
    """Parts of one name that only a space or an initial's dot parts, as one span."""
    joined: list[Span] = []
    for span in unite(spans):
        last = joined[-1] if joined else None
        gap = text[last.end : span.start] if last else ""
        if last and last.kind is span.kind is Kind.PERSON and gap in (" ", ". ", "  "):
            joined[-1] = Span(last.start, span.end, Kind.PERSON)
        else:
            joined.append(span)
    return joined


def _counts(before: Sequence[str], after: Sequence[str]) -> dict[str, int]:
    """Placeholders by kind that were not in the texts before."""
    counts: dict[str, int] = {}
    for sign, texts in ((-1, before), (1, after)):
        for text in texts:
            for match in PLACEHOLDER.finditer(text):
                kind = match.group()[1:-1].rpartition("_")[0]
                counts[kind] = counts.get(kind, 0) + sign
    return {kind: number for kind, number in counts.items() if number > 0}
