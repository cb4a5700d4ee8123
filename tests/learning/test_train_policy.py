"""The stage `policy` as a process of its own, with a real vLLM engine, on the tiny model."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from learning.policy.run import changed_share
from learning.training.stage import EXIT_CHECKPOINTED, EXIT_NOT_ENOUGH_DATA
from tests.learning.policy_stage import (
    POLICY,
    engines,
    finish,
    kill,
    prepare,
    run,
    start,
    wait_for_progress,
    write_inputs,
)
from tests.learning.snapshot_folder import write_snapshot

MODULE = "learning.policy.train"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_inputs(tmp_path_factory.mktemp("in"))


def left_in_shared_memory(pids: list[int]) -> list[Path]:
    return [path for pid in pids for path in Path("/dev/shm").glob(f"instructloop-weights-{pid}")]


def test_a_run_survives_sigterm_and_kill_and_finishes(
    inputs: dict[str, str], tmp_path: Path
) -> None:
    settings = POLICY.model_copy(update={"iterations": 16})
    folder = prepare(tmp_path / "s", inputs, settings)
    first = start(MODULE, folder, processes=2)
    wait_for_progress(first, folder, "iteration 2 of")
    first.send_signal(signal.SIGTERM)
    assert finish(first, folder) == EXIT_CHECKPOINTED
    assert (folder / "checkpoint").exists()
    assert not engines(folder)
    assert not (folder / "out").exists()

    second = start(MODULE, folder)
    wait_for_progress(second, folder, "resumed in iteration")
    wait_for_progress(second, folder, "iteration 5 of")
    kill(second, folder)

    third = start(MODULE, folder)
    assert finish(third, folder) == 0
    figures = json.loads((folder / "out" / "figures.json").read_text())
    assert len(figures["iterations"]) == 16
    assert figures["optimiser_steps"] == 32
    assert not engines(folder)
    assert not left_in_shared_memory([first.pid, second.pid, third.pid])

    # old log-probabilities are computed on the rows of the first update, after a restart too
    assert max(figures["iterations"][i]["first_ratio_error"] for i in range(16)) == 0.0
    assert figures["iterations"][0]["kl_k3_per_token"] == 0.0
    assert figures["kl_k3_per_token"] > 0.0
    # the engine has the trainer's weights in every iteration
    assert max(part["engine_kl"] for part in figures["iterations"]) < 0.05
    assert figures["ptx_coef"] > 0.0

    model = AutoModelForCausalLM.from_pretrained(folder / "out" / "model")
    assert model.dtype == torch.bfloat16
    tokenizer = AutoTokenizer.from_pretrained(folder / "out" / "model")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(inputs["parent"]).chat_template
    share = changed_share(folder / "out" / "model", Path(inputs["parent"]))
    assert figures["changed_share"] == share > 0.0


def test_what_adapters_learn_is_in_the_engine_in_every_iteration(
    inputs: dict[str, str], tmp_path: Path
) -> None:
    adapters = {"lora_rank": 4, "learning_rate": 0.01, "iterations": 3}
    folder = prepare(tmp_path / "s", inputs, POLICY.model_copy(update=adapters))
    figures = run(MODULE, folder)
    parts = figures["iterations"]
    assert max(part["engine_kl"] for part in parts) < 0.05
    assert max(part["first_ratio_error"] for part in parts) == 0.0
    assert figures["kl_k3_per_token"] > 0.05  # so an engine with the first weights would be seen
    share = changed_share(folder / "out" / "model", Path(inputs["parent"]))
    assert figures["changed_share"] == share > 0.0


def test_a_rate_of_zero_releases_the_parent_unchanged(
    inputs: dict[str, str], tmp_path: Path
) -> None:
    settings = POLICY.model_copy(update={"learning_rate": 0.0, "iterations": 2})
    folder = prepare(tmp_path / "s", inputs, settings)
    figures = run(MODULE, folder)
    assert figures["changed_share"] == 0.0
    assert set(figures["validation_objective"]) >= {"0", "1"}  # the last weights and the average
    assert not (folder / "kept").exists()
    assert figures["kl_k3_per_token"] == 0.0
    assert figures["ptx_loss_before"] == figures["ptx_loss_after"]


def test_without_training_prompts_there_is_not_enough_data(
    inputs: dict[str, str], tmp_path: Path
) -> None:
    nothing = write_snapshot(tmp_path / "snapshot")
    folder = prepare(tmp_path / "s", {**inputs, "snapshot": str(nothing)}, POLICY)
    assert start(MODULE, folder).wait(120) == EXIT_NOT_ENOUGH_DATA
    assert "prompts" in json.loads((folder / "refusal.json").read_text())["reason"]


def test_the_run_dies_with_its_parent_and_takes_the_engine_along(
    inputs: dict[str, str], tmp_path: Path
) -> None:
    folder = prepare(tmp_path / "s", inputs, POLICY.model_copy(update={"iterations": 500}))
    process = start(MODULE, folder)
    wait_for_progress(process, folder, "iteration 1 of")
    running = engines(folder)
    kill(process, folder)
    assert len(running) >= 2
    assert not os.path.exists(f"/proc/{running[0].pid}/exe") or not running[0].is_running()
