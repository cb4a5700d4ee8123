"""The text as the rules read it, with a map back to the text as it was written.

Evasion and typography are undone here so that no rule has to know them: zero-width and bidi
characters go, full-width and other digits become ASCII, dashes, quotes and spaces become plain,
look-alike letters become Latin inside words that hold Latin letters, `%40` and escapes become
the character they stand for, and a long run of one character is cut short. It finds nothing itself.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import cache

from feedback.pii.rules import Span

LONGEST_RUN = 64
"""A longer run of one character reads as this many: patterns and tokenizers dislike long runs."""

_RUN = re.compile(rf"(.)\1{{{LONGEST_RUN},}}", re.DOTALL)
_ESCAPE = re.compile(r"%40|&#64;|&#x40;|&commat;|\\u00[2-7][0-9a-fA-F]|\\x40", re.IGNORECASE)
_JSON_ESCAPE = re.compile(r"\\u[0-9a-fA-F]{4}|\\[\"\\/bfnrt]|%40")
_JSON_CHARACTERS = {"b": " ", "f": " ", "n": "\n", "r": "\n", "t": "\t"}
_LATIN = re.compile(r"[A-Za-z]")
_CYRILLIC_OR_GREEK = re.compile(r"[\u0370-\u03ff\u0400-\u04ff]")
_WORD = re.compile(r"[\w.@-]+")
_LOOKALIKES = str.maketrans(
    "АВСЕНІЈКМОРЅТХУаеорсухіјѕԁһԛԝΑΒΕΖΗΙΚΜΝΟΡΤΥΧοαν",
    "ABCEHIJKMOPSTXYaeopcyxijsdhqwABEZHIKMNOPTYXoav",
)
_PLAIN = {
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63", "-"),
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u02bc", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033", '"'),
    **dict.fromkeys("\u2028\u2029\u0085\u000b\u000c", "\n"),
    "\u034f": "",
    "\u115f": "",
    "\u3164": "",
    "\u3002": ".",
}


@dataclass(frozen=True, slots=True)
class View:
    """Normalised text; character i stands for original characters [starts[i], ends[i])."""

    text: str
    starts: list[int] | None
    ends: list[int] | None

    def original(self, span: Span) -> Span:
        """The same span in the text as it was written."""
        if self.starts is None or self.ends is None:
            return span
        return Span(self.starts[span.start], self.ends[span.end - 1], span.kind)


@cache
def _plain(character: str) -> str:
    """One character as the rules read it: itself, another one, or nothing."""
    if character in _PLAIN:
        return _PLAIN[character]
    category = unicodedata.category(character)
    if category == "Cf" or "\ufe00" <= character <= "\ufe0f":
        return ""
    if category == "Cs":  # half of a pair: cannot be encoded, so no library takes it
        return "\ufffd"
    if category == "Nd":
        return str(unicodedata.decimal(character))
    folded = unicodedata.normalize("NFKC", character)
    return folded if len(folded) == 1 else character


def normalise(text: str, *, is_json: bool = False) -> View:
    """The view of one text; with `is_json`, backslash escapes are read as JSON reads them."""
    escape = _JSON_ESCAPE if is_json else _ESCAPE
    if text.isascii() and not _RUN.search(text) and not escape.search(text):
        return View(text, None, None)
    characters: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    escapes = {match.start(): match.end() for match in escape.finditer(text)}
    position = 0
    while position < len(text):
        end = escapes.get(position, position + 1)
        piece = text[position:end]
        _append(_decoded(piece) if end > position + 1 else piece, position, end,
                characters, starts, ends)  # fmt: skip
        position = end
    joined = _latinised("".join(characters))
    return _without_runs(joined, starts, ends)


def _decoded(escape: str) -> str:
    if escape[:2].lower() == "\\u":
        character = chr(int(escape[2:], 16))
        return "\ufffd" if unicodedata.category(character) == "Cs" else character
    if escape[0] == "\\" and len(escape) == 2:
        return _JSON_CHARACTERS.get(escape[1], escape[1])
    return "@"


def _append(character: str, start: int, end: int,
            characters: list[str], starts: list[int], ends: list[int]) -> None:  # fmt: skip
    if character.isascii():
        plain = character
    elif characters and unicodedata.combining(character):
        # A letter and its accent read as the one letter they make, where there is one.
        pair = unicodedata.normalize("NFC", characters[-1] + character)
        characters[-1] = pair if len(pair) == 1 else characters[-1]
        ends[-1] = end
        return
    else:
        plain = _plain(character)
    if plain:
        characters.append(plain)
        starts.append(start)
        ends.append(end)


def _latinised(text: str) -> str:
    """Cyrillic and Greek look-alikes as Latin, only in words that hold Latin letters."""

    def latin(match: re.Match[str]) -> str:
        word = match.group()
        mixed = _CYRILLIC_OR_GREEK.search(word) and _LATIN.search(word)
        return word.translate(_LOOKALIKES) if mixed else word

    return _WORD.sub(latin, text) if _CYRILLIC_OR_GREEK.search(text) else text


def _without_runs(text: str, starts: list[int], ends: list[int]) -> View:
    """Cut runs short; the last kept character stands for all that were cut."""
    pieces: list[str] = []
    kept_starts: list[int] = []
    kept_ends: list[int] = []
    position = 0
    for run in _RUN.finditer(text):
        stop = run.start() + LONGEST_RUN
        pieces.append(text[position:stop])
        kept_starts += starts[position:stop]
        kept_ends += ends[position:stop]
        kept_ends[-1] = ends[run.end() - 1]
        position = run.end()
    pieces.append(text[position:])
    return View("".join(pieces), kept_starts + starts[position:], kept_ends + ends[position:])
