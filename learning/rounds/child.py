"""A stage's child process: started without our secrets, watched, stopped.

The child gets a folder and nothing else: no Redis, no key, no token of an engine that serves. It
inherits an open lock on its folder, so that nobody starts a second one beside it, even when the
process that started it is gone. Knows processes and files; what an exit means is decided in
learning/rounds/decisions.py.
"""

import fcntl
import json
import logging
import math
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from core import logs
from core.process import wrapped

_PASSED_ON = frozenset(
    ("PATH", "HOME", "USER", "LANG", "TMPDIR", "TZ", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
    + ("LD_PRELOAD", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_OFFLINE")
)
_PASSED_ON_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "NCCL_", "OMP_", "KMP_", "MKL_", "TORCH", "VLLM_")
_NEVER = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL")
_LOG_TAIL_BYTES = 32_768
_FOR_MANY = frozenset(
    ("learning.sft.train", "learning.reward_model.train", "learning.policy.train")
)
"""Modules of the stages that several processes can work at (learning/training/distributed.py)."""
_SPIN = "2000"
"""Turns that an OpenMP thread waits at a barrier before it sleeps. Never sleeping starves whoever
shares the cores; sleeping at once costs a fifth of the speed on an idle machine."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What a stage said last: see learning/training/stage.py."""

    fraction: float = 0.0
    message: str = ""
    figures: tuple[tuple[str, float], ...] = ()


@dataclass(slots=True)
class Child:
    """A running stage."""

    folder: Path
    process: "subprocess.Popen[bytes]"
    lock: IO[bytes]

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative when a signal ended it."""
        return self.process.poll()

    def ask_to_stop(self) -> None:
        """SIGTERM: it checkpoints and leaves."""
        if self.process.poll() is None:
            self.process.terminate()

    def kill(self) -> None:
        """SIGKILL for it and for what it started; returns when it is gone."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        """Let the next one start; kills it should it still run."""
        if self.process.poll() is None:
            self.kill()
        self.lock.close()


def start_child(
    module: str,
    folder: Path,
    *,
    launcher: str,
    environment: Mapping[str, str],
    idle_priority: bool,
    processes: int = 1,
) -> Child | None:
    """Start `module` on `folder`; None when an earlier child still holds the folder.

    Must be called from a thread that outlives the child: see core/process.py.
    """
    lock = (folder / "lock").open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            wrapped(command_line(launcher, module, folder, processes), idle_priority=idle_priority),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
            pass_fds=(lock.fileno(),),
        )
    return Child(folder=folder, process=process, lock=lock)


def command_line(launcher: str, module: str, folder: Path, processes: int = 1) -> list[str]:
    """The command of a stage: this Python, torchrun, or a template.

    A template has {python}, {module}, {folder} and {processes}, which is 1 for a stage that many
    cannot work at.
    """
    if module not in _FOR_MANY:
        processes = 1
    if launcher == "local":
        many = ["-m", "learning.training.torchrun", str(processes)] if processes > 1 else ["-m"]
        return [sys.executable, *many, module, str(folder)]
    values = {"python": sys.executable, "module": module, "folder": str(folder)}
    values["processes"] = str(processes)
    return [part.format(**values) for part in shlex.split(launcher)]


def num_processes(asked: int, *, device: str, environment: Mapping[str, str]) -> int:
    """Processes of a stage on this machine: those asked for, or with 0 one per GPU, at least one.

    GPUs are counted without asking the driver: who starts stages never loads torch.
    """
    if asked or device == "cpu":
        return max(asked, 1)
    seen = environment.get("CUDA_VISIBLE_DEVICES")
    if seen is not None:
        return max(len([name for name in seen.split(",") if name.strip()]), 1)
    return max(len(list(Path("/dev").glob("nvidia[0-9]*"))), 1)


def scrubbed_environment(environment: Mapping[str, str], *, threads: int) -> dict[str, str]:
    """What a stage may see of an environment: an allowlist, so that no secret slips through.

    Waiting OpenMP threads soon sleep: a stage shares its cores with the engine.
    """
    passed = {
        name: value
        for name, value in environment.items()
        if name in _PASSED_ON
        or (name.startswith(_PASSED_ON_PREFIXES) and not any(word in name for word in _NEVER))
    }
    if threads:
        passed["OMP_NUM_THREADS"] = str(threads)
    private = {"PYTHONUNBUFFERED": "1", "GOMP_SPINCOUNT": _SPIN}
    return passed | private | {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


def read_progress(folder: Path) -> Progress:
    """What the stage said last; nothing yet when it has not spoken."""
    raw = _read_json(folder / "progress.json")
    return Progress(
        fraction=float(raw.get("fraction", 0.0)),
        message=str(raw.get("message", "")),
        figures=tuple(sorted(numbers(raw.get("figures", {})).items())),
    )


def read_refusal(folder: Path) -> str:
    """Why a stage found the data too few."""
    return str(_read_json(folder / "refusal.json").get("reason", "it did not say why"))


def read_figures(folder: Path) -> dict[str, Any]:
    """The figures of a finished stage, of its folder `out`."""
    return _read_json(folder / "out" / "figures.json")


def numbers(figures: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among figures; those one level down are named `outer.inner`."""
    flat: dict[str, Any] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": below for inner, below in value.items()}
        else:
            flat[name] = value
    return {
        name: float(v)
        for name, v in flat.items()
        if isinstance(v, int | float) and math.isfinite(v)
    }


def last_line(folder: Path) -> str:
    """What the last line of a stage's log says that is not empty, for people."""
    with (folder / "log").open("rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES, 0))
        lines = file.read().decode(errors="replace").split("\n")
    return next((logs.said_in(line) for line in reversed(lines) if line.strip()), "")


def log_line(folder: Path, text: str) -> None:
    """Add a line of ours to a stage's log."""
    folder.mkdir(parents=True, exist_ok=True)
    said = logs.line(logging.INFO, text, run=folder.parent.name, stage=folder.name)
    with (folder / "log").open("a") as log:
        log.write(said + "\n")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        read: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return read
