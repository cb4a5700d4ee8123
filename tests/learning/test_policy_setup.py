"""The text on which forgetting is measured, as the model is given it."""

from learning.policy.setup import retention_text
from learning.training.pretraining_text import draw, held_out_texts, sequences


def spell(text: str) -> list[int]:
    return [ord(character) for character in text]


def test_the_first_tokens_of_a_piece_are_read_and_not_measured() -> None:
    text = retention_text(spell, token_budget=300)
    pieces = draw(sequences(held_out_texts(), spell, length=128), count=24, seed=0)
    read = [int(token) for row in text.rows for token in row.input_ids[0]]
    assert read == [token for piece in pieces for token in piece]
    measured = [int(t) for row in text.rows for t in row.input_ids[0, row.answer_mask]]
    assert measured == [token for piece in pieces for token in piece[16:]]
    assert text.num_tokens == 24 * 112


def test_it_is_the_same_text_in_every_run() -> None:
    first, second = (retention_text(spell, token_budget=1024) for _ in range(2))
    for a, b in zip(first.rows, second.rows, strict=True):
        assert a.input_ids.equal(b.input_ids)
        assert a.answer_mask.equal(b.answer_mask)
