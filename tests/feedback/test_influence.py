from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback.influence import cap_level, capped
from feedback.rows import RankedAnswer, RankingRow, Said


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
    rows = [row("a", 9), row("a", 3), row("b", 4), row("c", 5)]  # 36 + 3, 6, 10
    rows += [row("a", 9, split="validation"), row("a", 9, heldout=True)]
    weights = [r.weight for r in capped(rows, 0.5)]
    assert weights == [pytest.approx(16 / 39), pytest.approx(16 / 39), 1.0, 1.0, 1.0, 1.0]
    assert capped(rows, 1.0) == rows
