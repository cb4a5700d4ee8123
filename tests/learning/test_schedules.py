import pytest
import torch

from learning.training.schedules import ema_decay, warmup_factor


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
