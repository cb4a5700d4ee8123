"""Comparing two versions by a judge: by hand, by invariants, against independent references."""

import random

import numpy as np
import pytest
from scipy import stats

from deploy.demo.scoring import Side, compare, points_with_rule, win_rate_at_equal_length
from deploy.simulate.judges import Judge

LONGER = Judge("longer", "likes letters", lambda prompt, text: float(len(text)), "open", 9)


def never(text: str) -> bool:
    return False


def compared(first, new, *, users=None, broken=never, judge=LONGER, seed=0):
    users = users or [f"u{i}" for i in range(len(first))]
    prompts = [f"p{i}" for i in range(len(first))]
    return compare(
        judge, prompts=prompts, users=users, first=first, new=new, seed=seed, broken=broken
    )


def side(scores, broken=None) -> Side:
    broken = broken or [False] * len(scores)
    return Side(tuple(scores), tuple(broken), (1,) * len(scores), 0.0, 1.0, 0.0, 0.0)


def test_wins_ties_and_losses_by_hand():
    result = compared(["aa", "bb", "c", "dddd", "e"], ["aaa", "bb", "", "d", "ee ee"])
    assert (result.wins, result.ties, result.losses) == (2, 1, 2)
    assert result.win_rate.value == result.win_rate_by_score.value == 0.5
    assert result.win_rate.comparisons == 5
    assert result.win_rate.ties == 1


def test_broken_text_loses_by_hand():
    scores = {"new": [3, 1, 5, 2, 2], "first": [1, 3, 1, 2, 9]}
    new = side(scores["new"], [True, False, True, False, False])
    first = side(scores["first"], [False, True, True, False, False])
    # new broken: lost; first broken: won; both: lost; equal: tied; lower: lost
    assert points_with_rule(new, first).tolist() == [0.0, 1.0, 0.0, 0.5, 0.0]


def test_both_win_rates_are_given():
    result = compared(["a", "b", "c"], ["XX", "b", "cc"], broken=lambda text: text == "XX")
    assert result.win_rate.value == pytest.approx(1.5 / 3)
    assert result.win_rate_by_score.value == pytest.approx(2.5 / 3)
    assert result.first.broken == (False, False, False)
    assert result.new.broken == (True, False, False)
    assert result.new.broken_share == pytest.approx(1 / 3)


def test_the_shipped_rule_finds_empty_and_looping_text():
    prompts, users = ["p", "q", "r"], ["u", "v", "w"]
    first = ["A plain answer.", "A plain answer.", "A plain answer."]
    new = ["", "so so so so so so so so so so so so so so", "A plainer answer, all the same."]
    result = compare(LONGER, prompts=prompts, users=users, first=first, new=new)
    assert result.new.broken == (True, True, False)
    assert result.new.empty_share == pytest.approx(1 / 3)
    assert (result.wins, result.losses) == (1, 2)
    assert result.win_rate.value < result.win_rate_by_score.value


def test_the_mean_score_leaves_out_answers_without_a_word():
    result = compared(["aa bb", "cc", "!"], ["...", "", "?!"])
    assert result.first.mean_score == pytest.approx((5 + 2) / 2)
    assert result.new.mean_score is None
    assert result.first.mean_words == pytest.approx(1.0)
    assert result.first.empty_share == pytest.approx(1 / 3)


def test_similar_length_means_within_a_tenth_of_the_longer():
    ten, nine, eight = "w " * 10, "w " * 9, "w " * 8
    result = compared([ten, ten, nine, eight], [nine, eight, ten, eight + "!!!!"])
    assert result.similar_length.comparisons == 3
    assert result.similar_length.value == pytest.approx(2 / 3)  # lost, won, won
    assert compared([ten], ["w"]).similar_length is None


def _answers(seed: int, count: int = 90):
    generator = random.Random(seed)
    return ["x" * generator.randint(0, 9) + " y" * generator.randint(0, 5) for _ in range(count)]


