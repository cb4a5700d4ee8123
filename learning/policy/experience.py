"""What the answers of an iteration were worth: scores, log-probabilities, KL, rewards.

All forward passes without a gradient are here. Old log-probabilities come from the trainer, not
from the engine, and from the very rows that the first update reads, so that its ratio is exactly 1.
Knows no optimiser; learning/policy/updates.py learns from the result.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from learning.policy.advantages import advantages_and_returns, masked_mean, whiten
from learning.policy.diagnostics import EngineGap, Kl, engine_gap, kl_estimates
from learning.policy.ppo_losses import importance_weights
from learning.policy.rewards import replace_unfinished, token_rewards
from learning.training.dealing import own_rows, share, take_part
from learning.training.distributed import device, of_all, through
from learning.training.logprobs import answer_logprobs
from learning.training.models import RewardModel, scores, token_scores
from learning.training.packing import Group, Packed, attend
from learning.training.rollouts import Layout, Rollouts

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Experience:
    """An iteration's answers with all that learning needs; tables are (num_answers, length)."""

    rollouts: Rollouts
    scores: Tensor
    """(num_answers,) by the reward model, before the rule for answers that never ended"""
    logprobs: Tensor
    """of the policy when it sampled, by the trainer"""
    ref_logprobs: Tensor
    rewards: Tensor
    """KL penalty at every token, the score at the last"""
    entropy: float
    """Mean over answer tokens, nats"""

    @property
    def mask(self) -> Tensor:
        """(num_answers, length) bool."""
        return self.rollouts.mask

    @property
    def kl(self) -> Kl:
        """Of the policy from the anchor, on these answers."""
        return kl_estimates(self.logprobs, self.ref_logprobs, self.mask)

    def importance(self, cap: float) -> Tensor:
        """Truncated weights from the engine's probabilities to the trainer's."""
        return importance_weights(self.logprobs, self.rollouts.engine_logprobs, cap=cap)

    def engine_gap(self, cap: float) -> EngineGap:
        """How far the engine is from the trainer."""
        return engine_gap(
            self.rollouts.engine_logprobs, self.logprobs, self.mask, self.importance(cap), cap=cap
        )

    def advantages(self, values: Tensor, *, discount: float, gae_lambda: float) -> Tensor:
        """Whitened over the iteration, 0 outside the mask."""
        raw, _ = advantages_and_returns(
            self.rewards, values, self.mask, discount=discount, gae_lambda=gae_lambda
        )
        return whiten(raw, self.mask)

    def returns(self, values: Tensor, *, discount: float, gae_lambda: float) -> Tensor:
        """What the values should have been, 0 outside the mask."""
        _, returns = advantages_and_returns(
            self.rewards, values, self.mask, discount=discount, gae_lambda=gae_lambda
        )
        return returns


def on_device(model: Model) -> Model:
    """The model itself, moved to the GPU where there is one."""
    nn.Module.to(model, device())
    return model


@torch.no_grad()
def policy_logprobs(
    model: PreTrainedModel, rollouts: Rollouts, parts: Sequence[Layout], *, temperature: float
) -> tuple[Tensor, float]:
    """The table of log-probabilities under a model, and the mean entropy in nats, in all
    processes."""
    table = torch.zeros(rollouts.mask.shape)  # (num_answers, length)
    entropies = torch.zeros_like(table)
    for layout in parts:
        for row in layout.rows:
            logprobs, entropy = through(model, row_logprobs, row, temperature=temperature)
            layout.fill(table, rollouts.mask, row, logprobs)
            layout.fill(entropies, rollouts.mask, row, entropy)
        take_part(model, row_logprobs, layout.idle, temperature=temperature)
    own = torch.cat([layout.answers for layout in parts])
    share(table, own)
    share(entropies, own)
    return table, float(masked_mean(entropies, rollouts.mask))


@torch.no_grad()
def answer_scores(
    reward_model: RewardModel, groups: Sequence[Group], *, token_budget: int
) -> Tensor:
    """The score of every answer, (num_answers,) in the order of the groups, in all processes."""
    found: list[tuple[int, Tensor]] = []
    for row, places in own_rows(groups, token_budget=token_budget):
        row_scores = through(reward_model, scores, row.to(reward_model.head.device)).cpu()
        if places:
            parts = torch.split(row_scores, [len(groups[place].answers) for place in places])
            found += zip(places, parts, strict=True)
    in_order = sorted(of_all(found), key=lambda each: each[0])
    return torch.cat([group_scores for _, group_scores in in_order])


def experience_of(
    rollouts: Rollouts,
    answer_scores: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    *,
    entropy: float,
    kl_coef: float,
    missing_eos_score: float | None,
) -> Experience:
    """Put an iteration's numbers together and pay them out as rewards."""
    paid = replace_unfinished(answer_scores, rollouts.ended, missing_eos_score=missing_eos_score)
    rewards = token_rewards(paid, logprobs, ref_logprobs, rollouts.mask, kl_coef=kl_coef)
    return Experience(
        rollouts=rollouts,
        scores=answer_scores,
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        rewards=rewards,
        entropy=entropy,
    )


def row_logprobs(
    model: PreTrainedModel, row: Packed, *, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy at the answer tokens of a row, (num_answer_tokens,) each."""
    row = row.to(model.device)
    head: nn.Linear = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return answer_logprobs(attend(model, row), head.weight, row, temperature=temperature)


def row_values(value_model: RewardModel, row: Packed) -> Tensor:
    """The value before each answer token, (num_answer_tokens,): read where it is predicted."""
    row = row.to(value_model.head.device)
    return token_scores(value_model, row)[row.predictor[row.answer_mask]]
