"""All rules over one text, which is cut into windows that bound the work of every pattern.

`RULES` are tried on every window, `DIGIT_RULES` only where there is a digit. The deadline is looked
at between windows; a pattern that hangs inside one is what the process of `worker.py` is for.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator

from feedback.pii import names
from feedback.pii.addresses import addresses
from feedback.pii.contact import EMAIL_RULES, PHONE_RULES, networks
from feedback.pii.cues import CUE_RULES
from feedback.pii.ids import ID_RULES, cards, ibans
from feedback.pii.keyvalues import KEY_VALUE_RULES
from feedback.pii.normalise import View
from feedback.pii.person import DATES, PERSON_RULES, is_birth_year
from feedback.pii.rules import PLACEHOLDER, Kind, Rule, Span, apply_all
from feedback.pii.secrets import SECRET_RULES, key_blocks
from feedback.pii.tables import columns

WINDOW = 4000
OVERLAP = 200

RULES: tuple[Rule, ...] = (
    *SECRET_RULES, *KEY_VALUE_RULES, *EMAIL_RULES, *PERSON_RULES,
)  # fmt: skip
DIGIT_RULES: tuple[Rule, ...] = (*ID_RULES, *CUE_RULES, *PHONE_RULES)
_PERSONAL = frozenset(
    {
        Kind.EMAIL, Kind.PHONE, Kind.NATIONAL_ID, Kind.PASSPORT,
        Kind.ADDRESS, Kind.CARD, Kind.IBAN, Kind.ACCOUNT,
    }
)  # fmt: skip
_DIGIT = re.compile(r"\d")


Finder = Callable[[str], list[Span]]
"""Finds people in a window: `ner.PeopleFinder`."""


class DeadlinePassed(Exception):
    """The record took longer than it was given; nothing of it may be stored."""


def windows(text: str) -> Iterator[tuple[int, str]]:
    """(offset, text) of at most 4,000 characters, each overlapping the one before by 200."""
    start = 0
    while True:
        yield start, text[start : start + WINDOW]
        if start + WINDOW >= len(text):
            return
        start += WINDOW - OVERLAP


def scan(view: View, *, people: Finder, deadline: float) -> list[Span]:
    """Spans of the normalised text, united where they overlap and clear of our placeholders.

    `deadline` is a time of `time.monotonic`. Raises DeadlinePassed.
    """
    text = view.text
    spans = list(key_blocks(text))
    for offset, window in windows(text):
        if time.monotonic() > deadline:
            raise DeadlinePassed
        spans += shifted(_in_window(window, people), offset)
    spans += _loose_birth_dates(text, spans)
    return unite(clear_of_placeholders(text, spans))


def _in_window(window: str, people: Finder) -> Iterable[Span]:
    lowered = window.lower()
    yield from apply_all(RULES, window)
    if _DIGIT.search(window):
        yield from apply_all(DIGIT_RULES, window)
        yield from ibans(window)
        yield from cards(window)
        yield from networks(window, lowered)
        yield from addresses(window)
    yield from columns(window)
    yield from names.names(window, people(window))


def _loose_birth_dates(text: str, spans: list[Span]) -> list[Span]:
    """Any full date of a living person's birth years, beside another personal item."""
    if not any(span.kind in _PERSONAL for span in spans):
        return []
    found = (match for match in DATES.finditer(text) if is_birth_year(match.group()))
    return [Span(match.start(), match.end(), Kind.BIRTH_DATE) for match in found]


def shifted(spans: Iterable[Span], offset: int) -> list[Span]:
    """The spans of a window as spans of its text."""
    return [Span(span.start + offset, span.end + offset, span.kind) for span in spans]


def clear_of_placeholders(text: str, spans: list[Span]) -> list[Span]:
    """Spans cut around the placeholders of an earlier pass; what is only punctuation is dropped."""
    taken = [match.span() for match in PLACEHOLDER.finditer(text)]
    if not taken:
        return spans
    cut = [piece for span in spans for piece in _without(span, taken)]
    return [s for s in cut if any(c.isalnum() for c in text[s.start : s.end])]


def _without(span: Span, taken: list[tuple[int, int]]) -> Iterator[Span]:
    start = span.start
    for low, high in taken:
        if high <= start or low >= span.end:
            continue
        if low > start:
            yield Span(start, low, span.kind)
        start = high
    if start < span.end:
        yield Span(start, span.end, span.kind)


_RANK: Callable[[Kind], int] = list(Kind).index


def unite(spans: Iterable[Span]) -> list[Span]:
    """Overlapping spans as one, of the kind that covers most (the earlier in Kind at a tie)."""
    united: list[Span] = []
    longest = 0
    for span in sorted(spans, key=lambda s: (s.start, -s.end, _RANK(s.kind))):
        length = span.end - span.start
        if united and span.start < united[-1].end:
            last = united[-1]
            kind = span.kind if length > longest else last.kind
            longest = max(longest, length)
            united[-1] = Span(last.start, max(last.end, span.end), kind)
        else:
            united.append(span)
            longest = length
    return united
