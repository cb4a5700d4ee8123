"""An iteration's answers are scored while the engine is giving others: by events, not by time."""

from pathlib import Path

import pytest
import torch

from learning.policy import gathering
from learning.policy.gathering import gather
from learning.policy.run import whole_policy
from learning.training.stage import Interrupted
from tests.learning.packing_cases import tiny_llama
from tests.learning.ppo_loop import SamplingEngine, make_run, make_setup, stage_in, write_models


class WatchedEngine(SamplingEngine):
    """Notes when it gives a prompt's answers and when nobody asks for more."""

    def __init__(self, model, events: list[str]) -> None:
        super().__init__(model)
        self.events = events

    def answers(self, prompts, **options):
        try:
            for number, samples in super().answers(prompts, **options):
                self.events.append(f"answered {number}")
                yield number, samples
        finally:
            self.events.append("ended")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    noted: list[str] = []
    scores = gathering.answer_scores

    def scored(model, groups, **options):
        noted.append(f"scored {len(groups)}")
        return scores(model, groups, **options)

    monkeypatch.setattr(gathering, "answer_scores", scored)
    return noted


def engine_of(run, events) -> WatchedEngine:
    engine = WatchedEngine(tiny_llama().to(torch.bfloat16), events)
    engine.model.load_state_dict(whole_policy(run).state_dict())
    return engine


def test_what_is_answered_is_scored_before_the_rest_is_answered(
    folders, events, tmp_path, monkeypatch
) -> None:
    setup = make_setup()
    monkeypatch.setattr(gathering, "SCORED_PARTS", 2)
    run = make_run(folders, setup)
    found = gather(stage_in(tmp_path / "s"), setup, run, engine_of(run, events))
    assert events == [
        "answered 0", "answered 1", "scored 2", "answered 2", "answered 3", "scored 2", "ended",
    ]  # fmt: skip
    monkeypatch.setattr(gathering, "SCORED_PARTS", 1)
    whole = gather(stage_in(tmp_path / "t"), setup, run, engine_of(run, events))
    assert torch.allclose(found.scores, whole.scores, atol=0.02)  # bf16, in other rows
    assert torch.equal(found.logprobs, whole.logprobs)
    assert found.rollouts.groups == whole.rollouts.groups
    assert run.figures.keys() >= {"seconds_rollouts", "seconds_scores"}


def test_a_run_that_is_asked_to_leave_between_two_parts_ends_what_the_engine_does(
    folders, events, tmp_path, monkeypatch
) -> None:
    setup = make_setup()
    monkeypatch.setattr(gathering, "SCORED_PARTS", 4)
    run, stage = make_run(folders, setup), stage_in(tmp_path / "s")
    stage.stopping = True
    with pytest.raises(Interrupted) as left:
        gather(stage, setup, run, engine_of(run, events))
    assert "iteration 1" in str(left.value)
    assert events == ["answered 0", "scored 1", "ended"]
