"""May a candidate go live? Figures and votes in, a verdict with reasons out.

Held-out raters decide where enough users' prompts were voted on; else the reward model stands in,
and the reasons say so. Too few users is a verdict of its own. Repeated attempts on one parent share
one alpha. Pure: knows no store, and registers nothing (learning/publish.py does).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from core.hyperparameters import GateSettings
from core.records import Run
from learning.comparisons import Comparison
from learning.winrate import bootstrap_interval, per_user

Judge = Literal["held-out raters", "reward model"]
_CONFIDENCE = 0.95
_TAIL_SAMPLES = 20
"""Bootstrap samples beyond the bound, at least, where `_MAX_SAMPLES` allows it."""
_MAX_SAMPLES = 200_000


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a candidate beside its parent."""

    votes: Sequence[Comparison]
    """By held-out raters."""
    proxies: Sequence[Comparison]
    """By the reward model."""
    kl_per_token: float
    """From the anchor, nats."""
    pretraining_loss_change: float
    """Nats per token."""
    length_ratio: float
    broken_share: float


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


def judge(evidence: Evidence, *, settings: GateSettings, attempt: int, seed: int) -> Verdict:
    """The verdict on a candidate. `attempt` as `attempt_number` counts, `seed` of the bootstrap."""
    alpha = alpha_of_attempt(settings.alpha, attempt)
    estimate = _estimate(evidence, settings=settings, alpha=alpha, seed=seed)
    broken_limits, remarks = _limits(evidence, settings)
    enough = estimate is not None and estimate.users >= settings.min_users
    won = enough and estimate is not None and estimate.low > settings.min_win_rate
    verdict: Literal["pass", "fail", "not_enough_data"]
    if broken_limits:
        verdict = "fail"
    elif not enough:
        verdict = "not_enough_data"
    else:
        verdict = "pass" if won else "fail"
    reasons = [*broken_limits, *_explain(evidence, estimate, settings, attempt), *remarks]
    return Verdict(verdict, tuple(reasons), attempt, alpha, estimate)


def _estimate(
    evidence: Evidence, *, settings: GateSettings, alpha: float, seed: int
) -> Estimate | None:
    """By the raters where they cover enough users, else by the reward model; None without both."""
    if len({vote.user for vote in evidence.votes}) >= settings.min_users:
        return _bootstrapped("held-out raters", evidence.votes, settings, alpha, seed)
    if evidence.proxies:
        return _bootstrapped("reward model", evidence.proxies, settings, alpha, seed)
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


def _limits(evidence: Evidence, settings: GateSettings) -> tuple[list[str], list[str]]:
    """Limits that are passed, which fail the candidate, and remarks, which do not."""
    broken = []
    if not evidence.kl_per_token <= settings.max_kl_per_token:
        broken.append(
            f"it moved {evidence.kl_per_token:.3f} nats per token from the first policy, "
            f"the limit is {settings.max_kl_per_token:.3f}"
        )
    change, most = evidence.pretraining_loss_change, settings.max_pretraining_loss_change
    if not change <= most:
        broken.append(
            f"it forgets: the loss on plain text rose by {change:.3f} nats per token, "
            f"the limit is {most:.3f}"
        )
    ratio = settings.max_length_ratio
    if not 1.0 / ratio <= evidence.length_ratio <= ratio:
        broken.append(
            f"its answers are {evidence.length_ratio:.2f} times as long as the live policy's, "
            f"allowed is {1.0 / ratio:.2f} to {ratio:.2f}"
        )
    if not evidence.broken_share <= settings.max_broken_share:
        broken.append(
            f"{evidence.broken_share:.0%} of its answers are broken text, "
            f"the limit is {settings.max_broken_share:.0%}"
        )
    fell = change < -most
    remark = f"the loss on plain text fell by {-change:.3f} nats per token: it learned such text"
    return broken, [remark] if fell else []


def _explain(
    evidence: Evidence, estimate: Estimate | None, settings: GateSettings, attempt: int
) -> list[str]:
    if estimate is None:
        return ["nobody and nothing compared its answers with the live policy's"]
    said = [_outcome(estimate, settings)]
    if estimate.judge == "reward model":
        voted = len({vote.user for vote in evidence.votes})
        said.append(
            f"held-out raters voted on prompts of {voted} users, {settings.min_users} are needed: "
            "the reward model's scores stand in for them"
        )
    if attempt > 1:
        said.append(
            f"this is attempt {attempt} at replacing the live policy, so the bound is stricter"
        )
    return said


def _outcome(estimate: Estimate, settings: GateSettings) -> str:
    who = "held-out raters" if estimate.judge == "held-out raters" else "the reward model"
    found = (
        f"{who} preferred it in {estimate.value:.1%} of {estimate.judgements} comparisons "
        f"on prompts of {estimate.users} users"
    )
    if estimate.users < settings.min_users:
        return f"{found}: too few users to tell, {settings.min_users} are needed"
    above = "above" if estimate.low > settings.min_win_rate else "not above"
    return f"{found}; the lower bound {estimate.low:.1%} is {above} {settings.min_win_rate:.1%}"
