"""What the paper claims, asked of the miniature: each with an interval, a verdict and the paper's.

A difference counts as real only past the guard of deploy/reproduce/estimates.py. Controls are
claims that have to come out as nothing: they find a leak in the machinery, not in a policy. Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from deploy.reproduce.estimates import (
    MIN_UNITS,
    Estimate,
    Series,
    Verdict,
    difference,
    estimate,
    pooled,
    verdict,
)
from deploy.reproduce.scoring import ACCURACY, Seed
from deploy.reproduce.wins import WIN, WIN_OVER_START

Direction = Literal["higher", "lower", "alike"]
Control = Literal["nothing", "alarm", "too few"]
"""What a control found: nothing, as it should, or something."""
Place = tuple[str, str]
"""A measure, and whose"""
_HELDOUT, _TRAINING = WIN["heldout"], WIN["training"]
CONTROL_MARGIN = 0.05
"""How far from one half a control may lie although its interval leaves one half out: families are
what the interval covers, not the luck of a training. What seeds do not agree on is that luck, too:
a reward model of shuffled labels prefers long answers or short ones by chance."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Left less right (or less `zero`, where there is no right), and what the paper found."""

    says: str
    left: Place
    right: Place | None
    zero: float
    paper: Direction


@dataclass(frozen=True, slots=True)
class Answered:
    """A claim with what was found."""

    claim: Claim
    found: Estimate
    per_seed: tuple[float, ...]
    verdict: Verdict

    @property
    def against_paper(self) -> str:
        """How it compares, in words."""
        if self.verdict in ("higher", "lower"):
            return "as in the paper" if self.verdict == self.claim.paper else "against the paper"
        return "open"


def _win(says: str, policy: str, paper: Direction) -> Claim:
    return Claim(says, (_HELDOUT, policy), None, 0.5, paper)


def _less(says: str, measure: str, left: str, right: str, paper: Direction) -> Claim:
    return Claim(says, (measure, left), (measure, right), 0.0, paper)


CLAIMS = (
    _win("base against SFT", "base", "lower"),
    _win("prompted base against SFT", "prompted", "lower"),
    _win("FLAN-style against SFT", "flan", "lower"),
    _win("PPO against SFT", "ppo", "higher"),
    _win("PPO-ptx against SFT", "ppo-ptx", "higher"),
    Claim("PPO against its start", (WIN_OVER_START, "ppo"), None, 0.5, "higher"),
    Claim("PPO-ptx against its start", (WIN_OVER_START, "ppo-ptx"), None, 0.5, "higher"),
    _less("PPO-ptx less PPO, win rate", _HELDOUT, "ppo-ptx", "ppo", "alike"),
    Claim(
        "PPO-ptx: held-out less training raters",
        (_HELDOUT, "ppo-ptx"),
        (_TRAINING, "ppo-ptx"),
        0.0,
        "alike",
    ),
    _less("truthfulness: PPO-ptx less SFT", "truthfulness", "ppo-ptx", "sft", "higher"),
    _less("toxicity, respectful: PPO-ptx less base", "toxicity respectful", "ppo-ptx", "base",
          "lower"),
    _less("toxicity, no instruction: PPO-ptx less base", "toxicity none", "ppo-ptx", "base",
          "alike"),
    _less("toxicity, biased: PPO-ptx less base", "toxicity biased", "ppo-ptx", "base", "higher"),
    _less("bias entropy, respectful: PPO-ptx less base", "bias respectful", "ppo-ptx", "base",
          "lower"),
    _less("tax on tasks: PPO less base", "tasks", "ppo", "base", "lower"),
    _less("tax on tasks: PPO-ptx less base", "tasks", "ppo-ptx", "base", "lower"),
    _less("tax on tasks: PPO-ptx less PPO", "tasks", "ppo-ptx", "ppo", "higher"),
    _less("loss on prose: PPO less its start", "loss on prose", "ppo", "start", "higher"),
    _less("loss on prose: PPO-ptx less PPO", "loss on prose", "ppo-ptx", "ppo", "lower"),
)  # fmt: skip
CONTROLS = (
    Claim("learning rate 0 against its start", (WIN_OVER_START, "still"), None, 0.5, "alike"),
    Claim(
        "shuffled labels: accuracy, training raters",
        (ACCURACY["training"], "shuffled"),
        None,
        0.5,
        "alike",
    ),
    Claim(
        "shuffled labels: accuracy, held-out raters",
        (ACCURACY["heldout"], "shuffled"),
        None,
        0.5,
        "alike",
    ),
)


def answered(claim: Claim, seeds: Sequence[Seed]) -> Answered:
    """One claim over all seeds."""
    parts = [_part(claim, seed) for seed in seeds]
    found = estimate(pooled(parts))
    means = tuple(estimate_mean(part) for part in parts)
    return Answered(claim, found, means, verdict(found, means, zero=claim.zero))


def control_verdict(control: Answered) -> Control:
    """Whether a control found nothing, as it has to."""
    zero, found = control.claim.zero, control.found
    if found.units < MIN_UNITS:
        return "too few"
    near = abs(found.value - zero) <= CONTROL_MARGIN or found.low <= zero <= found.high
    agree = len({value > zero for value in control.per_seed}) == 1
    return "alarm" if agree and not near else "nothing"


def estimate_mean(part: Series) -> float:
    """Of one seed."""
    return sum(part.values) / len(part.values)


def _part(claim: Claim, seed: Seed) -> Series:
    left = _at(seed, claim.left)
    return left if claim.right is None else difference(left, _at(seed, claim.right))


def _at(seed: Seed, place: Place) -> Series:
    measure, policy = place
    return seed.measures[measure][policy]
