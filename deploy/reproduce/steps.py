"""Runs the steps of a reproduction, one after the other, as child processes.

A step whose result is there is not run again, so a reproduction that was stopped or killed goes on
where it was; within a step its own checkpoint counts. Knows processes and folders; what a step does
is its module's, and which there are is deploy/reproduce/plan.py's.
"""

import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from core.errors import InstructLoopError, StartError
from deploy.reproduce.plan import Step, seconds_left
from learning.rounds.child import (
    Child,
    Progress,
    last_line,
    read_progress,
    read_refusal,
    scrubbed_environment,
    start_child,
)
from learning.rounds.decisions import describe_exit, meaning_of_exit
from learning.training.stage import write_json

_LOOK_SECONDS = 0.2
_PATIENCE_SECONDS = 60.0
"""How long a step may take to checkpoint and leave before it is killed."""
_LEFTOVERS = ("checkpoint*", "kept", "weights", "parts")
"""Patterns of what a finished step has no use for; the checkpoint of PPO alone is gigabytes."""

OnStep = Callable[[Step, Progress], None]


@dataclass(slots=True)
class Asked:
    """Whether somebody wants all of it to stop."""

    to_stop: bool = False


@contextmanager
def only_one(root: Path) -> Iterator[None]:
    """Hold the folder; raises StartError while another process does."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / "lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartError(f"another reproduction works in {root}: wait for its end") from None
        yield


@contextmanager
def stopping() -> Iterator[Asked]:
    """SIGTERM and Ctrl-C ask for the stop instead of tearing the process down."""
    asked = Asked()

    def ask(_number: int, _frame: FrameType | None) -> None:
        asked.to_stop = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_steps(
    steps: Sequence[Step], root: Path, *, asked: Asked, say: Callable[[str], None], show: OnStep
) -> None:
    """Run what is not done yet. Raises InstructLoopError when a step fails or on a stop."""
    for number, step in enumerate(steps, start=1):
        if step.is_done(root):
            continue
        left = seconds_left(steps, root) / 60
        say(f"{number}/{len(steps)} {step.name}: {step.does} (about {left:.0f} min left in all)")
        with _timed(step.folder(root)):
            run_step(step, root, asked=asked, show=show)
        for pattern in _LEFTOVERS:
            for path in step.folder(root).glob(pattern):
                _remove(path)


@contextmanager
def _timed(folder: Path) -> Iterator[None]:
    """Add the seconds of the block to what earlier attempts took, however it ends."""
    path, began = folder / "took.json", time.monotonic()
    before = float(json.loads(path.read_text())["seconds"]) if path.exists() else 0.0
    try:
        yield
    finally:
        write_json(path, {"seconds": round(before + time.monotonic() - began, 1)})


def run_step(step: Step, root: Path, *, asked: Asked, show: OnStep) -> None:
    """Run one step to its result. Raises InstructLoopError."""
    folder = step.folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "stage.json", step.inputs)
    child = start_child(
        step.module,
        folder,
        launcher="local",
        environment=_environment(os.environ),
        idle_priority=False,
    )
    if child is None:
        raise StartError(f"an earlier process still works in {folder}: wait for its end")
    try:
        _watch(step, child, asked, show)
        code = child.exit_code
    finally:
        child.close()
    if not (folder / "out").is_dir():
        raise InstructLoopError(_why(step, folder, code, stopped=asked.to_stop))


def _watch(step: Step, child: Child, asked: Asked, show: OnStep) -> None:
    deadline = None
    shown: Any = None
    while child.exit_code is None:
        if asked.to_stop and deadline is None:
            child.ask_to_stop()
            deadline = time.monotonic() + _PATIENCE_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            child.kill()
        progress = read_progress(child.folder)
        if progress != shown:
            shown = progress
            show(step, progress)
        time.sleep(_LOOK_SECONDS)


def _why(step: Step, folder: Path, code: int | None, *, stopped: bool) -> str:
    """Why a step left no result, in one line."""
    if stopped:
        return f"stopped in {step.name}; the same command goes on there"
    assert code is not None, "it was watched until it ended"
    match meaning_of_exit(code):
        case "not_enough_data":
            return f"{step.name}: {read_refusal(folder)}"
        case "again":
            return f"{step.name} was asked to stop by somebody else; the same command goes on"
        case _:
            return f"{step.name}: {describe_exit(code, last_line=last_line(folder))}"


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    return scrubbed_environment(environment, threads=0)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
