"""Packing: laid out by hand, and against each answer read alone."""

import pytest
import torch

from learning.training.packing import PROMPT, Group, attend, pack
from tests.learning.packing_cases import GROUPS, WIDTH, tiny_llama


def test_a_row_of_two_groups_is_laid_out_as_by_hand():
    groups = [Group([5, 6], [[7, 2], [8]]), Group([9], [[3, 4, 2]])]
    (row,) = pack(groups, token_budget=99)
    assert row.input_ids.tolist() == [[5, 6, 7, 2, 8, 9, 3, 4, 2]]
    assert row.position_ids.tolist() == [[0, 1, 2, 3, 2, 0, 1, 2, 3]]
    assert row.answer_mask.int().tolist() == [0, 0, 1, 1, 1, 0, 1, 1, 1]
    assert row.predictor.tolist() == [0, 0, 1, 2, 1, 0, 5, 6, 7]
    assert row.answer_index.tolist() == [PROMPT, PROMPT, 0, 0, 1, PROMPT, 2, 2, 2]
    assert row.last_token.tolist() == [3, 4, 8]
    assert row.answer_ids.tolist() == [0, 1, 2]
    assert (row.num_tokens, row.num_answer_tokens) == (9, 6)
    assert row.attention_mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 1, 1, 1, 1],
    ]


@pytest.mark.parametrize(
    ("budget", "tokens"),
    [(1, [14, 7, 7]), (14, [14, 14]), (20, [14, 14]), (21, [21, 7]), (28, [28])],
)
def test_rows_are_filled_in_order_up_to_the_budget_and_no_group_is_split(budget, tokens):
    rows = pack(GROUPS, token_budget=budget)
    assert [row.num_tokens for row in rows] == tokens
    assert torch.cat([row.answer_ids for row in rows]).tolist() == list(range(6))
    for row in rows:
        numbers = row.answer_index[row.last_token]
        assert numbers.tolist() == row.answer_ids.tolist()


@pytest.mark.parametrize(("prompt", "answers"), [([], [[1]]), ([1], []), ([1], [[2], []])])
def test_a_group_without_a_prompt_or_with_an_empty_answer_is_refused(prompt, answers):
    with pytest.raises(ValueError, match="at least one token"):
        Group(prompt, answers)


@pytest.mark.parametrize("budget", [1, 21, 28])
def test_packed_hidden_states_are_those_of_each_answer_read_alone(budget):
    model = tiny_llama()
    packed = torch.cat([attend(model, row)[0][row.answer_mask] for row in pack_all(budget)])
    alone = torch.cat([_read_alone(model, prompt, answer) for prompt, answer in sequences()])
    assert packed.shape == (18, WIDTH)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("budget", [1, 21, 28])
def test_packed_gradients_are_those_of_each_answer_read_alone(budget):
    directions = torch.randn(18, WIDTH, generator=torch.Generator().manual_seed(3))

    def gradients(answers):
        model = tiny_llama()
        loss = (torch.cat(answers(model)) * directions).sum()
        loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    packed = gradients(lambda m: [attend(m, r)[0][r.answer_mask] for r in pack_all(budget)])
    alone = gradients(lambda m: [_read_alone(m, p, a) for p, a in sequences()])
    assert len(packed) == 29  # 9 matrices in each of 3 layers, the last norm, the embedding
    assert packed.keys() == alone.keys()
    for name, gradient in alone.items():
        torch.testing.assert_close(packed[name], gradient, rtol=1e-3, atol=1e-4, msg=name)


def test_nothing_that_another_answer_or_group_says_changes_an_answer():
    model = tiny_llama()
    (row,) = pack(GROUPS, token_budget=99)
    before = attend(model, row)[0][row.answer_index == 1]
    others = (row.answer_index != 1) & ~((row.answer_index == PROMPT) & (_place(row) < 5))
    row.input_ids[0, others] = (row.input_ids[0, others] + 17) % 61
    after = attend(model, row)[0]
    torch.testing.assert_close(after[row.answer_index == 1], before, rtol=1e-5, atol=1e-6)
    row.input_ids[0, 0] = 60  # its own prompt does change it
    assert (attend(model, row)[0][row.answer_index == 1] - before).abs().max() > 1e-2


def pack_all(budget):
    return pack(GROUPS, token_budget=budget)


def sequences():
    return [(group.prompt, answer) for group in GROUPS for answer in group.answers]


def _read_alone(model, prompt, answer):
    hidden = model.model(input_ids=torch.tensor([[*prompt, *answer]])).last_hidden_state
    return hidden[0, len(prompt) :]


def _place(row):
    return torch.arange(row.num_tokens)
