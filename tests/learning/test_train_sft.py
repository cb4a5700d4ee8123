"""The stage as the runner starts it: a process on a folder; stopped, resumed, refused."""

import json
import signal

import pytest
import torch
from safetensors.torch import load_file

from core.hyperparameters import SftSettings
from learning.training.models import init_reward_model, save_reward_model
from learning.training.stage import EXIT_CHECKPOINTED, EXIT_NOT_ENOUGH_DATA
from tests.learning.event_files import read_scalars
from tests.learning.policy_stage import finish, prepare, run, start, wait_for_progress
from tests.learning.snapshot_folder import chat, demonstration, write_snapshot
from tests.tiny_model import make_tiny_model

MODULE = "learning.sft.train"
SETTINGS = SftSettings(
    epochs=3,
    learning_rate=2e-3,
    anchor_learning_rate=1e-3,
    batch_demonstrations=5,
    min_demonstrations=10,
    selection_prompts=6,
    max_new_tokens=7,
    token_budget=300,
)
WORDS = ("tea", "milk", "rain", "sun", "road", "bread", "glass", "stone", "cloud", "river", "lamp")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("sft")
    make_tiny_model(root / "model")
    reward_model = init_reward_model(root / "model", head_init_std=0.5, seed=1)
    save_reward_model(reward_model, root / "reward", tokenizer_from=root / "model")
    rows = [
        demonstration(
            f"Say {word}, number {number}.",
            f"{word} is what you asked for.",
            split="train" if number < 24 else "validation",
            heldout_rater=number == 3,
        )
        for number, word in enumerate(WORDS * 3)
    ]
    prompts = [
        {"prompt_id": f"p{n}", "messages": chat(f"Say {word}."), "user": "u", "split": "validation"}
        for n, word in enumerate(WORDS)
    ]
    snapshot = write_snapshot(root / "snapshot", demonstrations=rows, prompts=prompts)
    return {"snapshot": str(snapshot), "anchor": str(root / "model")}, str(root / "reward")


@pytest.mark.slow
def test_both_models_learn_and_a_stopped_run_ends_with_the_same_weights(inputs, tmp_path):
    figures = run(MODULE, straight := prepare(tmp_path / "straight", inputs[0], SETTINGS))
    assert figures["demonstrations"] == 23  # held-out raters do not train
    assert figures["chosen_by"] == "loss on held-out demonstrations"
    assert len(figures["sft"]["judged"]) == 3
    assert figures["anchor"]["examples"] == 26
    for name in ("anchor", "sft"):
        assert figures[name]["loss_last_epoch"] < figures[name]["loss_before"] - 0.5

    stopped = prepare(tmp_path / "stopped", inputs[0], SETTINGS)
    process = start(MODULE, stopped)
    wait_for_progress(process, stopped, "sft: step 4")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == EXIT_CHECKPOINTED
    assert not (stopped / "out").exists()
    assert finish(start(MODULE, stopped), stopped) == 0
    for name in ("anchor", "model"):
        expected = load_file(straight / "out" / name / "model.safetensors")
        found = load_file(stopped / "out" / name / "model.safetensors")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
        assert (stopped / "out" / name / "tokenizer.json").is_file()
    for part in ("anchor", "sft"):  # what TensorBoard shows is one line, too
        watched = [read_scalars(folder / "tensorboard" / part) for folder in (straight, stopped)]
        assert watched[0]["loss"] == watched[1]["loss"]
        assert [step for step, _ in watched[0]["loss"]] == [
            step for step, rate in watched[1]["learning_rate"] if rate > 0.0
        ]
        assert len(watched[0]["loss"]) == figures[part]["steps"]
        assert len(watched[0].get("judged", [])) == (3 if part == "sft" else 0)


@pytest.mark.slow
def test_the_reward_model_chooses_the_epoch_by_sampled_answers(inputs, tmp_path):
    quick = SETTINGS.model_copy(update={"epochs": 2, "anchor_epochs": 1})
    folder = prepare(tmp_path / "run", {**inputs[0], "reward_model": inputs[1]}, quick)
    figures = run(MODULE, folder)
    assert figures["chosen_by"] == "reward model"
    judged = figures["sft"]["judged"]
    assert len(judged) == 2
    assert figures["sft"]["chosen_epoch"] == judged.index(max(judged)) + 1


def test_too_few_demonstrations_are_not_enough_data(inputs, tmp_path):
    greedy = SETTINGS.model_copy(update={"min_demonstrations": 24})
    folder = prepare(tmp_path / "run", inputs[0], greedy)
    assert start(MODULE, folder).wait(60) == EXIT_NOT_ENOUGH_DATA
    reason = json.loads((folder / "refusal.json").read_text())["reason"]
    assert "23 demonstrations" in reason
    assert "min_demonstrations" in reason
