"""Is this text broken? Cheap signs of degeneration, computed from the text alone.

A policy that is pushed too far repeats itself, strings letters together or says nothing at all.
A broken answer counts as lost wherever policies are compared. Pure; knows no model. The
perplexity under the anchor, where the caller has it, is one more sign.
"""

import re
from dataclasses import dataclass

_TOKEN = re.compile(r"\S+")
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
_NUMBER = re.compile(r"[#$\u00a3\u20ac]?\d[\d.,:/%-]*(?:st|nd|rd|th|s|km|kg|cm|mm|am|pm)?")
_THRICE = re.compile(r"(\w)\1\1")
_CONSONANTS = re.compile(r"[bcdfghjklmnpqrstvwxz]{6}", re.IGNORECASE)
_EDGES = "()[]{}<>*_`\"'\u201c\u201d\u2018\u2019.,;:!?\u2026-\u2013\u2014~#|=+"
_LONGEST_WORD = 24
_FEW_WORDS = 12
"""Repetition says nothing about texts shorter than this."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Beyond any one of these a text is broken."""

    min_distinct_2: float = 0.5
    max_repeat_share: float = 0.4
    max_non_words: float = 0.25
    max_perplexity: float = 400.0


@dataclass(frozen=True, slots=True)
class Quality:
    """Measures of one text; shares are between 0 and 1."""

    words: int
    distinct_2: float
    """Different pairs of neighbouring words over all such pairs; 1 for fewer than two words."""
    repeat_share: float
    """Share of the words taken by the longest run of words that stands there twice in a row."""
    non_words: float
    """Share of space-separated pieces with characters in them that are neither word nor number."""
    empty: bool


def quality(text: str) -> Quality:
    """Measure one text."""
    pieces = [piece.strip(_EDGES) for piece in _TOKEN.findall(text)]
    shown = [piece for piece in pieces if piece]
    words = [piece.lower() for piece in shown]
    pairs = list(zip(words, words[1:], strict=False))
    return Quality(
        words=len(words),
        distinct_2=len(set(pairs)) / len(pairs) if pairs else 1.0,
        repeat_share=_repeated(words) / len(words) if words else 0.0,
        non_words=sum(not _is_word(piece) for piece in shown) / len(shown) if shown else 0.0,
        empty=not words,
    )


def is_broken(text: str, *, perplexity: float | None = None, limits: Limits | None = None) -> bool:
    """Whether a reader would call the text broken: empty, looping, or not made of words."""
    limits = limits or Limits()
    measured = quality(text)
    if measured.empty or measured.non_words > limits.max_non_words:
        return True
    if perplexity is not None and perplexity > limits.max_perplexity:
        return True
    if measured.words < _FEW_WORDS:
        return False
    looping = measured.distinct_2 < limits.min_distinct_2
    return looping or measured.repeat_share > limits.max_repeat_share


def _repeated(words: list[str]) -> int:
    """Words covered by the longest stretch in which a phrase follows itself, 0 if none does."""
    longest = 0
    for period in range(1, len(words) // 2 + 1):
        run = 0
        for i in range(period, len(words)):
            run = run + 1 if words[i] == words[i - period] else 0
            if run >= period:
                longest = max(longest, run + period)
    return longest


def _is_word(piece: str) -> bool:
    """Words may be joined by / or an inner dot (e.g. "and/or", "example.org")."""
    return all(_is_simple(part) for part in re.split(r"[/.@&:,;\u2013\u2014]+", piece) if part)


def _is_simple(part: str) -> bool:
    if _NUMBER.fullmatch(part):
        return True
    if not _WORD.fullmatch(part.strip(_EDGES)) or len(part) > _LONGEST_WORD:
        return False
    return not (_THRICE.search(part) or _CONSONANTS.search(part))
