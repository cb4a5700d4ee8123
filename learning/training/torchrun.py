"""A stage as several processes of one machine: torchrun, with the exit codes of a stage.

    python -m learning.training.torchrun 2 learning.sft.train FOLDER

torchrun alone answers SIGTERM by killing its processes after a while, and ends with 1 whatever they
said. Here SIGTERM is handed to every process, all checkpoint together, and how they left is how
this leaves: see learning/training/stage.py. They talk over the loopback device. Several nodes:
torchrun itself, by `learning.launcher`.
"""

import json
import logging
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from core import logs
from learning.training.stage import (
    EXIT_CHECKPOINTED,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_NOT_ENOUGH_DATA,
    FAILURE,
)

_ANSWERS = (EXIT_CHECKPOINTED, EXIT_NOT_ENOUGH_DATA)


def main(arguments: Sequence[str]) -> int:
    """Run torchrun; returns the stage's exit code."""
    number, module, folder = arguments
    _prepare_environment(int(number))
    signal.signal(signal.SIGTERM, _hand_on)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to handle
    where = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", number]
    where += ["--signals-to-handle", "SIGHUP,SIGQUIT"]  # SIGTERM is ours
    try:
        options = torchrun.parse_args([*where, "-m", module, folder])  # type: ignore[no-untyped-call]
        torchrun.run(options)  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        ids = {"run": Path(folder).parent.name, "stage": Path(folder).name}
        said = in_words(codes, int(number)) + _reason(Path(folder))
        print(logs.line(logging.ERROR, said, **ids), flush=True)
        return exit_code(codes.values())
    return EXIT_DONE


def exit_code(codes: Iterable[int]) -> int:
    """What the processes that ended first say of the stage, from their exit codes.

    One that ended by SIGTERM had not begun yet: nothing is lost.
    """
    meant = {EXIT_CHECKPOINTED if code == -signal.SIGTERM else code for code in codes}
    return meant.pop() if len(meant) == 1 and meant <= set(_ANSWERS) else EXIT_FAILED


def in_words(codes: dict[int, int], number: int) -> str:
    """The line for the log: who ended the stage, and how.

    torchrun ends the others by SIGTERM, so that is the cause only where there is no other.
    """
    ended = {rank: code for rank, code in codes.items() if code != -signal.SIGTERM}
    killed = {rank: -code for rank, code in (ended or codes).items() if code < 0}
    if killed:
        rank, by = min(killed.items())
        return f"process {rank} of {number} was killed by {signal.Signals(by).name}: the stage ends"
    rank, code = min(ended.items())
    return f"process {rank} of {number} ended with {code}: the stage ends"


def _reason(folder: Path) -> str:
    """What the stage itself said of its failure."""
    told = folder / FAILURE
    return f" ({json.loads(told.read_text())['reason']})" if told.exists() else ""


def _prepare_environment(number: int) -> None:
    """Cores divided, and no network but the loopback device."""
    cores = int(os.environ.get("OMP_NUM_THREADS", 0)) or len(os.sched_getaffinity(0))
    os.environ["OMP_NUM_THREADS"] = str(max(cores // number, 1))
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")


def _hand_on(*_: object) -> None:
    children = psutil.Process().children()
    if not children:
        sys.exit(EXIT_CHECKPOINTED)  # before there was anything to lose
    for child in children:
        child.terminate()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
