"""Per-token rewards: the reward model's score at the end, a KL penalty on the way there.

Equation 2 of the paper (section 3.5) with beta as a coefficient on k1, the plain difference of
log-probabilities, neither clamped nor squared: any other form changes the optimum
pi* ~ pi_ref exp(score / beta). Pure; knows neither model nor settings. The rewards go to
learning/policy/advantages.py.
"""

import torch
from torch import Tensor

ADAPTIVE_STEP_LIMIT = 0.2


def token_rewards(
    scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, *, kl_coef: float
) -> Tensor:
    """-kl_coef (logprobs - ref_logprobs) at each token, and the score at the last one.

    `scores` (num_answers,); the tables and the result (num_answers, length), 0 outside the mask.
    Both log-probabilities come from the trainer, so that engine noise never enters the reward.
    """
    penalties = torch.where(mask, -kl_coef * (logprobs - ref_logprobs), 0.0)
    last = mask.sum(dim=1, keepdim=True) - 1  # (num_answers, 1)
    return penalties.scatter_add(1, last, scores[:, None].to(penalties.dtype))


def replace_unfinished(scores: Tensor, ended: Tensor, *, missing_eos_score: float | None) -> Tensor:
    """Scores (num_answers,) in which answers that never ended get `missing_eos_score`.

    None turns the rule off, as it must be where the cap on tokens cuts most answers.
    """
    if missing_eos_score is None:
        return scores
    return torch.where(ended, scores, missing_eos_score)


def adapted_kl_coef(
    kl_coef: float, *, kl_per_answer: float, target: float | None, horizon: int, num_answers: int
) -> float:
    """The next iteration's beta: unchanged without a target, else a proportional controller.

    beta grows by the relative distance from the target (nats per answer), limited to 20 %, times
    num_answers / horizon.
    """
    if target is None:
        return kl_coef
    error = min(max(kl_per_answer / target - 1.0, -ADAPTIVE_STEP_LIMIT), ADAPTIVE_STEP_LIMIT)
    return kl_coef * (1.0 + error * num_answers / horizon)
