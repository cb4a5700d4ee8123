import pytest

from learning.pretraining_text import draw, held_out_texts, mix_texts, sequences


def spell(text: str) -> list[int]:
    return [ord(character) for character in text]


def test_there_is_enough_real_text_in_both_parts() -> None:
    assert sum(map(len, mix_texts())) > 300_000
    assert sum(map(len, held_out_texts())) > 200_000
    words = " ".join(held_out_texts()).split()
    assert sum(word.isalpha() for word in words) > 0.6 * len(words)


def test_what_retention_is_measured_on_is_never_in_the_mix() -> None:
    together = "\n".join(mix_texts())
    windows = [
        text[at : at + 80] for text in held_out_texts() for at in range(0, len(text) - 80, 80)
    ]
    assert len(windows) > 3000
    shared = [window for window in windows if window in together]
    assert shared == []


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
