"""What a stage is told: which folders it reads, and its settings, as the `stage.json` of a run.

A run may start in the middle (`train --stage policy`): then it builds on the newest outputs of
earlier runs. Which ones is decided once, at its start, and kept in `sources.json`, so that a run
that is taken up again goes on with the same. Knows folders and settings, no Redis.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.errors import Unprocessable
from core.hyperparameters import LearningSettings
from core.records import Run
from core.settings import Settings
from learning.rounds.folders import Folders
from learning.training.stage import write_json

FIRST = "v0000"
"""The version that the service was started with."""
CHILD_STAGES = {
    "sft": "learning.sft.train",
    "reward_model": "learning.reward_model.train",
    "policy": "learning.policy.train",
    "evaluate": "learning.evaluation.evaluate",
}
"""Stages that are child processes, with the module of each."""


@dataclass(frozen=True, slots=True)
class Sources:
    """The runs whose outputs a run builds on; its own id where it has the stage itself."""

    snapshot: str
    reward_model: str | None
    policy: str | None


def choose_sources(folders: Folders, run: Run, earlier: Sequence[str]) -> Sources:
    """Read or make a run's `sources.json`; `earlier` are ids of runs, newest first.

    Raises Unprocessable when there is nothing to build on yet.
    """
    path = folders.run(run.id) / "sources.json"
    if path.exists():
        return Sources(**json.loads(path.read_text()))
    sources = _choose(folders, run, [run_id for run_id in earlier if run_id != run.id])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(sources))
    return sources


def _choose(folders: Folders, run: Run, earlier: Sequence[str]) -> Sources:
    own = dict.fromkeys(run.stages, run.id)
    if "sft" in run.stages:
        judge = _newest(folders, earlier, "reward_model", "reward-model")
        return Sources(run.id, judge.reward_model, run.id)
    if "snapshot" in run.stages:
        return Sources(run.id, own.get("reward_model"), own.get("policy"))
    if "policy" in run.stages:
        below = _newest(folders, earlier, "reward_model", "reward-model")
        return Sources(below.snapshot, below.reward_model, run.id)
    return _newest(folders, earlier, "policy", "policy")


def _newest(folders: Folders, earlier: Sequence[str], stage: str, choice: str) -> Sources:
    """The sources of the newest run that finished `stage` itself."""
    for run_id in earlier:
        path = folders.run(run_id) / "sources.json"
        if path.exists() and folders.out(run_id, stage).is_dir():
            return Sources(**json.loads(path.read_text()))
    raise Unprocessable(
        f"no earlier run has what this needs: start with `instructloop train --stage {choice}`"
    )


def stage_inputs(
    stage: str,
    run: Run,
    sources: Sources,
    folders: Folders,
    settings: Settings,
    *,
    attempt: int = 1,
) -> dict[str, Any]:
    """The content of `stage.json` for one of CHILD_STAGES. All paths are absolute.

    `attempt` counts the candidates that were judged beside this parent, from 1.
    """
    learning = settings.learning
    inputs: dict[str, Any] = {
        "snapshot": folders.out(sources.snapshot, "snapshot"),
        "anchor": anchor_folder(folders, FIRST if stage == "sft" else learning.anchor),
        "seed": learning.seed,
        "threads": learning.threads,
        "device": learning.device,
        "idle_priority": learning.idle_priority,
        "settings": _group(stage, learning).model_dump(mode="json"),
    }
    if stage in ("sft", "policy") and learning.pretraining_text is not None:
        inputs["pretraining_text"] = learning.pretraining_text.resolve()
    if stage != "reward_model":
        inputs["parent"] = folders.policy(run.parent)
        if stage == "policy":
            inputs["parent"] = _start_of_ppo(folders, run.parent, learning.anchor)
        inputs["reward_model"] = folders.out(_known(sources.reward_model), "reward_model") / "model"
        inputs["engine"] = {
            "kind": learning.rollout_engine,
            "socket": str(folders.engine_socket),
            "max_num_seqs": settings.engine.max_num_seqs,
        }
    if stage == "evaluate":
        inputs["candidate"] = candidate_stage(folders, sources) / "out" / "model"
        inputs["attempt"] = attempt
        suites = [str(path.resolve()) for path in learning.gate.suites]
        inputs["gate"] = learning.gate.model_dump(mode="json") | {"suites": suites}
    return {name: str(v) if isinstance(v, Path) else v for name, v in inputs.items()}


def candidate_stage(folders: Folders, sources: Sources) -> Path:
    """The stage that made what is judged: supervised fine-tuning, or PPO."""
    run_id = _known(sources.policy)
    name = "sft" if folders.out(run_id, "sft").is_dir() else "policy"
    return folders.stage(run_id, name)


def anchor_folder(folders: Folders, version: str) -> Path:
    """The model folder of an anchor. Raises Unprocessable where a version has none."""
    if version == FIRST:
        return folders.policy(FIRST)
    folder = folders.anchor(version)
    if not folder.is_dir():
        raise Unprocessable(
            f"{version} has no anchor (learning.anchor): name {FIRST} or a version that "
            "`instructloop train --stage sft` made"
        )
    return folder


def _start_of_ppo(folders: Folders, parent: str, anchor: str) -> Path:
    """The live version; the anchor, as in the paper, as long as that never went through PPO."""
    card = folders.policy(parent) / "card.json"
    kind = json.loads(card.read_text())["kind"] if card.is_file() else "base"
    tuned = anchor != FIRST and kind in ("base", "sft")
    return anchor_folder(folders, anchor) if tuned else folders.policy(parent)


def _group(stage: str, learning: LearningSettings) -> Any:
    groups = {
        "sft": learning.sft,
        "reward_model": learning.reward_model,
        "policy": learning.policy,
        "evaluate": learning.evaluation,
    }
    return groups[stage]


def _known(run_id: str | None) -> str:
    assert run_id is not None, "choose_sources refuses a run without what it builds on"
    return run_id