def test_nothing_depends_on_the_order_of_the_prompts():
    first, new = _answers(1), _answers(2)
    users = [f"u{i // 2}" for i in range(90)]
    prompts = [f"p{i}" for i in range(90)]
    one = compare(LONGER, prompts=prompts, users=users, first=first, new=new, seed=3)
    order = list(range(90))
    random.Random(0).shuffle(order)

    def pick(x):
        return [x[i] for i in order]

    other = compare(
        LONGER, prompts=pick(prompts), users=pick(users), first=pick(first), new=pick(new), seed=3
    )
    for name in ("win_rate", "win_rate_by_score", "similar_length", "at_equal_length", "wins"):
        assert getattr(one, name) == getattr(other, name), name
    assert one.new.mean_score == other.new.mean_score


def test_swapping_the_versions_swaps_the_win_rate():
    first, new = _answers(1), _answers(2)
    one, other = compared(first, new), compared(new, first)
    assert one.win_rate.value == pytest.approx(1 - other.win_rate.value)
    assert (one.wins, one.ties) == (other.losses, other.ties)
    assert one.at_equal_length == pytest.approx(1 - other.at_equal_length, abs=1e-4)


def test_a_version_against_itself_is_a_draw():
    texts = _answers(4)
    result = compared(texts, texts)
    assert result.win_rate.value == result.at_equal_length == 0.5
    assert (result.win_rate.low, result.win_rate.high) == (0.5, 0.5)
    assert result.ties == 90


def test_the_interval_agrees_with_scipys_bootstrap_over_users():
    first, new = _answers(5, 240), _answers(6, 240)
    users = [f"u{(i * i) % 71}" for i in range(240)]
    result = compared(first, new, users=users)
    won = (np.sign([len(b) - len(a) for a, b in zip(first, new, strict=True)]) + 1) / 2
    names = sorted(set(users))
    sums = np.array([sum(won[i] for i in range(240) if users[i] == name) for name in names])
    counts = np.array([users.count(name) for name in names])
    reference = stats.bootstrap(
        (sums, counts),
        lambda s, c, axis: s.sum(axis=axis) / c.sum(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(8),
    ).confidence_interval
    assert result.win_rate.low == pytest.approx(reference.low, abs=0.006)
    assert result.win_rate.high == pytest.approx(reference.high, abs=0.006)
    assert result.win_rate.users == len(names)


def test_equal_length_agrees_with_newtons_method():
    generator = np.random.default_rng(12)
    old = generator.integers(1, 40, size=500).astype(float)
    new = generator.integers(1, 40, size=500).astype(float)
    ratio = np.log((1 + new) / (1 + old))
    won = (generator.random(500) < 1 / (1 + np.exp(-(0.6 + 1.7 * ratio)))).astype(float)
    won[:20] = 0.5

    design = np.stack([np.ones(500), ratio], axis=1)  # (prompts, 2)
    beta = np.zeros(2)
    ridge = np.diag([0.0, 0.1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-design @ beta))
        gradient = design.T @ (p - won) + ridge @ beta
        hessian = design.T @ (design * (p * (1 - p))[:, None]) + ridge
        beta -= np.linalg.solve(hessian, gradient)

    found = win_rate_at_equal_length(won, new, old)
    assert found == pytest.approx(1 / (1 + np.exp(-beta[0])), abs=1e-4)
    assert found == pytest.approx(1 / (1 + np.exp(-0.6)), abs=0.06)


def test_a_win_that_length_alone_explains_is_a_draw_at_equal_length():
    generator = np.random.default_rng(3)
    old = generator.integers(5, 30, size=400).astype(float)
    new = old + generator.integers(-4, 9, size=400)  # longer more often than not
    won = np.where(new > old, 1.0, np.where(new < old, 0.0, 0.5))
    assert won.mean() > 0.6
    assert win_rate_at_equal_length(won, new, old) == pytest.approx(0.5, abs=0.05)


def test_equal_length_with_few_or_only_won_prompts():
    ones = np.ones(12)
    assert win_rate_at_equal_length(ones[:9], ones[:9], ones[:9]) is None
    assert win_rate_at_equal_length(ones, 2 * ones, ones) == 1.0
    assert win_rate_at_equal_length(0 * ones, 2 * ones, ones) == 0.0


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="one user and two answers"):
        compared([], [])
    with pytest.raises(ValueError, match="one user and two answers"):
        compared(["a"], ["a", "b"])
