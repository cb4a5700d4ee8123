"""Processes that train in turns, so that a busy machine is busy for all of them.

Each variant is a child with models, threads and memory of its own, which stays loaded and waits
while another has its turn. Knows processes and lines; what is trained is in training_child.py,
policy_child.py and training_trl.py, what is asked in reward_model.py and policy.py.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from core.errors import StartError
from core.process import wrapped
from deploy.bench.training_line import Words
from learning.rounds.child import scrubbed_environment

_ROOT = Path(__file__).resolve().parents[2]
PEERS = _ROOT / ".venv-peers-training"
_TOGETHER = "learning.training.torchrun"
_LAST_CHARACTERS = 600


@dataclass(frozen=True, slots=True)
class Trainer:
    """A child that trains when it is asked to."""

    name: str
    process: "subprocess.Popen[str]"
    log: Path

    def ask(self, **words: object) -> Words:
        """Its answer to one request. Raises StartError with the end of its log if it is gone."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(words) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # its log says why
        return self.heard()

    def heard(self) -> Words:
        """What it says next."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            end = self.log.read_text(errors="replace")[-_LAST_CHARACTERS:]
            raise StartError(f"{self.name} ended in the middle of the measurement: {end}")
        read: Words = json.loads(line)
        return read


def trl_missing() -> str | None:
    """Why TRL cannot be measured; None if it can."""
    if (PEERS / ".peers-training.sha256").exists():
        return None
    return "TRL is not installed here (deploy/install.sh peers-training does it): without it"


def measured_names(
    only: Sequence[str], targets: Mapping[str, str], *, trl: str, say: Callable[[str], None]
) -> list[str]:
    """The variants to measure, in the order of `targets`, and without TRL where it is missing.

    Raises StartError where nothing is left, or for a name that is none of the targets.
    """
    if unknown := [name for name in only if name not in targets]:
        raise StartError(f"{unknown[0]} is none of {', '.join(targets)}")
    names = [variant for name, variant in targets.items() if name in only]
    missing = trl_missing()
    if missing and trl in names:
        say(missing)
        names.remove(trl)
    if not names:
        raise StartError("nothing is left to measure")
    return names


@contextmanager
def trainer(
    name: str,
    module: str,
    specification: Words,
    folder: Path,
    *,
    peer: bool = False,
    processes: int = 1,
) -> Iterator[Trainer]:
    """A child that has loaded its models. Raises StartError.

    Ours and a peer's get the environment of a learning stage, with as many threads; those of more
    than one process divide the threads among them, as a stage's do.
    """
    log, written = folder / f"{name}.log", folder / f"{name}.json"
    written.write_text(json.dumps(specification))
    python = str(PEERS / "bin" / "python") if peer else sys.executable
    environment = scrubbed_environment(os.environ, threads=len(os.sched_getaffinity(0)))
    environment |= {
        "PYTHONPATH": str(_ROOT),
        "HF_HUB_OFFLINE": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    with log.open("ab") as errors:
        process = subprocess.Popen(
            wrapped([python, "-P", "-m", *_command(module, processes), str(written)]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            cwd=folder,
            text=True,
        )
    child = Trainer(name, process, log)
    try:
        child.heard()
        yield child
    finally:
        process.terminate()
        process.communicate()


def _command(module: str, processes: int) -> list[str]:
    """What python runs as such a child."""
    return [module] if processes == 1 else [_TOGETHER, str(processes), module]
