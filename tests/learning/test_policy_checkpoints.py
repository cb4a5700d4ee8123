"""Which weights of a PPO run are released, which steps it leaves out, and what it shows people."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from learning.policy import checkpoints as policy_checkpoints
from learning.policy import train as train_policy
from learning.policy.checkpoints import (
    Choice,
    Measured,
    best_checkpoint,
    forget_later,
    is_better,
    kept_iterations,
    nearest_within,
    take_back,
    validation_figures,
)
from learning.policy.experience import row_logprobs
from learning.policy.run import PolicyRun, export
from learning.policy.setup import Setup
from learning.policy.stops import Diverged
from learning.training.learner_engine import saved_tensors
from learning.training.packing import Group, pack
from learning.training.rollouts import Prompt
from learning.training.stage import Stage
from tests.learning.packing_cases import tiny_llama
from tests.learning.ppo_loop import (
    SamplingEngine,
    go,
    make_run,
    make_setup,
    stage_in,
    weights,
    write_models,
)

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_models(tmp_path_factory.mktemp("models"))


# --- steps that are not made ----------------------------------------------------------------


def test_an_iteration_makes_no_step_once_the_policy_has_moved_enough(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    setup = make_setup(stop_update_kl=1e-12, warmup_iterations=0)
    run = make_run(folders, setup)
    go(stage_in(tmp_path / "s"), setup, run)
    assert run.policy_steps == run.iteration == 3  # the first step of an iteration is always made
    assert [part["policy_steps_left_out"] for part in run.history] == [1.0] * 3
    assert [part["approx_kl"] for part in run.history] == [0.0] * 3


def test_a_limit_that_is_not_reached_changes_nothing(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    runs = []
    for name, limit in (("a", None), ("b", 0.99)):
        setup = make_setup(stop_update_kl=limit, iterations=2)
        run = make_run(folders, setup)
        go(stage_in(tmp_path / name), setup, run)
        runs.append(run)
    assert torch.equal(weights(runs[0]), weights(runs[1]))
    assert "policy_steps_left_out" not in runs[1].history[-1]


# --- what people watch, and what ends a run -------------------------------------------------


def test_some_answers_of_each_iteration_are_written_down_with_their_rewards(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    setup = make_setup(iterations=2)
    run = make_run(folders, setup)
    stage = stage_in(tmp_path / "s")
    go(stage, setup, run)
    rows = [json.loads(line) for line in (stage.partial / "samples.jsonl").open()]
    assert [row["iteration"] for row in rows] == [1] * 4 + [2] * 4
    assert [row["user"] for row in rows[:4]] == [p.user for p in setup.prompts_of(0)]
    assert all(row["kl"] == 0.0 for row in rows[:4])
    assert any(row["kl"] != 0.0 for row in rows[4:])
    assert all(row["text"].startswith("word") or row["text"] == "" for row in rows)


def test_a_policy_that_says_one_thing_always_stops_and_says_why(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    setup = make_setup()
    run = make_run(folders, setup)
    stage = stage_in(tmp_path / "s")
    engine = SamplingEngine(tiny_llama().to(torch.bfloat16))
    engine.load_model(run.models.policy, version="first")
    train_policy._iterate(stage, setup, run, engine)
    run.history[0]["entropy"] = 1000.0
    with pytest.raises(Diverged, match="iteration 2: the entropy .* fell from 1e\\+03"):
        train_policy._iterate(stage, setup, run, engine)


# --- which weights are released -------------------------------------------------------------


def kept_run(folders: dict[str, Path], stage: Stage, **changes) -> tuple[Setup, PolicyRun]:
    prompts = [Prompt(f"v{i}", f"v{i}", "[]", (7 + i, 40, 12)) for i in range(6)]
    setup = replace(make_setup(checkpoints_kept=2, **changes), validation=prompts)
    run = make_run(folders, setup)
    go(stage, setup, run)
    return setup, run


def test_the_last_averages_are_kept_as_they_would_be_released(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    stage = stage_in(tmp_path / "s")
    _, run = kept_run(folders, stage)
    assert kept_iterations(stage.folder / "kept") == [2, 3]
    export(run, tmp_path / "out", parent=folders["policy"])
    released = load_file(tmp_path / "out" / "model.safetensors")
    kept = load_file(stage.folder / "kept" / "3" / "model.safetensors")
    assert released.keys() == kept.keys()
    assert all(torch.equal(released[name], kept[name]) for name in kept)
    forget_later(stage.folder / "kept", 2)
    assert kept_iterations(stage.folder / "kept") == [2]


def told_run(folders: dict[str, Path], stage: Stage, monkeypatch, *, kl: dict, score=None):
    """A run whose validation says what the test wants, by the weights' name."""
    setup, run = kept_run(folders, stage)
    asked: list[str] = []

    def measure(setup, run, engine, folder, name) -> Measured:
        asked.append(name)
        objectives = (score or {}).get(name, torch.arange(6.0))
        return Measured(objectives, kl.get(name, 0.0))

    monkeypatch.setattr(policy_checkpoints, "measure", measure)
    return setup, run, asked


def released_by(run: PolicyRun, kept: Path, choice: Choice, parent: Path) -> dict:
    take_back(run, kept, choice)
    export(run, kept.parent / "released", parent=parent)
    return load_file(kept.parent / "released" / "model.safetensors")


