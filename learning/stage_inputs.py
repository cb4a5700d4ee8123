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
from learning.folders import Folders
from learning.stage import write_json

ANCHOR = "v0000"
"""The KL reference of all rounds, and where each reward model begins."""
CHILD_STAGES = {
    "reward_model": "learning.train_reward_model",
    "policy": "learning.train_policy",
    "evaluate": "learning.evaluate",
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
    stage: str, run: Run, sources: Sources, folders: Folders, settings: Settings
) -> dict[str, Any]:
    """The content of `stage.json` for one of CHILD_STAGES. All paths are absolute."""
    learning = settings.learning
    inputs: dict[str, Any] = {
        "snapshot": folders.out(sources.snapshot, "snapshot"),
        "anchor": folders.policy(ANCHOR),
        "seed": learning.seed,
        "threads": learning.threads,
        "idle_priority": learning.idle_priority,
        "settings": _group(stage, learning).model_dump(mode="json"),
    }
    if stage != "reward_model":
        inputs["parent"] = folders.policy(run.parent)
        inputs["reward_model"] = folders.out(_known(sources.reward_model), "reward_model") / "model"
        inputs["engine"] = {
            "socket": str(folders.engine_socket),
            "max_num_seqs": settings.engine.max_num_seqs,
        }
    if stage == "evaluate":
        inputs["candidate"] = folders.out(_known(sources.policy), "policy") / "model"
    return {name: str(v) if isinstance(v, Path) else v for name, v in inputs.items()}


def _group(stage: str, learning: LearningSettings) -> Any:
    groups = {
        "reward_model": learning.reward_model,
        "policy": learning.policy,
        "evaluate": learning.evaluation,
    }
    return groups[stage]


def _known(run_id: str | None) -> str:
    assert run_id is not None, "choose_sources refuses a run without what it builds on"
    return run_id
