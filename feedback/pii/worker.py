"""The filter in a process of its own, which is killed when a record takes too long.

    PiiWorker  <- frames over a socket pair ->  python -m feedback.pii.worker PLAN

PLAN is JSON: whether the second model reads too, and the recognizers to import. A frame is four
bytes of length and JSON. The child has no environment of ours (no keys, no addresses), writes
nothing to its standard streams, dumps no core, and asks the kernel to end it when a record's time
is over, so it also ends when this process is gone. It fails closed: whatever happens, the answer is
filtered text or PiiFailed, whose message never holds any of the text.
"""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core.errors import InstructLoopError
from core.process import leave_no_core_dump
from feedback.pii.record import (
    FIRST_TIER,
    Filtered,
    Plan,
    filter_record,
    filter_version,
    loaded,
)

_GRACE_SECONDS = 0.5
"""What a child gets beyond a record's time to say by itself that the time is over."""

_RECORDS_PER_CHILD = 10_000
"""spaCy's tables grow slowly with new words, whatever is freed; a new child begins small again."""

_LENGTH = struct.Struct("!I")
_ROOT = Path(__file__).resolve().parents[2]


class PiiFailed(InstructLoopError):
    """A record could not be cleared; `reason` is deadline, died, start, or an error's name."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The PII filter could not clear a record ({reason}); its text is kept back.",
            code="pii_failed",
        )
        self.reason = reason


class PiiWorker:
    """One child process that filters records one at a time; safe to share between threads.

    The child starts at the first record (or `start`) and anew after it was killed. `plan` says
    what it reads with. Blocking: an async caller uses `asyncio.to_thread`.
    """

    def __init__(
        self,
        plan: Plan = FIRST_TIER,
        *,
        start_seconds: float = 60.0,
        records_per_child: int = _RECORDS_PER_CHILD,
    ) -> None:
        self._plan = plan
        self._start_seconds = start_seconds
        self._records_per_child = records_per_child
        self._records = 0
        self._version = ""
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._is_ready = False

    @property
    def pid(self) -> int | None:
        """The child's process id, None while there is none."""
        return self._process.pid if self._process else None

    def use(self, plan: Plan) -> None:
        """Read with another plan from the next record on."""
        with self._lock:
            if plan != self._plan:
                self._kill()
                self._plan = plan

    def start(self) -> str:
        """Start the child, wait until its models are loaded; the filter's version. PiiFailed."""
        with self._lock:
            self._ready()
            return self._version

    def filter_record(self, texts: Sequence[str], *, deadline_seconds: float) -> Filtered:
        """As `record.filter_record`, within `deadline_seconds` of wall time. Raises PiiFailed."""
        with self._lock:
            self._ready()
            end = time.monotonic() + deadline_seconds + _GRACE_SECONDS
            reply = self._exchange({"texts": list(texts), "seconds": deadline_seconds}, end)
            self._records += 1
            if self._records >= self._records_per_child:
                self._kill()
        if "failed" in reply:
            raise PiiFailed(str(reply["failed"]))
        return Filtered(tuple(reply["texts"]), dict(reply["counts"]), str(reply["version"]))

    def close(self) -> None:
        """End the child; the next record would start a new one."""
        with self._lock:
            self._kill()

    def _ready(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            self._kill()
        if self._process is None:
            self._spawn()
        if not self._is_ready:
            reply = self._exchange(None, time.monotonic() + self._start_seconds)
            if "failed" in reply:
                self._kill()
                raise PiiFailed("start")
            self._version = str(reply["ready"])
            self._is_ready = True

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "feedback.pii.worker", json.dumps(asdict(self._plan))],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={"PYTHONPATH": self._path(), "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"},
                cwd="/",
            )
        self._socket = ours

    def _path(self) -> str:
        """Where the child finds us, and recognizers that somebody put on our path."""
        own = os.environ.get("PYTHONPATH") if self._plan.recognizers else None
        return os.pathsep.join((str(_ROOT), own) if own else (str(_ROOT),))

    def _exchange(self, request: dict[str, Any] | None, end: float) -> dict[str, Any]:
        """Send a frame (or none) and read one. The child is killed when either goes wrong."""
        assert self._socket is not None
        try:
            if request is not None:
                _send(self._socket, request, end)
            reply = _receive(self._socket, end)
        except TimeoutError:
            self._kill()
            raise PiiFailed("deadline") from None
        except (OSError, ValueError):
            self._kill()
            raise PiiFailed("died") from None
        if reply is None:
            self._kill()
            raise PiiFailed("died")
        return reply

    def _kill(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = self._socket = None
        self._is_ready = False
        self._records = 0


def _send(link: socket.socket, message: dict[str, Any], end: float | None) -> None:
    data = json.dumps(message).encode("ascii")
    link.settimeout(_left(end))
    link.sendall(_LENGTH.pack(len(data)) + data)


def _receive(link: socket.socket, end: float | None) -> dict[str, Any] | None:
    """The next message, None when the other side is gone."""
    header = _read(link, _LENGTH.size, end)
    if header is None:
        return None
    data = _read(link, _LENGTH.unpack(header)[0], end)
    return None if data is None else dict(json.loads(data))


def _read(link: socket.socket, size: int, end: float | None) -> bytes | None:
    chunks = bytearray()
    while len(chunks) < size:
        link.settimeout(_left(end))
        chunk = link.recv(min(size - len(chunks), 1 << 20))
        if not chunk:
            return None
        chunks += chunk
    return bytes(chunks)


def _left(end: float | None) -> float | None:
    """Seconds until `end`, at least a moment: a timeout of 0 would mean not to wait at all."""
    return None if end is None else max(0.001, end - time.monotonic())


def _answer(request: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """One record in the child; an error becomes its name alone, for its message may hold text."""
    seconds = float(request["seconds"])
    signal.setitimer(signal.ITIMER_REAL, seconds + _GRACE_SECONDS)
    try:
        done = filter_record(request["texts"], deadline_seconds=seconds, plan=plan)
    except Exception as error:  # the edge: nothing of the text may leave
        return {"failed": type(error).__name__}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return {"texts": done.texts, "counts": done.counts, "version": done.version}


def main() -> None:
    """Answer frames on standard input, which is a socket, until the other side is gone."""
    leave_no_core_dump()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    link = socket.socket(fileno=0)
    chosen = json.loads(sys.argv[1])
    plan = Plan(bool(chosen["second_tier"]), tuple(chosen["recognizers"]))
    try:
        loaded(plan)
    except Exception as error:  # the edge
        _send(link, {"failed": type(error).__name__}, None)
        return
    _send(link, {"ready": filter_version(plan)}, None)
    while (request := _receive(link, None)) is not None:
        _send(link, _answer(request, plan), None)


if __name__ == "__main__":
    main()
