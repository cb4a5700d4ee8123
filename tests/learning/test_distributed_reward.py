"""The stage `reward_model` by two real processes: as one alone does it, and taken up by one."""

import json
import random
import shutil

import pytest
import torch

from core.hyperparameters import RewardModelSettings
from learning.reward_model.disagreement import load_heads
from learning.reward_model.train import main
from learning.training.stage import EXIT_DONE, Stage, _run
from tests.learning.many_processes import assert_same_weights, start
from tests.learning.policy_stage import finish
from tests.learning.snapshot_folder import ranking, rating, unranked, write_snapshot
from tests.tiny_model import make_tiny_model

MODULE = "learning.reward_model.train"
SETTINGS = RewardModelSettings(
    epochs=2,
    learning_rate=1e-3,
    frozen_share=0.5,  # the embedding and one layer of two
    head_init_std=1e-2,
    batch_prompts=3,  # of 16: the last of an epoch is alone, so one process has no row
    token_budget=128,
    min_comparisons=10,
    min_accuracy=0.0,
    normalisation="bias_and_gain",
    heads=3,
    scored_prompts=2,
)
SAME_LOSS = 5e-3
"""Relative: the body is bf16, and rows are other ones."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("many")
    draw = random.Random(7)
    words = ["tea", "milk", "rain", "sun", "road", "bread", "glass", "stone", "cloud", "river"]
    rows = []
    for number in range(22):
        texts = [" ".join(draw.choices(words, k=length)) for length in draw.sample(range(1, 9), 3)]
        ranks = {text: rank for rank, text in enumerate(sorted(texts, key=len), start=1)}
        split = "train" if number < 16 else "validation"
        said = ranking(f"g{number}", f"Say number {number}.", ranks, split=split)
        rows.append(said)
    snapshot = write_snapshot(
        root / "snapshot",
        rankings=rows,
        ratings=[rating("Say it.", "tea", "thumb", 1.0), rating("Say.", "rain sun", "rating", 6.0)],
        unranked=[
            unranked("a", "Say this.", "Elbe, Rhine!", "x = 3;", "sun road", created_at=1.0),
            unranked("b", "Say that.", "tea", "a longer answer", created_at=2.0),
        ],
    )
    make_tiny_model(root / "model")
    return {"snapshot": str(snapshot), "anchor": str(root / "model")}


def prepare(folder, inputs):
    folder.mkdir()
    stage = {**inputs, "settings": SETTINGS.model_dump(mode="json"), "seed": 3, "threads": 1}
    (folder / "stage.json").write_text(json.dumps(stage))
    return folder


def figures_of(folder):
    return json.loads((folder / "out" / "figures.json").read_text())


def alone(folder):
    """The stage in this very process."""
    inputs = json.loads((folder / "stage.json").read_text())
    threads = torch.get_num_threads()
    try:
        code = _run(Stage(folder=folder, inputs=inputs), main)
    finally:
        torch.set_num_threads(threads)
    assert code == EXIT_DONE


def assert_same(expected, found, inputs, *, steps):
    one, other = figures_of(expected), figures_of(found)
    assert other["steps"] == one["steps"] == steps
    assert other["chosen_epoch"] == one["chosen_epoch"]
    for figure in ("loss", "cuts", "pairs"):
        for name, value in one[figure].items():
            assert other[figure][name] == pytest.approx(value, rel=SAME_LOSS, abs=1e-3), name
    models = [folder / "out" / "model" for folder in (expected, found)]
    assert_same_weights(*models, before=inputs["anchor"])
    torch.testing.assert_close(*map(load_heads, models), rtol=0.05, atol=1e-3)
    said = [(folder / "out" / "disagreement.jsonl").read_text() for folder in (expected, found)]
    values = [[json.loads(line)["disagreement"] for line in text.splitlines()] for text in said]
    assert values[1] == pytest.approx(values[0], rel=0.1)


def one_more_epoch(folder):
    """A finished run's checkpoint, to go on from."""
    further = shutil.copytree(folder, folder.with_name(f"{folder.name}-on"))
    shutil.rmtree(further / "out")
    stage = json.loads((further / "stage.json").read_text())
    stage["settings"]["epochs"] += 1
    (further / "stage.json").write_text(json.dumps(stage))
    return further


@pytest.mark.slow
def test_two_processes_are_one_and_one_takes_up_their_checkpoint(inputs, tmp_path):
    two = prepare(tmp_path / "two", inputs)
    process = start(MODULE, two, 2)
    straight = prepare(tmp_path / "straight", inputs)
    alone(straight)
    assert finish(process, two) == 0
    assert_same(straight, two, inputs, steps=12)
    figures = figures_of(two)
    assert (figures["processes"], figures_of(straight)["processes"]) == (2, 1)
    assert figures["loss"]["last_epoch"] < 0.68  # ln 2 where nothing is learned
    assert 0.5 < figures["memory"]["predicted_gib"] / figures["memory"]["peak_gib"] < 2.0
    assert "GiB for each of 2 processes" in (two / "log").read_text()

    on = [one_more_epoch(folder) for folder in (straight, two)]
    for folder in on:
        alone(folder)
    assert_same(*on, inputs, steps=18)
