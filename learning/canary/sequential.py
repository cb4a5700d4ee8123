"""Is the canary worse than the live policy? Tests that may be looked at after every user.

Evidence is an e-value: a bet against a hypothesis that is fair as long as the hypothesis holds, so
its running product reaches 1/alpha with a probability of at most alpha, over all looks together
(Ville's inequality). One bounded value per user, because the votes of one user are not independent;
what several signals say is averaged. Sources: Waudby-Smith and Ramdas 2024 (betting on bounded
means), Vovk and Wang 2021 (averages of e-values), Howard et al. 2021 (the beta-binomial mixture).
Pure: learning/canary/watch.py makes the values and acts on the decision.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Action = Literal["promote", "rollback", "stop", "continue"]

STAKES: Floats = np.array([0.5, 0.25, 0.125, 0.0625, 0.03125])
"""Shares of the capital that are bet, each with a fifth of it: nobody knows the best beforehand.
The best for a difference d of variance v is about d / v."""
MISMATCH_ALPHA = 0.001
"""Cohorts of the wrong sizes mean a fault of ours: the figures of both cannot be trusted."""
_PAIRED_MIDDLE = 0.5


@dataclass(frozen=True, slots=True)
class Observations:
    """What users of both cohorts said, one value in [0, 1] for each user and signal, 1 is good.

    Values are in order of the users' first word and must not change once they were seen: freeze
    a user's value when it is first read. A signal that `live` lacks compares the two policies
    directly (a ranking that holds both): 1 where the candidate won, 1/2 is a tie.
    """

    candidate: Mapping[str, Sequence[float]]
    live: Mapping[str, Sequence[float]]
    users_candidate: int
    """Users of the cohort who asked anything, whether or not they said something."""
    users_live: int
    share: float
    """Of users who were to get the candidate, in (0, 1)."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now; `evidence` holds e-values, counts and the interval of each signal."""

    action: Action
    why: str
    evidence: dict[str, float]


def decide(
    observations: Observations,
    *,
    alpha_rollback: float = 0.01,
    alpha_promote: float = 0.05,
    min_users: int = 40,
    margin: float = 0.05,
) -> Decision:
    """Roll back, promote, stop, or go on watching.

    A candidate that is no worse is rolled back with a probability of at most `alpha_rollback`,
    however often this is asked; one that is worse by more than `margin` (of the range of a value)
    is promoted with at most `alpha_promote`. Promotion needs `min_users` users of the candidate.
    """
    differences = {name: _differences(observations, name) for name in observations.candidate}
    worse = _average([e_value(-z, 0.0) for z in differences.values()])
    fine = _average([e_value(z, -margin) for z in differences.values()])
    mismatch = ratio_mismatch(
        observations.users_candidate, observations.users_live, observations.share
    )
    evidence = {"worse": worse, "not_worse": fine, "ratio_mismatch": mismatch}
    for name, z in differences.items():
        evidence |= {f"{name}.units": float(len(z))}
        if len(z):
            evidence[f"{name}.difference"] = float(z.mean())
    users = max((len(said) for said in observations.candidate.values()), default=0)
    action, why = _verdict(
        worse * alpha_rollback >= 1.0,
        users >= min_users and fine * alpha_promote >= 1.0,
        mismatch * MISMATCH_ALPHA >= 1.0,
    )
    return Decision(action, why.format(margin=margin, users=users), evidence)


def _verdict(is_worse: bool, is_fine: bool, is_broken: bool) -> tuple[Action, str]:
    """A fault in the cohorts goes before a good word for the candidate, never before a bad one."""
    if is_worse:
        return "rollback", "users of the canary say worse of it than others of the live policy"
    if is_broken:
        return "stop", "the cohorts do not have the sizes they should: their figures mislead"
    if is_fine:
        return (
            "promote",
            "what {users} users said shows it no worse than the live policy by {margin}",
        )
    return "continue", "not enough was said to tell"


