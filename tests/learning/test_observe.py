"""What a worker shows of learning, as Prometheus would read it."""

from core import metrics
from learning.rounds.observe import observe_over_optimised, observe_progress


def shown(name: str, **labels: str) -> float | None:
    return metrics.REGISTRY.get_sample_value(name, labels)


def test_the_figures_of_an_iteration_are_gauges_those_of_the_engine_among_them() -> None:
    figures = {"reward": 1.25, "kl_to_anchor": 3.5, "engine_kl": 0.002, "engine_alarms": 2.0}
    observe_progress("policy", 0.4, figures)
    assert shown("instructloop_learning_stage_progress", stage="policy") == 0.4
    assert shown("instructloop_ppo_reward") == 1.25
    assert shown("instructloop_ppo_kl") == 3.5
    assert shown("instructloop_ppo_engine_kl") == 0.002
    assert shown("instructloop_ppo_engine_alarms") == 2.0


def test_figures_of_other_stages_are_no_gauges_of_ppo() -> None:
    observe_progress("policy", 0.5, {"reward": 1.0})
    observe_progress("sft", 0.5, {"reward": 9.0})
    assert shown("instructloop_ppo_reward") == 1.0


def test_an_over_optimised_candidate_is_counted() -> None:
    before = shown("instructloop_over_optimised_total")
    assert before is not None, "an alert watches it: it begins at 0"
    observe_over_optimised()
    assert shown("instructloop_over_optimised_total") == before + 1
