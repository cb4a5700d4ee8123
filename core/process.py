"""How a child process of ours is started: it dies with its parent and leaves nothing readable.

    python -m core.process [--idle] [--parent PID] -- COMMAND [ARGUMENT ...]

becomes COMMAND (exec) after the kernel was told so. It exists because the same calls in a
`preexec_fn` run between fork and exec of a threaded parent, where a lock taken by another thread
is never released. It knows nothing of what it starts; `core/engine/launch.py` starts vLLM with it.
"""

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER, _LARGEST = -1, 2**31 - 1


def wrapped(command: Sequence[str], *, idle_priority: bool = False) -> list[str]:
    """The command line that runs `command` under the promises of this file."""
    idle = ["--idle"] if idle_priority else []
    options = [*idle, "--parent", str(os.getpid())]
    return [sys.executable, "-m", "core.process", *options, "--", *command]


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the thread that started it ends (Linux).

    So a child must be started from a thread that lives as long as the child should. The promise
    survives exec, but not fork: children of this process have to ask for themselves.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def leave_no_core_dump() -> None:
    """A core dump would hold prompts in the clear."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def keep_freed_memory() -> bool:
    """Have malloc keep what is freed for the next request; returns whether it does (glibc).

    By default every large block comes fresh from the kernel, page by page and filled with zeros,
    and goes back at once: a third of the time of a training step, whose blocks are all alike.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    wanted = ((_M_MMAP_THRESHOLD, _LARGEST), (_M_TRIM_THRESHOLD, _NEVER))
    return mallopt is not None and all(mallopt(name, value) == 1 for name, value in wanted)


def run_when_idle() -> None:
    """Take only processor time that nobody else wants; children inherit it."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def main(arguments: Sequence[str]) -> None:
    """Become the command after `--`."""
    split = arguments.index("--")
    options, command = arguments[:split], arguments[split + 1 :]
    die_with_parent()
    if "--parent" in options and options[options.index("--parent") + 1] != str(os.getppid()):
        sys.exit(1)  # the parent died before the kernel was told
    leave_no_core_dump()
    os.umask(0o077)  # sockets and files are for this user only
    if "--idle" in options:
        run_when_idle()
    os.execvp(command[0], list(command))


if __name__ == "__main__":
    main(sys.argv[1:])
