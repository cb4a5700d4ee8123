"""What a rule of the filter is, and how a table of rules is run over one window of text.

A rule is data: a pattern, perhaps a cue that must stand before it, perhaps a check of the value
(a checksum, an entropy), and examples of both kinds that the tests run. What no pattern can say is
a walker: a function, with examples just the same. This file knows no rule; the tables are in the
modules beside it, and `scan.py` runs them all.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What was hidden; the word in the placeholder, and the label of the counter."""

    SECRET = "SECRET"
    EMAIL = "EMAIL"
    CARD = "CARD"
    IBAN = "IBAN"
    PASSPORT = "PASSPORT"
    NATIONAL_ID = "NATIONAL_ID"
    ACCOUNT = "ACCOUNT"
    IP = "IP"
    PHONE = "PHONE"
    BIRTH_DATE = "BIRTH_DATE"
    ADDRESS = "ADDRESS"
    USERNAME = "USERNAME"
    PERSON = "PERSON"


CUSTOM = "CUSTOM_"
"""How the kinds of recognizers that somebody plugged in begin."""

PLACEHOLDER = re.compile("<(?:" + "|".join(Kind) + rf"|{CUSTOM}[A-Z_]{{1,40}})_\d{{1,6}}>")


@dataclass(frozen=True, slots=True)
class Span:
    """Characters [start, end) to hide, and as what: a `Kind`, or a custom one."""

    start: int
    end: int
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One row of a table.

    `pattern` hides its group `v`, or the whole match when it has none. `hints` are lower-case
    literals of which one must be in the window for the pattern to be tried at all. `cue` must be
    found in the `reach` characters before the match. `check` sees the value. `matches` are
    (text, the part that must be hidden); `spares` are texts in which this rule finds nothing.
    """

    name: str
    kind: Kind
    pattern: re.Pattern[str]
    hints: tuple[str, ...] = ()
    cue: re.Pattern[str] | None = None
    reach: int = 40
    check: Callable[[str], bool] | None = None
    matches: tuple[tuple[str, str], ...]
    spares: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Walker:
    """A row whose `find` reads a text by itself; `matches` are (text, hidden part, its kind)."""

    name: str
    find: Callable[[str], Iterable[Span]]
    matches: tuple[tuple[str, str, Kind], ...]
    spares: tuple[str, ...]


def apply(rule: Rule, text: str, lowered: str) -> Iterator[Span]:
    """Spans that one rule hides in `text`; `lowered` is the same text in lower case."""
    if rule.hints and not any(hint in lowered for hint in rule.hints):
        return
    has_value = "v" in rule.pattern.groupindex
    for match in rule.pattern.finditer(text):
        start, end = match.span("v") if has_value else match.span()
        if start >= end:
            continue
        if rule.cue and not rule.cue.search(text, max(0, match.start() - rule.reach), start):
            continue
        if rule.check and not rule.check(text[start:end]):
            continue
        yield Span(start, end, rule.kind)


def apply_all(rules: Iterable[Rule], text: str) -> list[Span]:
    """Spans of every rule of a table in one window."""
    lowered = text.lower()
    return [span for rule in rules for span in apply(rule, text, lowered)]


def digits_of(value: str) -> str:
    """The decimal digits of a value, in order."""
    return "".join(character for character in value if character.isdigit())


def words_pattern(words: str) -> str:
    """A regular expression for any of the space-separated words; `_` in a word is any gap."""
    alternatives = sorted((re.escape(word) for word in words.split()), key=len, reverse=True)
    return "(?:" + "|".join(alternatives).replace("_", r"[\s_.-]{0,3}") + ")"
