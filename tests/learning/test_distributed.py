"""Two real processes do what one does: the same losses and weights; stopped, resharded, killed."""

import json
import shutil
import signal
import sys
from pathlib import Path

import psutil
import pytest
import torch

from core.hyperparameters import SftSettings
from learning.rounds.child import command_line, num_processes
from learning.training.dealing import dealt, own_rows
from learning.training.distributed import (
    NoSuchDevice,
    any_process,
    compute_on,
    device,
    from_first,
    gathered,
    of_all,
    processes,
    shard,
    sum_over_processes,
    through,
    told_by_first,
)
from learning.training.memory import NotEnoughMemory, available_bytes, need_of
from learning.training.models import load_policy
from learning.training.packing import Group, pack
from learning.training.stage import EXIT_CHECKPOINTED, EXIT_DONE, EXIT_FAILED, Stage, _run
from learning.training.torchrun import _reason, exit_code, in_words
from tests.learning.many_processes import assert_same_weights
from tests.learning.many_processes import start as start_stage
from tests.learning.policy_stage import finish, wait_for_progress
from tests.learning.snapshot_folder import demonstration, write_snapshot
from tests.tiny_model import make_tiny_model

MODULE = "learning.sft.train"
SETTINGS = SftSettings(
    epochs=2,
    learning_rate=2e-3,
    anchor_epochs=1,
    anchor_learning_rate=1e-3,
    batch_demonstrations=5,  # of 11: steps of 5, 5 and 1, so one process has less, or nothing
    min_demonstrations=3,
    token_budget=64,
)
SAME_LOSS = 4e-3
"""Relative: sums in another order, and the embedding's two gradients added in bf16."""


def start(folder, number):
    return start_stage(MODULE, folder, number)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("many")
    make_tiny_model(root / "model")
    words = ("tea", "milk", "rain", "sun", "road", "bread", "glass", "stone", "cloud", "river")
    rows = [
        demonstration(
            f"Say {word}.",
            f"{word} {'and so on ' * (number % 4)}.",
            split="train" if number < 11 else "validation",
        )
        for number, word in enumerate((words * 2)[:14])
    ]
    snapshot = write_snapshot(root / "snapshot", demonstrations=rows, prompts=[])
    return {"snapshot": str(snapshot), "anchor": str(root / "model")}


def prepare(folder, inputs):
    folder.mkdir()
    stage = {**inputs, "settings": SETTINGS.model_dump(mode="json"), "seed": 3, "threads": 1}
    (folder / "stage.json").write_text(json.dumps(stage))
    return folder


def assert_same(found, expected, inputs):
    """Losses after each epoch and final weights, of two finished runs."""
    one, other = (json.loads((f / "out" / "figures.json").read_text()) for f in (expected, found))
    for name in ("anchor", "sft"):
        for figure in ("loss_before", "loss_last_epoch"):
            assert other[name][figure] == pytest.approx(one[name][figure], rel=SAME_LOSS)
        assert one[name]["loss_last_epoch"] < one[name]["loss_before"] - 0.1
        assert other[name]["steps"] == one[name]["steps"]
    assert other["sft"]["judged"] == pytest.approx(one["sft"]["judged"], rel=SAME_LOSS)
    for name in ("anchor", "model"):
        folders = [folder / "out" / name for folder in (expected, found)]
        assert_same_weights(*folders, before=inputs["anchor"])


def test_groups_are_dealt_so_that_all_have_about_as_many_tokens():
    assert dealt([3, 9, 4, 5, 2], 2) == [[0, 1], [2, 3, 4]]  # 12 and 11 tokens
    assert dealt([3, 9, 4, 5, 2], 1) == [[0, 1, 2, 3, 4]]
    assert dealt([7], 3) == [[0], [], []]
    sizes = [(7 * n) % 23 + 1 for n in range(101)]
    hands = dealt(sizes, 4)
    assert sorted(place for hand in hands for place in hand) == list(range(101))
    sums = [sum(sizes[place] for place in hand) for hand in hands]
    assert max(sums) - min(sums) <= max(sizes)


def test_a_process_alone_has_all_rows_and_agrees_with_itself(inputs):
    groups = [Group(prompt=[5, 6], answers=[[7] * (n + 1)]) for n in range(3)]
    with processes():
        rows = own_rows(groups, token_budget=9)
        assert [places for _, places in rows] == [[0, 1], [2]]
        for (row, _), expected in zip(rows, pack(groups, token_budget=9), strict=True):
            assert torch.equal(row.input_ids, expected.input_ids)
        assert (sum_over_processes(2.5), from_first(0.1)) == (2.5, 0.1)
        assert (of_all([3, 1]), told_by_first(lambda: "so")) == ([3, 1], "so")
        assert (any_process(True), any_process(False)) == (True, False)
    layer = torch.nn.Linear(3, 2, dtype=torch.bfloat16)
    shard(layer, [])
    assert layer.weight.dtype == torch.bfloat16
    assert gathered(layer, lambda: torch.nn.Linear(3, 2)) is layer
    assert through(layer, lambda model, added: model.out_features + added, 5) == 7


