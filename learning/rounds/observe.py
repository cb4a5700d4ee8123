"""What a worker shows of learning: figures of stages as Prometheus gauges.

Knows the names of figures that stages give and the collectors of core/metrics.py, nothing else.
"""

from collections.abc import Mapping

from core import metrics

_GAUGES = {
    "reward": metrics.PPO_REWARD,
    "kl_to_anchor": metrics.PPO_KL,
    "clip_fraction": metrics.PPO_CLIP_FRACTION,
    "entropy": metrics.PPO_ENTROPY,
    "ptx_loss": metrics.PPO_PTX_LOSS,
    "engine_kl": metrics.PPO_ENGINE_KL,
    "engine_alarms": metrics.PPO_ENGINE_ALARMS,
}
_ACCURACY = "accuracy."


def observe_progress(stage: str, fraction: float, figures: Mapping[str, float]) -> None:
    """How far a stage is, and of the policy's stage the figures of its newest iteration."""
    metrics.STAGE_PROGRESS.labels(stage).set(fraction)
    if stage == "policy":
        for name in _GAUGES.keys() & figures.keys():
            _GAUGES[name].set(figures[name])


def observe_end(stage: str, outcome: str, seconds: float, figures: Mapping[str, float]) -> None:
    """A stage ended; `outcome` is one of the few words of learning/rounds/runner.py."""
    metrics.LEARNING_RUNS.labels(stage, outcome).inc()
    if outcome != "done":
        return
    metrics.STAGE_PROGRESS.labels(stage).set(1.0)
    metrics.STAGE_SECONDS.labels(stage).observe(seconds)
    if stage == "reward_model":
        for name, value in figures.items():
            if name.startswith(_ACCURACY):
                metrics.REWARD_MODEL_ACCURACY.labels(name.removeprefix(_ACCURACY)).set(value)


def observe_win_rate(version: str, against: str, value: float) -> None:
    """What the gate found."""
    metrics.WIN_RATE.labels(version, against).set(value)


def observe_over_optimised() -> None:
    """The gate found that the reward model's liking is not people's."""
    metrics.OVER_OPTIMISED.inc()
