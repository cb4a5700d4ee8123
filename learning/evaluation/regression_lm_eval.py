"""Tasks of lm-eval as regression suites, where lm-eval and the tasks' data are installed.

lm-eval is not a dependency and its tasks' data come from elsewhere, so this is off until
`learning.gate.lm_eval_tasks` names some. It runs as a child process, once for each policy, on the
exported folder and without the network. Item by item right or wrong goes to
learning/gate/regressions.py.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from core.process import wrapped
from learning.training.distributed import device
from learning.training.stage import NotEnoughData

_METRICS = ("acc", "exact_match")
_SECONDS = 3600
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def task_marks(
    model: Path, tasks: Sequence[str], *, limit: int, out: Path
) -> dict[str, list[bool]]:
    """For each task (of a group: each part) whether each item was answered rightly.

    `tasks` are names, or paths of lm-eval's YAML files; `out` is a folder of its own. Raises
    NotEnoughData, which says what is missing.
    """
    if find_spec("lm_eval") is None:
        raise NotEnoughData(
            "learning.gate.lm_eval_tasks needs lm-eval: `pip install lm-eval`, or leave it empty"
        )
    shutil.rmtree(out, ignore_errors=True)
    ended = subprocess.run(
        wrapped(_command(model, tasks, limit=limit, out=out), idle_priority=False),
        env={**os.environ, **_OFFLINE},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    if ended.returncode != 0:
        lines = [line for line in ended.stderr.splitlines() if line.strip()] or ["it said nothing"]
        raise NotEnoughData(
            f"lm-eval could not run {', '.join(tasks)}: {lines[-1].strip()[:300]} (lm-eval "
            "with all it needs, and the tasks' data, have to be on this machine)"
        )
    return {path.name.removeprefix("samples_"): read_samples(path) for path in _samples(out)}


def read_samples(path: Path) -> list[bool]:
    """Whether each item is right, by the first of its filters. Raises NotEnoughData."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    first = next((row.get("filter") for row in rows), None)
    mine = sorted((row for row in rows if row.get("filter") == first), key=lambda r: r["doc_id"])
    return [_right(row, path) for row in mine]


def _right(row: dict[str, Any], path: Path) -> bool:
    for metric in _METRICS:
        if metric in row:
            return float(row[metric]) >= 1.0
    raise NotEnoughData(f"{path.name} has neither {' nor '.join(_METRICS)}: choose other tasks")


def _samples(out: Path) -> list[Path]:
    """The files of samples, renamed to their task: lm-eval adds the time."""
    renamed = []
    for path in sorted(out.rglob("samples_*.jsonl")):
        target = path.with_name(path.stem.rpartition("_")[0])
        renamed.append(path.rename(target))
    return renamed


def _command(model: Path, tasks: Sequence[str], *, limit: int, out: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "lm_eval", "run", "--model", "hf"),
        *("--model_args", f"pretrained={model},dtype=bfloat16"),
        *("--tasks", ",".join(tasks), "--limit", str(limit), "--batch_size", "8"),
        *("--device", device().type),
        *("--output_path", str(out), "--log_samples"),
    ]
