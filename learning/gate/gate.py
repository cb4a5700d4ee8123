"""May a candidate go live? Figures and votes in, a verdict with reasons out.

Held-out raters decide, on the prompts of enough users; too few votes is a verdict of its own. Where
a setting says that votes are not required the reward model stands in, and the reasons say so.
Repeated attempts on one parent share one alpha. Pure: knows no store, and registers nothing
(learning/rounds/publish.py does). What fails a candidate whoever likes it is in
learning/gate/limits.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from core.hyperparameters import GateSettings
from core.records import Run
from learning.gate.comparisons import Comparison
from learning.gate.limits import Evidence, Retention, limits, retention
from learning.gate.winrate import bootstrap_interval, per_user

Judge = Literal["held-out raters", "reward model"]
_CONFIDENCE = 0.95
_EVEN = 0.5
_TAIL_SAMPLES = 20
"""Bootstrap samples beyond the bound, at least, where `_MAX_SAMPLES` allows it."""
_MAX_SAMPLES = 200_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A win rate and what it rests on; `low` is the bound that the gate tests."""

    judge: Judge
    value: float
    interval: tuple[float, float]
    """95 %, users drawn with replacement."""
    low: float
    """Lower bound at the alpha of this attempt."""
    plain_value: float
    """Without the rule that broken text loses."""
    judgements: int
    users: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says."""

    verdict: Literal["pass", "fail", "not_enough_data"]
    reasons: tuple[str, ...]
    attempt: int
    alpha: float
    win_rate: Estimate | None
    """Over the parent."""
    win_rate_vs_anchor: Estimate | None = None
    """None where the anchor is the parent."""
    retention: Retention = "kept"
    over_optimised: bool = False
    """Whether the reward model likes it clearly better than held-out raters do."""

    @property
    def passed(self) -> bool:
        return self.verdict == "pass"


def alpha_of_attempt(alpha: float, attempt: int) -> float:
    """What attempt 1, 2, ... on one parent may spend: alpha / 2, alpha / 4, ... never alpha."""
    return alpha / 2.0**attempt


def attempt_number(runs: Sequence[Run], run: Run) -> int:
    """Which attempt on its parent a run is, counted from 1, by the verdicts before it."""
    judged = ("promoted", "passed", "refused")
    return 1 + sum(
        other.parent == run.parent and "gate" in other.states and other.outcome in judged
        for other in runs
        if other.id != run.id
    )


@dataclass(frozen=True, slots=True)
class _Bar:
    """One win rate with the bound that it must exceed."""

    over: str
    """In words, where it is not the live policy"""
    votes: Sequence[Comparison]
    estimate: Estimate | None
    least: float


def judge(evidence: Evidence, *, settings: GateSettings, attempt: int, seed: int) -> Verdict:
    """The verdict on a candidate. `attempt` as `attempt_number` counts, `seed` of the bootstrap.

    It has to win over the parent and over the anchor, so neither test needs a share of the other's
    alpha.
    """
    alpha = alpha_of_attempt(settings.alpha, attempt)
    bars = _bars(evidence, settings=settings, alpha=alpha, seed=seed)
    failed, remarks = limits(evidence, settings)
    hacked, fatal = _over_optimised(evidence, settings=settings, alpha=alpha, seed=seed)
    failed += hacked if fatal else []
    reasons = [*failed, *(said for bar in bars for said in _explain(bar, settings))]
    if attempt > 1:
        reasons.append(
            f"this is attempt {attempt} at replacing the live policy, so the bound is stricter"
        )
    reasons += remarks if fatal else [*hacked, *remarks]
    return Verdict(
        _conclusion(failed, bars, settings),
        tuple(reasons),
        attempt,
        alpha,
        win_rate=bars[0].estimate,
        win_rate_vs_anchor=bars[1].estimate if len(bars) > 1 else None,
        retention=retention(evidence, settings),
        over_optimised=bool(hacked),
    )


def _bars(evidence: Evidence, *, settings: GateSettings, alpha: float, seed: int) -> list[_Bar]:
    """The parent's bar, and the anchor's where it is another version."""
    asked = [
        ("", evidence.votes, evidence.proxies, settings.min_win_rate),
        (
            " to the anchor",
            evidence.votes_vs_anchor,
            evidence.proxies_vs_anchor,
            settings.min_win_rate_vs_anchor,
        ),
    ]
    return [
        _Bar(
            over, votes, _estimate(votes, proxies, settings=settings, alpha=alpha, seed=seed), least
        )
        for over, votes, proxies, least in asked
        if not over or votes or proxies
    ]


def _conclusion(
    failed: Sequence[str], bars: Sequence[_Bar], settings: GateSettings
) -> Literal["pass", "fail", "not_enough_data"]:
    estimates = [bar.estimate for bar in bars]
    enough = [_is_enough(estimate, settings) for estimate in estimates]
    won = [e is not None and e.low > bar.least for e, bar in zip(estimates, bars, strict=True)]
    lost = any(has and not is_won for has, is_won in zip(enough, won, strict=True))
    if failed or lost:
        return "fail"
    return "pass" if all(enough) else "not_enough_data"


def _is_enough(estimate: Estimate | None, settings: GateSettings) -> bool:
    """Whether a win rate may decide."""
    if estimate is None or estimate.users < settings.min_users:
        return False
    return estimate.judge == "held-out raters" or not settings.require_votes


def _estimate(
    votes: Sequence[Comparison],
    proxies: Sequence[Comparison],
    *,
    settings: GateSettings,
    alpha: float,
    seed: int,
) -> Estimate | None:
    """By the raters where they cover enough users, else by the reward model; None without both."""
    if len({vote.user for vote in votes}) >= settings.min_users:
        return _bootstrapped("held-out raters", votes, settings, alpha, seed)
    if proxies:
        return _bootstrapped("reward model", proxies, settings, alpha, seed)
    return None


def _bootstrapped(
    judge_name: Judge,
    comparisons: Sequence[Comparison],
    settings: GateSettings,
    alpha: float,
    seed: int,
) -> Estimate:
    points = np.asarray([c.points for c in comparisons], float)  # (comparisons,)
    sums, counts = per_user(points, [c.user for c in comparisons])  # (users,) each
    wanted = max(settings.bootstrap_samples, math.ceil(_TAIL_SAMPLES / (alpha / 2.0)))
    samples = min(wanted, _MAX_SAMPLES)
    interval = bootstrap_interval(
        sums, counts, confidence=_CONFIDENCE, samples=settings.bootstrap_samples, seed=seed
    )
    low, _ = bootstrap_interval(sums, counts, confidence=1.0 - alpha, samples=samples, seed=seed)
    return Estimate(
        judge=judge_name,
        value=float(points.mean()),
        interval=interval,
        low=low,
        plain_value=float(np.mean([c.plain_points for c in comparisons])),
        judgements=len(comparisons),
        users=len(sums),
    )


def _over_optimised(
    evidence: Evidence, *, settings: GateSettings, alpha: float, seed: int
) -> tuple[list[str], bool]:
    """What to say where the reward model was pleased and people were not, and whether that fails.

    Both judge the same answers. Their intervals have to lie apart; it fails where they lie on both
    sides of one half.
    """
    voters = len({vote.user for vote in evidence.votes})
    if voters < settings.min_users or not evidence.proxies:
        return [], False
    people = _bootstrapped("held-out raters", evidence.votes, settings, alpha, seed)
    proxy = _bootstrapped("reward model", evidence.proxies, settings, alpha, seed)
    if people.interval[1] >= proxy.interval[0]:
        return [], False
    said = (
        f"over-optimised: the reward model prefers it in {proxy.value:.1%} of comparisons, "
        f"held-out raters in {people.value:.1%}, and their intervals lie apart"
    )
    return [said], people.interval[1] < _EVEN < proxy.interval[0]


def _explain(bar: _Bar, settings: GateSettings) -> list[str]:
    estimate = bar.estimate
    if estimate is None:
        return ["nobody and nothing compared its answers with the live policy's"]
    said = [_outcome(bar, estimate, settings)]
    if estimate.judge == "reward model":
        voted = len({vote.user for vote in bar.votes})
        role = (
            "the reward model's scores only tell what to expect (learning.gate.require_votes)"
            if settings.require_votes
            else "the reward model's scores stand in for them"
        )
        said.append(
            f"held-out raters voted on prompts of {voted} users, {settings.min_users} are needed: "
            + role
        )
    return said


def _outcome(bar: _Bar, estimate: Estimate, settings: GateSettings) -> str:
    who = "held-out raters" if estimate.judge == "held-out raters" else "the reward model"
    found = (
        f"{who} preferred it{bar.over} in {estimate.value:.1%} of {estimate.judgements} "
        f"comparisons on prompts of {estimate.users} users"
    )
    if estimate.users < settings.min_users:
        return f"{found}: too few users to tell, {settings.min_users} are needed"
    above = "above" if estimate.low > bar.least else "not above"
    return f"{found}; the lower bound {estimate.low:.1%} is {above} {bar.least:.1%}"