def e_value(values: Floats, mean: float) -> float:
    """Evidence against "the mean of `values` is at most `mean`", for values in [-1, 1].

    values: (units,), independent, in the order they came. The capital of gamblers who stake
    STAKES on each next value being larger: at most 1 on average if the hypothesis holds.
    """
    return float(e_process(values, mean)[-1]) if len(values) else 1.0


def e_process(values: Floats, mean: float) -> Floats:
    """The evidence after each unit, (units,). Raises ValueError for values beyond [-1, 1]."""
    values = np.asarray(values, float)
    if values.size and not (np.abs(values) <= 1.0).all():
        raise ValueError("values must lie in [-1, 1]")
    if not -1.0 < mean < 1.0:
        raise ValueError("a mean of values in [-1, 1] lies within them")
    return np.asarray(np.exp(log_e_process(values[None, :], mean)[0]), float)


def log_e_process(values: Floats, mean: float) -> Floats:
    """The logarithm of the evidence, of many runs at once: (runs, units) to (runs, units)."""
    total = np.full(values.shape, -math.inf)
    for stake in STAKES / (1.0 + mean):  # at the worst value, -1, a stake of 1/(1+mean) loses all
        capital = np.cumsum(np.log1p(stake * (values - mean)), axis=1)
        np.logaddexp(total, capital, out=total)
    return np.asarray(total - math.log(len(STAKES)), float)


def confidence_sequence(values: Floats, *, alpha: float = 0.05) -> tuple[Floats, Floats]:
    """Lower and upper bounds of the mean after each unit, (units,) each, for values in [-1, 1].

    All of them hold together with a probability of at least 1 - alpha: a mean is left out once
    half the capital bet against it, up or down, has reached 1/alpha.
    """
    values = np.asarray(values, float)
    grid = np.linspace(-1.0, 1.0, 401)[1:-1]  # means that are tried
    level = math.log(2.0 / alpha)
    up = np.stack([log_e_process(values[None, :], m)[0] for m in grid])  # (means, units)
    down = np.stack([log_e_process(-values[None, :], -m)[0] for m in grid])
    step = grid[1] - grid[0]
    refuted_up = np.maximum.accumulate(up, axis=1) >= level  # the mean is larger
    refuted_down = np.maximum.accumulate(down, axis=1) >= level
    lower = np.where(refuted_up, grid[:, None], -1.0 - step).max(axis=0) + 0.0
    upper = np.where(refuted_down, grid[:, None], 1.0 + step).min(axis=0)
    return np.maximum(lower, -1.0), np.minimum(upper, 1.0)


def ratio_mismatch(candidate: int, live: int, share: float) -> float:
    """Evidence that users do not come to the candidate with probability `share`.

    The beta-binomial mixture with a flat prior against the binomial. 1 while nobody came, and
    where there is no split to test (a share of 0 or 1).
    """
    if not 0.0 < share < 1.0:
        return 1.0
    mixture = (
        math.lgamma(candidate + 1.0) + math.lgamma(live + 1.0) - math.lgamma(candidate + live + 2.0)
    )
    expected = candidate * math.log(share) + live * math.log1p(-share)
    return math.exp(min(mixture - expected, 700.0))


def _differences(observations: Observations, signal: str) -> Floats:
    """Candidate minus live, one value in [-1, 1] for each unit of both that is complete, (units,).

    A unit is the next user of the candidate and as many of the live policy as there are to one.
    """
    candidate = np.asarray(observations.candidate[signal], float)
    if signal not in observations.live:
        return 2.0 * (candidate - _PAIRED_MIDDLE)
    live = np.asarray(observations.live[signal], float)
    each = max(1, round((1.0 - observations.share) / observations.share))
    units = min(len(candidate), len(live) // each)
    blocks = live[: units * each].reshape(units, each).mean(axis=1)
    return np.asarray(candidate[:units] - blocks, float)


def _average(evidence: Sequence[float]) -> float:
    """The mean is evidence against "nothing of all this is so", however they depend."""
    return float(np.mean(evidence)) if evidence else 1.0