def test_weights_that_did_better_before_are_released_bit_for_bit(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_in(tmp_path / "s")
    better = {"1": torch.arange(6.0) + 1.0, "2": torch.arange(6.0) + 2.0}
    setup, run, asked = told_run(folders, stage, monkeypatch, kl={}, score=better)
    kept = stage.folder / "kept"
    choice = best_checkpoint(setup, run, None, kept)
    assert asked == ["0", "1", "2"]
    assert (choice.back, choice.iteration) == (2.0, 2)
    assert validation_figures(choice)["validation_objective"] == {"0": 2.5, "1": 3.5, "2": 4.5}
    second = load_file(kept / "2" / "model.safetensors")
    third = load_file(kept / "3" / "model.safetensors")
    released = released_by(run, kept, choice, folders["policy"])
    assert all(torch.equal(released[name], second[name]) for name in second)
    assert not all(torch.equal(third[name], second[name]) for name in second)


def test_the_last_weights_are_released_where_their_average_is_no_better(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_in(tmp_path / "s")
    setup, run, asked = told_run(folders, stage, monkeypatch, kl={})
    last = {name: t.clone() for name, t in saved_tensors(run.models.policy).items()}
    kept = stage.folder / "kept"
    choice = best_checkpoint(setup, run, None, kept)
    assert (choice.back, choice.iteration, asked) == (0.0, 3, ["0", "1"])
    released = released_by(run, kept, choice, folders["policy"])
    assert released.keys() == last.keys()
    assert all(torch.equal(released[name], last[name]) for name in last)


def test_what_is_too_far_from_the_anchor_is_not_released_and_the_line_there_is_halved_twice(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_in(tmp_path / "s")
    setup, run, asked = told_run(
        folders, stage, monkeypatch, kl={"0": 100.1, "0.5": 100.0, "0.25": 100.1}
    )
    kept = stage.folder / "kept"
    last = saved_tensors(run.models.policy)
    choice = best_checkpoint(setup, run, None, kept)
    assert asked == ["0", "1", "0.5", "0.25"]
    assert (choice.back, choice.iteration) == (0.5, 3)
    average = load_file(kept / "3" / "model.safetensors")
    middle = {n: ((last[n].float() + average[n].float()) / 2).bfloat16() for n in last}
    released = released_by(run, kept, choice, folders["policy"])
    assert all(torch.equal(released[name], middle[name]) for name in middle)
    assert not all(torch.equal(middle[name], average[name]) for name in middle)


def test_last_weights_that_ended_the_run_by_their_kl_are_no_candidate(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_in(tmp_path / "s")
    setup, run, asked = told_run(folders, stage, monkeypatch, kl={})
    run.stopped = "the KL from the anchor reached 0.2 nats per token"
    choice = best_checkpoint(setup, run, None, stage.folder / "kept")
    assert asked == ["1", "0.5", "0.25"]
    assert choice.back == 0.25


def test_the_way_back_ends_where_the_limit_is_kept_and_at_its_end_where_it_never_is() -> None:
    for begins, expected in ((0.0, 0.0), (0.1, 0.25), (0.6, 0.75), (1.0, 1.0), (2.3, 2.5)):
        assert nearest_within(lambda back, begins=begins: back >= begins, furthest=3) == expected
    assert nearest_within(lambda back: False, furthest=3) == 3.0


def test_the_objective_is_the_score_less_beta_times_the_kl(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    stage = stage_in(tmp_path / "s")
    setup, run = kept_run(folders, stage, kl_coef=0.0)
    engine = SamplingEngine(tiny_llama().to(torch.bfloat16))
    folder = stage.folder / "kept" / "3"
    scores = policy_checkpoints.measure(setup, run, engine, folder, "1")
    assert engine.loads == ["checkpoint-1"]
    dearer = replace(setup, settings=setup.settings.model_copy(update={"kl_coef": 2.0}))
    less = policy_checkpoints.measure(dearer, run, engine, folder, "1")
    samples = engine.generate(
        [p.ids for p in setup.validation], n=1, max_tokens=6, temperature=1.0, seed=700_000_012
    )
    kls, tokens = [], 0
    for prompt, (sample,) in zip(setup.validation, samples, strict=True):
        (row,) = pack([Group(prompt=prompt.ids, answers=[sample.token_ids])], token_budget=99)
        ref, _ = row_logprobs(run.models.reference, row, temperature=1.0)
        kls.append(sum(sample.logprobs) - float(ref.detach().sum()))
        tokens += len(sample.token_ids)
    for i, kl in enumerate(kls):
        paid = float(scores.objectives[i] - less.objectives[i])
        assert paid == pytest.approx(2.0 * kl, abs=1e-4)
    assert scores.kl_per_token == less.kl_per_token == pytest.approx(sum(kls) / tokens, abs=1e-5)


def test_it_goes_back_only_for_more_than_a_standard_error() -> None:
    later = torch.zeros(4)
    # mean .5, standard error sqrt(1 / 3) / 2 = .289, then mean .25 and .25
    assert is_better(torch.tensor([1.0, 0.0, 1.0, 0.0]), later)
    assert not is_better(torch.tensor([1.0, 0.0, 0.0, 0.0]), later)
    assert not is_better(later, later)
    assert not is_better(-torch.ones(4), later)


def test_without_a_choice_nothing_is_measured(folders: dict[str, Path], tmp_path: Path) -> None:
    setup = make_setup(iterations=1)
    run = make_run(folders, setup)
    stage = stage_in(tmp_path / "s")
    go(stage, setup, run)
    assert best_checkpoint(setup, run, None, stage.folder / "kept") == Choice(1.0, 1)
