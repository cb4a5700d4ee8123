"""Tiny stages in real child processes: `python -m tests.learning.stages.play MODULE FOLDER`.

They read what real stages read and write what real stages write, within a second, and checkpoint.
A file `script.json` in the state folder steers them: {STAGE: {"seconds", "exit", "fail_times",
"refuse", "ignore_sigterm"}}. Each start is noted in `starts` beside the stage's log.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from learning.training import stage as frame
from learning.training.stage import Interrupted, NotEnoughData, Stage

STEPS = 10


def reward_model(stage: Stage) -> dict:
    write_model(stage, seed=1)
    said = {"prompt_id": "somebody-asked", "disagreement": 0.125}
    (stage.partial / "disagreement.jsonl").write_text(json.dumps(said) + "\n")
    return {"accuracy": {"validation": 0.75, "train": 0.8}, "pairs": 40, "gain": 1.5, "bias": -0.1}


def sft(stage: Stage) -> dict:
    assert (stage.path("reward_model") / "config.json").exists()
    write_model(stage, seed=3)
    write_model(stage, seed=4, name="anchor")
    return {"sft": {"steps": 12}, "anchor": {"steps": 4}, "chosen_by": "reward model"}


def policy(stage: Stage) -> dict:
    assert (stage.path("reward_model") / "config.json").exists()
    assert (stage.path("parent") / "config.json").exists()
    write_model(stage, seed=2)
    return {"reward": 0.4, "kl_to_anchor": 1.5, "ptx_coef": 2.5, "iterations": [1, 2]}


def evaluate(stage: Stage) -> dict:
    assert (stage.path("candidate") / "config.json").exists()
    rows = [json.dumps(row) + "\n" for row in answers(stage)]
    (stage.partial / "answers.jsonl").write_text("".join(rows))
    return {
        "kl_to_anchor": 2.0,
        "kl_per_token": 0.05,
        "pretraining_loss_change": 0.01,
        "pretraining_loss_share": 0.004,
        "length_change": 0.1,
        "broken_share": 0.0,
        "best_of_8": 0.9,
        "regressions": [suite()],
        "engine_checksums": {"layer.weight": "abc"},
    }


def suite() -> dict:
    """As learning/gate/regressions.py has it."""
    shares = {"parent": 0.9, "candidate": 0.85, "change": -0.05, "low": -0.15, "p_value": 0.5}
    return {"suite": "basics", "items": 20, **shares}


def answers(stage: Stage) -> list[dict]:
    prompts = json.loads((state_dir(stage) / "prompts.json").read_text())
    return [
        {
            "prompt_id": prompt["prompt_id"],
            "user": prompt["user"],
            "messages": json.dumps([{"role": "user", "content": "hello"}]),
            "outputs": [
                output(number, who, n, better=who == "candidate" and number % 5 > 0)
                for who in policies(stage)
                for n in range(2)
            ],
        }
        for number, prompt in enumerate(prompts)
    ]


def policies(stage: Stage) -> tuple[str, ...]:
    """Who answers: the anchor too, where it is not the parent."""
    both = ("candidate", "parent")
    return both if stage.inputs["anchor"] == stage.inputs["parent"] else (*both, "anchor")


def output(number: int, who: str, n: int, *, better: bool) -> dict:
    return {
        "output_id": f"{number}-{who}-{n}",
        "policy": who,
        "text": f"answer {n} {'well said' if better else 'said'}",
        "token_ids": [1, 2, 3],
        "finish_reason": "stop",
        "score": float(better),
        "broken": False,
    }


def write_model(stage: Stage, *, seed: int, name: str = "model") -> None:
    folder = stage.partial / name
    folder.mkdir()
    weights = np.random.default_rng(seed).normal(size=(3, 5)).astype(np.float32)
    save_file({"layer.weight": weights}, folder / "model.safetensors")
    config = {"max_position_embeddings": 2048, "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")


def state_dir(stage: Stage) -> Path:
    return stage.folder.parents[2]


def script_of(stage: Stage) -> dict:
    path = state_dir(stage) / "script.json"
    return json.loads(path.read_text()).get(stage.folder.name, {}) if path.exists() else {}


def act(stage: Stage) -> dict:
    """Work through the steps, from the last checkpoint on, as the script says."""
    starts = note_start(stage)
    script = script_of(stage)
    if script.get("ignore_sigterm"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    done = int(stage.checkpoint.read_text()) if stage.checkpoint.exists() else 0
    stage.progress(done / STEPS, f"begins at step {done}")
    for step in range(done, STEPS):
        time.sleep(script.get("seconds", 0.1) / STEPS)
        frame.write_json(stage.checkpoint, step + 1)
        stage.progress((step + 1) / STEPS, f"step {step + 1}", reward=step / 10)
        if stage.stopping:
            raise Interrupted("told to stop")
    if starts <= script.get("fail_times", 0):
        raise RuntimeError("this attempt was to fail")
    if "refuse" in script:
        raise NotEnoughData(script["refuse"])
    plays = {"sft": sft, "reward_model": reward_model, "policy": policy, "evaluate": evaluate}
    return plays[stage.folder.name](stage)


def note_start(stage: Stage) -> int:
    """Write down process, environment and lock-holders; returns how many starts there were."""
    path = stage.folder / "starts"
    with path.open("a") as file:
        names = sorted(name for name in os.environ)
        policy = os.sched_getscheduler(0)
        file.write(json.dumps({"pid": os.getpid(), "environ": names, "policy": policy}) + "\n")
    return len(path.read_text().splitlines())


if __name__ == "__main__":
    module, folder = sys.argv[1:]
    sys.argv = [module, folder]
    frame.run(act)
