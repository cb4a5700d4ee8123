"""PPO with adapters: the loop on a tiny model, what it holds, keeps and releases."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader

from learning.policy import checkpoints as policy_checkpoints
from learning.policy import train as train_policy
from learning.policy.checkpoints import Choice, best_checkpoint, take_back
from learning.policy.experience import row_logprobs
from learning.policy.figures import learned_figures
from learning.policy.run import (
    PolicyRun,
    export,
    load_checkpoint,
    load_models,
    memory_need,
    new_run,
    save_checkpoint,
    whole_policy,
)
from learning.policy.setup import Setup
from learning.policy.updates import text_loss
from learning.training.lora import adapter_weights, without_adapters
from learning.training.models import load_policy
from learning.training.packing import pack
from learning.training.rollouts import Prompt
from learning.training.stage import Interrupted, Stage
from tests.learning.packing_cases import GROUPS
from tests.learning.policy_stage import POLICY, prepare, write_inputs
from tests.learning.ppo_loop import (
    go,
    make_run,
    make_setup,
    stage_in,
    weights,
    write_models,
)

LORA = {"lora_rank": 3, "lora_alpha": 6.0, "learning_rate": 0.03, "value_learning_rate": 0.03}
(ROW,) = pack(GROUPS, token_budget=64)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def played(
    folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Setup, PolicyRun, Path, list[str]]:
    """All iterations of a run with adapters, and what its engine was given."""
    prompts = [Prompt(f"v{i}", f"v{i}", "[]", (7 + i, 40, 12)) for i in range(3)]
    setup = replace(make_setup(checkpoints_kept=2, **LORA), validation=prompts)
    run = make_run(folders, setup)
    stage = stage_in(tmp_path_factory.mktemp("played") / "s")
    engine = go(stage, setup, run)
    return setup, run, stage.folder / "kept", engine.loads


def base_weights(run: PolicyRun) -> dict[str, torch.Tensor]:
    """Of the policy, under the names that they have without adapters."""
    state = run.models.policy.state_dict()
    return {name.replace(".base_layer", ""): state[name] for name in state if "lora_" not in name}


def test_the_loop_turns_with_adapters_alone_and_the_rest_stays_as_it_was(folders, played) -> None:
    _, run, _, loads = played
    first, _, third = run.history
    assert (first["kl_per_token"], first["kl_k3_per_token"]) == (0.0, 0.0)
    assert [part["first_ratio_error"] for part in run.history] == [0.0] * 3
    assert third["kl_k3_per_token"] > 0.0
    assert third["engine_max_abs"] < 0.5  # the engine has what the adapters say, merged
    assert loads == ["iteration-1", "iteration-2"]
    base = load_policy(folders["policy"])
    for name, tensor in base.state_dict().items():
        assert torch.equal(base_weights(run)[name], tensor), name
    learned = sum(p.numel() for p in run.policy_optimiser.parameters)
    assert learned == adapter_weights(base, rank=3) == sum(map(torch.numel, run.average))


def test_the_anchor_and_the_reward_model_are_what_policy_and_value_model_began_as(
    folders, played
) -> None:
    setup, run, _, _ = played
    models = run.models
    assert models.reference is models.policy
    assert models.reward_model is models.value
    base = load_policy(folders["policy"])
    with torch.no_grad(), without_adapters(models.reference) as anchor:
        found, _ = row_logprobs(anchor, ROW, temperature=1.0)
        assert torch.equal(found, row_logprobs(base, ROW, temperature=1.0)[0])
    figures = learned_figures(run, setup.retention)
    assert figures["ptx_loss_before"] == text_loss(base, setup.retention)
    assert figures["ptx_loss_after"] != figures["ptx_loss_before"]
    assert figures["trained_parameters"] == adapter_weights(base, rank=3)


def test_an_anchor_that_is_not_the_parent_is_a_model_of_its_own(folders, tmp_path: Path) -> None:
    model = load_policy(folders["policy"])
    with torch.no_grad():
        model.model.norm.weight.mul_(2.0)
    model.save_pretrained(tmp_path / "anchor")
    models = load_models(
        parent=folders["policy"],
        anchor=tmp_path / "anchor",
        reward_model=folders["reward"],
        settings=make_setup(**LORA).settings,
    )
    assert models.reference is not models.policy
    with torch.no_grad(), without_adapters(models.reference) as anchor:
        found, _ = row_logprobs(anchor, ROW, temperature=1.0)
        assert torch.equal(found, row_logprobs(model, ROW, temperature=1.0)[0])
    assert not any(p.requires_grad for p in models.reference.parameters())


def test_a_run_is_taken_up_where_it_was(folders, played, tmp_path: Path) -> None:
    setup, straight, _, _ = played
    stage, run = stage_in(tmp_path / "s"), make_run(folders, setup)
    go(stage, setup, run, until=2)
    save_checkpoint(run, stage.checkpoint)
    (folder,) = stage.folder.glob("checkpoint-*")
    written = FileSystemReader(folder).read_metadata().state_dict_metadata
    masters = sum(math.prod(t.size) for name, t in written.items() if ".master." in name)
    assert masters == sum(
        parameter.numel()
        for optimiser in (run.policy_optimiser, run.value_optimiser)
        for parameter in optimiser.parameters
    )
    assert masters < 0.4 * sum(p.numel() for p in run.models.policy.parameters())
    models = load_models(
        parent=folders["policy"],
        anchor=folders["policy"],
        reward_model=folders["reward"],
        settings=setup.settings,
        seed=99,  # other adapters than those that the checkpoint brings
    )
    again = new_run(models, setup.settings)
    assert not torch.equal(weights(again), weights(run))
    assert load_checkpoint(again, stage.checkpoint)
    go(stage, setup, again)
    assert torch.equal(weights(again), weights(straight))


def test_between_the_last_weights_and_their_average_is_released_what_was_measured(
    folders, played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, run, kept, _ = played
    assert load_file(kept / "3" / "model.safetensors").keys() == {
        name for name, p in run.models.policy.named_parameters() if p.requires_grad
    }
    tensors = {}

    def measure(setup, run, engine, folder, name) -> policy_checkpoints.Measured:
        tensors[name] = load_file(folder / "model.safetensors")
        kl = 101.0 if name in ("0", "0.25") else 0.0
        return policy_checkpoints.Measured(torch.arange(6.0), kl)

    monkeypatch.setattr(policy_checkpoints, "measure", measure)
    last = whole_policy(run).state_dict()
    choice = best_checkpoint(setup, run, None, kept)
    assert (choice.back, list(tensors)) == (0.5, ["0", "1", "0.5", "0.25"])
    assert all(torch.equal(last[name], tensor) for name, tensor in tensors["0"].items())
    take_back(run, kept, choice)
    changed = export(run, tmp_path / "out", parent=folders["policy"])
    released = load_file(tmp_path / "out" / "model.safetensors")
    assert released.keys() == load_file(folders["policy"] / "model.safetensors").keys()
    assert all(torch.equal(released[name], tensors["0.5"][name]) for name in released)
    assert not all(torch.equal(released[name], tensors["1"][name]) for name in released)
    assert 0.1 < changed < 1.0  # the embedding and the norms are the parent's
    with torch.no_grad():  # the policy in memory is what was released
        found, _ = row_logprobs(run.models.policy, ROW, temperature=1.0)
        there, _ = row_logprobs(load_policy(tmp_path / "out"), ROW, temperature=1.0)
    assert (found - there).abs().max() < 0.2


def test_without_a_choice_the_average_is_released(folders, tmp_path: Path) -> None:
    run = make_run(folders, make_setup(**LORA))
    take_back(run, tmp_path, Choice(1.0, 1))
    assert export(run, tmp_path / "out", parent=folders["policy"]) == 0.0


def test_what_a_run_needs_is_predicted_lower_with_adapters(folders) -> None:
    needs = {}
    for rank in (0, 3):
        settings = make_setup(lora_rank=rank).settings
        models = load_models(
            parent=folders["policy"],
            anchor=folders["policy"],
            reward_model=folders["reward"],
            settings=settings,
        )
        needs[rank] = memory_need(models, settings)
    learned = adapter_weights(load_policy(folders["policy"]), rank=3)
    assert needs[3].optimiser < needs[0].optimiser / 3
    assert needs[3].optimiser > (12 + 4 + 4) * learned
    assert needs[3].total - needs[3].held < needs[0].total - needs[0].held


@pytest.mark.slow
def test_a_stage_that_was_left_and_taken_up_releases_an_ordinary_model(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in")
    settings = POLICY.model_copy(update={"lora_rank": 4, "iterations": 2})
    folder = prepare(tmp_path / "s", inputs, settings)
    told = json.loads((folder / "stage.json").read_text())
    told["engine"]["kind"] = "transformers"
    stage = Stage(folder=folder, inputs=told)
    stage.partial.mkdir()
    stage.stopping = True
    with pytest.raises(Interrupted):
        train_policy.train_policy(stage)
    figures = train_policy.train_policy(Stage(folder=folder, inputs=told))
    parent = load_policy(Path(inputs["parent"]))
    assert figures["trained_parameters"] == adapter_weights(parent, rank=4)
    assert [part["first_ratio_error"] for part in figures["iterations"]] == [0.0, 0.0]
    assert figures["iterations"][1]["engine_max_abs"] < 0.5  # it had the merged weights
    released = load_policy(folder / "out.partial" / "model")
    same = {
        name
        for name, tensor in released.state_dict().items()
        if torch.equal(tensor, parent.state_dict()[name])
    }
    assert {name for name in parent.state_dict() if "proj" not in name} == same
