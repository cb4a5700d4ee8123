"""One optimiser step of the value model, and one of the policy with its pretraining term.

Gradients of packed rows add up to that of the whole minibatch, because every loss is divided by
the minibatch's own count of tokens, in all processes. The pretraining gradient, times gamma, lands
in the same step (appendix C.4 of the paper). Knows nothing of iterations; learning/policy/train.py
calls.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from core.hyperparameters import PolicySettings
from learning.policy.advantages import advantages_and_returns
from learning.policy.diagnostics import MAX_APPROX_KL, MAX_RATIO
from learning.policy.experience import Experience, row_logprobs, row_values
from learning.policy.ppo_losses import (
    PolicyStats,
    ValueStats,
    policy_loss,
    pretraining_loss,
    step_policy_stats,
    step_value_stats,
    value_loss,
)
from learning.training.dealing import own_places, rows_missing, share, take_part
from learning.training.distributed import of_all, sum_over_processes, through
from learning.training.models import RewardModel
from learning.training.optimizer import MasterAdamW
from learning.training.packing import Group, Packed, pack
from learning.training.rollouts import Layout


@dataclass(frozen=True, slots=True)
class PolicyStep:
    """What one optimiser step of the policy did."""

    policy: PolicyStats
    ptx_loss: float
    """Nats per token of the pretraining text, 0 without any"""
    grad_norm: float
    """Of both terms together, before clipping"""


@dataclass(frozen=True, slots=True)
class PtxBatch:
    """Pretraining text for one step; `num_tokens` counts those that are predicted.

    Of many processes each has its own rows, and `idle` fewer than the one with the most.
    """

    rows: tuple[Packed, ...]
    num_tokens: int
    idle: int = 0


def ptx_batch(
    sequences: Sequence[Sequence[int]], *, token_budget: int, context: int = 1
) -> PtxBatch:
    """Sequences as rows: each predicts all of its tokens but the first `context`."""
    groups = [Group(prompt=ids[:context], answers=[ids[context:]]) for ids in sequences]
    rows = pack([groups[place] for place in own_places(groups)], token_budget=token_budget)
    return PtxBatch(
        rows=tuple(rows),
        num_tokens=sum(len(group.answers[0]) for group in groups),
        idle=rows_missing(len(rows)),
    )


def value_step(
    model: RewardModel,
    optimiser: MasterAdamW,
    experience: Experience,
    layout: Layout,
    values: Tensor,
    *,
    settings: PolicySettings,
    fresh: bool,
) -> ValueStats:
    """Fit the value model to the returns of a minibatch.

    With `fresh` the values that this pass computes are written into the table `values`
    (num_answers, length) and are themselves the centre of the clip, which then has no effect: the
    pass that looks is the pass that learns. Otherwise the clip is centred on what the table holds.
    """
    stats = []
    for row in layout.rows:
        new_values = through(model, row_values, row)  # (num_answer_tokens,)
        if fresh:
            layout.fill(values, experience.mask, row, new_values)
        loss, row_stats = value_loss(
            new_values,
            layout.flat(values, experience.mask, row).to(new_values),
            _returns(experience, layout, values, row, settings).to(new_values),
            value_clip=settings.value_clip,
            num_tokens=layout.num_tokens,
        )
        torch.autograd.backward(loss)
        stats.append(row_stats)
    take_part(model, row_values, layout.idle)
    if fresh:
        share(values, layout.answers)
    optimiser.step(learning_rate=settings.value_learning_rate, max_grad_norm=settings.max_grad_norm)
    return step_value_stats(of_all(stats))


def _returns(
    experience: Experience, layout: Layout, values: Tensor, row: Packed, settings: PolicySettings
) -> Tensor:
    """What the values of a row should have been, (num_answer_tokens,)."""
    place = layout.place(row)
    mask = experience.mask[place]
    _, returns = advantages_and_returns(
        experience.rewards[place],
        values[place],
        mask,
        discount=settings.discount,
        gae_lambda=settings.gae_lambda,
    )
    return returns[mask]


def policy_step(
    model: PreTrainedModel,
    optimiser: MasterAdamW,
    experience: Experience,
    layout: Layout,
    advantages: Tensor,
    ptx: PtxBatch,
    *,
    settings: PolicySettings,
    ptx_coef: float,
    learning_rate: float,
) -> PolicyStep | None:
    """PPO's gradient and gamma times the pretraining gradient in one optimiser step.

    None, and nothing changed, where the steps before have moved the policy further than
    `stop_update_kl` on this minibatch: what it learns from is no longer what it would say.
    """
    stats = ppo_gradient(model, experience, layout, advantages, settings=settings)
    if settings.stop_update_kl is not None and moved_enough(stats, settings.stop_update_kl):
        optimiser.zero_grad()
        return None
    ptx_loss = ptx_gradient(model, ptx, coefficient=ptx_coef)
    norm = optimiser.step(learning_rate=learning_rate, max_grad_norm=settings.max_grad_norm)
    return PolicyStep(policy=stats, ptx_loss=ptx_loss, grad_norm=norm)


def moved_enough(stats: PolicyStats, limit: float) -> bool:
    """Whether to stop here; a run that broke is not stopped but reported (diagnostics.fault)."""
    return limit < stats.approx_kl <= MAX_APPROX_KL and stats.ratio_max <= MAX_RATIO


def ppo_gradient(
    model: PreTrainedModel,
    experience: Experience,
    layout: Layout,
    advantages: Tensor,
    *,
    settings: PolicySettings,
) -> PolicyStats:
    """Add the gradient of the clipped objective on a minibatch to the parameters' gradients."""
    weights = experience.importance(settings.importance_cap)  # (num_answers, length)
    stats = []
    for row in layout.rows:
        new_logprobs, _ = through(model, row_logprobs, row, temperature=settings.temperature)
        old, gain, weight = (
            layout.flat(table, experience.mask, row).to(new_logprobs)
            for table in (experience.logprobs, advantages, weights)
        )
        loss, row_stats = policy_loss(
            new_logprobs,
            old,
            gain,
            weight,
            clip_ratio=settings.clip_ratio,
            num_tokens=layout.num_tokens,
        )
        torch.autograd.backward(loss)
        stats.append(row_stats)
    take_part(model, row_logprobs, layout.idle, temperature=settings.temperature)
    return step_policy_stats(of_all(stats))


