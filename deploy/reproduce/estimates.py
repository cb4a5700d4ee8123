"""Values with units, their intervals, and the guard that refuses to call noise a difference.

A unit is what varies on its own: a family of prompts, an item of a test, an opening. The same unit
in several seeds stays one unit, so seeds do not make it look like more data. Pure statistics;
deploy/reproduce/scoring.py fills in the values, deploy/reproduce/claims.py asks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from learning.gate.winrate import bootstrap_interval, per_user

MIN_UNITS = 40
"""Fewer cannot carry an interval: its coverage would be well under what it says."""
CONFIDENCE = 0.95
_SAMPLES = 2000
Verdict = Literal["higher", "lower", "not shown", "seeds disagree", "too few"]


@dataclass(frozen=True, slots=True)
class Series:
    """One measure of one policy: a value for each thing that was measured."""

    units: tuple[str, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its 95 % interval, units drawn with replacement."""

    value: float
    low: float
    high: float
    n: int
    """Values"""
    units: int
    """What the interval rests on"""


def series(units: Sequence[str], values: Sequence[float]) -> Series:
    """Raises ValueError unless there is one unit for each value, and a value."""
    if not values or len(units) != len(values):
        raise ValueError("a series has one unit for each of its values")
    return Series(tuple(units), tuple(float(value) for value in values))


def estimate(measured: Series, *, seed: int = 0) -> Estimate:
    """The mean over all values with its interval."""
    values = np.asarray(measured.values, float)
    sums, counts = per_user(values, measured.units)
    low, high = bootstrap_interval(sums, counts, confidence=CONFIDENCE, samples=_SAMPLES, seed=seed)
    return Estimate(float(values.mean()), low, high, len(values), len(sums))


def pooled(several: Sequence[Series]) -> Series:
    """Several seeds' values together."""
    return Series(
        tuple(unit for one in several for unit in one.units),
        tuple(value for one in several for value in one.values),
    )


def difference(left: Series, right: Series) -> Series:
    """Left less right, thing by thing. Raises ValueError where they measured different things."""
    if left.units != right.units:
        raise ValueError("only measures of the same things can be subtracted")
    pairs = zip(left.values, right.values, strict=True)
    return Series(left.units, tuple(a - b for a, b in pairs))


def verdict(found: Estimate, per_seed: Sequence[float], *, zero: float) -> Verdict:
    """Whether a difference is real: enough units, an interval without zero, all seeds alike."""
    if found.units < MIN_UNITS:
        return "too few"
    if found.low <= zero <= found.high:
        return "not shown"
    sign = found.value > zero
    if any(value == zero or (value > zero) != sign for value in per_seed):
        return "seeds disagree"
    return "higher" if sign else "lower"
