import math

import pytest
import torch

from learning.policy.ppo_losses import (
    importance_weights,
    policy_loss,
    pretraining_loss,
    step_policy_stats,
    step_value_stats,
    value_loss,
)
from tests.learning.ppo_references import openrlhf_losses, trl_core, trl_method, trl_trainer

CLIP = 0.2


def random_tokens(count: int, *, seed: int) -> tuple[torch.Tensor, ...]:
    """new, old and engine log-probabilities and advantages, (count,) each."""
    generator = torch.Generator().manual_seed(seed)
    old = -torch.rand(count, generator=generator) * 3
    new = old + 0.4 * torch.randn(count, generator=generator)
    engine = old + 0.3 * torch.randn(count, generator=generator)
    return new, old, engine, torch.randn(count, generator=generator)


def test_the_policy_loss_of_five_tokens_by_hand() -> None:
    ratios = torch.tensor([1.0, 1.5, 1.5, 0.5, 0.5])
    advantages = torch.tensor([2.0, 1.0, -1.0, 1.0, -1.0])
    weights = torch.tensor([1.0, 2.0, 1.0, 0.5, 1.0])
    loss, stats = policy_loss(
        ratios.log(), torch.zeros(5), advantages, weights, clip_ratio=CLIP, num_tokens=10
    )
    # min(r A, clip(r) A): 2, 1.2, -1.5, 0.5, -0.8; weighted: 2, 2.4, -1.5, 0.25, -0.8
    assert float(loss) == pytest.approx(-(2.0 + 2.4 - 1.5 + 0.25 - 0.8) / 10)
    assert stats.loss == pytest.approx(float(loss))
    assert stats.clip_fraction == pytest.approx(2 / 10)  # the second and the last
    assert stats.ratio_mean == pytest.approx(5.0 / 10)
    assert (stats.ratio_min, stats.ratio_max) == (pytest.approx(0.5), pytest.approx(1.5))
    k3 = 2 * (0.5 - math.log(1.5)) + 2 * (-0.5 - math.log(0.5))
    assert stats.approx_kl == pytest.approx(k3 / 10)


def test_before_the_first_update_the_ratio_is_one_and_the_gradient_the_policy_gradient() -> None:
    _, old, engine, advantages = random_tokens(7, seed=1)
    new = old.clone().requires_grad_()
    weights = importance_weights(old, engine, cap=2.0)
    loss, stats = policy_loss(new, old, advantages, weights, clip_ratio=CLIP, num_tokens=7)
    loss.backward()
    assert (stats.ratio_min, stats.ratio_max, stats.clip_fraction) == (1.0, 1.0, 0.0)
    assert stats.approx_kl == 0.0
    torch.testing.assert_close(new.grad, -weights * advantages / 7)


def test_raising_the_probability_of_a_good_token_lowers_the_loss_until_it_is_clipped() -> None:
    new = torch.tensor([0.0, 0.3], requires_grad=True)  # ratios 1 and 1.35
    loss, _ = policy_loss(
        new, torch.zeros(2), torch.ones(2), torch.ones(2), clip_ratio=CLIP, num_tokens=2
    )
    loss.backward()
    assert new.grad is not None
    assert new.grad[0] < 0.0
    assert new.grad[1] == 0.0


def test_importance_weights_are_the_ratio_cut_at_the_cap_and_carry_no_gradient() -> None:
    old = torch.log(torch.tensor([0.5, 0.9, 0.1])).requires_grad_()
    engine = torch.log(torch.tensor([0.4, 0.3, 0.2]))
    weights = importance_weights(old, engine, cap=2.0)
    torch.testing.assert_close(weights, torch.tensor([1.25, 2.0, 0.5]))
    assert not weights.requires_grad


def test_a_token_that_the_engine_thought_impossible_does_not_make_an_infinity() -> None:
    weights = importance_weights(torch.tensor([-1.0]), torch.tensor([-1e9]), cap=2.0)
    assert weights.tolist() == [2.0]
    loss, stats = policy_loss(
        torch.tensor([1e9]), torch.zeros(1), -torch.ones(1), weights, clip_ratio=CLIP, num_tokens=1
    )
    assert math.isfinite(float(loss))
    assert stats.ratio_max == pytest.approx(math.exp(20.0), rel=1e-5)


def test_the_policy_loss_is_the_same_however_its_tokens_are_split_into_rows() -> None:
    new, old, engine, advantages = random_tokens(11, seed=2)
    weights = importance_weights(old, engine, cap=2.0)
    whole, stats = policy_loss(new, old, advantages, weights, clip_ratio=CLIP, num_tokens=11)
    parts = [
        policy_loss(new[s], old[s], advantages[s], weights[s], clip_ratio=CLIP, num_tokens=11)
        for s in (slice(0, 2), slice(2, 3), slice(3, 11))
    ]
    assert float(sum(loss for loss, _ in parts)) == pytest.approx(float(whole), rel=1e-5)
    together = step_policy_stats([part for _, part in parts])
    for name in type(stats).__slots__:
        assert getattr(together, name) == pytest.approx(getattr(stats, name), rel=1e-5), name


