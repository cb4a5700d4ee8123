"""One machine, one command: start the processes of the service, keep them alive, stop them.

`up` waits for the service to be ready and says meanwhile what it waits for; a child that dies is
started again with a growing delay; on SIGTERM or Ctrl-C the children stop in an order that loses
nothing: first what creates work, then what answers requests, Redis last. Knows processes; what
each of them does is theirs.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from core.process import wrapped

FIRST_DELAY_SECONDS = 1.0
LONGEST_DELAY_SECONDS = 30.0
HEALTHY_SECONDS = 60.0
"""A child that lived this long starts again at once, should it die."""


@dataclass(slots=True)
class Child:
    """A process to keep alive."""

    name: str
    command: Sequence[str]
    log: Path
    stop_seconds: float
    """How long it may take to finish after SIGTERM."""
    process: "subprocess.Popen[bytes] | None" = None
    started_at: float = 0.0
    delay: float = 0.0
    restart_at: float = 0.0
    restarts: int = 0
    retire_by: float = 0.0
    """When it has to be gone for good; 0 while it is to live."""

    def start(self) -> None:
        """Start it in its own session: Ctrl-C reaches it through the supervisor alone."""
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                wrapped(self.command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started_at = time.monotonic()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.poll() is None


@dataclass(slots=True)
class Supervisor:
    """The children, in the order in which they start; they stop in the opposite order."""

    say: Callable[[str], None]
    children: list[Child] = field(default_factory=list)
    stopping: bool = False

    def start(self, child: Child, *, before: str = "") -> None:
        """Start a child and keep it alive from now on; it stops after the one named `before`."""
        names = [other.name for other in self.children]
        self.children.insert(names.index(before) if before in names else len(names), child)
        child.start()

    def retire(self, child: Child) -> None:
        """Tell a child to stop for good; `tend` forgets it when it has, or ends it in its time."""
        if not child.retire_by:
            child.retire_by = time.monotonic() + child.stop_seconds
            if child.process is not None and child.alive:
                child.process.terminate()

    def tend(self) -> None:
        """Start again what has died, once its delay is over. Call it often."""
        now = time.monotonic()
        for child in list(self.children):
            if child.retire_by:
                self._see_off(child, now)
            elif child.alive:
                continue
            elif child.restart_at == 0.0:
                child.delay = next_delay(child.delay, lived=now - child.started_at)
                child.restart_at = now + child.delay
                code = child.process.returncode if child.process else None
                self.say(
                    f"{child.name} ended ({ending(code)}); starting it again in "
                    f"{child.delay:.0f} s; its log: {child.log}"
                )
            elif now >= child.restart_at:
                child.restart_at = 0.0
                child.restarts += 1
                child.start()

    def _see_off(self, child: Child, now: float) -> None:
        if not child.alive:
            self.children.remove(child)
            self.say(f"{child.name} has left")
        elif child.process is not None and now >= child.retire_by:
            child.process.kill()

    def stop(self) -> None:
        """Stop all, last started first, each with the time it was promised."""
        self.stopping = True
        for child in reversed(self.children):
            if child.alive:
                self.say(f"stopping {child.name}")
                stop(child)

    def handle_signals(self) -> None:
        """From now on SIGTERM and Ctrl-C mean: stop."""

        def on_signal(_number: int, _frame: FrameType | None) -> None:
            self.stopping = True

        signal.signal(signal.SIGTERM, on_signal)
        signal.signal(signal.SIGINT, on_signal)


def next_delay(delay: float, *, lived: float) -> float:
    """Seconds to wait before the next start: doubled each time, forgiven by a long life."""
    if lived >= HEALTHY_SECONDS or delay == 0.0:
        return FIRST_DELAY_SECONDS
    return min(delay * 2, LONGEST_DELAY_SECONDS)


def ending(code: int | None) -> str:
    """How a process ended, in words."""
    if code is None:
        return "it did not start"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def stop(child: Child) -> None:
    """SIGTERM, then the promised time, then SIGKILL to it and what it started."""
    process = child.process
    if process is None or process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(child.stop_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def own_command(*arguments: str) -> list[str]:
    """The command line of one of our own sub-commands, in this virtual environment."""
    return [sys.executable, "-m", "deploy", *arguments]
