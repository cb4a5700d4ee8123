"""A street with its number in a list of tokens, from which an address is grown.

`12 Long Oak Street`, `12 rue de la Paix`, `Calle Mayor 5`, `Long Oak Street 12`, `Lindenstrasse 7`.
"""

from feedback.pii.address_parts import (
    COMPASS,
    NOT_STREET_WORDS,
    PARTICLES,
    PREFIXES,
    SUFFIXES,
    SURE_TYPES,
    TYPES,
    YEAR,
    YEAR_BEFORE,
    Token,
    at,
)

_BEFORE_NUMBER = frozenset({".", ",", "n", "nº", "n°", "no", "nr", "º", "°", "numero", "número"})


def seed(tokens: list[Token], index: int) -> tuple[int, int] | None:
    """First and last token of a street with its number that begins at `index`, if one does."""
    token = tokens[index]
    if token.is_number:
        return _number_first(tokens, index)
    if token.lower in PREFIXES or _ends_like_street(token):
        return _street_first(tokens, index)
    if token.is_capital:
        return _name_type_number(tokens, index)
    return None


def _number_first(tokens: list[Token], index: int) -> tuple[int, int] | None:
    """`12 Long Oak Street`, `12 rue de la Paix`, `12, rue ...`, `1600 Broadway`."""
    number, following = tokens[index], index + 1
    if at(tokens, following).text == ".":  # `4. Run` is a list
        return None
    has_comma = at(tokens, following).text == ","
    if has_comma:
        following += 1
        if at(tokens, following).lower not in PREFIXES:
            return None
    named = _named_street(tokens, following)
    if named is not None and has_comma and at(tokens, named + 1).is_number:
        return None  # `1984, ul. Długa 12`: the street has a number of its own
    if named is not None:
        return index, named
    is_year = YEAR.fullmatch(number.text) and at(tokens, index - 1).lower in YEAR_BEFORE
    street_type = _type_after(tokens, following)
    if street_type is None or is_year or len(number.text) > 7:
        return None
    if at(tokens, street_type + 1).text == "." and len(tokens[street_type].text) <= 4:
        street_type += 1
    return index, street_type + (at(tokens, street_type + 1).lower in COMPASS)


def _named_street(tokens: list[Token], here: int) -> int | None:
    """Last token of `rue de la Paix` or `Broadway`, which need no type after the name."""
    if at(tokens, here).lower in PREFIXES:
        return _name_after_prefix(tokens, here)
    return here if at(tokens, here).text == "Broadway" else None


def _type_after(tokens: list[Token], start: int) -> int | None:
    """The last street type among the five tokens from `start`, which is the street's name."""
    found: int | None = None
    capitals = True
    for here in range(start, min(start + 5, len(tokens))):
        token = tokens[here]
        if token.text in "\n,;:!?()":
            break
        if token.text == ".":
            continue
        words = here - start
        if words and token.lower in TYPES and _is_type(token, capitals=capitals, words=words):
            found = here
        if token.lower in NOT_STREET_WORDS and not (token.is_capital and words):
            break
        capitals = capitals and (token.is_capital or token.is_number)
    return found


def _is_type(token: Token, *, capitals: bool, words: int) -> bool:
    """A street type after a number: any when all is capitalised, a sure one in lower case."""
    if capitals and token.is_capital:
        return True
    return token.lower in SURE_TYPES and words <= 3


def _name_after_prefix(tokens: list[Token], at: int) -> int | None:
    """Last token of the name after `rue`, `calle`, `via`: particles and capitalised words."""
    last: int | None = None
    for here in range(at + 1, min(at + 9, len(tokens))):
        token = tokens[here]
        if token.is_capital:
            last = here
        elif token.lower not in PARTICLES and token.text not in ".'-":
            break
    return last


def _ends_like_street(token: Token) -> bool:
    return len(token.text) > 5 and token.lower.endswith(SUFFIXES) and token.is_capital


def _street_first(tokens: list[Token], index: int) -> tuple[int, int] | None:
    """`Calle Mayor 5`, `ul. Długa 12/3`, `Lindenstraße 7`."""
    whole = _ends_like_street(tokens[index])
    last = index if whole else _name_after_prefix(tokens, index)
    if last is None:
        return None
    here = last + 1
    while here <= last + 3 and at(tokens, here).text.lower() in _BEFORE_NUMBER:
        here += 1
    number = at(tokens, here)
    return (index, here) if number.is_number and len(number.text) <= 7 else None


def _name_type_number(tokens: list[Token], index: int) -> tuple[int, int] | None:
    """`Long Oak Street 12`: capitalised words, a sure type, then the number."""
    here = index
    while here < index + 5 and at(tokens, here).is_capital:
        if here > index and tokens[here].lower in SURE_TYPES:
            number = here + 2 if at(tokens, here + 1).text in (".", ",", "#") else here + 1
            value = at(tokens, number)
            return (index, number) if value.is_number and len(value.text) <= 5 else None
        here += 1
    return None
