"""Log-probabilities of answers, chunk by chunk, against the whole computed at once."""

import math

import pytest
import torch

from learning.training.logprobs import answer_logprobs, token_logprobs
from learning.training.packing import attend, pack
from tests.learning.packing_cases import GROUPS, tiny_llama


def _case(tokens=11, width=7, vocabulary=13):
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(tokens, width, generator=generator, dtype=torch.float32)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float32)
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    return states.requires_grad_(), weight.requires_grad_(), targets


def test_two_logits_give_the_logistic_of_their_difference_over_the_temperature():
    states, weight = torch.tensor([[3.0]]), torch.tensor([[1.0], [0.0]])
    logprobs, entropies = token_logprobs(states, weight, torch.tensor([0]), temperature=1.5)
    p = 1 / (1 + math.exp(-2.0))
    assert logprobs.item() == pytest.approx(math.log(p), rel=1e-6)
    assert entropies.item() == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p), rel=1e-5)


@pytest.mark.parametrize("chunk", [1, 3, 4, 11, 50])
def test_chunks_give_the_values_and_gradients_of_the_whole(chunk):
    states, weight, targets = _case()
    whole = torch.log_softmax(states @ weight.T / 0.7, dim=-1)
    expected = whole.gather(1, targets[:, None]).squeeze(1)
    expected_entropy = -(whole.exp() * whole).sum(-1)
    slope = torch.linspace(-2, 3, 11)
    wanted = torch.autograd.grad((expected * slope).sum(), (states, weight))

    logprobs, entropies = token_logprobs(states, weight, targets, temperature=0.7, chunk=chunk)
    given = torch.autograd.grad((logprobs * slope).sum(), (states, weight))
    torch.testing.assert_close(logprobs, expected)
    torch.testing.assert_close(entropies, expected_entropy.detach())
    assert not entropies.requires_grad
    for one, other in zip(given, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_only_what_needs_a_gradient_gets_one():
    states, weight, targets = _case()
    logprobs, _ = token_logprobs(states, weight.detach(), targets, chunk=4)
    logprobs.sum().backward()
    assert states.grad is not None
    assert weight.grad is None


def test_a_rows_logprobs_are_those_of_the_library_for_each_answer_alone():
    model = tiny_llama()
    (row,) = pack(GROUPS, token_budget=99)
    given, _ = answer_logprobs(
        attend(model, row), model.lm_head.weight, row, temperature=1.3, chunk=5
    )
    expected = []
    for group in GROUPS:
        for answer in group.answers:
            ids = torch.tensor([[*group.prompt, *answer]])
            logprobs = torch.log_softmax(model(input_ids=ids).logits[0] / 1.3, dim=-1)
            start = len(group.prompt)
            expected += [logprobs[start - 1 + i, token] for i, token in enumerate(answer)]
    torch.testing.assert_close(given, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_bf16_states_are_normalised_in_fp32():
    states, weight, targets = _case(vocabulary=301)
    low, high = states.detach().bfloat16(), weight.detach().bfloat16()
    logprobs, _ = token_logprobs(low, high, targets)
    logits = (low @ high.T).float()
    expected = torch.log_softmax(logits, dim=-1).gather(1, targets[:, None]).squeeze(1)
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs, expected)
