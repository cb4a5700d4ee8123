"""Raters in groups, left out, and weighed by agreement: by hand and by invariant."""

import random

import pytest

from learning.reward_model.dataset import RankedGroup, Ranking
from learning.reward_model.folds import summary
from learning.reward_model.raters import (
    LEAST_WEIGHT,
    as_heldout,
    rater_groups,
    reliability,
    volumes,
    weighted,
    without,
)
from learning.reward_model.steps import trained_rankings
from learning.training.packing import Group


def _said(rater, *ranks, answers=None, heldout=False):
    places = tuple(range(len(ranks))) if answers is None else answers
    return Ranking(places, ranks, heldout_rater=heldout, weight=float(len(ranks) - 1), rater=rater)


def _group(*rankings):
    return RankedGroup(
        group=Group([1], [[5], [6], [7], [8]]), rankings=rankings, split="validation"
    )


def test_groups_are_of_similar_volume_whole_and_none_is_empty():
    groups = rater_groups({"a": 50, "b": 30, "c": 20, "d": 20, "e": 1}, 3)
    assert groups == [frozenset("a"), frozenset("be"), frozenset("cd")]
    draw = random.Random(0)
    given = {f"r{n}": draw.randint(1, 60) for n in range(40)}
    five = rater_groups(given, 5)
    sizes = [sum(given[r] for r in group) for group in five]
    assert max(sizes) - min(sizes) <= 10
    assert sorted(r for group in five for r in group) == sorted(given)
    assert rater_groups(dict(reversed(given.items())), 5) == five
    assert rater_groups({"a": 1, "b": 0}, 5) == [frozenset("a"), frozenset("b")]
    assert rater_groups({}, 5) == []


def test_volume_is_untied_pairs_of_raters_who_may_train():
    first = _group(_said("a", 1, 2, 3), _said("b", 1, 2, 2), _said("h", 1, 2, heldout=True))
    assert volumes([first, _group(_said("a", 2, 1))]) == {"a": 4, "b": 2}


def test_a_group_left_out_is_not_heard_and_is_what_is_tested():
    first = _group(_said("a", 1, 2, 3), _said("b", 2, 1), _said("h", 1, 2, heldout=True))
    second = _group(_said("b", 1, 2), _said("h", 2, 1, heldout=True))
    (kept,) = without([second, first], {"b", "h"})
    assert [r.rater for r in kept.rankings] == ["a"]
    one, two = as_heldout([first, second], {"b"})
    assert [(r.rater, r.heldout_rater) for r in one.rankings] == [("a", False), ("b", True)]
    assert [(r.rater, r.heldout_rater) for r in two.rankings] == [("b", True)]
    assert as_heldout([_group(_said("h", 1, 2, heldout=True))], {"h"}) == []


def test_accuracies_of_all_groups_are_weighed_by_their_pairs():
    def one(left_out, pairs, learned_from):
        return {
            "validation_heldout_raters": {"accuracy": left_out, "pairs": pairs},
            "validation_training_raters": {"accuracy": learned_from, "pairs": 50},
        }

    figures = summary([one(0.6, 10, 0.7), one(0.8, 30, 0.8), {}])
    assert figures["left_out"] == pytest.approx(0.75)
    assert (figures["left_out_pairs"], figures["learned_from_pairs"]) == (40, 100)
    assert figures["learned_from"] == pytest.approx(0.75)
    assert figures["spread"] == pytest.approx(0.2 / 2**0.5)
    assert summary([{}, {}]) == {}


def test_agreement_by_hand():
    # a and b share three pairs and order two of them alike; c shares nothing with anybody
    first = _group(_said("a", 1, 2, 3), _said("b", 1, 3, 2))
    second = _group(_said("c", 1, 2))
    weights = reliability([first, second])
    mean = 2 / 3
    assert weights["c"] == pytest.approx(2 * mean - 1)
    assert weights["a"] == weights["b"] == pytest.approx(2 * (2 + 20 * mean) / 23 - 1)
    tied = _group(_said("a", 1, 1, 2), _said("b", 1, 2, 2))  # one pair that both order
    assert reliability([tied]) == {"a": 1.0, "b": 1.0}
    assert reliability([second, _group(_said("d", 1, 2))]) == {"c": 1.0, "d": 1.0}


def test_who_contradicts_everybody_weighs_least_and_who_agrees_most_weighs_most():
    groups = [
        _group(
            *(_said(rater, 1, 2, 3, 4) for rater in "abcd"),
            _said("half", 3, 4, answers=(1, 2)),
            _said("contrary", 4, 3, 2, 1),
        )
        for _ in range(30)
    ]
    weights = reliability(groups)
    assert weights["contrary"] == LEAST_WEIGHT
    assert weights["a"] == weights["d"] > 0.4  # alike with three or four of four or five others
    assert weights["half"] > 0.3
    assert reliability(groups[::-1]) == pytest.approx(weights)


def test_weights_multiply_those_that_are_there():
    (group,) = weighted([_group(_said("a", 1, 2, 3), _said("x", 1, 2))], {"a": 0.25})
    assert [r.weight for r in group.rankings] == [0.5, 1.0]


def test_trained_on_they_keep_their_ratio_and_the_mean_prompt_weighs_one():
    said = [_group(_said(rater, 1, 2, 3)) for rater in "aab"]
    one, two, three = (
        group.rankings[0].weight for group in trained_rankings(weighted(said, {"b": 0.1}))
    )
    assert one == two == pytest.approx(10 * three)
    assert (one + two + three) / 3 == pytest.approx(1.0)
