"""Win rates and their intervals, with the user as the unit.

Votes and scores of one user are not independent, so the bootstrap draws users, each with the sum
of their points and their count. Pure statistics over arrays; knows nothing of models or files.
Used by learning/evaluation/evaluate.py, the gate and the demonstration.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_BOOTSTRAP_BLOCK = 4_000_000


@dataclass(frozen=True, slots=True)
class WinRate:
    """A win rate with its interval; `users` is what the interval rests on."""

    value: float
    low: float
    high: float
    comparisons: int
    users: int
    ties: int


def points(candidate: Sequence[float], parent: Sequence[float]) -> Floats:
    """1 where the candidate's score is higher, 1/2 where equal, 0 where lower; (comparisons,)."""
    difference = np.asarray(candidate, float) - np.asarray(parent, float)
    won: Floats = 0.5 * (1.0 + np.sign(difference))
    return won


def per_user(values: Floats, users: Sequence[str]) -> tuple[Floats, Floats]:
    """Sum and count of the values of each user, both (users,), in order of the users' names."""
    names, index = np.unique(np.asarray(users), return_inverse=True)
    sums: Floats = np.bincount(index, weights=values, minlength=len(names)).astype(np.float64)
    counts: Floats = np.bincount(index, minlength=len(names)).astype(np.float64)
    return sums, counts


def bootstrap_interval(
    sums: Floats, counts: Floats, *, confidence: float, samples: int, seed: int
) -> tuple[float, float]:
    """Percentile interval of sum(sums) / sum(counts), users drawn with replacement.

    `sums` and `counts` are (users,). With fewer than 40 users the interval is too narrow (its
    coverage is .93 at 15 users): the caller decides what that means.
    """
    generator = np.random.default_rng(seed)
    block = max(1, _BOOTSTRAP_BLOCK // len(sums))
    ratios: list[Floats] = []
    for start in range(0, samples, block):
        drawn = generator.integers(len(sums), size=(min(block, samples - start), len(sums)))
        ratios.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(np.concatenate(ratios), [tail, 1.0 - tail])
    return float(low), float(high)


def win_rate(
    candidate: Sequence[float],
    parent: Sequence[float],
    users: Sequence[str],
    *,
    confidence: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> WinRate:
    """The candidate's win rate over paired scores, ties counting 1/2, bootstrapped over users."""
    won = points(candidate, parent)
    return rate_of(won, users, confidence=confidence, samples=samples, seed=seed)


def rate_of(
    won: Floats,
    users: Sequence[str],
    *,
    confidence: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> WinRate:
    """The same from points (comparisons,), each between 0 (lost) and 1 (won)."""
    sums, counts = per_user(won, users)
    low, high = bootstrap_interval(sums, counts, confidence=confidence, samples=samples, seed=seed)
    return WinRate(
        value=float(won.mean()),
        low=low,
        high=high,
        comparisons=len(won),
        users=len(sums),
        ties=int((won == 0.5).sum()),
    )
