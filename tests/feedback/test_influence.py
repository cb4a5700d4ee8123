from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.setting_groups import FeedbackSettings
from feedback.influence import cap_among, cap_level, capped
from feedback.rows import DemonstrationRow, RankedAnswer, RankingRow, RatingRow, Said


def test_by_hand():
    assert cap_level([], 0.5) == 0
    assert cap_level([10, 20, 70], 1.0) == 70
    # 70 -> L with L = .5 (10 + 20 + L): L = 30
    assert cap_level([10, 20, 70], 0.5) == pytest.approx(30)
    # two above: L = .4 (10 + 2 L): L = 20
    assert cap_level([10, 50, 70], 0.4) == pytest.approx(20)
    # three raters cannot each be below 30 %: all weigh as the least
    assert cap_level([10, 20, 70], 0.3) == 10
    assert cap_level([40], 0.5) == 40


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=12), st.integers(1, 100))
def test_nobody_passes_the_cap_and_the_level_is_the_highest_that_does_it(given_, percent):
    cap = percent / 100
    level = cap_level(given_, cap)
    counted = [min(m, level) for m in given_]
    if Fraction(percent, 100) * len(given_) < 1:
        assert level == min(given_)
        return
    assert max(counted) <= cap * sum(counted) * (1 + 1e-9)
    if level < max(given_):
        higher = [min(m, level * 1.001) for m in given_]
        assert max(higher) > cap * sum(higher)


def row(rater, answers=2, split="train", heldout=False) -> RankingRow:
    said = Said("fb", "[]", "u", split, rater, heldout)
    ranked = tuple(RankedAnswer("c", i, "t", "stop", i + 1) for i in range(answers))
    return RankingRow(said, "g", ranked)


def test_only_training_rows_of_the_loudest_rater_weigh_less():
    rows = [row("a", 9), row("a", 3), row("b", 4), row("c", 5), row("d", 2)]  # 39, 6, 10, 1
    rows += [row("a", 9, split="validation"), row("a", 9, heldout=True)]
    weights = [r.weight for r in capped(rows, 0.5)]
    assert weights == [pytest.approx(17 / 39), pytest.approx(17 / 39), 1.0, 1.0, 1.0, 1.0, 1.0]
    assert capped(rows, 1.0) == rows


def test_a_rater_may_always_give_twice_an_equal_share():
    assert [cap_among(n, 0.25) for n in (0, 1, 2, 3, 4, 8, 80)] == [
        1.0, 1.0, 1.0, pytest.approx(2 / 3), 0.5, 0.25, 0.25,
    ]  # fmt: skip


def test_the_default_leaves_a_small_start_and_equal_raters_alone_and_stops_a_loud_one():
    default = FeedbackSettings().rater_share_cap
    alone = [row("a", 9)] * 50
    assert capped(alone, default) == alone
    pair = [*alone, row("b")]
    assert capped(pair, default) == pair
    equal = [row(f"r{n}", 4) for n in range(6) for _ in range(20)]
    assert capped(equal, default) == equal
    loud = [*equal, *([row("loud", 9)] * 100)]  # 3,600 pairs beside 6 x 120: may be 2 / 7 of all
    heard = capped(loud, default)
    weighed = sum(r.weight * r.comparisons for r in heard if r.said.rater == "loud")
    total = sum(r.weight * r.comparisons for r in heard)
    assert weighed / total == pytest.approx(2 / 7)
    assert all(r.weight == 1.0 for r in heard if r.said.rater != "loud")


def test_ratings_and_demonstrations_are_capped_by_their_number():
    def said(rater):
        return Said("fb", "[]", "u", "train", rater, False)

    names = ["a"] * 30 + ["b", "c", "d"] * 2
    ratings = [RatingRow(said(n), "t", "stop", "thumb", 1.0) for n in names]
    shown = [DemonstrationRow(said(n), "t") for n in names]
    for rows in (ratings, shown):
        heard = capped(rows, 0.25)  # four raters: a half, which is 6 of 12
        assert [r.weight for r in heard] == [pytest.approx(6 / 30)] * 30 + [1.0] * 6