def test_a_stage_computes_where_it_is_told_to():
    compute_on("cpu")
    assert device() == torch.device("cpu")
    compute_on("auto")
    assert device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(NoSuchDevice, match="learning.device is cuda"):
            compute_on("cuda")


@pytest.mark.parametrize(
    ("codes", "stage"),
    [([75, 75], 75), ([75], 75), ([75, -15], 75), ([3], 3), ([1], 1), ([-9], 1), ([75, 1], 1)],
)
def test_how_processes_ended_is_how_the_stage_ended(codes, stage):
    assert exit_code(codes) == stage


def test_the_log_names_the_process_that_was_killed_before_those_that_failed_of_it():
    said = "process 2 of 3 was killed by SIGKILL: the stage ends"
    assert in_words({0: 1, 1: 1, 2: -9}, 3) == said
    assert in_words({0: -15, 1: 1, 2: -9}, 3) == said
    assert in_words({1: 1}, 3) == "process 1 of 3 ended with 1: the stage ends"
    assert in_words({0: -15, 1: 75}, 2) == "process 1 of 2 ended with 75: the stage ends"


def test_why_a_stage_failed_stands_beside_who_ended_it(tmp_path):
    def refuse(_stage):
        raise NotEnoughMemory("this needs 19 GiB")

    assert _reason(tmp_path) == ""
    with pytest.raises(NotEnoughMemory):
        _run(Stage(folder=tmp_path, inputs={}), refuse)
    assert _reason(tmp_path) == " (this needs 19 GiB)"
    assert _run(Stage(folder=tmp_path, inputs={}), lambda _stage: {}) == EXIT_DONE
    assert _reason(tmp_path) == ""


def test_processes_are_counted_without_the_driver_and_an_evaluation_has_one(tmp_path):
    gpus = {"CUDA_VISIBLE_DEVICES": "0,3,5"}
    assert num_processes(0, device="auto", environment=gpus) == 3
    assert num_processes(0, device="cpu", environment=gpus) == 1
    assert num_processes(2, device="cpu", environment={}) == 2
    assert num_processes(0, device="auto", environment={"CUDA_VISIBLE_DEVICES": ""}) == 1
    many = ["-m", "learning.training.torchrun", "3", MODULE, str(tmp_path)]
    assert command_line("local", MODULE, tmp_path, 3) == [sys.executable, *many]
    assert command_line("local", MODULE, tmp_path, 1) == [sys.executable, *many[0:1], *many[3:]]
    assert "learning.training.torchrun" not in command_line(
        "local", "learning.evaluation.evaluate", tmp_path, 3
    )
    template = "torchrun --nproc-per-node {processes} -m {module} {folder}"
    assert command_line(template, MODULE, tmp_path, 3)[2] == "3"


def test_a_model_needs_less_memory_when_others_hold_a_part(inputs):
    model = load_policy(Path(inputs["anchor"]))
    whole = need_of([model], model, token_budget=512)
    part = need_of([model], model, token_budget=512, processes=3)
    assert part.optimiser == -(-whole.optimiser // 3)
    assert part.per_token == whole.per_token
    cpu = torch.device("cpu")
    assert available_bytes(cpu, processes=3) < 0.6 * available_bytes(cpu)


@pytest.mark.slow
def test_two_processes_are_one_and_a_stopped_run_goes_on_with_either_number(inputs, tmp_path):
    straight = prepare(tmp_path / "straight", inputs)
    assert finish(start(straight, 1), straight) == 0

    two = prepare(tmp_path / "two", inputs)
    process = start(two, 2)
    wait_for_progress(process, two, "sft: step 2")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == EXIT_CHECKPOINTED
    assert not (two / "out").exists()
    assert [path.name for path in two.glob("checkpoint-*")]  # a folder, pointed to by a file
    one = shutil.copytree(two, tmp_path / "one")

    assert finish(start(two, 2), two) == 0
    assert finish(start(one, 1), one) == 0
    assert_same(two, straight, inputs)
    assert_same(one, straight, inputs)
    assert json.loads((two / "out" / "figures.json").read_text())["sft"]["processes"] == 2
    assert not [*two.glob("checkpoint*"), *one.glob("checkpoint*")]


@pytest.mark.slow
def test_a_killed_process_ends_the_stage_and_the_log_says_which(inputs, tmp_path):
    folder = prepare(tmp_path / "killed", inputs)
    process = start(folder, 2)
    wait_for_progress(process, folder, "anchor: step 1")
    ranks = psutil.Process(process.pid).children()
    assert len(ranks) == 2
    next(p for p in ranks if p.environ()["RANK"] == "1").kill()
    assert process.wait(60) == EXIT_FAILED
    assert "process 1 of 2 was killed by SIGKILL: the stage ends" in (folder / "log").read_text()
    gone, alive = psutil.wait_procs(ranks, timeout=10)
    assert not alive
    assert not (folder / "out").exists()
