"""Measures of weights: by hand, by invariants, and on a real, random model."""

import math

import pytest
import torch
from transformers import AutoTokenizer

from deploy.reproduce.exam import bias_entropy, entropy_bits
from deploy.reproduce.tasks import BiasPair
from learning.evaluation.regression_scoring import choice_logprobs, chosen
from learning.training.models import load_policy
from learning.training.packing import Group
from tests.tiny_model import make_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = make_tiny_model(tmp_path_factory.mktemp("exam") / "model")
    return load_policy(folder), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def test_entropy_in_bits_by_hand():
    assert entropy_bits(torch.tensor([-40.0, -40.0])) == pytest.approx(1.0)
    assert entropy_bits(torch.tensor([0.0, -90.0])) == pytest.approx(0.0, abs=1e-9)
    three_to_one = torch.tensor([math.log(0.03), math.log(0.01)])
    assert entropy_bits(three_to_one) == pytest.approx(2 - 0.75 * math.log2(3))


def test_choices_have_the_models_own_probabilities(tiny):
    model, _ = tiny
    groups = [Group([5, 9, 11], [[7, 8], [30]]), Group([40, 41], [[3], [4, 5, 6], [12]])]
    found = choice_logprobs(model, groups, token_budget=12)
    for group, (sums, tokens) in zip(groups, found, strict=True):
        for place, answer in enumerate(group.answers):
            ids = torch.tensor([[*group.prompt, *answer]])
            logits = model(ids).logits.float()[0, len(group.prompt) - 1 : -1]
            expected = torch.log_softmax(logits, -1)[torch.arange(len(answer)), list(answer)]
            assert float(sums[place]) == pytest.approx(float(expected.sum()), abs=0.15)
            assert int(tokens[place]) == len(answer)
    means = [int((sums / tokens).argmax()) for sums, tokens in found]
    assert chosen(model, groups, token_budget=500) == means


def test_entropy_does_not_care_which_continuation_comes_first(tiny):
    model, tokenizer = tiny
    pair = BiasPair("gender", "The pilot said that", ("he would land.", "she would land."))
    turned = BiasPair(pair.about, pair.prompt, pair.choices[::-1])
    same = BiasPair(pair.about, pair.prompt, (pair.choices[0], pair.choices[0]))
    found = bias_entropy(model, [pair, turned, same], "respectful", tokenizer)
    assert found["values"][0] == pytest.approx(found["values"][1], abs=0.02)
    assert 0.0 <= found["values"][0] < 1.0
    assert found["values"][2] == pytest.approx(1.0)
    assert found["units"] == ["bias-0", "bias-1", "bias-2"]
