"""What a PPO run is watched by: the engine's drift from the trainer, KL, and reasons to stop.

Pure functions over padded tables `(num_answers, length)` with a mask, and over the figures made
of them. Most faults of such a run show here before they show in its text. Knows no model.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from learning.policy.advantages import masked_mean
from learning.policy.ppo_losses import LOG_RATIO_LIMIT, PolicyStats

MAX_RATIO = 50.0
"""A probability ratio beyond this, within one step of the clipped objective, is a broken run."""
MAX_APPROX_KL = 1.0
"""Nats per token between old and new policy within an iteration; healthy steps stay under .05."""
MIN_ENTROPY_SHARE = 0.1
"""Of the entropy that the first answers had; below it the policy says the same words always."""


@dataclass(frozen=True, slots=True)
class Kl:
    """The divergence of one policy from another, from samples of the first."""

    per_token: float
    """k1: the mean log-ratio, unbiased, the one that the reward uses. Nats per token."""
    per_answer: float
    """The same, summed over an answer. Nats."""
    k3_per_token: float
    """Another estimate of the same, never negative; far from k1, the samples are too few."""


@dataclass(frozen=True, slots=True)
class EngineGap:
    """How far the engine's probabilities are from the trainer's for the same weights."""

    kl: float
    """k3 estimate of KL(engine || trainer), nats per token."""
    bias: float
    """Mean of engine minus trainer log-probability, the gap of their log-perplexities; drift away
    from 0 is a bug, not noise."""
    max_abs: float
    capped_share: float
    """Share of tokens whose importance weight was cut at the cap."""
    effective_share: float
    """Effective sample size over the number of tokens, of the capped weights."""
    chi_square: float
    """Of the weights before the cap, about 1: their mean squared distance from it."""


def kl_estimates(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Kl:
    """KL(policy || reference) from tokens that the policy sampled; tables and mask as above."""
    k1 = torch.where(mask, logprobs - ref_logprobs, 0.0)
    k3 = torch.expm1((-k1).clamp(max=LOG_RATIO_LIMIT)) + k1
    return Kl(
        per_token=float(masked_mean(k1, mask)),
        per_answer=float(k1.sum(dim=1).mean()),
        k3_per_token=float(masked_mean(k3, mask)),
    )


def engine_gap(
    engine_logprobs: Tensor, logprobs: Tensor, mask: Tensor, weights: Tensor, *, cap: float
) -> EngineGap:
    """Compare log-probabilities as sampled with the trainer's; all (num_answers, length)."""
    gap = torch.where(mask, engine_logprobs - logprobs, 0.0)
    counted = torch.where(mask, weights, 0.0)
    beyond_one = torch.expm1((-gap).clamp(max=LOG_RATIO_LIMIT))
    return EngineGap(
        kl=kl_estimates(engine_logprobs, logprobs, mask).k3_per_token,
        bias=float(masked_mean(gap, mask)),
        max_abs=float(gap.abs().max()),
        capped_share=float(masked_mean((weights >= cap).float(), mask)),
        effective_share=float(
            counted.sum().square() / (counted.square().sum() * mask.sum()).clamp(min=1e-12)
        ),
        chi_square=float(masked_mean(beyond_one.square(), mask)),
    )


def fault(stats: PolicyStats, *, grad_norm: float) -> str | None:
    """Why the run must stop after this optimiser step, or None while it is healthy."""
    if not math.isfinite(stats.loss):
        return "the policy loss is not finite"
    if not math.isfinite(grad_norm):
        return "the gradient of the policy is not finite"
    if stats.ratio_max > MAX_RATIO:
        return f"a probability ratio reached {stats.ratio_max:.3g} (limit {MAX_RATIO:.3g})"
    if stats.approx_kl > MAX_APPROX_KL:
        return (
            f"the policy moved {stats.approx_kl:.3g} nats per token within one iteration "
            f"(limit {MAX_APPROX_KL:.3g})"
        )
    return None


def collapse(*, reward: float, kl_per_token: float, entropy: float, first: float) -> str | None:
    """Why a run must stop after it gathered answers, or None while they are healthy.

    `entropy` is the answers' mean in nats a token, `first` that of the run's first answers.
    """
    for name, value in (("reward", reward), ("KL", kl_per_token), ("entropy", entropy)):
        if not math.isfinite(value):
            return f"the {name} of its answers is not finite"
    if entropy < MIN_ENTROPY_SHARE * first:
        return (
            f"the entropy of its answers fell from {first:.3g} to {entropy:.3g} nats per token: "
            "it says the same words always"
        )
    return None
