"""Calibration and what scores go with: by hand, by invariant, against numpy and scipy."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from learning.reward_model.dataset import RankedGroup, Ranking
from learning.reward_model.report import (
    best_of,
    calibration,
    favourites,
    features_of,
    regressed,
    vader,
)
from learning.training.packing import Group


def _ranked(*rankings):
    size = 1 + max(max(answers) for answers, _ in rankings)
    return RankedGroup(
        group=Group([1], [[n + 5] for n in range(size)]),
        rankings=tuple(Ranking(a, r, heldout_rater=False, weight=1.0) for a, r in rankings),
        split="validation",
    )


def test_every_untied_pair_has_a_favourite_and_ties_of_scores_are_even():
    group = _ranked(((0, 1, 2), (1, 2, 2)), ((2, 0), (1, 2)))
    predicted, came_true = favourites([group], [torch.tensor([2.0, 2.0, 0.5])])
    sure = 1 / (1 + math.exp(-1.5))
    assert predicted == pytest.approx([0.5, sure, sure])
    assert came_true == [0.5, 1.0, 0.0]


def test_a_reliability_table_by_hand():
    figures = calibration([0.52, 0.54, 0.97, 0.99, 1.0], [1.0, 0.0, 1.0, 1.0, 0.0])
    first, last = figures["table"]
    assert (first["from"], first["pairs"], first["came_true"]) == (0.5, 2, 0.5)
    assert first["predicted"] == pytest.approx(0.53)
    assert (last["from"], last["pairs"]) == (0.95, 3)
    assert last["came_true"] == pytest.approx(2 / 3)
    expected = 2 / 5 * 0.03 + 3 / 5 * ((0.97 + 0.99 + 1.0) / 3 - 2 / 3)
    assert figures["expected_error"] == pytest.approx(expected)
    assert calibration([], []) == {"pairs": 0, "table": []}


def test_probabilities_that_hold_have_no_error_and_doubled_log_odds_are_overconfident():
    draw = np.random.default_rng(0)
    log_odds = np.abs(draw.normal(0, 1.5, 40_000))
    true = 1 / (1 + np.exp(-log_odds))
    came_true = (draw.random(40_000) < true).astype(float)
    honest = calibration(true, came_true)
    assert honest["expected_error"] < 0.012  # the bins' own noise
    bold = calibration(1 / (1 + np.exp(-2 * log_odds)), came_true)
    assert bold["expected_error"] > 0.08
    assert all(row["predicted"] > row["came_true"] - 0.02 for row in bold["table"])
    assert sum(row["pairs"] for row in honest["table"]) == 40_000


def _groups(draw, rows):
    def features():
        return {
            "length": draw.normal(20, 5),
            "lists": float(draw.integers(0, 4)),
            "sentiment": draw.uniform(-1, 1),
        }

    return [[features() for _ in range(4)] for _ in range(rows)]


def test_the_regression_finds_what_was_put_in_whatever_a_prompts_level_is():
    draw = np.random.default_rng(1)
    groups = _groups(draw, 300)
    scores = [
        [f["length"] / 5 - 0.5 * f["lists"] + draw.normal(0, 0.3) + level for f in group]
        for level, group in zip(draw.normal(0, 40, 300), groups, strict=True)
    ]
    found = regressed(scores, groups)
    assert found["length"] > 0.8
    assert found["lists"] == pytest.approx(found["length"] * -0.5 * math.sqrt(1.25), abs=0.05)
    assert abs(found["sentiment"]) < 0.05
    assert found["r_squared"] > 0.9
    assert found["answers"] == 1200
    twice = [[3.0 * value - 7.0 for value in group] for group in scores]
    assert regressed(twice, groups) == pytest.approx(found)


def test_with_one_feature_it_is_scipys_correlation():
    draw = np.random.default_rng(2)
    lengths = draw.normal(0, 1, 50)
    values = 0.4 * lengths + draw.normal(0, 1, 50)
    one = [[{"length": float(x), "lists": 0.0} for x in lengths]]
    found = regressed([values.tolist()], one)
    line = stats.linregress(lengths, values)
    assert found["length"] == pytest.approx(line.rvalue)
    assert found["r_squared"] == pytest.approx(line.rvalue**2)
    assert "lists" not in found


def test_where_nothing_differs_or_too_little_was_said_nothing_is_claimed():
    same = {"length": 1.0, "lists": 0.0, "sentiment": 0.0}
    assert regressed([], []) == {"answers": 0}
    assert regressed([[1.0, 2.0]], [[same, same]]) == {"answers": 2}
    assert regressed([[1.0] * 9], [[same] * 9]) == {"answers": 9}
    assert regressed([[1.0, 2.0] * 5], [[same] * 10]) == {"answers": 10, "r_squared": 0.0}


def test_lists_words_and_mood_are_seen():
    text = "Great:\n- one\n  * two\n3. three\n10) ten\nwell-known 3.5 - no"
    seen = features_of(text, vader())
    assert (seen["lists"], seen["length"]) == (4.0, 13.0)
    assert seen["sentiment"] > 0.3
    assert features_of("This is terrible.", vader())["sentiment"] < -0.3


def test_the_favourite_of_four_answers_by_hand():
    group = _ranked(((0, 1, 2, 3), (2, 1, 2, 4)), ((1, 3), (2, 1)))
    # answer 0 scores highest: ties with 2, loses to 1, beats 3; of answers 1 and 3, 1 loses
    found = best_of([group], [torch.tensor([3.0, 1.0, 0.5, -2.0])])
    assert found == {"win_rate": pytest.approx((0.5 + 0.0) / 2), "rankings": 2, "answers": 3.0}
    right = best_of([group], [torch.tensor([0.0, 1.0, 0.5, 2.0])])
    assert right["win_rate"] == pytest.approx((0.0 + 1.0) / 2)
    assert best_of([], []) == {"rankings": 0}


def test_a_model_that_knows_nothing_chooses_as_chance_does_and_one_that_knows_wins():
    draw = np.random.default_rng(5)
    groups, blind, knowing = [], [], []
    for _ in range(600):
        ranks = tuple(int(r) for r in draw.integers(1, 9, size=8))
        groups.append(_ranked((tuple(range(8)), ranks)))
        blind.append(torch.tensor(draw.normal(size=8)))
        knowing.append(-torch.tensor(ranks, dtype=torch.float64))
    assert best_of(groups, blind)["win_rate"] == pytest.approx(0.5, abs=0.04)
    assert best_of(groups, [torch.zeros(8)] * 600)["win_rate"] == pytest.approx(0.5, abs=1e-12)
    best = best_of(groups, knowing)["win_rate"]
    by_hand = []
    for group in groups:
        ranks = np.array(group.rankings[0].ranks)
        worse, even = (ranks > ranks.min()).sum(), (ranks == ranks.min()).sum() - 1
        by_hand.append((worse + even / 2) / 7)
    assert best == pytest.approx(np.mean(by_hand))
    assert best > 0.9
