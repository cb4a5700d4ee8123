"""The three losses of PPO-ptx, as sums over tokens divided by the count of the whole step.

Each function sees the tokens of one packed row (or of several) as flat vectors and is told
`num_tokens`, the number of such tokens in the whole optimiser step. Adding the losses of the rows
therefore gives the mean over the step, however the tokens were packed or spread over processes.
Pure; knows no model and no settings. The caller runs the backward pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are cut here before exp, so that one lost token cannot make an infinity."""


@dataclass(frozen=True, slots=True)
class PolicyStats:
    """One row's share of the step's means (these add up over rows), and its extremes."""

    loss: float
    clip_fraction: float
    """Share of tokens at which the clipped term was the smaller one."""
    approx_kl: float
    """k3 estimate of KL(old policy || new policy), nats per token."""
    ratio_mean: float
    ratio_max: float
    ratio_min: float


@dataclass(frozen=True, slots=True)
class ValueStats:
    """One row's share of the step's value loss and of the clipped tokens."""

    loss: float
    clip_fraction: float


@dataclass(frozen=True, slots=True)
class PretrainingStats:
    """One row's share of the step's loss on pretraining text, nats per token."""

    loss: float


def importance_weights(logprobs: Tensor, engine_logprobs: Tensor, *, cap: float) -> Tensor:
    """min(pi_old / mu, cap) for each token, detached: the engine mu sampled, the trainer learns.

    Truncated importance sampling at the token level. Any shape.
    """
    log_weights = (logprobs - engine_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return log_weights.exp().clamp(max=cap).detach()


def policy_loss(
    new_logprobs: Tensor,
    logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    *,
    clip_ratio: float,
    num_tokens: int,
) -> tuple[Tensor, PolicyStats]:
    """-sum weights min(ratio A, clip(ratio, 1 - eps, 1 + eps) A) / num_tokens.

    All tensors (tokens,). `logprobs` are the trainer's when the iteration began, `new_logprobs`
    the current ones (the only input a gradient flows into), `weights` from `importance_weights`.
    Decoupled PPO: the clip is centred on the trainer's old policy, not on the engine.
    """
    log_ratio = (new_logprobs - logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = log_ratio.exp()
    plain = ratio * advantages
    clipped = ratio.clamp(1.0 - clip_ratio, 1.0 + clip_ratio) * advantages
    loss = -(weights * torch.minimum(plain, clipped)).sum() / num_tokens
    with torch.no_grad():
        stats = PolicyStats(
            loss=float(loss),
            clip_fraction=float((clipped < plain).sum()) / num_tokens,
            approx_kl=float((ratio - 1.0 - log_ratio).sum()) / num_tokens,
            ratio_mean=float(ratio.sum()) / num_tokens,
            ratio_max=float(ratio.max()),
            ratio_min=float(ratio.min()),
        )
    return loss, stats


def value_loss(
    new_values: Tensor,
    values: Tensor,
    returns: Tensor,
    *,
    value_clip: float,
    num_tokens: int,
) -> tuple[Tensor, ValueStats]:
    """0.5 sum max((v - R)^2, (clip(v, v_old +- value_clip) - R)^2) / num_tokens.

    All tensors (tokens,); the gradient flows into `new_values` only.
    """
    moved = (new_values - values).clamp(-value_clip, value_clip)
    plain = (new_values - returns).square()
    clipped = (values + moved - returns).square()
    loss = 0.5 * torch.maximum(plain, clipped).sum() / num_tokens
    share = float((clipped > plain).sum()) / num_tokens
    return loss, ValueStats(loss=float(loss.detach()), clip_fraction=share)


def pretraining_loss(logprobs: Tensor, *, num_tokens: int) -> tuple[Tensor, PretrainingStats]:
    """-sum logprobs / num_tokens: the language-modelling term of equation 2, before gamma.

    `logprobs` (tokens,) are those of real text; `num_tokens` counts the whole step's.
    """
    loss = -logprobs.sum() / num_tokens
    return loss, PretrainingStats(loss=float(loss.detach()))


def step_policy_stats(rows: Sequence[PolicyStats]) -> PolicyStats:
    """The figures of a step from those of its rows: shares add, extremes compare."""
    return PolicyStats(
        loss=sum(row.loss for row in rows),
        clip_fraction=sum(row.clip_fraction for row in rows),
        approx_kl=sum(row.approx_kl for row in rows),
        ratio_mean=sum(row.ratio_mean for row in rows),
        ratio_max=max(row.ratio_max for row in rows),
        ratio_min=min(row.ratio_min for row in rows),
    )


def step_value_stats(rows: Sequence[ValueStats]) -> ValueStats:
    """The same for the value model."""
    return ValueStats(
        loss=sum(row.loss for row in rows),
        clip_fraction=sum(row.clip_fraction for row in rows),
    )
