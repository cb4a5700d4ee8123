"""Advantages and returns from rewards and values; whitening over a whole iteration.

Pure functions over padded tables `(num_answers, length)` whose mask is True where a token counts;
what stands elsewhere never matters. Knows no model, no optimiser and no settings object. The
results go to learning/policy/ppo_losses.py.
"""

import torch
from torch import Tensor

WHITENING_EPSILON = 1e-8


def advantages_and_returns(
    rewards: Tensor, values: Tensor, mask: Tensor, *, discount: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation; an answer ends its episode.

    `rewards`, `values` and `mask` are (num_answers, length); each row of the mask is a run of
    True followed by False. Both results have that shape and are 0 outside the mask.
    Returns are advantages + values: what the value model should have said.
    """
    advantages = torch.zeros_like(values)  # (num_answers, length)
    ahead = torch.zeros_like(values[:, 0])  # (num_answers,)
    next_value = torch.zeros_like(ahead)
    for t in reversed(range(values.shape[1])):
        here = mask[:, t]
        error = rewards[:, t] + discount * next_value - values[:, t]
        ahead = torch.where(here, error + discount * gae_lambda * ahead, 0.0)
        next_value = torch.where(here, values[:, t], 0.0)
        advantages[:, t] = ahead
    return advantages, torch.where(mask, advantages + values, 0.0)


def masked_mean(numbers: Tensor, mask: Tensor) -> Tensor:
    """The mean of the entries where the mask is True, a scalar; the mask must not be empty."""
    return torch.where(mask, numbers, 0.0).sum() / mask.sum()


def whiten(numbers: Tensor, mask: Tensor) -> Tensor:
    """Shift and scale to mean 0 and (biased) variance 1 over the mask; 0 outside it.

    Meant for the advantages of a whole iteration. Rewards are never whitened: that would change
    what beta means.
    """
    mean = masked_mean(numbers, mask)
    variance = masked_mean((numbers - mean).square(), mask)
    return torch.where(mask, (numbers - mean) * torch.rsqrt(variance + WHITENING_EPSILON), 0.0)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over the mask; 0 when the returns are constant."""
    errors = returns - values
    spread = masked_mean((returns - masked_mean(returns, mask)).square(), mask)
    residual = masked_mean((errors - masked_mean(errors, mask)).square(), mask)
    return float(1.0 - residual / spread) if float(spread) > 0.0 else 0.0
