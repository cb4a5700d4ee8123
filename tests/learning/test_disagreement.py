"""The ensemble of heads: its samples, its loss, and how its members disagree."""

from copy import deepcopy
from itertools import combinations

import numpy as np
import pytest
import torch

from core.hyperparameters import RewardModelSettings
from learning.reward_model.dataset import RankedGroup, Ranking
from learning.reward_model.disagreement import (
    FILE,
    Heads,
    bootstrap_counts,
    disagreement,
    head_losses,
    load_heads,
    save_heads,
)
from learning.reward_model.preference_loss import ranking_loss
from learning.reward_model.steps import Batch, Cuts, add_gradients
from learning.training.models import RewardModel, scores, scores_and_features
from learning.training.packing import pack
from tests.learning.packing_cases import GROUPS, WIDTH, tiny_classifier

SETTINGS = RewardModelSettings(token_budget=64)


def _heads(count=5, *, seed=3, init_std=0.3):
    return Heads(count, WIDTH, init_std=init_std, betas=(0.9, 0.95), eps=1e-5, seed=seed)


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_two_heads_and_three_answers_by_hand():
    table = torch.tensor([[1.0, 0.0, 4.0], [3.0, 4.0, 4.0]])
    # differences (1, -1), (-3, -1), (-4, 0): variances 1, 1, 4
    assert disagreement(table) == pytest.approx(2.0)


def test_it_is_numpys_variance_of_every_difference_and_a_sum_over_centred_scores():
    table = _random(7, 5)
    pairs = [np.var((table[:, i] - table[:, j]).numpy()) for i, j in combinations(range(5), 2)]
    assert disagreement(table) == pytest.approx(float(np.mean(pairs)), rel=1e-5)
    centred = table - table.mean(dim=1, keepdim=True)
    closed = 2 / (5 - 1) * centred.var(dim=0, correction=0).sum()  # Lagrange's identity
    assert disagreement(table) == pytest.approx(float(closed), rel=1e-5)


def test_a_shift_of_a_head_and_the_order_of_answers_change_nothing_and_a_gain_counts_squared():
    table = _random(6, 4)
    value = disagreement(table)
    assert disagreement(table + 9 * _random(6, 1, seed=1)) == pytest.approx(value, rel=1e-4)
    assert disagreement(table[:, [2, 0, 3, 1]]) == pytest.approx(value, rel=1e-5)
    assert disagreement(3 * table) == pytest.approx(9 * value, rel=1e-5)


def test_equal_heads_agree_and_one_answer_is_no_question():
    assert disagreement(_random(1, 4).expand(6, 4)) == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ValueError, match="no difference"):
        disagreement(_random(6, 1))


def test_the_loss_of_each_head_is_equation_one():
    table, ranks = _random(5, 4), torch.tensor([2, 1, 2, 4])
    expected = torch.stack([ranking_loss(row, ranks) for row in table])
    torch.testing.assert_close(head_losses(table, ranks), expected)


def test_prompts_count_a_poisson_number_of_times_that_depends_on_nothing_but_seed_and_prompt():
    drawn = torch.stack([bootstrap_counts([n, 7], heads=6, seed=1) for n in range(2000)])
    assert drawn.mean().item() == pytest.approx(1.0, abs=0.04)  # sd .009
    assert drawn.var().item() == pytest.approx(1.0, abs=0.08)
    assert (drawn == 0).float().mean().item() == pytest.approx(np.exp(-1), abs=0.02)
    correlation = torch.corrcoef(drawn.T) - torch.eye(6)
    assert correlation.abs().max() < 0.1
    assert torch.equal(bootstrap_counts((5, 7), heads=6, seed=1), drawn[5])
    assert not torch.equal(bootstrap_counts([5, 7], heads=6, seed=2), drawn[5])


def _batch():
    def ranked(group, *rankings):
        return RankedGroup(group=group, rankings=rankings, split="train")

    def said(answers, ranks, weight):
        return Ranking(answers, ranks, heldout_rater=False, weight=weight)

    first = ranked(GROUPS[0], said((0, 1, 2), (2, 1, 3), 2.0), said((2, 0), (1, 2), 1.0))
    second = ranked(GROUPS[2], said((0, 1), (2, 1), 0.5))
    return Batch([first, second], [], ends_epoch=False)


