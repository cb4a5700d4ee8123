"""Batches, weights and gradients of reward-model training, on a tiny fp32 model."""

import math

import pytest
import torch

from core.hyperparameters import RewardModelSettings
from learning.reward_model.dataset import Judgement, RankedGroup, Ranking
from learning.reward_model.preference_loss import ranking_loss, threshold_loss
from learning.reward_model.steps import (
    Batch,
    Cuts,
    Evaluation,
    add_gradients,
    cosine_rate,
    num_pairs,
    plan_batches,
    scale_of,
    shuffle_labels,
    trained_rankings,
)
from learning.training.models import RewardModel, scores
from learning.training.packing import Group, pack
from tests.learning.packing_cases import GROUPS, tiny_classifier

SETTINGS = RewardModelSettings(epochs=3, batch_prompts=2, token_budget=99, thumb_weight=0.1)


def _ranking(ranks, *, answers=None, heldout=False, weight=1.0):
    places = tuple(range(len(ranks))) if answers is None else tuple(answers)
    return Ranking(places, tuple(ranks), heldout_rater=heldout, weight=weight)


def _ranked(group, *rankings, split="train"):
    return RankedGroup(group=group, rankings=rankings, split=split)


THREE = _ranked(GROUPS[0], _ranking([2, 1, 3], weight=2.0), _ranking([1, 2], answers=[2, 0]))
TWO = _ranked(GROUPS[2], _ranking([2, 1], weight=0.5))
THUMB = Judgement(Group([9, 8], [[7, 2]]), "thumb", 1)
RATING = Judgement(Group([30], [[31, 32, 2]]), "rating", 5)


@pytest.fixture
def model():
    return RewardModel(tiny_classifier())


def _gradients(model, batch, settings=SETTINGS):
    cuts = Cuts()
    model.zero_grad()
    loss = add_gradients(model, cuts, batch, settings)
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    grads |= {n: p.grad.clone() for n, p in cuts.named_parameters() if p.grad is not None}
    return loss, grads


def test_the_loss_of_a_batch_is_the_mean_over_prompts_and_a_tenth_of_the_judgements(model):
    lighter = Judgement(RATING.group, RATING.kind, RATING.level, weight=0.3)
    batch = Batch([THREE, TWO], [THUMB, lighter], ends_epoch=False)
    loss, _ = _gradients(model, batch)

    def alone(group):
        (row,) = pack([group], token_budget=99)
        return scores(model, row)

    first, second, cuts = alone(GROUPS[0]), alone(GROUPS[2]), Cuts()
    expected = (
        2.0 * ranking_loss(first, torch.tensor([2, 1, 3]))
        + ranking_loss(first[[2, 0]], torch.tensor([1, 2]))
        + 0.5 * ranking_loss(second, torch.tensor([2, 1]))
    ) / 2
    expected = expected + 0.1 / 2 * (
        threshold_loss(alone(THUMB.group), torch.tensor([1]), cuts.thumb)
        + 0.3 * threshold_loss(alone(RATING.group), torch.tensor([5]), cuts.rating)
    )
    assert loss == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("budget", [64, 15, 1])
