"""Intervals over units and the guard against calling noise a difference."""

import numpy as np
import pytest
from scipy.stats import bootstrap

from deploy.reproduce.estimates import (
    MIN_UNITS,
    Estimate,
    difference,
    estimate,
    pooled,
    series,
    verdict,
)


def found(value, low, high, units=60):
    return Estimate(value, low, high, n=2 * units, units=units)


def test_the_same_units_in_three_seeds_are_no_more_units():
    one = series([f"u{i}" for i in range(50)], [float(i % 2) for i in range(50)])
    single, triple = estimate(one), estimate(pooled([one, one, one]))
    assert (triple.n, triple.units) == (150, 50)
    assert triple.value == single.value == 0.5
    assert (triple.low, triple.high) == (single.low, single.high)


def test_the_interval_is_scipys_where_each_value_is_a_unit():
    values = np.random.default_rng(5).normal(2.0, 1.0, size=80)
    ours = estimate(series([f"{i:03}" for i in range(80)], values.tolist()))
    theirs = bootstrap((values,), np.mean, method="percentile", n_resamples=9999, rng=1)
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.03)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.03)


def test_a_difference_is_taken_thing_by_thing():
    left, right = series(["a", "b", "b"], [1.0, 0.5, 0.0]), series(["a", "b", "b"], [0.5, 1.0, 0.0])
    assert difference(left, right).values == (0.5, -0.5, 0.0)
    with pytest.raises(ValueError, match="same things"):
        difference(left, series(["a", "b", "c"], [0.0, 0.0, 0.0]))


def test_an_interval_that_holds_zero_shows_nothing_however_large_the_mean():
    assert verdict(found(0.4, 0.0, 0.8), [0.4], zero=0.0) == "not shown"
    assert verdict(found(0.4, 0.01, 0.8), [0.4], zero=0.0) == "higher"
    assert verdict(found(0.4, 0.2, 0.49), [0.4], zero=0.5) == "lower"
    assert verdict(found(0.4, 0.2, 0.5), [0.4], zero=0.5) == "not shown"


def test_seeds_that_disagree_and_too_few_units_show_nothing():
    assert verdict(found(0.2, 0.1, 0.3), [0.5, -0.1, 0.2], zero=0.0) == "seeds disagree"
    assert verdict(found(0.2, 0.1, 0.3), [0.5, 0.0, 0.2], zero=0.0) == "seeds disagree"
    assert verdict(found(0.2, 0.1, 0.3), [0.5, 0.1, 0.2], zero=0.0) == "higher"
    assert verdict(found(0.9, 0.8, 1.0, units=MIN_UNITS - 1), [0.9], zero=0.5) == "too few"


def test_noise_is_seldom_called_a_difference():
    generator = np.random.default_rng(3)
    units = [f"u{i}" for i in range(60)]
    said = []
    for _ in range(120):
        measured = series(units, generator.normal(size=60).tolist())
        said.append(verdict(estimate(measured), [float(np.mean(measured.values))], zero=0.0))
    assert said.count("not shown") >= 105  # 114 are expected


def test_an_empty_series_is_refused():
    with pytest.raises(ValueError, match="one unit"):
        series([], [])
