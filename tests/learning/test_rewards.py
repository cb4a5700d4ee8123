import pytest
import torch

from learning.policy.rewards import adapted_kl_coef, replace_unfinished, token_rewards
from tests.learning.ppo_references import (
    trl_adaptive_controller,
    trl_core,
    trl_method,
    trl_trainer,
)

MASK = torch.tensor([[True, True, False, False], [True, True, True, True], [True] + [False] * 3])


def test_each_token_pays_for_its_log_ratio_and_the_last_one_earns_the_score() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, 9.0, 9.0], [-1.0] * 4, [-3.0, 9.0, 9.0, 9.0]])
    ref = torch.tensor([[-1.5, -1.0, 0.0, 0.0], [-1.0] * 4, [-5.0, 0.0, 0.0, 0.0]])
    rewards = token_rewards(torch.tensor([10.0, 20.0, 30.0]), logprobs, ref, MASK, kl_coef=0.1)
    expected = [[-0.05, 10.1, 0.0, 0.0], [0.0, 0.0, 0.0, 20.0], [29.8, 0.0, 0.0, 0.0]]
    torch.testing.assert_close(rewards, torch.tensor(expected))


def test_the_penalty_may_be_a_gain_where_the_reference_likes_the_token_more() -> None:
    rewards = token_rewards(
        torch.zeros(1),
        torch.tensor([[-2.0, -1.0]]),
        torch.tensor([[-1.0, -1.0]]),
        torch.ones(1, 2, dtype=torch.bool),
        kl_coef=0.5,
    )
    assert rewards.tolist() == [[0.5, 0.0]]


def test_a_policy_equal_to_the_reference_is_paid_the_score_alone() -> None:
    logprobs = torch.randn(3, 4)
    scores = torch.tensor([1.0, -2.0, 0.5])
    rewards = token_rewards(scores, logprobs, logprobs.clone(), MASK, kl_coef=3.0)
    torch.testing.assert_close(rewards.sum(dim=1), scores)


def test_trl_computes_the_same_rewards() -> None:
    core = trl_core()
    generator = torch.Generator().manual_seed(7)
    logprobs = torch.randn(3, 4, generator=generator)
    ref = torch.randn(3, 4, generator=generator)
    scores = torch.randn(3, generator=generator)
    trainer = trl_trainer(core=core)
    trainer.kl_ctl = type("Fixed", (), {"value": 0.3})()
    theirs, _, _ = trl_method("compute_rewards", core=core)(trainer, scores, logprobs, ref, MASK)
    ours = token_rewards(scores, logprobs, ref, MASK, kl_coef=0.3)
    torch.testing.assert_close(ours[MASK], theirs[MASK])


def test_answers_that_never_ended_get_the_fixed_score_only_where_the_rule_is_on() -> None:
    scores = torch.tensor([0.5, 2.0, -3.0])
    ended = torch.tensor([True, False, False])
    assert replace_unfinished(scores, ended, missing_eos_score=None).tolist() == [0.5, 2.0, -3.0]
    assert replace_unfinished(scores, ended, missing_eos_score=-1.0).tolist() == [0.5, -1.0, -1.0]


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(6.0, 0.15), (6.6, 0.15 * (1 + 0.1 * 0.5)), (60.0, 0.15 * 1.1), (0.0, 0.15 * 0.9)],
)
def test_the_adaptive_coefficient_moves_towards_its_target_in_limited_steps(
    kl: float, expected: float
) -> None:
    after = adapted_kl_coef(0.15, kl_per_answer=kl, target=6.0, horizon=128, num_answers=64)
    assert after == pytest.approx(expected)


def test_the_coefficient_stays_without_a_target() -> None:
    after = adapted_kl_coef(0.02, kl_per_answer=50.0, target=None, horizon=500, num_answers=64)
    assert after == 0.02


def test_the_adaptive_coefficient_agrees_with_trls_controller() -> None:
    controller = trl_adaptive_controller(0.2, target=6.0, horizon=500)
    ours = 0.2
    for kl in (3.0, 9.0, 6.3, 5.9):
        controller.update(kl, 32)
        ours = adapted_kl_coef(ours, kl_per_answer=kl, target=6.0, horizon=500, num_answers=32)
        assert ours == pytest.approx(controller.value)
