"""The CPU attention of packed rows gives what PyTorch's own kernel gives."""

import pytest
import torch

from learning.training.attention import (
    LONGEST_PLAIN_GROUP,
    PACKED_ATTENTION,
    Block,
    Spans,
    packed_attention,
)
from learning.training.packing import Group, attend, attend_through, block_mask, pack
from tests.learning.packing_cases import GROUPS, VOCABULARY, tiny_llama


@pytest.mark.parametrize("budget", [1, 21, 28])
def test_hidden_states_and_gradients_are_those_of_pytorchs_kernel(budget):
    def outcome(name):
        model = tiny_llama()
        model.set_attn_implementation(name)
        hidden = torch.cat([attend(model, r)[0] for r in pack(GROUPS, token_budget=budget)])
        hidden.sin().sum().backward()
        return hidden, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    ours, our_gradients = outcome(PACKED_ATTENTION)
    theirs, their_gradients = outcome("sdpa")
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in their_gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()  # FlexAttention has no backward pass on a CPU
def test_flex_attention_over_a_block_mask_sees_what_pytorchs_kernel_sees():
    model = tiny_llama()
    draw = torch.Generator().manual_seed(5)
    long = [  # together over two blocks of 128
        Group(
            torch.randint(3, VOCABULARY, (40,), generator=draw).tolist(),
            torch.randint(3, VOCABULARY, (3, 17), generator=draw).tolist(),
        )
        for _ in range(3)
    ]
    for row in [*pack([*GROUPS, *long], token_budget=500), *pack(GROUPS, token_budget=15)]:
        model.set_attn_implementation("sdpa")
        expected = attend(model, row)
        model.set_attn_implementation(PACKED_ATTENTION)
        ours = attend_through(model, row, block_mask(row))
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_blocks_that_nobody_may_see_are_skipped():
    one, other = (Group([n] * 100, [[n + 1] * 28]) for n in (5, 9))
    (row,) = pack([one, other], token_budget=256)
    assert block_mask(row).to_dense()[0, 0].int().tolist() == [[1, 0], [0, 1]]


def test_two_tokens_by_hand():
    query = torch.tensor([[[[1.0], [2.0]]]])  # (1, 1 head, 2 tokens, 1)
    key = torch.tensor([[[[1.0], [3.0]]]])
    value = torch.tensor([[[[10.0], [20.0]]]])
    out, _ = packed_attention(
        torch.nn.Module(), query, key, value, None, scaling=0.5, spans=Spans(((1, (1,)),))
    )
    share = torch.sigmoid(torch.tensor((2 * 3 - 2 * 1) * 0.5))  # of the second token
    assert out.shape == (1, 2, 1, 1)
    assert out[0, 0].item() == 10.0
    assert out[0, 1].item() == pytest.approx(10 + 10 * share.item())


def test_answers_of_a_prompt_are_one_block_as_long_as_the_longest():
    spans = Spans(((5, (3, 2, 4)), (2, (5,)), (3, (1, 1))))
    assert spans.group_lengths == (14, 7, 5)
    assert spans.blocks == (
        Block((5,), behind_prompt=False),
        Block((3, 2, 4), behind_prompt=True),
        Block((7,), behind_prompt=False),
        Block((3,), behind_prompt=False),
        Block((1, 1), behind_prompt=True),
    )
    assert [missing for _, missing in spans.padding] == [0, 1, 2, 0, 0, 0, 0, 0]


def test_one_answer_much_longer_than_the_others_does_not_make_them_as_long():
    assert Spans(((2, (40, 1, 3)),)).blocks == (
        Block((2,), behind_prompt=False),
        Block((40,), behind_prompt=True),
        Block((1,), behind_prompt=True),
        Block((3,), behind_prompt=True),
    )


@pytest.mark.parametrize("answers", [(3, 2, 4), (4, 4, 4), (40, 1, 3)])
def test_an_answer_sees_its_prompt_and_its_own_tokens_only(answers):
    generator = torch.Generator().manual_seed(1)
    spans = Spans(((5, answers),))
    query = torch.randn(1, 6, sum(spans.group_lengths), 4, generator=generator)
    key, value = torch.randn(2, 1, 2, query.shape[2], 4, generator=generator)
    out, _ = packed_attention(torch.nn.Module(), query, key, value, None, spans=spans)
    start = 5
    for length in answers:
        seen = [*range(5), *range(start, start + length)]
        expected = torch.nn.functional.scaled_dot_product_attention(
            *(states[:, :, seen] for states in (query, key, value)), is_causal=True, enable_gqa=True
        )
        torch.testing.assert_close(out[:, seen], expected.transpose(1, 2), rtol=1e-4, atol=1e-5)
        start += length


def test_without_spans_or_with_a_very_long_group_the_library_does_the_work():
    generator = torch.Generator().manual_seed(0)
    length = LONGEST_PLAIN_GROUP + 3
    query, key, value = torch.randn(3, 1, 2, length, 4, generator=generator)
    mask = torch.zeros(1, 1, length, length).masked_fill(
        torch.ones(length, length).triu(1).bool(), -torch.inf
    )
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    for spans in (None, Spans(((3, (length - 3,)),))):
        out, _ = packed_attention(torch.nn.Module(), query, key, value, mask, spans=spans)
        torch.testing.assert_close(out, expected.transpose(1, 2), rtol=1e-4, atol=1e-5)
