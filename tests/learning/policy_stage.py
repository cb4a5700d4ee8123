"""Folders for the stages `policy` and `evaluate` on the tiny model, and their real processes."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil

from core.hyperparameters import EvaluationSettings, Group, PolicySettings
from learning.rounds.child import command_line
from learning.training.models import init_reward_model, save_reward_model
from tests.learning.snapshot_folder import chat, write_snapshot
from tests.tiny_model import make_tiny_model

WAIT = 240.0
"""Seconds that nothing here takes, but on a machine that others keep busy."""
POLICY = PolicySettings(
    iterations=3,
    prompts_per_iteration=5,
    answers_per_prompt=2,
    minibatches=2,
    learning_rate=1e-3,
    max_new_tokens=7,
    ptx_sequences=4,
    ptx_sequence_tokens=16,
    stop_kl_per_token=100.0,
    stop_update_kl=None,
    checkpoint_every=1,
)
EVALUATION = EvaluationSettings(prompts=8, answers_per_policy=2, max_new_tokens=7, best_of=3)


def write_inputs(root: Path) -> dict[str, str]:
    """A tiny policy, a reward model with random opinions, and prompts of twenty users."""
    make_tiny_model(root / "model")
    reward_model = init_reward_model(root / "model", head_init_std=0.5, seed=1)
    save_reward_model(reward_model, root / "reward", tokenizer_from=root / "model")
    prompts = [
        {
            "prompt_id": f"p{i}",
            "messages": chat(f"Say something about number {i}, please."),
            "user": f"u{i % 20}",
            "split": "train" if i % 20 < 12 else "validation",
        }
        for i in range(40)
    ]
    return {
        "snapshot": str(write_snapshot(root / "snapshot", prompts=prompts)),
        "anchor": str(root / "model"),
        "parent": str(root / "model"),
        "reward_model": str(root / "reward"),
    }


def prepare(folder: Path, inputs: dict[str, str], settings: Group):
    """Write `stage.json`, as the runner does."""
    folder.mkdir()
    stage = {
        **inputs,
        "settings": settings.model_dump(mode="json"),
        "seed": 3,
        "threads": 1,
        "idle_priority": False,
        "engine": {"socket": str(folder / "e.sock"), "max_num_seqs": 16},
    }
    (folder / "stage.json").write_text(json.dumps(stage))
    return folder


def start(module: str, folder: Path, *, processes: int = 1) -> subprocess.Popen:
    """The stage as a child process, or as many."""
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            command_line("local", module, folder, processes),
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_WAIT_POLICY": "passive"},
            start_new_session=True,
        )


def finish(process: subprocess.Popen, folder: Path) -> int:
    """Its exit code; on anything but success the log is shown."""
    code = process.wait(WAIT)
    if code:
        print((folder / "log").read_text()[-3000:])
    return code


def run(module: str, folder: Path) -> dict:
    """Run a stage to its end and read its figures."""
    assert finish(start(module, folder), folder) == 0
    return json.loads((folder / "out" / "figures.json").read_text())


def wait_for_progress(process: subprocess.Popen, folder: Path, message: str) -> None:
    """Until the progress file says so."""
    deadline = time.monotonic() + WAIT
    path = folder / "progress.json"
    while not (path.exists() and message in json.loads(path.read_text())["message"]):
        assert process.poll() is None, (folder / "log").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def engines(folder: Path) -> list[psutil.Process]:
    """Processes of the engine that belongs to a stage's folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if str(folder / "e.sock") in " ".join(process.info["cmdline"] or []):
            found += [process, *process.children(recursive=True)]
    return found


def kill(process: subprocess.Popen, folder: Path) -> None:
    """kill -9, and wait until its engine is gone too."""
    left = engines(folder)
    assert left
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    gone, alive = psutil.wait_procs(left, timeout=30)
    assert not alive
