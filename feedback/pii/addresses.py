"""Street addresses: a seed (number and street), grown token by token to postcode and country.

Never one big regular expression: that is slow on hostile text and blind on odd text. A seed is a
street type beside a number, a PO box, or a corner of two streets; growth takes units to the left,
and units, place names, postcodes and countries to the right, and stops at the first word of prose.
"""

from collections.abc import Iterator

from feedback.pii.address_growth import grown
from feedback.pii.address_parts import (
    BOX,
    CORNER,
    HINT,
    POSTCODE_CUE,
    UNITS,
    Token,
    at,
    tokenised,
)
from feedback.pii.address_seeds import seed
from feedback.pii.rules import Kind, Span


def addresses(text: str) -> Iterator[Span]:
    """Address spans of one window."""
    if not HINT.search(text):
        return
    for match in POSTCODE_CUE.finditer(text):
        yield Span(*match.span("v"), Kind.ADDRESS)
    tokens = tokenised(text)
    by_start = {token.start: index for index, token in enumerate(tokens)}
    for pattern in (BOX, CORNER):
        for match in pattern.finditer(text):
            after = _after(tokens, by_start.get(match.start(), 0), match.end())
            yield Span(match.start(), grown(text, tokens, after), Kind.ADDRESS)
    index = 0
    while index < len(tokens):
        street = seed(tokens, index)
        if street is None:
            index += 1
            continue
        first, last = _with_left_unit(tokens, street[0]), street[1]
        end = grown(text, tokens, last + 1)
        yield Span(tokens[first].start, end, Kind.ADDRESS)
        index = last + 1


def _after(tokens: list[Token], first: int, end: int) -> int:
    """Index of the first token at or after the character `end`."""
    while first < len(tokens) and tokens[first].start < end:
        first += 1
    return first


def _with_left_unit(tokens: list[Token], first: int) -> int:
    """Take `Flat 3,` or `Apt. 4B,` before the street, and `Unit` of `Unit 5/120 Quarry St`."""
    if at(tokens, first - 1).lower in ("unit", "flat", "apt", "apartment", "suite", "shop"):
        return first - 1
    for back in (3, 4, 2):
        unit, value, separator = at(tokens, first - back), first - back + 1, at(tokens, first - 1)
        if unit.lower in UNITS and (at(tokens, value).is_number or separator.text in (",", "\n")):
            return first - back
    return first
