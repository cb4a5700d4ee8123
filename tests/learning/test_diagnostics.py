import math
from dataclasses import replace

import pytest
import torch

from learning.policy.diagnostics import collapse, engine_gap, fault, kl_estimates
from learning.policy.ppo_losses import PolicyStats, importance_weights

MASK = torch.tensor([[True, True, False], [True, False, False]])
HEALTHY = PolicyStats(
    loss=0.1, clip_fraction=0.1, approx_kl=0.01, ratio_mean=1.0, ratio_max=1.4, ratio_min=0.7
)


def test_the_kl_of_three_tokens_by_hand() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, 5.0], [-1.0, 5.0, 5.0]])
    ref = torch.tensor([[-1.5, -1.0, -9.0], [-1.0, -9.0, -9.0]])
    kl = kl_estimates(logprobs, ref, MASK)
    assert kl.per_token == pytest.approx((0.5 - 1.0 + 0.0) / 3)
    assert kl.per_answer == pytest.approx((0.5 - 1.0 + 0.0) / 2)
    k3 = (math.exp(-0.5) - 1 + 0.5) + (math.exp(1.0) - 1 - 1.0)
    assert kl.k3_per_token == pytest.approx(k3 / 3)


def test_both_estimates_find_the_kl_of_two_known_distributions() -> None:
    generator = torch.Generator().manual_seed(1)
    p = torch.tensor([0.5, 0.2, 0.2, 0.1])
    q = torch.tensor([0.3, 0.3, 0.2, 0.2])
    truth = float((p * (p / q).log()).sum())
    drawn = torch.multinomial(p.expand(4000, 4), 50, replacement=True, generator=generator)
    kl = kl_estimates(p.log()[drawn], q.log()[drawn], torch.ones(4000, 50, dtype=torch.bool))
    assert kl.per_token == pytest.approx(truth, abs=0.005)
    assert kl.k3_per_token == pytest.approx(truth, abs=0.005)
    assert kl.per_answer == pytest.approx(50 * kl.per_token, rel=1e-4)


def test_a_policy_is_at_no_distance_from_itself() -> None:
    logprobs = torch.randn(2, 3)
    kl = kl_estimates(logprobs, logprobs.clone(), MASK)
    assert (kl.per_token, kl.per_answer, kl.k3_per_token) == (0.0, 0.0, 0.0)


def test_the_gap_of_the_engine_by_hand() -> None:
    engine = torch.tensor([[-1.0, -3.0, 0.0], [-0.5, 0.0, 0.0]])
    trainer = torch.tensor([[-1.0, -1.0, 7.0], [-0.5, 7.0, 7.0]])
    weights = importance_weights(trainer, engine, cap=2.0)
    gap = engine_gap(engine, trainer, MASK, weights, cap=2.0)
    assert gap.bias == pytest.approx(-2.0 / 3)
    assert gap.max_abs == 2.0
    assert gap.capped_share == pytest.approx(1 / 3)
    assert gap.kl == pytest.approx((math.expm1(2.0) - 2.0) / 3)
    # weights 1, 2, 1: (sum)^2 / (sum of squares x n) = 16 / (6 x 3)
    assert gap.effective_share == pytest.approx(16 / 18)
    assert gap.chi_square == pytest.approx((math.exp(2.0) - 1.0) ** 2 / 3)


def test_an_engine_that_agrees_has_no_gap_and_all_its_samples_count() -> None:
    logprobs = torch.randn(2, 3)
    weights = importance_weights(logprobs, logprobs, cap=2.0)
    gap = engine_gap(logprobs, logprobs, MASK, weights, cap=2.0)
    assert (gap.kl, gap.bias, gap.max_abs, gap.capped_share) == (0.0, 0.0, 0.0, 0.0)
    assert gap.effective_share == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("change", "grad_norm", "word"),
    [
        ({"loss": math.nan}, 1.0, "finite"),
        ({}, math.inf, "gradient"),
        ({"ratio_max": 80.0}, 1.0, "ratio"),
        ({"approx_kl": 1.5}, 1.0, "nats"),
    ],
)
def test_a_run_that_breaks_is_stopped_and_told_why(
    change: dict[str, float], grad_norm: float, word: str
) -> None:
    reason = fault(replace(HEALTHY, **change), grad_norm=grad_norm)
    assert reason is not None
    assert word in reason


def test_a_healthy_step_is_no_reason_to_stop() -> None:
    assert fault(HEALTHY, grad_norm=3.0) is None


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"reward": math.nan}, "reward"),
        ({"kl_per_token": math.inf}, "KL"),
        ({"entropy": math.nan}, "entropy"),
        ({"entropy": 0.29}, "same words always"),
    ],
)
def test_answers_that_show_a_broken_policy_are_told_apart(
    change: dict[str, float], word: str
) -> None:
    healthy = {"reward": 0.5, "kl_per_token": 0.1, "entropy": 0.31, "first": 3.0}
    assert collapse(**healthy) is None
    reason = collapse(**{**healthy, **change})
    assert reason is not None
    assert word in reason
