"""The frame of a stage: a child process that reads a folder, writes a folder, and can be killed.

The parent (learning/rounds/runner.py) writes `stage.json` with the inputs; the child reports
through `progress.json`, and its result appears at once by renaming `out.partial` to `out`. A child
knows no Redis and holds no key. It dies with its parent, and on SIGTERM it checkpoints and leaves
with exit code 75, so that the next start resumes. Of several processes
(learning/training/distributed.py) the first one writes.
"""

import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from core import logs
from core.errors import InstructLoopError
from core.process import (
    die_with_parent,
    keep_freed_memory,
    leave_no_core_dump,
    run_when_idle,
)
from learning.training.scalars import FOLDER, Scalars

_log = logging.getLogger(__name__)
FAILURE = "failure.json"
"""Why a stage failed, where it knows; who started many processes adds it to the log's last line."""
SAMPLES = "samples.jsonl"
"""Answers that a stage shows to people while it works, among its output."""
EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_NOT_ENOUGH_DATA = 3
EXIT_CHECKPOINTED = 75  # EX_TEMPFAIL of sysexits.h: try again, nothing is lost


class Interrupted(InstructLoopError):
    """SIGTERM arrived; the stage has checkpointed and may be started again."""


class NotEnoughData(InstructLoopError):
    """The data cannot carry this stage; the message says what is missing."""


@dataclass(slots=True)
class Stage:
    """What a stage's main function is given."""

    folder: Path
    inputs: dict[str, Any]
    stopping: bool = False
    _started: float = field(default_factory=time.monotonic)
    _scalars: Scalars = field(init=False)

    def __post_init__(self) -> None:
        self._scalars = Scalars(self.folder / FOLDER)

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes: the first of those torchrun started."""
        return os.environ.get("RANK", "0") == "0"

    @property
    def partial(self) -> Path:
        """Where the result is being written."""
        return self.folder / "out.partial"

    @property
    def checkpoint(self) -> Path:
        """The file or folder of the last checkpoint; the stage writes it atomically itself."""
        return self.folder / "checkpoint"

    def path(self, name: str) -> Path:
        """An input that is a path."""
        return Path(self.inputs[name])

    def progress(self, fraction: float, message: str, **figures: float) -> None:
        """Say how far the stage is (0..1), for the parent, people and metrics."""
        if not self.writes:
            return
        write_json(
            self.folder / "progress.json",
            {
                "fraction": round(min(max(fraction, 0.0), 1.0), 4),
                "message": message,
                "seconds": round(time.monotonic() - self._started, 1),
                "figures": figures,
            },
        )
        said = f"{fraction:.1%} {message} {_brief(figures)}".rstrip()
        _log.info(said, extra={"fraction": round(fraction, 4)})

    def scalars(self, step: int, figures: Mapping[str, object], *, part: str = "") -> None:
        """Keep the figures of a step (from 1) for TensorBoard; a part counts steps of its own."""
        if self.writes:
            self._scalars.add(step, figures, part=part)


def write_json(path: Path, value: object) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of one."""
    beside = path.with_suffix(path.suffix + ".tmp")
    beside.write_text(json.dumps(value, indent=1, sort_keys=True))
    os.replace(beside, path)


def run(main: Callable[[Stage], dict[str, Any]]) -> None:
    """Run a stage named on the command line and leave with one of the exit codes above.

    `main` writes its files under `stage.partial` and returns the figures of the stage, which end
    up in `out/figures.json`.
    """
    folder = Path(sys.argv[1]).resolve()
    stage = Stage(folder=folder, inputs=json.loads((folder / "stage.json").read_text()))
    log_from(stage)
    _prepare_process(stage)
    sys.exit(_run(stage, main))


def log_from(stage: Stage) -> None:
    """Log as the parent was told to, under the names of run and stage."""
    logs.set_up(
        "stage",
        level=stage.inputs.get("log_level", "info"),
        form=stage.inputs.get("log_format", "json"),
        says_maths=True,
        run=stage.folder.parent.name,
        stage=stage.folder.name,
    )


def _run(stage: Stage, main: Callable[[Stage], dict[str, Any]]) -> int:
    if (stage.folder / "out").is_dir():
        return EXIT_DONE
    if stage.writes:
        _clear_output(stage)
        (stage.folder / FAILURE).unlink(missing_ok=True)
    try:
        figures = main(stage)
    except Interrupted:
        return EXIT_CHECKPOINTED
    except NotEnoughData as refusal:
        if stage.writes:
            write_json(stage.folder / "refusal.json", {"reason": refusal.message})
        return EXIT_NOT_ENOUGH_DATA
    except FloatingPointError as error:
        diverged = InstructLoopError(f"the training diverged: {error}")
        _say_why(stage, diverged)
        raise diverged from error
    except InstructLoopError as error:
        _say_why(stage, error)
        raise
    if stage.writes:
        write_json(stage.partial / "figures.json", figures)
        os.replace(stage.partial, stage.folder / "out")
    return EXIT_DONE


def _clear_output(stage: Stage) -> None:
    """Nothing is left of an earlier attempt but, where this one goes on, what people were shown."""
    stage.partial.mkdir(parents=True, exist_ok=True)
    for path in stage.partial.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != SAMPLES or not stage.checkpoint.exists():
            path.unlink()


def _say_why(stage: Stage, error: InstructLoopError) -> None:
    if stage.writes:
        write_json(stage.folder / FAILURE, {"reason": error.message})


def _prepare_process(stage: Stage) -> None:
    """Die with the parent, checkpoint on SIGTERM, and let serving have the cores first."""
    die_with_parent()
    leave_no_core_dump()
    keep_freed_memory()

    def on_sigterm(_number: int, _frame: FrameType | None) -> None:
        stage.stopping = True

    signal.signal(signal.SIGTERM, on_sigterm)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to handle
    if stage.inputs.get("idle_priority"):
        run_when_idle()


def _brief(figures: dict[str, float]) -> str:
    return " ".join(f"{name}={value:.4g}" for name, value in figures.items())
