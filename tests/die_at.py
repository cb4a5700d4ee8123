"""A process that kills itself at a line of ours: for tests that things survive this anywhere."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any


def die_at(at_line: int, lines: Any, act: Callable[[], object], *, within: tuple[str, ...]) -> None:
    """Call `act`; kill -9 of this process when `at_line` lines of files below `within` have run.

    `lines`, a shared value, counts them.
    """

    def trace(frame, event, _):
        if not frame.f_code.co_filename.startswith(within):
            return None
        if event == "line":
            lines.value += 1
            if lines.value == at_line:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    act()
