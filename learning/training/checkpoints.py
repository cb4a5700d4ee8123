"""Checkpoints of a stage that one process or many work at, and that another number takes up.

Each process writes its parts of the weights and of Adam's moments into a folder of its own name
(torch.distributed.checkpoint); then one small file, replaced at once, says which folder counts and
what belongs to it. Knows neither losses nor what the notes mean.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from learning.training.distributed import is_first, num_processes, wait
from learning.training.optimizer import MasterAdamW

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def save_checkpoint(
    at: Path,
    optimizer: MasterAdamW,
    *,
    name: str,
    notes: Mapping[str, Any],
    tensors: Sequence[Tensor] = (),
) -> None:
    """Write one; the file `at` points to it when it is complete, and the one before goes.

    `name` differs from the last checkpoint's; `notes` are JSON; `tensors` are like the optimiser's
    parameters, in bf16. All processes have to call it.
    """
    folder = at.with_name(f"{at.name}-{name}")
    if is_first():
        shutil.rmtree(folder, ignore_errors=True)  # left by an attempt that was cut off
    wait()
    state = optimizer.state_dict()
    saved = {f"master.{n}": master for n, master in enumerate(state["masters"])}
    for n, moments in state["adam"]["state"].items():
        saved |= {f"{moment}.{n}": moments[moment] for moment in _MOMENTS}
    saved |= {f"more.{n}": tensor for n, tensor in enumerate(tensors)}
    save(saved, checkpoint_id=folder, no_dist=num_processes() == 1)
    if is_first():
        learned = sorted(state["adam"]["state"])
        _point(at, {"folder": folder.name, "learned": learned, "more": len(tensors)}, notes)
        _remove(at, but=folder)
    wait()


def read_notes(at: Path) -> dict[str, Any] | None:
    """What the last checkpoint says of itself; None where there is none."""
    if not at.exists():
        return None
    notes: dict[str, Any] = json.loads(at.read_text())["notes"]
    return notes


def load_checkpoint(at: Path, optimizer: MasterAdamW) -> list[Tensor]:
    """Take up the last checkpoint, however many processes wrote it; returns its `tensors`."""
    says = json.loads(at.read_text())
    masters = optimizer.state_dict()["masters"]
    loaded = {f"master.{n}": torch.empty_like(master) for n, master in enumerate(masters)}
    for n in says["learned"]:
        loaded |= {f"{moment}.{n}": torch.empty_like(masters[n]) for moment in _MOMENTS[:2]}
        loaded[f"step.{n}"] = torch.zeros(())
    for n in range(says["more"]):
        loaded[f"more.{n}"] = torch.empty_like(masters[n], dtype=torch.bfloat16)
    folder = at.with_name(says["folder"])
    load(loaded, checkpoint_id=folder, no_dist=num_processes() == 1)
    state = {n: {moment: loaded[f"{moment}.{n}"] for moment in _MOMENTS} for n in says["learned"]}
    groups = optimizer.state_dict()["adam"]["param_groups"]
    optimizer.load_state_dict(
        {
            "masters": [loaded[f"master.{n}"] for n in range(len(masters))],
            "adam": {"state": state, "param_groups": groups},
        }
    )
    return [loaded[f"more.{n}"] for n in range(says["more"])]


def remove_checkpoint(at: Path) -> None:
    """Nothing is left of it; by the first process."""
    if is_first():
        at.unlink(missing_ok=True)
        _remove(at, but=None)


def _point(at: Path, says: dict[str, Any], notes: Mapping[str, Any]) -> None:
    beside = at.with_suffix(".tmp")
    beside.write_text(json.dumps({**says, "notes": dict(notes)}))
    os.replace(beside, at)


def _remove(at: Path, *, but: Path | None) -> None:
    for folder in at.parent.glob(f"{at.name}-*"):
        if folder != but:
            shutil.rmtree(folder)
