"""Equation 1 and the single judgements: by hand, by invariance, against OpenRLHF."""

import importlib.metadata
import itertools
import math
import runpy
import sys
import types

import pytest
import torch

from learning.reward_model.preference_loss import (
    count_right,
    num_untied_pairs,
    ranking_loss,
    ranking_weight,
    threshold_loss,
)

SCORES = torch.tensor([0.3, -1.2, 2.0, 0.9, -0.4])
RANKS = torch.tensor([2, 3, 1, 2, 4])  # the first and the fourth are tied


def test_three_answers_by_hand():
    loss = ranking_loss(torch.tensor([1.0, 0.0, 3.0]), torch.tensor([1, 2, 3]))
    expected = sum(math.log(1 + math.exp(-m)) for m in (1.0, -2.0, -3.0)) / 3
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_equal_scores_cost_log_two_whatever_the_number_of_answers():
    for size in (2, 4, 9):
        loss = ranking_loss(torch.zeros(size), torch.arange(size) + 1)
        assert loss.item() == pytest.approx(math.log(2), rel=1e-6)


@pytest.fixture
def openrlhf_pairwise_loss(monkeypatch):
    """The class from OpenRLHF's own file, without the package around it, which wants DeepSpeed."""
    for name in ("deepspeed", "stub_openrlhf", "stub_openrlhf.utils"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["stub_openrlhf.utils"].masked_mean = None
    path = importlib.metadata.distribution("openrlhf").locate_file("openrlhf/models/loss.py")
    source = runpy.run_path(str(path), run_name="stub_openrlhf.loss")
    return source["PairWiseLoss"]()


def test_it_is_openrlhfs_pairwise_loss_over_all_untied_pairs(openrlhf_pairwise_loss):
    pairs = [(w, b) for w, b in itertools.permutations(range(5), 2) if RANKS[w] < RANKS[b]]
    assert len(pairs) == 9
    chosen = SCORES[[better for better, _ in pairs]]
    rejected = SCORES[[worse for _, worse in pairs]]
    expected = openrlhf_pairwise_loss(chosen, rejected)
    torch.testing.assert_close(ranking_loss(SCORES, RANKS), expected)


def test_a_tied_pair_pulls_neither_way_and_does_not_dilute_the_others():
    tied = torch.tensor([0.0, 7.0, 1.0], requires_grad=True)
    ranking_loss(tied, torch.tensor([1, 1, 2])).backward()
    first = torch.tensor([0.0, 1.0], requires_grad=True)
    ranking_loss(first, torch.tensor([1, 2])).backward()
    # two untied pairs, each with weight a half; neither knows of the other's score
    assert tied.grad[0].item() == pytest.approx(first.grad[0].item() / 2, rel=1e-6)


def test_a_shift_of_all_scores_and_an_order_of_answers_change_nothing():
    loss = ranking_loss(SCORES, RANKS)
    torch.testing.assert_close(ranking_loss(SCORES + 5.0, RANKS), loss)
    order = torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(ranking_loss(SCORES[order], RANKS[order]), loss)
    torch.testing.assert_close(ranking_loss(SCORES, RANKS * 10), loss)


def test_the_gradient_raises_the_best_and_lowers_the_worst():
    scores = SCORES.clone().requires_grad_()
    ranking_loss(scores, RANKS).backward()
    assert scores.grad[2] < 0 < scores.grad[4]
    assert scores.grad.sum().item() == pytest.approx(0.0, abs=1e-6)


def test_a_ranking_of_ties_alone_has_no_loss():
    assert num_untied_pairs([1, 1, 1]) == 0
    with pytest.raises(ValueError, match="untied"):
        ranking_loss(torch.zeros(3), torch.tensor([1, 1, 1]))


def test_pairs_are_counted_without_ties_and_an_equal_score_is_half_right():
    assert num_untied_pairs([2, 3, 1, 2, 4]) == 9
    assert count_right(SCORES, RANKS) == 8  # only -1.2 (third) against -0.4 (last) is wrong
    assert count_right(torch.zeros(5), RANKS) == 4.5
    assert count_right(-SCORES, RANKS) == 1


def test_a_vote_between_two_weighs_an_eighth_of_a_ranking_of_nine():
    assert ranking_weight(2) / ranking_weight(9) == 1 / 8


def test_a_thumb_is_the_logistic_loss_of_score_less_cut():
    loss = threshold_loss(torch.tensor([1.5, -0.5]), torch.tensor([1, 0]), torch.tensor([0.25]))
    expected = (math.log(1 + math.exp(-1.25)) + math.log(1 + math.exp(-0.75))) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_a_rating_answers_one_question_at_each_cut():
    cuts = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0])
    score = 0.7
    loss = threshold_loss(torch.tensor([score]), torch.tensor([4]), cuts)
    signs = [1, 1, 1, 1, -1, -1]  # rating 5 of 7: above four cuts, under two
    margins = [s * (score - c) for s, c in zip(signs, cuts.tolist(), strict=True)]
    expected = sum(math.log(1 + math.exp(-m)) for m in margins) / 6
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_learned_cuts_come_out_in_order_and_the_score_between_its_neighbours():
    levels = torch.arange(7).repeat(3)
    scores = torch.linspace(-3, 3, 7).repeat(3)
    cuts = torch.zeros(6, requires_grad=True)
    optimizer = torch.optim.Adam([cuts], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        threshold_loss(scores, levels, cuts).backward()
        optimizer.step()
    assert cuts.diff().min() > 0.3
    assert scores[3] == pytest.approx(0.0, abs=1e-6)
    assert cuts[2] < 0 < cuts[3]