def ptx_gradient(model: PreTrainedModel, ptx: PtxBatch, *, coefficient: float) -> float:
    """Add coefficient times the pretraining gradient; returns the loss in nats per token.

    A coefficient of 0 computes nothing, which makes plain PPO of it.
    """
    if coefficient == 0.0:
        return 0.0
    total = 0.0
    for row in ptx.rows:
        logprobs, _ = through(model, row_logprobs, row, temperature=1.0)
        loss, stats = pretraining_loss(logprobs, num_tokens=ptx.num_tokens)
        torch.autograd.backward(coefficient * loss)
        total += stats.loss
    take_part(model, row_logprobs, ptx.idle, temperature=1.0)
    return sum_over_processes(total)


def calibrated_ptx_coef(
    model: PreTrainedModel,
    optimiser: MasterAdamW,
    experience: Experience,
    layout: Layout,
    advantages: Tensor,
    ptx: PtxBatch,
    *,
    settings: PolicySettings,
) -> float:
    """gamma such that gamma |pretraining gradient| = share x |PPO's gradient|; no step is taken.

    The paper's 27.8 would drown PPO's gradient at this scale. Measured on the first step's own
    minibatch, then frozen.
    """
    if settings.ptx_coef is not None:
        return settings.ptx_coef
    if not ptx.num_tokens or settings.ptx_gradient_share == 0.0:
        return 0.0
    ppo_gradient(model, experience, layout, advantages, settings=settings)
    ppo_norm = optimiser.grad_norm()
    optimiser.zero_grad()
    ptx_gradient(model, ptx, coefficient=1.0)
    ptx_norm = optimiser.grad_norm()
    optimiser.zero_grad()
    return settings.ptx_gradient_share * ppo_norm / ptx_norm if ptx_norm > 0.0 else 0.0


@torch.no_grad()
def text_loss(model: PreTrainedModel, ptx: PtxBatch) -> float:
    """Mean loss on text, nats per token, without learning from it."""
    total = 0.0
    for row in ptx.rows:
        logprobs, _ = through(model, row_logprobs, row, temperature=1.0)
        total += float(logprobs.sum())
    take_part(model, row_logprobs, ptx.idle, temperature=1.0)
    return -sum_over_processes(total) / ptx.num_tokens