def _gradients(model, heads):
    model.zero_grad()
    loss = add_gradients(model, Cuts(), _batch(), SETTINGS, heads)
    return loss, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_heads_change_neither_the_models_loss_nor_its_gradients():
    model = RewardModel(tiny_classifier())
    loss, gradients = _gradients(model, None)
    with_heads, theirs = _gradients(model, _heads())
    assert with_heads == loss
    assert gradients.keys() == theirs.keys()
    assert all(torch.equal(gradients[name], theirs[name]) for name in gradients)


def test_heads_learn_their_own_sample_of_prompts():
    model, heads = RewardModel(tiny_classifier()), _heads(9)
    _gradients(model, heads)
    weight = heads.weight.detach().clone().requires_grad_()
    total = torch.zeros(9)
    for ranked in _batch().ranked:
        (row,) = pack([ranked.group], token_budget=99)
        features = scores_and_features(model, row)[1]
        for said in ranked.rankings:
            one = (features @ weight.T).T[:, list(said.answers)]  # (heads, answers)
            losses = torch.stack([ranking_loss(s, torch.tensor(said.ranks)) for s in one])
            total = total + heads.counts(ranked.group.prompt) * said.weight * losses / 2
    total.sum().backward()
    torch.testing.assert_close(heads.weight.grad, weight.grad, rtol=1e-4, atol=1e-6)
    assert torch.stack([heads.counts(r.group.prompt) for r in _batch().ranked]).unique().numel() > 1


def test_features_are_what_scores_are_a_projection_of_without_a_gradient():
    model = RewardModel(tiny_classifier(), bias=0.7)
    for row in pack(GROUPS, token_budget=28):
        ours, features = scores_and_features(model, row)
        torch.testing.assert_close(ours, scores(model, row))
        projected = features @ model.head[0] + model.bias
        torch.testing.assert_close(projected, ours, rtol=1e-5, atol=1e-5)
        assert not features.requires_grad


def test_heads_told_the_same_agree_more_and_more_about_it_and_not_about_what_they_never_heard():
    features, ranks = _random(4, WIDTH), torch.tensor([1, 2, 3, 4])
    unknown = _random(4, WIDTH, seed=8)
    unknown = unknown - unknown @ torch.linalg.pinv(features) @ features  # orthogonal to the heard
    heads = _heads(8)
    before = disagreement(heads.scores(features)), disagreement(heads.scores(unknown))
    for _ in range(300):
        heads.weight.grad = None
        head_losses(heads.scores(features), ranks).sum().backward()
        heads.step(learning_rate=0.01)
    after = disagreement(heads.scores(features)), disagreement(heads.scores(unknown))
    assert after[0] < before[0] / 5
    assert after[1] > before[1] / 2


def test_a_step_continues_from_its_state_and_refuses_what_is_not_finite():
    one, other = _heads(), _heads(seed=4)
    one.weight.grad = _random(5, WIDTH)
    one.step(learning_rate=0.1)
    other.load_state_dict(deepcopy(one.state_dict()))
    for heads in (one, other):
        heads.weight.grad = _random(5, WIDTH, seed=2)
        heads.step(learning_rate=0.1)
    assert torch.equal(one.weight, other.weight)
    one.weight.grad = torch.full((5, WIDTH), torch.nan)
    with pytest.raises(FloatingPointError):
        one.step(learning_rate=0.1)
    assert torch.equal(one.weight, other.weight)


def test_a_folder_keeps_heads_in_a_file_that_no_engine_takes_for_weights(tmp_path):
    assert load_heads(tmp_path) is None
    save_heads(_random(5, WIDTH), tmp_path)
    assert torch.equal(load_heads(tmp_path), _random(5, WIDTH))
    assert not list(tmp_path.glob("*.safetensors"))
    assert (tmp_path / FILE).is_file()
