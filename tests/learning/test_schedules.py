import pytest
import torch

from core.hyperparameters import PAPER, PolicySettings
from learning.training.schedules import ema_decay, kl_horizon, warmup_factor, warmup_length


def test_the_warm_up_climbs_in_a_line_from_a_tenth_and_then_stays() -> None:
    factors = [warmup_factor(i, warmup_iterations=4) for i in range(6)]
    assert factors == pytest.approx([0.1, 0.325, 0.55, 0.775, 1.0, 1.0])


def test_without_warm_up_the_first_iteration_has_the_full_rate() -> None:
    assert warmup_factor(0, warmup_iterations=0) == 1.0


def test_the_warm_up_is_torchs_linear_schedule() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([weight], lr=1.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, start_factor=0.1, total_iters=10)
    for iteration in range(13):
        ours = warmup_factor(iteration, warmup_iterations=10)
        assert ours == pytest.approx(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()


def test_after_its_half_life_the_average_has_forgotten_half_of_where_it_began() -> None:
    decay = ema_decay(optimiser_steps=70, half_life_fraction=0.1, max_decay=0.992)
    assert decay**7 == pytest.approx(0.5)


def test_long_runs_use_the_papers_decay_and_no_more() -> None:
    assert ema_decay(optimiser_steps=4000, half_life_fraction=0.1, max_decay=0.992) == 0.992


def test_no_half_life_means_no_averaging() -> None:
    assert ema_decay(optimiser_steps=50, half_life_fraction=0.0, max_decay=0.992) == 0.0


@pytest.mark.parametrize(
    ("iterations", "length"), [(1, 1), (6, 1), (16, 2), (40, 5), (80, 10), (500, 10)]
)
def test_the_warm_up_is_an_eighth_of_a_run_up_to_the_papers_ten(iterations, length) -> None:
    assert warmup_length(None, iterations=iterations) == length
    assert warmup_length(3, iterations=iterations) == 3
    assert warmup_length(0, iterations=iterations) == 0


@pytest.mark.parametrize(
    ("episodes", "horizon"), [(1, 1), (384, 192), (1024, 512), (20_001, 10_000), (256_000, 10_000)]
)
def test_the_horizon_of_beta_is_half_a_run_up_to_that_of_long_runs(episodes, horizon) -> None:
    assert kl_horizon(None, episodes=episodes) == horizon
    assert kl_horizon(77, episodes=episodes) == 77


def test_both_profiles_leave_warm_up_and_horizon_to_the_length_of_the_run() -> None:
    small, paper = PolicySettings(), PolicySettings(**PAPER["policy"])
    for settings in (small, paper):
        assert settings.adaptive_kl_horizon is None
    assert warmup_length(small.warmup_iterations, iterations=small.iterations) == 1
    assert warmup_length(paper.warmup_iterations, iterations=paper.iterations) == 10
    episodes = paper.iterations * paper.prompts_per_iteration * paper.answers_per_prompt
    assert kl_horizon(paper.adaptive_kl_horizon, episodes=episodes) == 10_000
