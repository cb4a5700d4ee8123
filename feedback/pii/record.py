"""All texts of one record at once: found in one, hidden in all, numbered together.

`filter_record` is pure but for the model and the clock; it stores nothing and logs nothing. Ingest
does not call it directly but through `worker.PiiWorker`, where it can be killed.
"""

import hashlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from feedback.pii import ner
from feedback.pii.name_cues import WORD
from feedback.pii.normalise import View, normalise
from feedback.pii.recognizers import load_recognizers, recognized, recognizers_version
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


@dataclass(frozen=True, slots=True)
class Plan:
    """What reads a record beside the rules: the first model always, and what is chosen here."""

    second_tier: bool = False
    """Whether the second model is asked for names too: what goes to training."""
    recognizers: tuple[str, ...] = ()
    """`log.pii_recognizers`."""


FIRST_TIER = Plan()


@cache
def _own_version() -> str:
    sources = sorted(Path(__file__).parent.glob("*.*"))
    rules = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    return f"rules-{rules[:12]}+{ner.MODEL}-{ner.MODEL_VERSION}+stdnum-{version('python-stdnum')}"


def filter_version(plan: Plan = FIRST_TIER) -> str:
    """Changes with any rule, list, library, model or plugged-in recognizer of the filter."""
    second = f"+{ner.SECOND_MODEL}-{ner.SECOND_MODEL_VERSION}" if plan.second_tier else ""
    return _own_version() + second + recognizers_version(plan.recognizers)


@cache
def loaded(plan: Plan = FIRST_TIER) -> tuple[tuple[Any, ...], Finder]:
    """The models of this process and its plugged-in recognizers, loaded at its first record."""
    second = (ner.load_model(ner.SECOND_MODEL),) if plan.second_tier else ()
    others = partial(recognized, load_recognizers(plan.recognizers))
    return (loaded_model(), *second), others


@cache
def loaded_model() -> Any:
    """The model that every record is read with."""
    return ner.load_model()


def filter_record(
    texts: Sequence[str], *, deadline_seconds: float, plan: Plan = FIRST_TIER
) -> Filtered:
    """Replace personal data and secrets in the texts of one record by typed placeholders.

    The texts are a record's messages, completions, tool arguments (JSON stays valid JSON) and what
    people wrote about it, in any order that is kept. Raises DeadlinePassed, ValueError when JSON
    would break, and what a plugged-in recognizer raises; the caller stores no text then.
    """
    deadline = time.monotonic() + deadline_seconds
    models, others = loaded(plan)
    jsons = [is_json(text) for text in texts]
    reading = _Reading(jsons, Numbering(texts), ner.PeopleFinder(models), others, deadline)
    current = list(texts)
    for _ in range(_PASSES):
        before = current
        current = _one_pass(before, reading)
        if current == before:
            break
    return Filtered(tuple(current), _counts(texts, current), filter_version(plan))


@dataclass(frozen=True, slots=True)
class _Reading:
    """What the passes over one record share."""

    jsons: list[bool]
    numbering: Numbering
    people: Finder
    others: Finder
    deadline: float


def _one_pass(texts: list[str], reading: _Reading) -> list[str]:
    jsons, numbering = reading.jsons, reading.numbering
    views = [normalise(text, is_json=flag) for text, flag in zip(texts, jsons, strict=True)]
    found = [
        scan(view, people=reading.people, others=reading.others, deadline=reading.deadline)
        for view in views
    ]
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
