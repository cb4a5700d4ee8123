import pytest
import torch
from torchrl.objectives.value.functional import generalized_advantage_estimate

from learning.policy.advantages import (
    advantages_and_returns,
    explained_variance,
    masked_mean,
    whiten,
)
from tests.learning.ppo_references import trl_core, trl_method, trl_trainer

MASK = torch.tensor([[True, True, True, False, False], [True, True, True, True, True]])


def random_tables(*, seed: int, answers: int = 3, length: int = 7) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(answers, length, generator=generator)
    values = torch.randn(answers, length, generator=generator)
    lengths = torch.randint(1, length + 1, (answers,), generator=generator)
    return rewards, values, torch.arange(length)[None] < lengths[:, None]


def test_two_tokens_by_hand() -> None:
    rewards = torch.tensor([[-0.5, 2.0, 9.0]])
    values = torch.tensor([[0.4, 1.0, 9.0]])
    mask = torch.tensor([[True, True, False]])
    advantages, returns = advantages_and_returns(
        rewards, values, mask, discount=0.9, gae_lambda=0.5
    )
    # last: 2 - 1 = 1; first: -0.5 + 0.9 * 1 - 0.4 = 0, plus 0.9 * 0.5 * 1
    assert advantages.tolist() == [pytest.approx([0.45, 1.0, 0.0])]
    assert returns.tolist() == [pytest.approx([0.85, 2.0, 0.0])]


def test_without_discount_and_lambda_one_returns_are_the_sums_of_what_is_still_to_come() -> None:
    rewards, values, mask = random_tables(seed=1)
    advantages, returns = advantages_and_returns(
        rewards, values, mask, discount=1.0, gae_lambda=1.0
    )
    kept = torch.where(mask, rewards, 0.0)
    to_come = kept.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(returns, torch.where(mask, to_come, 0.0))
    torch.testing.assert_close(advantages, torch.where(mask, to_come - values, 0.0))


def test_what_stands_in_the_padding_never_matters() -> None:
    rewards, values, mask = random_tables(seed=2)
    ours = advantages_and_returns(rewards, values, mask, discount=0.97, gae_lambda=0.9)
    rewards[~mask], values[~mask] = 1e6, -1e6
    again = advantages_and_returns(rewards, values, mask, discount=0.97, gae_lambda=0.9)
    assert torch.equal(ours[0], again[0])
    assert torch.equal(ours[1], again[1])


def test_torchrl_computes_the_same_advantages() -> None:
    rewards, values, mask = random_tables(seed=3, answers=5, length=4)
    ours, returns = advantages_and_returns(rewards, values, mask, discount=0.95, gae_lambda=0.8)
    for row in range(5):
        n = int(mask[row].sum())
        done = torch.zeros(n, 1, dtype=torch.bool)
        done[-1] = True
        following = torch.cat([values[row, 1:n], torch.tensor([123.0])])[:, None]
        theirs, targets = generalized_advantage_estimate(
            0.95, 0.8, values[row, :n, None], following, rewards[row, :n, None], done
        )
        torch.testing.assert_close(ours[row, :n], theirs[:, 0])
        torch.testing.assert_close(returns[row, :n], targets[:, 0])


def test_trl_computes_the_same_advantages_and_returns() -> None:
    core = trl_core()
    rewards, values, mask = random_tables(seed=4, answers=6, length=5)
    trainer = trl_trainer(core=core, gamma=0.9, lam=0.7)
    ours, returns = advantages_and_returns(rewards, values, mask, discount=0.9, gae_lambda=0.7)
    kept = torch.where(mask, rewards, 0.0)  # TRL masks values itself, rewards come masked
    _, theirs, their_returns = trl_method("compute_advantages", core=core)(
        trainer, values.clone(), kept, mask.float()
    )
    number = mask.sum()
    biased = (number / (number - 1)).sqrt()  # TRL divides the variance by n - 1, we by n
    torch.testing.assert_close(
        whiten(ours, mask)[mask], theirs[mask] * biased, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(returns[mask], their_returns[mask])


def test_whitened_numbers_have_mean_zero_and_variance_one_over_the_mask() -> None:
    numbers = torch.tensor([[1.0, 2.0, 6.0, 77.0, 88.0], [-3.0, 0.0, 4.0, 4.0, 2.0]])
    white = whiten(numbers, MASK)
    assert float(masked_mean(white, MASK)) == pytest.approx(0.0, abs=1e-6)
    assert float(masked_mean(white.square(), MASK)) == pytest.approx(1.0, abs=1e-5)
    # by hand: mean 2, biased variance (1 + 0 + 16 + 25 + 4 + 4 + 4 + 0) / 8 = 6.75
    assert float(white[0, 2]) == pytest.approx(4.0 / 6.75**0.5, rel=1e-5)
    assert white[0, 3:].tolist() == [0.0, 0.0]


def test_whitening_agrees_with_trl_up_to_the_biased_variance() -> None:
    core = trl_core()
    numbers, _, mask = random_tables(seed=5, answers=4, length=9)
    count = int(mask.sum())
    theirs = core.masked_whiten(numbers, mask.float()) * (count / (count - 1)) ** 0.5
    torch.testing.assert_close(whiten(numbers, mask)[mask], theirs[mask], rtol=1e-4, atol=1e-5)


def test_equal_advantages_whiten_to_zero_rather_than_to_nan() -> None:
    assert whiten(torch.full((2, 5), 3.0), MASK).abs().max() == 0.0


def test_explained_variance_is_one_for_a_perfect_critic_and_zero_for_a_constant_one() -> None:
    returns = torch.tensor([[1.0, 5.0, 2.0, 0.0, 0.0], [0.0, 3.0, 1.0, 4.0, 9.0]])
    assert explained_variance(returns + 7.0, returns, MASK) == pytest.approx(1.0)
    assert explained_variance(torch.zeros_like(returns), returns, MASK) == pytest.approx(0.0)
    assert explained_variance(returns, torch.ones_like(returns), MASK) == 0.0
