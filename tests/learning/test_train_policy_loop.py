"""The loop of train_policy on a tiny model, with an engine that samples from the same weights."""

from pathlib import Path

import pytest
import torch

from learning.policy import train as train_policy
from learning.policy.run import (
    changed_share,
    export,
    load_checkpoint,
    save_checkpoint,
    update_average,
)
from learning.policy.stops import Diverged
from learning.policy.train import step_plan
from learning.training import checkpoints
from learning.training.stage import Interrupted
from tests.learning.event_files import read_scalars
from tests.learning.packing_cases import VOCABULARY, tiny_llama
from tests.learning.ppo_loop import (
    SETTINGS,
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


def test_the_plan_of_the_first_iteration_begins_with_the_value_model_alone() -> None:
    plan = step_plan(SETTINGS, first=True)
    assert plan == [
        ("value", -1, 0), ("value", -1, 1), ("value", 0, 0), ("value", 0, 1),
        ("policy", 0, 0), ("policy", 0, 1),
    ]  # fmt: skip
    assert step_plan(SETTINGS, first=False) == plan[2:]
    twice = step_plan(SETTINGS.model_copy(update={"inner_epochs": 2}), first=False)
    assert twice[4:] == [("value", 1, 0), ("policy", 1, 0), ("value", 1, 1), ("policy", 1, 1)]


def test_a_run_reports_what_it_does_and_starts_at_the_anchor(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    setup = make_setup()
    run = make_run(folders, setup)
    engine = go(stage := stage_in(tmp_path / "s"), setup, run)
    first, second, third = run.history
    assert (first["kl_per_token"], first["kl_k3_per_token"]) == (0.0, 0.0)
    assert first["first_ratio_error"] == third["first_ratio_error"] == 0.0
    assert third["kl_k3_per_token"] > 0.0
    assert third["engine_max_abs"] < 0.5  # the engine has the trainer's weights each time
    assert engine.loads == ["iteration-1", "iteration-2"]
    assert first["learning_rate"] == pytest.approx(1e-3)
    assert second["learning_rate"] == pytest.approx(1e-2)
    assert run.ptx_coef is not None
    assert run.ptx_coef > 0.0
    assert run.policy_steps == 6
    shown = read_scalars(stage.folder / "tensorboard")
    for name in ("reward", "kl_per_token", "entropy", "clip_fraction", "policy_loss", "value_loss"):
        figures = [(n + 1, pytest.approx(part[name])) for n, part in enumerate(run.history)]
        assert shown[name] == figures
    assert shown["rollout_tokens_per_second"][2][1] > 0.0


@pytest.mark.parametrize("inner_epochs", [1, 2])
def test_a_run_that_is_stopped_at_any_point_and_resumed_ends_with_the_same_weights(
    folders: dict[str, Path], tmp_path: Path, inner_epochs: int
) -> None:
    setup = make_setup(inner_epochs=inner_epochs, adaptive_kl_target=0.5)
    straight = make_run(folders, setup)
    go(stage_in(tmp_path / "straight"), setup, straight)
    stage = stage_in(tmp_path / "broken")
    interruptions = 0
    while True:
        run = make_run(folders, setup)
        if stage.checkpoint.exists():
            load_checkpoint(run, stage.checkpoint)
        if run.iteration == setup.settings.iterations:
            break
        stage.stopping = True  # SIGTERM: leave at the next point where that is possible
        before = (run.iteration, run.step, run.experience is not None)
        if run.experience is None:
            stage.stopping = False
            engine = SamplingEngine(tiny_llama().to(torch.bfloat16))
            engine.load_model(run.models.policy, version="again")
            train_policy._begin(stage, setup, run, engine)
            stage.stopping = True
        with pytest.raises(Interrupted):
            train_policy._iterate(stage, setup, run, SamplingEngine(None))
        interruptions += 1
        assert (run.iteration, run.step, run.experience is not None) != before
    assert interruptions >= setup.settings.iterations * len(step_plan(setup.settings, first=False))
    assert torch.equal(weights(run), weights(straight))
    assert run.kl_coef == straight.kl_coef
    assert run.ptx_coef == straight.ptx_coef


def test_a_policy_rate_of_zero_moves_nothing_and_releases_the_parent(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    setup = make_setup(learning_rate=0.0, iterations=2)
    run = make_run(folders, setup)
    go(stage_in(tmp_path / "s"), setup, run)
    assert run.history[-1]["kl_per_token"] == 0.0
    assert export(run, tmp_path / "out", parent=folders["policy"]) == 0.0


def test_a_run_stops_before_the_next_update_once_the_kl_is_too_large(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    setup = make_setup(stop_kl_per_token=1e-6, iterations=5, learning_rate=0.05)
    run = make_run(folders, setup)
    go(stage_in(tmp_path / "s"), setup, run)
    assert run.stopped is not None
    assert "KL" in run.stopped
    assert run.iteration == len(run.history) < 5
    assert run.policy_steps == 2 * (run.iteration - 1)


def test_a_run_whose_weights_are_not_numbers_stops_and_says_why(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    setup = make_setup()
    run = make_run(folders, setup)
    head = run.models.value.head
    with torch.no_grad():
        head.fill_(float("nan"))
    with pytest.raises(Diverged, match="iteration 1.*nan"):
        go(stage_in(tmp_path / "s"), setup, run)


def test_a_policy_that_jumps_stops_and_says_why(folders: dict[str, Path], tmp_path: Path) -> None:
    setup = make_setup(learning_rate=30.0, warmup_iterations=0)
    run = make_run(folders, setup)
    with pytest.raises(Diverged, match="ratio|nats|finite"):
        go(stage_in(tmp_path / "s"), setup, run)


def test_the_average_moves_by_the_share_that_the_decay_leaves() -> None:
    average = [torch.tensor([0.0, 4.0]), torch.tensor([[1.0]])]
    update_average(average, [torch.tensor([1.0, 0.0]), torch.tensor([[1.0]])], decay=0.75)
    assert average[0].tolist() == [0.25, 3.0]
    assert average[1].tolist() == [[1.0]]


def test_what_is_released_is_the_average_rounded_to_bf16(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    run = make_run(folders, make_setup())
    for averaged in run.average:
        averaged.add_(1.0)
    share = export(run, tmp_path / "out", parent=folders["policy"])
    assert share > 0.99
    from transformers import AutoModelForCausalLM

    released = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    parameters = dict(released.named_parameters())
    for (name, parent), averaged in zip(
        run.models.policy.named_parameters(), run.average, strict=True
    ):
        assert torch.equal(parameters[name], averaged.to(torch.bfloat16)), name
        assert torch.equal(parent, parameters[name])


def test_the_changed_share_counts_numbers_that_differ_after_rounding(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    model = tiny_llama(seed=4).to(torch.bfloat16)
    model.load_state_dict(make_run(folders, make_setup()).models.policy.state_dict())
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] += 1.0
    model.save_pretrained(tmp_path / "changed")
    total = sum(p.numel() for p in model.parameters())
    share = changed_share(tmp_path / "changed", folders["policy"])
    assert share == pytest.approx(VOCABULARY / total)


def test_a_half_written_checkpoint_never_replaces_a_whole_one(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(folders, make_setup())
    save_checkpoint(run, tmp_path / "checkpoint")
    run.iteration = 2

    def killed(state, *, checkpoint_id: Path, **options) -> None:
        checkpoint_id.mkdir()
        (checkpoint_id / "half").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(run, tmp_path / "checkpoint")
    again = make_run(folders, make_setup())
    load_checkpoint(again, tmp_path / "checkpoint")
    assert again.iteration == 0
