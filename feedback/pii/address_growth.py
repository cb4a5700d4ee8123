"""Where an address ends: from its street to the right over units, places, postcodes and countries.

Each part function takes the index where a part may begin and returns the index after it, or None.
`separated` says whether a comma or a line's end stands before. Growth stops at the first prose.
"""

from feedback.pii.address_parts import (
    COUNTRIES,
    LOWER_PLACE,
    PARTICLES,
    POSTCODE,
    STATES,
    UNITS,
    Token,
    at,
)

_LONGEST = 7
"""Parts after the street; a hostile list of places would go on for ever."""

_SEPARATORS = frozenset({",", "\n", "-", "|", ";", "/", "."})
_ENDS = frozenset({"", ",", "\n", ".", '"', ")", ";", "|", "?", "!"})


def grown(text: str, tokens: list[Token], index: int) -> int:
    """The character after the address whose street ends before token `index`."""
    end = at(tokens, index - 1).end
    is_complete = is_placed = False
    for _ in range(_LONGEST):
        taken = _next_part(text, tokens, index, is_complete=is_complete)
        if taken is None and is_complete and not is_placed:  # `75002 Paris`, and prose goes on
            taken = _city(tokens, index)
        if taken is None:
            break
        last = tokens[taken - 1]
        is_placed = is_placed or last.is_capital
        is_complete = is_complete or POSTCODE.fullmatch(text, last.start, last.end) is not None
        index, end = taken, last.end
        if last.lower in COUNTRIES:
            break
    return end


def _next_part(text: str, tokens: list[Token], index: int, *, is_complete: bool) -> int | None:
    """One more part. After the postcode only a country may stand on a new line."""
    here = index
    while here < index + 3 and at(tokens, here).text in _SEPARATORS:
        if tokens[here].text == "." and at(tokens, here + 1).text not in (",", "\n"):
            return None
        here += 1
    if here >= len(tokens):
        return None
    separated = here > index
    if is_complete and any(token.text == "\n" for token in tokens[index:here]):
        is_country = any(token.lower in COUNTRIES for token in tokens[here : here + 2])
        return _place(text, tokens, here, separated=True) if is_country else None
    unit = _unit(tokens, here)
    if unit is not None:
        return unit
    postcode = _postcode(text, tokens, here)
    return postcode if postcode is not None else _place(text, tokens, here, separated=separated)


def _unit(tokens: list[Token], here: int) -> int | None:
    """`Apt 4B`, `# 12`, `3rd floor`, `3º B`."""
    token = tokens[here]
    if token.text == "#" or token.lower in UNITS:
        value = here + 1
        while at(tokens, value).text in (".", "#"):
            value += 1
        number = at(tokens, value)
        if number.text.isalnum() and (number.is_number or len(number.text) <= 2):
            return value + 1
    if token.is_number and at(tokens, here + 1).lower in ("floor", "fl", "piso", "etage"):
        return here + 2
    if token.is_number and token.text[-1] in "ºª":
        door = at(tokens, here + 1).text
        return here + 2 if door.isalnum() and len(door) <= 3 else here + 1
    return None


def _postcode(text: str, tokens: list[Token], here: int) -> int | None:
    match = POSTCODE.match(text, tokens[here].start)
    return None if match is None else _past(tokens, here, match.end())


def _past(tokens: list[Token], here: int, end: int) -> int:
    while here < len(tokens) and tokens[here].start < end:
        here += 1
    return here


def _place(text: str, tokens: list[Token], here: int, *, separated: bool) -> int | None:
    """Up to five capitalised words or a state: a city after a comma, or before a postcode."""
    start = here
    lower = LOWER_PLACE.match(text, tokens[here].start)
    if lower:
        return _past(tokens, here, lower.end())
    while here < min(len(tokens), start + 5) and _is_of_place(tokens, here, start, separated):
        if here > start and POSTCODE.match(text, tokens[here].start):
            break
        here += 1
    if here == start:
        return None
    before_postcode = here < len(tokens) and POSTCODE.match(text, tokens[here].start)
    is_state = tokens[start].lower in STATES
    ends = at(tokens, here).text in _ENDS
    return here if separated or before_postcode or is_state or ends else None


def _is_of_place(tokens: list[Token], here: int, start: int, separated: bool) -> bool:
    token = tokens[here]
    if here == start:
        return token.is_capital or (separated and token.lower in STATES)
    return token.is_capital or (token.lower in PARTICLES and at(tokens, here + 1).is_capital)


def _city(tokens: list[Token], index: int) -> int | None:
    """The one or two capitalised words that stand directly at `index`."""
    here = index
    while here < index + 2 and at(tokens, here).is_capital:
        here += 1
    return here if here > index else None
