"""A process that erases, and may be told to kill itself at any line of the erasure's files."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import feedback
from core.keyring import Keyring
from core.redis_client import connect
from core.settings import Settings
from feedback.erasing import erase_what_is_due

ROOT = str(Path(feedback.__file__).parent / "eras")


def erase_and_die(url: str, settings: Settings, at_line: int, lines) -> None:
    """Do what is due; kill -9 of itself when `at_line` lines have run. `lines` says how many."""

    def trace(frame, event, _):
        if not frame.f_code.co_filename.startswith(ROOT):
            return None
        if event == "line":
            lines.value += 1
            if lines.value == at_line:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    asyncio.run(_erase(url, settings))


async def _erase(url: str, settings: Settings) -> None:
    async with connect(url) as redis:
        await erase_what_is_due(redis, Keyring(settings.state_dir / "secrets"), settings)
