"""A process that backs up or restores, and kills itself at a line of the code that does it."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import deploy
from core.redis_client import connect
from deploy.backup import make_backup, restore

ROOT = str(Path(deploy.__file__).parent / "backup")


def quiet(_what, _total):
    """A bar that nobody sees."""
    return lambda _done: None


def die_at(at_line: int, lines, act) -> None:
    """Call `act`; kill -9 of itself when `at_line` lines have run. `lines` says how many."""

    def trace(frame, event, _):
        if not frame.f_code.co_filename.startswith(ROOT):
            return None
        if event == "line":
            lines.value += 1
            if lines.value == at_line:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    act()


def back_up_and_die(url, settings, out, at_line, lines) -> None:
    async def run():
        async with connect(url) as redis:
            await make_backup(redis, settings, out, quiet)

    die_at(at_line, lines, lambda: asyncio.run(run()))


def restore_and_die(source, target, at_line, lines) -> None:
    die_at(at_line, lines, lambda: restore(source, target, [], quiet, without_erasures=True))
