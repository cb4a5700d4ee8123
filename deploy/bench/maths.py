"""The sums of a measurement: quantiles, the spread over rounds, a timetable, a straight line. Pure.

Knows numbers; what they are of is in deploy/bench/figures.py.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the rounds of a measurement."""

    median: float
    low: float
    high: float


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed (nearest rank).

    Raises ValueError when there are none.
    """
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def over_rounds(values: Sequence[float]) -> Spread:
    """One figure of each round, as the median and the extremes of them."""
    return Spread(statistics.median(values), min(values), max(values))


def timetable(per_second: float, seconds: float) -> list[float]:
    """When requests are due, in seconds from the start: evenly, whatever became of the last one."""
    return [number / per_second for number in range(round(per_second * seconds))]


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """How much y grows with x: the straight line of least squares.

    Raises statistics.StatisticsError when x does not vary or there are fewer than two points.
    """
    return statistics.linear_regression(xs, ys).slope
