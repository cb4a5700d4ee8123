# ruff: noqa: E501 - data, a row a line
"""Every row of every table against its own examples, which are the row's documentation."""

import pytest

from feedback.pii.contact import NETWORK_RULES
from feedback.pii.name_cues import NAME_RULES
from feedback.pii.names import NAME_WALKERS
from feedback.pii.normalise import normalise
from feedback.pii.rules import Kind, Rule, Span, Walker, apply, words_pattern
from feedback.pii.scan import (
    DIGIT_RULES,
    DIGIT_WALKERS,
    RULES,
    TEXT_WALKERS,
    WALKERS,
    clear_of_placeholders,
    scan,
    unite,
    windows,
)
from feedback.pii.secrets import entropy, key_blocks, looks_random

TABLE: tuple[Rule | Walker, ...] = (
    *RULES, *DIGIT_RULES, *NETWORK_RULES, *NAME_RULES,
    *TEXT_WALKERS, *WALKERS, *DIGIT_WALKERS, *NAME_WALKERS,
)  # fmt: skip


def _found(row: Rule | Walker, text: str) -> list[tuple[str, str]]:
    """(hidden part, kind) of each span."""
    spans = apply(row, text, text.lower()) if isinstance(row, Rule) else row.find(text)
    return [(text[span.start : span.end], span.kind) for span in spans]


def _examples(row: Rule | Walker) -> list[tuple[str, str, Kind]]:
    if isinstance(row, Walker):
        return list(row.matches)
    return [(text, hidden, row.kind) for text, hidden in row.matches]


def test_no_two_rows_have_the_same_name() -> None:
    names = [row.name for row in TABLE]
    assert len(set(names)) == len(names)
    assert len(names) > 140


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_a_row_hides_its_examples_and_spares_the_others(row: Rule | Walker) -> None:
    assert row.matches
    assert row.spares
    for text, hidden, kind in _examples(row):
        assert (hidden, kind) in _found(row, text)
    for text in row.spares:
        assert _found(row, text) == []


def test_every_kind_has_a_row() -> None:
    assert {kind for row in TABLE for _, _, kind in _examples(row)} == set(Kind)


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("write to ann@mail.example.org, 3 March 1984", {"ann@mail.example.org", "3 March 1984"}),
        ("write to ann@mail.example.org, 3 March 2024", {"ann@mail.example.org"}),
        ("the law of 3 March 1984", set()),
    ],
)
def test_a_date_beside_another_personal_item_is_a_birth_date(text: str, hidden: set[str]) -> None:
    spans = scan(normalise(text), people=lambda _: [], others=lambda _: [], deadline=1e12)
    assert {text[span.start : span.end] for span in spans} == hidden


def test_an_unfinished_private_key_is_hidden_to_its_end() -> None:
    text = "-----BEGIN RSA PRIVATE KEY-----\nMIIE+/=\nabcd\n\u00fcber"
    (span,) = key_blocks(text)
    assert text[span.end :] == "\u00fcber"


def test_entropy_is_that_of_shannon() -> None:
    assert entropy("aaaa") == 0
    assert entropy("abab") == 1
    assert entropy("abcd") == 2


@pytest.mark.parametrize("value", ["9fceb02d0ae598e95dc970b74767f19372d61af8", "getElementsByClassName2", "2024-03-15T10:00:00", "internationalisation"])  # fmt: skip
def test_hashes_and_identifiers_are_not_taken_for_secrets(value: str) -> None:
    assert not looks_random(value)


def test_overlapping_spans_become_one_of_the_longer_kind() -> None:
    spans = [Span(0, 4, Kind.PERSON), Span(2, 11, Kind.ADDRESS), Span(11, 13, Kind.PERSON)]
    assert unite(spans) == [Span(0, 11, Kind.ADDRESS), Span(11, 13, Kind.PERSON)]


def test_spans_are_cut_around_placeholders_that_are_there_already() -> None:
    text = "Ann <PERSON_1> Vex"
    cut = clear_of_placeholders(text, [Span(0, len(text), Kind.PERSON)])
    assert [text[s.start : s.end] for s in cut] == ["Ann ", " Vex"]


@pytest.mark.parametrize("length", [0, 1, 4000, 4001, 7800, 7801, 20011])
def test_windows_cover_the_text_and_overlap(length: int) -> None:
    text = "".join(chr(97 + i % 26) for i in range(length))
    covered = 0
    for start, window in windows(text):
        assert window == text[start : start + 4000]
        assert start <= covered
        covered = start + len(window)
    assert covered == length


def test_a_word_list_becomes_a_pattern_that_prefers_the_longer_word() -> None:
    import re

    assert re.match(words_pattern("card card_number"), "card-number 7").group() == "card-number"