def test_openrlhf_computes_the_same_policy_loss_with_and_without_its_engine_correction() -> None:
    theirs = openrlhf_losses().PolicyLoss(
        clip_eps_low=CLIP,
        clip_eps_high=CLIP,
        enable_vllm_is_correction=True,
        vllm_is_truncated_threshold=[0.0, 1.3],
    )
    new, old, engine, advantages = random_tokens(13, seed=3)
    mask = torch.ones(1, 13)
    expected, clipped, *_ = theirs(new[None], old[None], advantages[None], mask, engine[None])
    weights = importance_weights(old, engine, cap=1.3)
    loss, stats = policy_loss(new, old, advantages, weights, clip_ratio=CLIP, num_tokens=13)
    torch.testing.assert_close(loss, expected)
    assert stats.clip_fraction == pytest.approx(float(clipped))
    theirs.enable_vllm_is_correction = False
    plain, _ = policy_loss(new, old, advantages, torch.ones(13), clip_ratio=CLIP, num_tokens=13)
    torch.testing.assert_close(plain, theirs(new[None], old[None], advantages[None], mask)[0])


def test_trl_computes_the_same_policy_and_value_losses_and_clip_fractions() -> None:
    core = trl_core()
    trainer = trl_trainer(core=core, cliprange=CLIP, cliprange_value=0.15, vf_coef=1.0)
    new, old, _, advantages = random_tokens(12, seed=4)
    generator = torch.Generator().manual_seed(5)
    values, new_values, returns = torch.randn(3, 12, generator=generator)
    pg, vf, stats = trl_method("loss", core=core)(
        trainer,
        old[None],
        values[None],
        torch.zeros(1, 12, 3),
        new_values[None],
        new[None],
        torch.ones(1, 12),
        advantages[None],
        returns[None],
    )
    loss, ours = policy_loss(new, old, advantages, torch.ones(12), clip_ratio=CLIP, num_tokens=12)
    torch.testing.assert_close(loss, pg)
    assert ours.clip_fraction == pytest.approx(float(stats["policy/clipfrac"]))
    loss, value_stats = value_loss(new_values, values, returns, value_clip=0.15, num_tokens=12)
    torch.testing.assert_close(loss, vf)
    assert value_stats.clip_fraction == pytest.approx(float(stats["val/clipfrac"]))


def test_the_value_loss_of_three_tokens_by_hand() -> None:
    new, old = torch.tensor([1.0, 1.0, 0.1]), torch.tensor([0.0, 0.0, 0.0])
    returns = torch.tensor([2.0, 0.0, 0.0])
    loss, stats = value_loss(new, old, returns, value_clip=0.2, num_tokens=4)
    # clipped to 0.2: (2 - 0.2)^2 > (2 - 1)^2; 1^2 > 0.2^2; within: 0.1^2
    assert float(loss) == pytest.approx(0.5 * (1.8**2 + 1.0 + 0.01) / 4)
    assert stats.clip_fraction == pytest.approx(1 / 4)


def test_the_value_loss_pulls_towards_the_return() -> None:
    new = torch.tensor([0.5, -0.5], requires_grad=True)
    loss, _ = value_loss(new, new.detach(), torch.zeros(2), value_clip=0.2, num_tokens=2)
    loss.backward()
    torch.testing.assert_close(new.grad, torch.tensor([0.25, -0.25]))


def test_openrlhf_computes_the_same_value_loss() -> None:
    generator = torch.Generator().manual_seed(6)
    values, new_values, returns = torch.randn(3, 9, generator=generator)
    loss, stats = value_loss(new_values, values, returns, value_clip=0.3, num_tokens=9)
    theirs = openrlhf_losses().ValueLoss(clip_eps=0.3)
    expected = theirs(new_values[None], values[None], returns[None], torch.ones(1, 9))
    torch.testing.assert_close(loss, expected)
    parts = [
        value_loss(new_values[s], values[s], returns[s], value_clip=0.3, num_tokens=9)
        for s in (slice(0, 4), slice(4, 9))
    ]
    assert float(sum(loss for loss, _ in parts)) == pytest.approx(float(expected))
    assert step_value_stats([part for _, part in parts]).clip_fraction == pytest.approx(
        stats.clip_fraction
    )


def test_the_pretraining_loss_is_the_cross_entropy_over_all_predicted_tokens() -> None:
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(5, 17, generator=generator)
    targets = torch.tensor([3, 0, 16, 8, 8])
    chosen = trl_core().logprobs_from_logits(logits[None], targets[None])[0]
    loss, stats = pretraining_loss(chosen, num_tokens=5)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, targets))
    assert stats.loss == pytest.approx(float(loss))
