"""The sums of a measurement, by hand and against NumPy."""

import random
import statistics

import numpy as np
import pytest

from deploy.bench.maths import Spread, over_rounds, quantile, slope, timetable


def test_a_quantile_is_one_of_the_values_by_nearest_rank():
    times = [5.0, 1.0, 3.0, 2.0, 4.0]
    assert [quantile(times, share) for share in (0.0, 0.2, 0.21, 0.5, 0.8, 0.99, 1.0)] == [
        1.0,
        1.0,
        2.0,
        3.0,
        4.0,
        5.0,
        5.0,
    ]
    assert quantile([7.0], 0.5) == 7.0
    assert quantile([float(n) for n in range(1, 101)], 0.99) == 99.0


def test_a_quantile_is_what_numpy_calls_the_inverted_distribution():
    draw = random.Random(3)
    for count in (1, 2, 9, 250):
        values = [draw.gauss(0, 1) for _ in range(count)]
        for share in (0.01, 0.25, 0.5, 0.9, 0.99, 1.0):
            assert quantile(values, share) == np.quantile(values, share, method="inverted_cdf")


def test_no_values_have_no_quantile():
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


def test_a_figure_over_the_rounds_is_their_median_between_the_extremes():
    assert over_rounds([4.0, 1.0, 2.0]) == Spread(2.0, 1.0, 4.0)
    assert over_rounds([4.0, 1.0]) == Spread(2.5, 1.0, 4.0)


def test_a_timetable_is_even_and_as_long_as_it_was_asked_for():
    assert timetable(4.0, 1.25) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert len(timetable(100.0, 3.0)) == 300
    assert timetable(100.0, 0.0) == []


def test_a_slope_is_that_of_the_line_that_made_the_points():
    assert slope([0, 1, 2, 3], [7.0, 10.0, 13.0, 16.0]) == pytest.approx(3.0)
    assert slope([0, 1, 2], [5.0, 5.0, 5.0]) == 0.0
    # by hand: mean 2 and 3; sums (-2)(-1) + 0 + (2)(1) = 4 over 4 + 0 + 4 = 8
    assert slope([0, 2, 4], [2.0, 3.0, 4.0]) == 0.5


def test_a_slope_is_numpys_least_squares():
    draw = random.Random(5)
    xs = [draw.uniform(0, 9) for _ in range(40)]
    ys = [2.5 * x + draw.gauss(0, 4) for x in xs]
    assert slope(xs, ys) == pytest.approx(np.polyfit(xs, ys, 1)[0])


def test_a_line_needs_two_different_points():
    with pytest.raises(statistics.StatisticsError):
        slope([1, 1], [2.0, 3.0])
