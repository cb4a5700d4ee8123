"""The stage as the runner starts it: a process on a folder; killed, resumed, refused."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from core.hyperparameters import RewardModelSettings
from learning.reward_model.dataset import read_feedback
from learning.reward_model.disagreement import FILE, disagreement, load_heads
from learning.reward_model.labeling_worth import publish_disagreement, read_disagreement
from learning.reward_model.steps import featured_rows, scored_rows
from learning.reward_model.unranked import unranked as unranked_groups
from learning.training.models import load_reward_model
from learning.training.stage import EXIT_CHECKPOINTED, EXIT_DONE, EXIT_NOT_ENOUGH_DATA
from tests.learning.event_files import read_scalars
from tests.learning.snapshot_folder import ranking, rating, unranked, write_snapshot
from tests.tiny_model import make_tiny_model

WORDS = "tea milk rain sun road bread glass stone cloud river lamp chair"
TOPICS = "a cat|a dog|a cold day|an old house|a long walk|a small boat|a red car|a new friend"


@pytest.fixture(scope="module")
def anchor(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("anchor"))


def _snapshot(folder, *, train=40, validation=12, seed=0):
    """Raters who like short answers; a third of the validation rankings is by held-out raters."""
    draw = random.Random(seed)
    rows = []
    for number in range(train + validation):
        texts = [
            " ".join(draw.choices(WORDS.split(), k=length)) + "."
            for length in draw.sample(range(1, 12), 5)
        ]
        by_length = sorted(texts, key=lambda text: len(text.split()))
        rows.append(
            ranking(
                f"g{number}",
                f"Say something about {draw.choice(TOPICS.split('|'))}, number {number}.",
                {text: by_length.index(text) + 1 for text in texts},
                split="train" if number < train else "validation",
                heldout=number >= train and number % 3 == 0,
            )
        )
    thumbs = [rating("Say it.", "tea", "thumb", 1.0), rating("Say it.", "tea " * 9, "thumb", 0.0)]
    likert = [rating("Say it.", "rain sun", "rating", 6.0)]
    logged = [
        unranked("old", "Say it.", "tea", "tea milk", created_at=1.0),
        unranked("alike", "Say that.", "rain sun", "rain  sun", created_at=2.0),
        unranked("long", "Say all.", "cup " * 400, "cup", created_at=3.0),
        unranked("apart", "Say this.", "Elbe, Rhine!", "x = 3;", "sun road", created_at=4.0),
    ]
    return write_snapshot(folder, rankings=rows, ratings=thumbs + likert, unranked=logged)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    return _snapshot(tmp_path_factory.mktemp("data") / "snapshot")


def _stage(folder, anchor, snapshot, **changes):
    settings = RewardModelSettings(
        epochs=3,
        learning_rate=3e-3,
        head_init_std=1e-3,
        token_budget=400,
        frozen_share=0.0,
        min_accuracy=0.0,
        checkpoint_every=7,
        heads=5,
        scored_prompts=2,
    ).model_copy(update=changes.pop("settings", {}))
    folder.mkdir(parents=True)
    inputs = {
        "snapshot": str(snapshot),
        "anchor": str(anchor),
        "settings": settings.model_dump(mode="json"),
        "seed": 3,
        "threads": 1,
        "idle_priority": False,
        **changes,
    }
    (folder / "stage.json").write_text(json.dumps(inputs))
    return folder


def _start(folder):
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "learning.reward_model.train", str(folder)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_WAIT_POLICY": "passive"},
        )


def _run(folder):
    code = _start(folder).wait(timeout=120)
    return code, (folder / "log").read_text()


def _figures(folder):
    return json.loads((folder / "out" / "figures.json").read_text())


def _weights(folder):
    return load_file(folder / "out" / "model" / "model.safetensors")


def _wait_for(condition, process, folder):
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.01)


def _step(folder):
    """Steps taken so far, as the progress file says."""
    try:
        message = json.loads((folder / "progress.json").read_text())["message"]
    except FileNotFoundError:
        return 0
    return int(message.split()[1]) if message.startswith("step") else 10**6


@pytest.fixture(scope="module")
def finished(tmp_path_factory, anchor, snapshot):
    """A run that nobody disturbs."""
    folder = _stage(tmp_path_factory.mktemp("run") / "stage", anchor, snapshot)
    code, log = _run(folder)
    assert code == EXIT_DONE, log
    return folder


@pytest.mark.slow
def test_it_learns_what_raters_like_and_says_how_well(finished):
    figures = _figures(finished)
    assert figures["accuracy"]["validation"] > 0.85
    assert figures["accuracy"]["validation_heldout_raters"] > 0.8
    assert figures["accuracy"]["train"] > 0.85
    assert figures["pairs"]["trained"] == 40 * 10
    assert figures["pairs"]["validation"] == 12 * 10
    assert figures["pairs"]["validation_heldout_raters"] == 4 * 10
    assert (figures["steps"], len(figures["epochs"])) == (60, 3)
    assert figures["judgements"] == 3
    assert figures["shuffled_labels"] is False


@pytest.mark.slow
def test_tensorboard_shows_every_step_and_every_epoch(finished):
    shown = read_scalars(finished / "tensorboard")
    assert [step for step, _ in shown["loss"]] == list(range(1, 61))
    rates = [rate for _, rate in shown["learning_rate"]]
    assert rates == sorted(rates, reverse=True)
    figures = _figures(finished)
    accuracies = [epoch["validation"]["accuracy"] for epoch in figures["epochs"]]
    assert shown["validation/accuracy"] == [
        (20 * (number + 1), pytest.approx(value)) for number, value in enumerate(accuracies)
    ]


@pytest.mark.slow
def test_the_figures_say_how_far_probabilities_hold_and_what_the_score_goes_with(finished):
    figures = _figures(finished)
    held = figures["calibration"]
    assert held["pairs"] == 12 * 10 == sum(row["pairs"] for row in held["table"])
    assert 0 <= held["expected_error"] < 0.25
    right = sum(row["pairs"] * row["came_true"] for row in held["table"]) / held["pairs"]
    assert right == pytest.approx(figures["accuracy"]["validation"])
    goes_with = figures["score_goes_with"]
    assert goes_with["answers"] == 12 * 5
    assert goes_with["length"] < -0.7
    assert goes_with["r_squared"] > 0.5
    assert abs(goes_with.get("sentiment", 0.0)) < 0.5
    assert "rater_folds" not in figures
    best = figures["best_of"]
    assert 0.5 < best["win_rate"] <= 1.0
    assert best["rankings"] > 0


@pytest.mark.slow
async def test_heads_learn_beside_the_model_and_say_what_to_label_next(finished, snapshot, redis):
    from transformers import AutoTokenizer

    figures = _figures(finished)
    assert figures["accuracy"]["ensemble"] > 0.8
    assert (figures["heads"], figures["scored_prompts"]) == (5, 2)
    folder = finished / "out" / "model"
    model, heads = load_reward_model(folder), load_heads(folder)
    assert heads.shape == (5, model.head.shape[1])
    named = unranked_groups(
        snapshot, AutoTokenizer.from_pretrained(folder), most=2, longest=400
    )  # the newest two of those that fit
    assert [name for name, _ in named] == ["apart", "alike"]
    with torch.no_grad():
        rows = featured_rows(model, [group for _, group in named], token_budget=400)
        expected = [disagreement(heads @ features.T) for row in rows for _, _, features in row]
    assert await publish_disagreement(redis, finished / "out") == 2
    found = await read_disagreement(redis, ["apart", "alike", "old"])
    assert found.keys() == {"apart", "alike"}
    assert [found["apart"], found["alike"]] == pytest.approx(expected, rel=0.05)  # head in bf16
    assert found["apart"] > found["alike"] > 0


@pytest.mark.slow
def test_the_saved_model_has_the_accuracy_and_the_scale_that_the_figures_say(
    finished, snapshot, anchor
):
    from transformers import AutoTokenizer

    figures = _figures(finished)
    model = load_reward_model(finished / "out" / "model")
    data = read_feedback(snapshot, AutoTokenizer.from_pretrained(finished / "out" / "model"))
    train = [g.group for g in data.split("train")]
    with torch.no_grad():
        rows = scored_rows(model, train, token_budget=400)
        scores = torch.cat([s for row in rows for _, s in row])
    assert scores.mean().item() == pytest.approx(0.0, abs=0.05)
    assert scores.std().item() == pytest.approx(1.0, abs=0.05)
    assert figures["score_sd"] == pytest.approx(1.0)


@pytest.mark.slow
def test_shuffled_labels_teach_nothing(tmp_path, anchor, snapshot):
    changes = {"heads": 0, "rater_weights": True}
    folder = _stage(tmp_path / "stage", anchor, snapshot, shuffle_labels=True, settings=changes)
    code, log = _run(folder)
    assert code == EXIT_DONE, log
    figures = _figures(folder)
    assert figures["shuffled_labels"] is True
    assert figures["rater_weights"] == [1.0]  # one rater alone contradicts nobody
    assert (figures["heads"], "ensemble" in figures["accuracy"]) == (0, False)
    assert not (folder / "out" / "disagreement.jsonl").exists()
    assert 0.3 < figures["accuracy"]["validation"] < 0.7


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_and_ends_with_the_same_model(
    tmp_path, anchor, snapshot, finished
):
    folder = _stage(tmp_path / "stage", anchor, snapshot)
    process = _start(folder)
    _wait_for(lambda: _step(folder) >= 17, process, folder)
    process.kill()
    process.wait()
    assert not (folder / "out").exists()
    code, log = _run(folder)
    assert code == EXIT_DONE, log
    assert "continuing after step" in log
    ours, undisturbed = _weights(folder), _weights(finished)
    assert ours.keys() == undisturbed.keys()
    for name, weight in undisturbed.items():
        assert torch.equal(ours[name], weight), name
    beside = [load_file(run / "out" / "model" / FILE)["heads"] for run in (folder, finished)]
    assert torch.equal(*beside)
    assert _figures(folder)["accuracy"] == _figures(finished)["accuracy"]


@pytest.mark.slow
def test_on_sigterm_it_checkpoints_and_the_next_start_resumes(tmp_path, anchor, snapshot, finished):
    folder = _stage(tmp_path / "stage", anchor, snapshot, settings={"checkpoint_every": 1000})
    process = _start(folder)
    _wait_for(lambda: _step(folder) >= 5, process, folder)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == EXIT_CHECKPOINTED
    assert (folder / "checkpoint").is_file()
    code, log = _run(folder)
    assert code == EXIT_DONE, log
    assert "continuing after step" in log
    for name, weight in _weights(finished).items():
        assert torch.equal(_weights(folder)[name], weight), name


@pytest.mark.slow
def test_too_few_comparisons_are_refused_with_the_number_needed(tmp_path, anchor):
    few = _snapshot(tmp_path / "snapshot", train=3)
    folder = _stage(tmp_path / "stage", anchor, few)
    code, log = _run(folder)
    assert code == EXIT_NOT_ENOUGH_DATA, log
    reason = json.loads((folder / "refusal.json").read_text())["reason"]
    assert reason.startswith("30 untied comparisons")
    assert "100 are needed" in reason
    assert not (folder / "out").exists()


@pytest.mark.slow
def test_a_model_that_orders_unseen_pairs_badly_is_refused(tmp_path, anchor, snapshot):
    folder = _stage(
        tmp_path / "stage",
        anchor,
        snapshot,
        shuffle_labels=True,
        settings={"min_accuracy": 0.8, "epochs": 1},
    )
    code, log = _run(folder)
    assert code == EXIT_NOT_ENOUGH_DATA, log
    assert "0.8 is needed" in json.loads((folder / "refusal.json").read_text())["reason"]
