import re
from collections import Counter

import pytest

from learning.training.pretraining_text import draw, held_out_texts, is_prose, mix_texts, sequences


def spell(text: str) -> list[int]:
    return [ord(character) for character in text]


def words_of(texts: list[str]) -> Counter[str]:
    return Counter(re.findall(r"[a-z]+", " ".join(texts).lower()))


def test_there_is_enough_real_text_in_both_parts() -> None:
    assert sum(map(len, mix_texts())) > 300_000
    assert sum(map(len, held_out_texts())) > 100_000
    assert min(map(len, held_out_texts())) > 8_000
    words = " ".join(held_out_texts()).split()
    assert sum(word.strip('.,;:()"').isalpha() for word in words) > 0.9 * len(words)


def test_what_retention_is_measured_on_is_never_in_the_mix() -> None:
    together = "\n".join(mix_texts())
    windows = [
        text[at : at + 80] for text in held_out_texts() for at in range(0, len(text) - 80, 80)
    ]
    assert len(windows) > 1200
    shared = [window for window in windows if window in together]
    assert shared == []


def test_what_retention_is_measured_on_speaks_of_other_things_than_the_mix() -> None:
    mix, held_out = words_of(mix_texts()), words_of(held_out_texts())
    for word in ("python", "object", "method", "class", "string", "argument"):
        here, there = held_out[word] / held_out.total(), mix[word] / mix.total()
        assert here < 0.25 * there, word
    for word in ("license", "copyright", "distribute", "warranty"):
        assert held_out[word] > 10 * mix[word], word


def test_no_paragraph_is_measured_twice() -> None:
    paragraphs = [p.lower()[:80] for text in held_out_texts() for p in text.split("\n\n")]
    assert len(paragraphs) > 150
    assert max(Counter(paragraphs).values()) == 1


@pytest.mark.parametrize(
    ("paragraph", "prose"),
    [
        ("You may copy this work and give it to others. " * 4, True),
        ("You may copy this work.", False),
        ("Copyright (c) 2005-2011 1.2.3 4.5 [x] " * 6, False),
        ("See https://example.org for what you may do with this work and how. " * 4, False),
        ("-----" * 8 + " of what you may do with this work and with copies of it" * 4, False),
    ],
)
def test_prose_is_sentences_of_words_and_long_enough(paragraph: str, prose: bool) -> None:
    assert is_prose(paragraph) is prose


def test_texts_are_cut_into_pieces_of_the_same_length_that_never_span_two_texts() -> None:
    pieces = sequences(["abcdefgh", "xyz", "uvwxy"], spell, length=3)
    assert ["".join(map(chr, piece)) for piece in pieces] == ["abc", "def", "xyz", "uvw"]


def test_the_same_seed_draws_the_same_pieces_and_another_seed_others() -> None:
    pieces = [[i] for i in range(200)]
    drawn = draw(pieces, count=30, seed=1)
    assert drawn == draw(pieces, count=30, seed=1)
    assert drawn != draw(pieces, count=30, seed=2)
    assert len({piece[0] for piece in drawn}) == 30


def test_asking_for_more_than_there_is_gives_all() -> None:
    assert sorted(draw([[1], [2]], count=9, seed=0)) == [[1], [2]]


@pytest.mark.parametrize("texts", [mix_texts, held_out_texts])
def test_the_texts_come_in_a_fixed_order(texts) -> None:
    assert texts() == texts()
