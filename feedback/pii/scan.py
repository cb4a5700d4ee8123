"""All rules over one text, which is cut into windows that bound the work of every pattern.

`RULES` and `WALKERS` are tried on every window, `DIGIT_RULES` and `DIGIT_WALKERS` only where there
is a digit, `TEXT_WALKERS` once on the whole text. The deadline is looked
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
from feedback.pii.rules import PLACEHOLDER, Kind, Rule, Span, Walker, apply_all
from feedback.pii.secrets import SECRET_RULES, key_blocks
from feedback.pii.tables import columns

WINDOW = 4000
OVERLAP = 200

RULES: tuple[Rule, ...] = (
    *SECRET_RULES, *KEY_VALUE_RULES, *EMAIL_RULES, *PERSON_RULES,
)  # fmt: skip
DIGIT_RULES: tuple[Rule, ...] = (*ID_RULES, *CUE_RULES, *PHONE_RULES)
_NEW_LINE_TABLE = "id,name,email\n7,Ottoline Vex,-\n8,Tunde,none"
TEXT_WALKERS: tuple[Walker, ...] = (
    Walker(
        name="key-block",
        find=key_blocks,
        matches=(
            (
                "-----BEGIN RSA PRIVATE KEY-----\nMIIEow+/=\n-----END RSA PRIVATE KEY----- ok",
                "-----BEGIN RSA PRIVATE KEY-----\nMIIEow+/=\n-----END RSA PRIVATE KEY-----",
                Kind.SECRET,
            ),
            (
                "-----BEGIN PRIVATE KEY-----\nMIIEow, broken off",
                "-----BEGIN PRIVATE KEY-----\nMIIEow, broken off",
                Kind.SECRET,
            ),
        ),
        spares=("-----BEGIN CERTIFICATE-----\nMIIE", "----- BEGIN -----"),
    ),
)
WALKERS: tuple[Walker, ...] = (
    Walker(
        name="column",
        find=columns,
        matches=(
            (_NEW_LINE_TABLE, "Ottoline Vex", Kind.PERSON),
            (_NEW_LINE_TABLE, "Tunde", Kind.PERSON),
            ("user;password\nann;blue", "blue", Kind.SECRET),
            ("login|dob\nquiet|1984-03-02", "quiet", Kind.USERNAME),
            ("login|dob\nquiet|1984-03-02", "1984-03-02", Kind.BIRTH_DATE),
            ("city\tzip\nUlm\t89073", "89073", Kind.ADDRESS),
            ("id,phone\n1,5550142", "5550142", Kind.PHONE),
            ("id,ssn\n1,219099999", "219099999", Kind.NATIONAL_ID),
        ),
        spares=("id,name\n1,null\n2,", "we want a name, a dog\nand a cat, too", "name,x\nonly one"),
    ),
)
DIGIT_WALKERS: tuple[Walker, ...] = (
    Walker(
        name="iban",
        find=ibans,
        matches=(
            (
                "pay DE89 3704 0044 0532 0130 00 by tomorrow",
                "DE89 3704 0044 0532 0130 00",
                Kind.IBAN,
            ),
            ("IBAN: GB82WEST12345698765432.", "GB82WEST12345698765432", Kind.IBAN),
            ("my IBAN is DE89370400440532013001", "DE89370400440532013001", Kind.IBAN),
        ),
        spares=("pay DE89 3704 0044 0532 0130 01 by tomorrow", "XX12 and AB34 5678"),
    ),
    Walker(
        name="card-among-numbers",
        find=cards,
        matches=(("1182 4111 1111 1111 1111 20", "4111 1111 1111 1111", Kind.CARD),),
        spares=("4111 1111 1111 1112", "2024 2025 2026 2027"),
    ),
    Walker(
        name="network",
        find=networks,
        matches=(
            ("from 203.0.113.7 port 22", "203.0.113.7", Kind.IP),
            ("from 2001:db8::8a2e:370:7334 now", "2001:db8::8a2e:370:7334", Kind.IP),
        ),
        spares=("version 20.3.113.7 of it", "on 10.0.0.1 and ::1"),
    ),
    Walker(
        name="address",
        find=addresses,
        matches=(
            (
                "at 42 Maple Street, Springfield, IL 62704.",
                "42 Maple Street, Springfield, IL 62704",
                Kind.ADDRESS,
            ),
            ("in Lindenstraße 7, 10115 Berlin, oben", "Lindenstraße 7, 10115 Berlin", Kind.ADDRESS),
            ("au 12 rue de la Paix, 75002 Paris", "12 rue de la Paix, 75002 Paris", Kind.ADDRESS),
            ("to P.O. Box 77, Dayton", "P.O. Box 77, Dayton", Kind.ADDRESS),
            ("Flat 3, 27 Kelvin Road", "Flat 3, 27 Kelvin Road", Kind.ADDRESS),
            ("Unit 5/120 Quarry St", "Unit 5/120 Quarry St", Kind.ADDRESS),
            ("1984, ul. Krucza 84/2", "ul. Krucza 84/2", Kind.ADDRESS),
        ),
        spares=("in 2024 Main Street was closed", "the 3 ways to drive", "5 place settings"),
    ),
)
_PERSONAL = frozenset(
    {
        Kind.EMAIL, Kind.PHONE, Kind.NATIONAL_ID, Kind.PASSPORT,
        Kind.ADDRESS, Kind.CARD, Kind.IBAN, Kind.ACCOUNT,
    }
)  # fmt: skip
_DIGIT = re.compile(r"\d")


Finder = Callable[[str], Iterable[Span]]
"""Finds spans in a window: `ner.PeopleFinder`, or the recognizers that somebody plugged in."""


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


def scan(view: View, *, people: Finder, others: Finder, deadline: float) -> list[Span]:
    """Spans of the normalised text, united where they overlap and clear of our placeholders.

    `people` proposes names, `others` what else is to be hidden; `deadline` is a time of
    `time.monotonic`. Raises DeadlinePassed, and what `others` raises.
    """
    text = view.text
    spans = [span for walker in TEXT_WALKERS for span in walker.find(text)]
    for offset, window in windows(text):
        if time.monotonic() > deadline:
            raise DeadlinePassed
        spans += shifted(_in_window(window, people), offset)
        spans += shifted(others(window), offset)
    spans += _loose_birth_dates(text, spans)
    return unite(clear_of_placeholders(text, spans))


def _in_window(window: str, people: Finder) -> Iterable[Span]:
    has_digit = _DIGIT.search(window)
    yield from apply_all(RULES, window)
    if has_digit:
        yield from apply_all(DIGIT_RULES, window)
    for walker in (*WALKERS, *DIGIT_WALKERS) if has_digit else WALKERS:
        yield from walker.find(window)
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


_RANK: dict[str, int] = {kind: place for place, kind in enumerate(Kind)}


def unite(spans: Iterable[Span]) -> list[Span]:
    """Overlapping spans as one, of the kind that covers most (the earlier in Kind at a tie)."""
    united: list[Span] = []
    longest = 0
    for span in sorted(spans, key=lambda s: (s.start, -s.end, _RANK.get(s.kind, len(_RANK)))):
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
