"""What must hold before anything is started; each failure is one line that says what to do."""

import fcntl
import json
import os
import shutil
import socket
from pathlib import Path
from typing import IO

from core.errors import StartError, Unprocessable
from core.settings import Settings
from learning.evaluation.regression_suites import read_suites

_STATE_DISK_MIB = 2048


def lock_state_dir(state_dir: Path) -> IO[str]:
    """Hold the state folder for this process; keep the returned file open.

    Raises StartError when another `up` runs on it.
    """
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = (state_dir / "lock").open("a+")
    except OSError as error:
        raise StartError(
            f"cannot write to {state_dir} ({error.strerror}): choose another --state-dir"
        ) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        raise StartError(
            f"another instructloop (process {file.read().strip() or '?'}) runs on {state_dir}: "
            "stop it, or choose another --state-dir"
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def check_port(host: str, port: int) -> None:
    """Raises StartError when the port is taken or the address is not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartError(
                f"cannot listen on {host}:{port} ({error.strerror}): choose another with --port"
            ) from None


def check_disk(state_dir: Path) -> None:
    """Raises StartError when there is no room for a model, logs and an append-only file."""
    free = shutil.disk_usage(state_dir).free // 2**20
    if free < _STATE_DISK_MIB:
        raise StartError(
            f"{free} MiB of disk are free for {state_dir}, {_STATE_DISK_MIB} are needed: "
            "free some, or choose another --state-dir"
        )


def check_model(model: str) -> None:
    """Raises StartError when a model folder is broken. A hub id is left to the hub to judge."""
    folder = Path(model)
    if model == "smollm2" or not (folder.exists() or model.startswith(("/", ".", "~"))):
        return
    advice = "point --model at a Hugging Face model folder with safetensors weights"
    if not folder.is_dir():
        raise StartError(f"there is no model folder {model}: {advice}")
    try:
        json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        raise StartError(f"{model} has no readable config.json: {advice}") from None
    if not any(folder.glob("tokenizer*")):
        raise StartError(f"{model} has no tokenizer: {advice}")
    if not any(folder.glob("*.safetensors")):
        raise StartError(f"{model} has no *.safetensors file: {advice}")


def check_suites(settings: Settings) -> None:
    """Raises StartError when a round would find a regression suite that is none."""
    if not settings.learning.enabled:
        return
    try:
        read_suites(settings.learning.gate.suites)
    except Unprocessable as error:
        raise StartError(f"{error.message} (INSTRUCTLOOP_LEARNING__GATE__SUITES)") from None


def preflight(settings: Settings) -> None:
    """All checks that need nothing to run yet."""
    check_port(settings.gateway.host, settings.gateway.port)
    check_disk(settings.state_dir)
    check_model(settings.model)
    check_suites(settings)
