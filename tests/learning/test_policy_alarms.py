"""Which figures are signs that engine and trainer hold different policies."""

import logging
import math

import pytest
import torch

from learning.policy.alarms import LEAST, MOST, alarms_said, engine_alarms
from learning.policy.diagnostics import engine_gap
from learning.policy.ppo_losses import importance_weights

HEALTHY = {
    "engine_kl": 0.0025,
    "engine_bias": -0.0037,
    "engine_max_abs": 0.6,
    "engine_capped_share": 0.0,
    "engine_chi_square": 0.005,
    "engine_effective_share": 0.995,
    "first_ratio_error": 0.0,
    "reward": 7.0,
}
"""As measured on a small model in bf16."""


def test_rounding_is_no_sign() -> None:
    assert engine_alarms(HEALTHY) == []
    assert engine_alarms({}) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("engine_kl", 0.05),
        ("engine_bias", 0.03),
        ("engine_bias", -0.03),
        ("engine_capped_share", 0.02),
        ("engine_chi_square", 0.4),
        ("first_ratio_error", 0.01),
        ("engine_effective_share", 0.8),
        ("engine_kl", math.nan),
        ("engine_effective_share", math.nan),
    ],
)
def test_each_figure_beyond_its_limit_is_a_sign_that_names_it(name: str, value: float) -> None:
    (sign,) = engine_alarms(HEALTHY | {name: value})
    assert name in sign
    assert f"{value:.3g}" in sign


def test_every_limit_is_tried_above() -> None:
    tried = test_each_figure_beyond_its_limit_is_a_sign_that_names_it.pytestmark[0].args[1]
    assert {name for name, _ in tried} == {*MOST, *LEAST}


def test_the_log_says_each_sign_and_the_iteration(caplog) -> None:
    with caplog.at_level(logging.WARNING):
        assert alarms_said(HEALTHY, iteration=3) == 0.0
        assert caplog.messages == []
        assert alarms_said(HEALTHY | {"engine_kl": 0.05, "engine_bias": 0.1}, iteration=4) == 2.0
    assert [message.partition(":")[0] for message in caplog.messages] == ["iteration 4"] * 2


@pytest.mark.parametrize(("noise", "signs"), [(0.04, False), (0.6, True)])
def test_an_engine_with_noise_of_bf16_is_silent_and_one_with_other_weights_is_not(
    noise: float, signs: bool
) -> None:
    generator = torch.Generator().manual_seed(3)
    trainer = -torch.rand((400, 40), generator=generator) * 3
    engine = trainer + noise * torch.randn(trainer.shape, generator=generator)
    mask = torch.ones_like(trainer, dtype=torch.bool)
    weights = importance_weights(trainer, engine, cap=2.0)
    gap = engine_gap(engine, trainer, mask, weights, cap=2.0)
    figures = {f"engine_{name}": getattr(gap, name) for name in gap.__slots__}
    assert bool(engine_alarms(figures)) is signs
