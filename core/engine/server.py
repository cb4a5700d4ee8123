"""The main module of an engine's processes: vLLM's server, and nothing that outlives it.

Python runs the main module of a process also, and first of all, in every process that it spawns.
vLLM's own would do nothing there but import for many seconds, and a server that is killed meanwhile
would leave an engine behind that works for nobody. Knows nothing of what vLLM serves;
core/engine/launch.py starts it with the flags.
"""

import os
from contextlib import suppress
from importlib import import_module

from core.process import die_with_parent


def end_with_server() -> None:
    """Die with the process that spawned this one, also if it is dead already.

    core/engine/launch.py gives the server and its processes a session of their own; an orphan's new
    parent is of another one. (The dead one may still be in the table of processes.)
    """
    die_with_parent()
    with suppress(ProcessLookupError):
        if os.getsid(os.getppid()) == os.getsid(0):
            return
    os._exit(1)


if __name__ == "__mp_main__":
    end_with_server()

if __name__ == "__main__":
    import_module("vllm.entrypoints.launchers.api_server.entry").main()
