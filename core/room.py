"""Whether the disk has room: as it fills, learning stops first, logging next, feedback last.

Looks at the disk of the state folder, where versions, runs, the spool and our own Redis lie. What
stops then is said by the callers: learning/rounds/runner.py and the tick, serving/inbox.py,
feedback/edge.py. A Redis elsewhere says itself when its disk is full.
"""

import logging
import time
from functools import cache
from os import statvfs
from pathlib import Path
from typing import Literal

from core import metrics
from core.setting_groups import RoomSettings

What = Literal["learning", "logging", "feedback"]
KINDS: tuple[What, ...] = ("learning", "logging", "feedback")
_LOOK_SECONDS = 1.0
log = logging.getLogger(__name__)


@cache
def room_of(folder: Path, settings: RoomSettings) -> "Room":
    """The one of this process for a folder: it remembers what has stopped."""
    return Room(folder, settings)


class Room:
    """The disk under a folder, looked at once a second at most."""

    def __init__(self, folder: Path, settings: RoomSettings) -> None:
        self._folder = folder
        self._least: dict[What, int] = {
            "learning": settings.learning_mib,
            "logging": settings.logging_mib,
            "feedback": settings.feedback_mib,
        }
        self._free_mib: int | None = None
        self._looked = -_LOOK_SECONDS
        self._stopped: frozenset[What] = frozenset()

    def lacking(self, what: What) -> str | None:
        """Why this has to stop for now, for people; None when there is room for it."""
        if time.monotonic() - self._looked >= _LOOK_SECONDS:
            self._look()
        if what not in self._stopped:
            return None
        return f"{self._free_mib} MiB of disk are free, {what} needs {self._least[what]}"

    def _look(self) -> None:
        self._looked = time.monotonic()
        try:
            found = statvfs(self._folder)
        except OSError:  # not there yet, or out of reach: whoever writes there will say so
            return
        free = found.f_bavail * found.f_frsize
        self._free_mib = free >> 20
        stopped = frozenset(what for what, least in self._least.items() if free < least << 20)
        metrics.DISK_FREE.set(free)
        for what in KINDS:
            metrics.DISK_STOPPED.labels(what).set(what in stopped)
            self._say(what, was=what in self._stopped, now=what in stopped)
        self._stopped = stopped

    def _say(self, what: What, *, was: bool, now: bool) -> None:
        if now and not was:
            level = logging.ERROR if what == "feedback" else logging.WARNING
            least = self._least[what]
            log.log(
                level,
                "%s stops: %d MiB of disk are free, %d are needed",
                what,
                self._free_mib,
                least,
            )
        elif was and not now:
            log.warning("%s goes on: there is room on the disk again", what)
