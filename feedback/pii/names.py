"""Names of people: what the model proposes, what a cue gives away, what a short list knows.

Spans only; the model itself is in `ner.py`. A proposal with digits or code characters, or made of
words that are no person, is dropped. `record.py` hides a name everywhere once found.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import pairwise

from feedback.pii.name_cues import NAME_RULES, WORD
from feedback.pii.rules import Kind, Span, Walker, apply_all
from feedback.pii.words import (
    FAMILY_NAMES,
    GIVEN_NAMES,
    MAYBE_NAMES,
    NOT_PEOPLE,
    STARTERS,
    SURE_NAMES,
    word_set,
)

_CODE = re.compile(r"[\d_(){}\[\]=<>/\\|*#@+:;!?%&$^~\"]")
_LINKS = word_set("van von de der la del di da bin al el y")
_CODE_BEFORE = "_./\\@#$=-([{0123456789"
_CODE_AFTER = "_/\\@=([{0123456789"
Spans = list[Span]


def cued_names(text: str) -> Spans:
    """Names that their surroundings give away, without the starters a pattern may have taken."""
    found = apply_all(NAME_RULES, text)
    return [span for raw in found if (span := trimmed(text, raw)) is not None]


def names(text: str, proposals: Iterable[Span]) -> Spans:
    """All names of a window: cued, listed and proposed by the model, grown to the whole name."""
    found = [*cued_names(text), *accepted(text, proposals)]
    for walker in NAME_WALKERS:
        found += walker.find(text)
    words = list(WORD.finditer(text)) if found else []
    starts = [match.start() for match in words]
    return [_grown(text, span, words, starts) for span in found]


def _grown(text: str, span: Span, words: list[re.Match[str]], starts: list[int]) -> Span:
    """Take the capitalised words at both sides, at most two, that may be parts of the name."""
    start, end = span.start, span.end
    if not text[start].isupper():
        return span
    first = bisect_left(starts, start)
    for index in range(first - 1, max(first - 3, -1), -1):
        if text[words[index].end() : start] != " " or not _may_join(text, words[index]):
            break
        start = words[index].start()
    last = bisect_left(starts, end)
    end = max(end, words[last - 1].end())  # a span of the model may end inside `Hyun-woo`
    for index in range(last, min(last + 2, len(words))):
        if text[end : words[index].start()] not in (" ", "-") or not _may_join(text, words[index]):
            break
        end = words[index].end()
    return Span(start, end, span.kind)


def _may_join(text: str, match: re.Match[str]) -> bool:
    word = match.group()
    capital = word[0].isupper() and len(word) > 1 and not (word.isupper() and len(word) < 4)
    is_code = text[match.end() : match.end() + 1] in ("(", "_", "=", "/", "@", ":")
    return capital and not is_code and not _is_outside(word)


def trimmed(text: str, span: Span) -> Span | None:
    """The span without words at its ends that are no part of a name; None if nothing is left."""
    words = list(WORD.finditer(text, span.start, span.end))
    while words and _is_outside(words[0].group()):
        words.pop(0)
    while words and _is_outside(words[-1].group()):
        words.pop()
    if not words:
        return None
    start = words[0].start()
    if len(words[0].group()) > 1 and text[max(span.start, start - 3) : start].strip(" ").endswith(
        "."
    ):
        start = max(span.start, start - 3)
    return Span(start, words[-1].end(), span.kind)


def _is_outside(word: str) -> bool:
    lower = word.lower()
    if lower in MAYBE_NAMES and word[0].isupper() and lower not in NOT_PEOPLE:
        return False
    return lower in STARTERS or lower in NOT_PEOPLE


def listed_names(text: str) -> Iterator[Span]:
    """Given names of the list: capitalised, in capitals, or lower case, with the surname after."""
    words = list(WORD.finditer(text))
    for index, match in enumerate(words):
        word = match.group()
        lower = word.lower()
        if lower not in GIVEN_NAMES or not _stands_alone(text, match):
            continue
        if word.islower() and (len(word) < 4 or lower in MAYBE_NAMES or lower not in SURE_NAMES):
            continue
        if lower in MAYBE_NAMES and not word[0].isupper():
            continue
        yield Span(
            _start_with_surname(text, words, index),
            _end_with_surname(text, words, index),
            Kind.PERSON,
        )


def paired_names(text: str) -> Iterator[Span]:
    """A listed surname after a word that may be a given name: `Kwabena Mazur`, `KAI MAZUR`.

    In lower case both have to be listed, and `Mazur, Kwabena` needs either.
    """
    words = list(WORD.finditer(text))
    for first, second in pairwise(words):
        gap = text[first.end() : second.start()]
        if gap not in (" ", "  ", ", ") or not _stands_alone(text, first):
            continue
        if not _stands_alone(text, second):
            continue
        one, two = first.group(), second.group()
        if gap == ", ":
            is_pair = one.lower() in FAMILY_NAMES and two.lower() in GIVEN_NAMES and _same(one, two)
        else:
            is_pair = two.lower() in FAMILY_NAMES and _may_be_given(one, two)
        if is_pair:
            yield Span(first.start(), second.end(), Kind.PERSON)


def _may_be_given(one: str, two: str) -> bool:
    if one.islower() and two.islower():
        return one in GIVEN_NAMES and len(one) > 3
    if not _same(one, two) or len(one) < 3:
        return False
    return one.lower() not in STARTERS and one.lower() not in NOT_PEOPLE


def _same(one: str, two: str) -> bool:
    """Both capitalised, or both in capitals."""
    return one[0].isupper() and two[0].isupper() and one.isupper() == two.isupper()


def _stands_alone(text: str, match: re.Match[str]) -> bool:
    """Not a piece of a path, an address on the net, or a program."""
    before = text[match.start() - 1] if match.start() else " "
    after = text[match.end()] if match.end() < len(text) else " "
    if after == "." and text[match.end() + 1 : match.end() + 2].isalnum():
        return False
    is_bare = before not in _CODE_BEFORE and after not in _CODE_AFTER
    return is_bare or (before in "([{" and after in ")]}, ")


def _end_with_surname(text: str, words: list[re.Match[str]], index: int) -> int:
    """Grow over the words that follow: `Maria de la Cruz`, `MARIA CRUZ`, `John Q. Vex`."""
    end = reached = words[index].end()
    for following in words[index + 1 : index + 5]:
        gap, word = text[reached : following.start()], following.group()
        if gap not in (" ", "  ", ". ", " ("):
            break
        reached = following.end()
        if word.lower() in _LINKS:  # part of the name only if a name follows
            continue
        if not _continues(words[index].group(), word, gap):
            break
        end = reached
    return end


def _continues(first: str, word: str, gap: str) -> bool:
    """Whether a word goes on with a name: capitalised, or an initial."""
    if len(word) == 1:
        return word.isupper()
    return not first.islower() and word[0].isupper() and gap != ". " and not _is_outside(word)


def _start_with_surname(text: str, words: list[re.Match[str]], index: int) -> int:
    """Take `Vex, ` before `Ottoline`."""
    start = words[index].start()
    if index:
        previous = words[index - 1]
        if text[previous.end() : start] == ", " and previous.group()[0].isupper():
            follows = text[words[index].end() : words[index].end() + 1]
            alone = previous.start() == 0 or text[previous.start() - 1] in "\n;|\"'(\t:,"
            if (
                alone
                and follows in ("", "\n", ";", "|", '"', "'", ")", "\t", ",")
                and not _is_outside(previous.group())
            ):
                return previous.start()
    return start


NAME_WALKERS: tuple[Walker, ...] = (
    Walker(
        name="listed-name",
        find=listed_names,
        matches=(
            ("then Maria Vex left", "Maria Vex", Kind.PERSON),
            ("ask MARIA VEX", "MARIA VEX", Kind.PERSON),
            ("for maria, please", "maria", Kind.PERSON),
            ("Vex, Maria", "Vex, Maria", Kind.PERSON),
            ("with Maria de la Cruz today", "Maria de la Cruz", Kind.PERSON),
        ),
        spares=("/home/maria/x.py and maria_db", "a mark on the will", "see maria.example.org"),
    ),
    Walker(
        name="paired-name",
        find=paired_names,
        matches=(
            ("by Kwabena Mazur, who", "Kwabena Mazur", Kind.PERSON),
            ("KWABENA MAZUR LTD", "KWABENA MAZUR", Kind.PERSON),
            ("ask clementine mazur", "clementine mazur", Kind.PERSON),
            ("Mazur, Clementine", "Mazur, Clementine", Kind.PERSON),
        ),
        spares=("The Mazur effect", "a mazur dance", "mazur.py and x_mazur", "Visual Studio"),
    ),
)


def accepted(text: str, proposals: Iterable[Span]) -> Spans:
    """The model's proposals that may be people, trimmed to the name."""
    kept = []
    for proposal in proposals:
        first_line_end = text.find("\n", proposal.start, proposal.end)
        raw = Span(
            proposal.start, first_line_end if first_line_end > 0 else proposal.end, Kind.PERSON
        )
        span = trimmed(text, raw)
        if span is None or _CODE.search(text, span.start, span.end):
            continue
        value = text[span.start : span.end]
        if _is_likely(text, span, value):
            kept.append(span)
    return kept


def _is_likely(text: str, span: Span, value: str) -> bool:
    words = WORD.findall(value)
    if not any(word[0].isupper() for word in words) or len(value) < 2 or len(words) > 5:
        return False
    if value.isupper() and len(words) == 1 and value.lower() not in SURE_NAMES:
        return False
    after = text[span.end : span.end + 1]
    before = text[span.start - 1 : span.start]
    in_code = after in ("(", "_", "=", "[", "{", "/", "@") or before in (
        "_",
        ".",
        "/",
        "\\",
        "@",
        "#",
        "$",
        "<",
    )
    if in_code and value.split()[0].lower() not in SURE_NAMES:
        return False
    return not (len(words) == 1 and len(value) == 1)