def test_how_a_batch_is_cut_into_rows_changes_neither_loss_nor_gradients(model, budget):
    batch = Batch([THREE, TWO], [THUMB, RATING], ends_epoch=False)
    loss, gradients = _gradients(model, batch)
    settings = SETTINGS.model_copy(update={"token_budget": budget})
    cut_loss, cut_gradients = _gradients(model, batch, settings)
    assert cut_loss == pytest.approx(loss, rel=1e-5)
    assert gradients.keys() == cut_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(cut_gradients[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_every_prompt_comes_once_an_epoch_and_judgements_are_spread_over_its_steps():
    ranked = [THREE, TWO, _ranked(GROUPS[1], _ranking([1, 2])), TWO, THREE]
    judgements = [THUMB, RATING, THUMB, RATING]
    batches = plan_batches(ranked, judgements, settings=SETTINGS, seed=5)
    assert [b.ends_epoch for b in batches] == [False, False, True] * 3
    assert [len(b.ranked) for b in batches] == [2, 2, 1] * 3
    assert [len(b.judgements) for b in batches] == [2, 1, 1] * 3
    for epoch in range(3):
        part = batches[3 * epoch : 3 * epoch + 3]
        assert sorted(id(r) for b in part for r in b.ranked) == sorted(map(id, ranked))
        assert sorted(id(j) for b in part for j in b.judgements) == sorted(map(id, judgements))
    again = plan_batches(ranked, judgements, settings=SETTINGS, seed=5)
    other = plan_batches(ranked, judgements, settings=SETTINGS, seed=6)
    assert again == batches
    assert other != batches


def test_weights_are_proportional_to_k_less_one_and_one_for_the_mean_prompt():
    two = _ranked(GROUPS[2], _ranking([1, 2], weight=1.0))
    nine = _ranked(GROUPS[0], _ranking([1, 2, 3], weight=8.0))
    heard = trained_rankings([two, nine])
    first, second = (group.rankings[0].weight for group in heard)
    assert second / first == pytest.approx(8.0)
    assert (first + second) / 2 == pytest.approx(1.0)


def test_what_held_out_raters_said_is_not_trained_on():
    mixed = _ranked(GROUPS[0], _ranking([1, 2, 3]), _ranking([3, 2, 1], heldout=True))
    heldout = _ranked(GROUPS[2], _ranking([1, 2], heldout=True))
    (kept,) = trained_rankings([mixed, heldout])
    assert [r.ranks for r in kept.rankings] == [(1, 2, 3)]
    assert num_pairs([kept]) == 3


def test_shuffled_labels_keep_the_ranks_and_change_their_order():
    ranked = [_ranked(GROUPS[0], _ranking([1, 2, 3])) for _ in range(20)]
    shuffled = shuffle_labels(ranked, seed=1)
    orders = [group.rankings[0].ranks for group in shuffled]
    assert all(sorted(order) == [1, 2, 3] for order in orders)
    assert len(set(orders)) > 3


def test_the_rate_falls_along_a_cosine_to_a_tenth():
    rates = [cosine_rate(s, num_steps=5, peak=2.0, final_fraction=0.1) for s in range(5)]
    assert rates[0] == 2.0
    assert rates[2] == pytest.approx(2.0 * 0.55)
    assert rates[1] == pytest.approx(2.0 * (0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2))
    assert rates[4] == pytest.approx(0.2)
    assert cosine_rate(0, num_steps=1, peak=2.0, final_fraction=0.1) == 2.0


def test_an_evaluation_counts_pairs_apart_for_held_out_raters():
    evaluation = Evaluation()
    ranked = _ranked(GROUPS[0], _ranking([1, 2, 3]), _ranking([3, 1], answers=[0, 2], heldout=True))
    evaluation.add(ranked, torch.tensor([3.0, 1.0, 2.0]))
    tallies = evaluation.tallies()
    assert tallies["validation_training_raters"].accuracy == pytest.approx(2 / 3)
    assert tallies["validation_heldout_raters"].accuracy == 0.0
    assert tallies["validation"].accuracy == pytest.approx(2 / 4)
    assert evaluation.loss_to_choose_by() == pytest.approx(math.log(1 + math.e))


def test_the_epoch_is_chosen_by_the_others_where_no_rater_is_held_out():
    evaluation = Evaluation()
    assert evaluation.loss_to_choose_by() is None
    evaluation.add(TWO, torch.tensor([0.0, 0.0]))
    assert evaluation.loss_to_choose_by() == pytest.approx(math.log(2))


def test_the_scale_is_taken_over_all_answers_and_within_prompts():
    mean, spread, within = scale_of([torch.tensor([0.0, 2.0]), torch.tensor([5.0, 5.0, 5.0])])
    assert mean == pytest.approx(17 / 5)
    assert spread == pytest.approx(torch.tensor([0.0, 2, 5, 5, 5]).std().item())
    assert within == pytest.approx(math.sqrt(2) / 2)
