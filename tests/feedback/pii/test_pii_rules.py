# ruff: noqa: E501 - data, a row a line
"""Every rule of every table against its own examples, which are the rule's documentation."""

import pytest

from feedback.pii.contact import NETWORK_RULES
from feedback.pii.ids import ibans
from feedback.pii.name_cues import NAME_RULES
from feedback.pii.rules import Kind, Rule, Span, apply, words_pattern
from feedback.pii.scan import DIGIT_RULES, RULES, clear_of_placeholders, unite, windows
from feedback.pii.secrets import entropy, key_blocks, looks_random

TABLE = (*RULES, *DIGIT_RULES, *NETWORK_RULES, *NAME_RULES)


def _found(rule: Rule, text: str) -> list[str]:
    return [text[span.start : span.end] for span in apply(rule, text, text.lower())]


def test_no_two_rules_have_the_same_name() -> None:
    names = [rule.name for rule in TABLE]
    assert len(set(names)) == len(names)
    assert len(names) > 130


@pytest.mark.parametrize("rule", TABLE, ids=lambda rule: rule.name)
def test_a_rule_hides_its_examples_and_spares_the_others(rule: Rule) -> None:
    assert rule.matches
    assert rule.spares
    for text, hidden in rule.matches:
        assert hidden in _found(rule, text)
    for text in rule.spares:
        assert _found(rule, text) == []


def test_an_iban_is_trimmed_until_its_checksum_holds() -> None:
    text = "pay DE89 3704 0044 0532 0130 00 by tomorrow"
    assert [text[s.start : s.end] for s in ibans(text)] == ["DE89 3704 0044 0532 0130 00"]
    assert list(ibans("pay DE89 3704 0044 0532 0130 01 by tomorrow")) == []
    assert len(list(ibans("IBAN: DE89 3704 0044 0532 0130 01"))) == 1


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
