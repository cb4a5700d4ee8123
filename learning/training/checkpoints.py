"""Checkpoints of a stage that one process or many work at, and that another number takes up.

Each process writes its parts of the weights and of Adam's moments into a new folder
(torch.distributed.checkpoint); then one small file, replaced at once, says which folder counts and
what belongs to it. Knows neither losses nor what the notes mean.
"""

import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from core.errors import InstructLoopError
from learning.training.distributed import is_first, num_processes, told_by_first, wait
from learning.training.optimizer import MasterAdamW

log = logging.getLogger(__name__)

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def save_checkpoint(
    at: Path,
    optimizers: Sequence[MasterAdamW],
    *,
    notes: Mapping[str, Any],
    tensors: Sequence[Tensor] = (),
    whole: Mapping[str, Tensor] | None = None,
) -> None:
    """Write one; the file `at` points to it when it is complete, and the one before goes.

    Raises InstructLoopError where it cannot be written; the one before then still counts.
    `notes` are JSON; `tensors` have the shapes of the first optimiser's parameters; `whole` are
    tensors of which every process has the same. All processes have to call it.
    """
    folder = told_by_first(lambda: _next_folder(at))
    if is_first():
        shutil.rmtree(folder, ignore_errors=True)  # left by an attempt that was cut off
    wait()
    saved = {f"more.{n}": tensor for n, tensor in enumerate(tensors)}
    saved |= {f"whole.{name}": tensor.cpu() for name, tensor in (whole or {}).items()}
    for number, optimizer in enumerate(optimizers):
        saved |= _state_of(optimizer, number)
    with _alone_on_purpose(), _failure_named(folder):
        save(saved, checkpoint_id=folder, no_dist=num_processes() == 1)
    if is_first():
        learned = [sorted(optimizer.state_dict()["adam"]["state"]) for optimizer in optimizers]
        says = {
            "folder": folder.name,
            "learned": learned,
            "more": [_type(tensor) for tensor in tensors],
            "whole": {name: (list(t.shape), _type(t)) for name, t in (whole or {}).items()},
        }
        _point(at, says, notes)
        _remove(at, but=folder)
    wait()


def read_notes(at: Path) -> dict[str, Any] | None:
    """What the last checkpoint says of itself; None where there is none that we can read."""
    says = told_by_first(lambda: _read(at))
    return None if says is None else dict(says["notes"])


def _read(at: Path) -> dict[str, Any] | None:
    if not at.exists():
        return None
    try:
        says = json.loads(at.read_text())
    except ValueError:
        says = None
    if not isinstance(says, dict) or not isinstance(says.get("more"), list):
        log.warning("the checkpoint is another release's: the stage begins anew")
        return None
    return says


def load_checkpoint(
    at: Path, optimizers: Sequence[MasterAdamW]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Take up the last checkpoint, however many processes wrote it.

    Returns its `tensors`, in parts as the parameters are, and `whole` ones, on the CPU.
    """
    says = told_by_first(lambda: _read(at)) or {}
    states = [optimizer.state_dict() for optimizer in optimizers]
    loaded: dict[str, Tensor] = {
        f"whole.{name}": torch.empty(shape, dtype=getattr(torch, kind))
        for name, (shape, kind) in says["whole"].items()
    }
    for n, kind in enumerate(says["more"]):
        loaded[f"more.{n}"] = torch.empty_like(states[0]["masters"][n], dtype=getattr(torch, kind))
    for number, (state, learned) in enumerate(zip(states, says["learned"], strict=True)):
        loaded |= _room_for(state["masters"], learned, number)
    with _alone_on_purpose():
        load(loaded, checkpoint_id=at.with_name(says["folder"]), no_dist=num_processes() == 1)
    for number, (optimizer, state) in enumerate(zip(optimizers, states, strict=True)):
        groups = state["adam"]["param_groups"]
        moments = {
            n: {moment: loaded[f"{number}.{moment}.{n}"] for moment in _MOMENTS}
            for n in says["learned"][number]
        }
        masters = [loaded[f"{number}.master.{n}"] for n in range(len(state["masters"]))]
        optimizer.load_state_dict(
            {"masters": masters, "adam": {"state": moments, "param_groups": groups}}
        )
    whole = {name: loaded[f"whole.{name}"] for name in says["whole"]}
    return [loaded[f"more.{n}"] for n in range(len(says["more"]))], whole


def remove_checkpoint(at: Path) -> None:
    """Nothing is left of it; by the first process."""
    if is_first():
        at.unlink(missing_ok=True)
        _remove(at, but=None)


@contextmanager
def _failure_named(folder: Path) -> Iterator[None]:
    """In place of the library's exception, which no handler catches and no disk is named in."""
    try:
        yield
    except CheckpointException as error:
        free = shutil.disk_usage(folder.parent).free >> 20
        if is_first():  # all have failed by now, and others want the room
            shutil.rmtree(folder, ignore_errors=True)
        raise InstructLoopError(
            f"a checkpoint could not be written, with {free} MiB of disk free: make room; the "
            "stage goes on from the one before"
        ) from error


@contextmanager
def _alone_on_purpose() -> Iterator[None]:
    """Without the library's warning that there is one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _state_of(optimizer: MasterAdamW, number: int) -> dict[str, Tensor]:
    state = optimizer.state_dict()
    tensors = {f"{number}.master.{n}": master for n, master in enumerate(state["masters"])}
    for n, moments in state["adam"]["state"].items():
        tensors |= {f"{number}.{moment}.{n}": moments[moment] for moment in _MOMENTS}
    return tensors


def _room_for(masters: Sequence[Tensor], learned: Sequence[int], number: int) -> dict[str, Tensor]:
    """Empty tensors for what `_state_of` has written."""
    room = {f"{number}.master.{n}": torch.empty_like(master) for n, master in enumerate(masters)}
    for n in learned:
        room |= {f"{number}.{moment}.{n}": torch.empty_like(masters[n]) for moment in _MOMENTS[:2]}
        room[f"{number}.step.{n}"] = torch.zeros(())
    return room


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _next_folder(at: Path) -> Path:
    last = json.loads(at.read_text())["folder"] if at.exists() else "-0"
    return at.with_name(f"{at.name}-{int(last.rpartition('-')[2]) + 1}")


def _point(at: Path, says: dict[str, Any], notes: Mapping[str, Any]) -> None:
    beside = at.with_suffix(".tmp")
    beside.write_text(json.dumps({**says, "notes": dict(notes)}))
    os.replace(beside, at)


def _remove(at: Path, *, but: Path | None) -> None:
    for folder in at.parent.glob(f"{at.name}-[0-9]*"):
        if folder != but:
            shutil.rmtree(folder)
