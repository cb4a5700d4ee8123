"""Simulated canaries: users with a taste of their own who give one to ten votes each."""

import numpy as np
from numpy.typing import NDArray

from learning.canary.sequential import log_e_process

Floats = NDArray[np.float64]
LIKE_MINDED = 6.0
"""How alike users are: the larger, the less a user's own taste says."""


def users(rng: np.random.Generator, runs: int, units: int, rate: float) -> Floats:
    """The mean of each user's votes, (runs, units): `rate` is what all users say on average."""
    taste = rng.beta(rate * LIKE_MINDED, (1.0 - rate) * LIKE_MINDED, (runs, units))
    votes = rng.integers(1, 11, (runs, units))
    return np.asarray(rng.binomial(votes, taste) / votes, float)


def paired_votes(rng: np.random.Generator, runs: int, units: int, rate: float) -> Floats:
    """One vote a user between both policies, as values in [-1, 1], (runs, units)."""
    return np.where(rng.random((runs, units)) < rate, 1.0, -1.0)


def first_crossings(values: Floats, mean: float, *, alpha: float) -> Floats:
    """After how many units each run has evidence of 1/alpha, (runs,); inf where it never has."""
    crossed = log_e_process(values, mean) >= np.log(1.0 / alpha)
    return np.where(crossed.any(axis=1), crossed.argmax(axis=1) + 1.0, np.inf)


def share_above(hits: int, runs: int) -> float:
    """The upper end of the exact 95 % interval (one-sided) of a share."""
    from scipy.stats import beta

    return float(beta.ppf(0.95, hits + 1, runs - hits))
