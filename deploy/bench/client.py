"""Clients that ask and wait, as bare sockets: a closed loop of many, or a timetable that is kept.

A timetable does not wait for replies, and each time counts from when the request was due, so a
server that stalls is charged for all who came meanwhile (no coordinated omission). Knows nothing of
what answers; deploy/bench/figures.py makes figures of what is found.
"""

import asyncio
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from core.errors import InstructLoopError
from deploy.bench.engine import HEAD_END, header
from deploy.bench.maths import timetable

_WRITTEN_AT = re.compile(rb"at=(\d+\.\d+) ")
_READY_CONNECTIONS = 8


@dataclass(slots=True)
class Found:
    """What clients saw, in seconds."""

    latencies: list[float] = field(default_factory=list)
    """From asking, or from when it was due, to the end of the reply."""
    first_chunks: list[float] = field(default_factory=list)
    """From asking for a stream to its first chunk."""
    chunk_delays: list[float] = field(default_factory=list)
    """From the engine's writing of a chunk to its reading here."""
    seconds: float = 0.0

    @property
    def per_second(self) -> float:
        """Whole replies in a second."""
        return len(self.latencies) / self.seconds


async def closed_loop(
    target: str,
    request: bytes,
    *,
    clients: int,
    seconds: float,
    starts: Sequence[float] = (),
    times: int | None = None,
) -> Found:
    """Ask again and again from so many connections, each at least once and at most `times`.

    `target` is a socket's path or HOST:PORT; `starts` says when each begins.
    """
    found = Found()
    connections = [await _connect(target) for _ in range(clients)]
    began = time.perf_counter()

    async def ask(number: int) -> None:
        if starts:
            await asyncio.sleep(starts[number])
        asked = 0
        while True:
            await _ask(connections[number], request, found)
            asked += 1
            if asked == times or time.perf_counter() - began >= seconds:
                return

    try:
        async with asyncio.TaskGroup() as asking:
            for number in range(clients):
                asking.create_task(ask(number))
    except* InstructLoopError as errors:
        raise errors.exceptions[0] from None
    finally:
        for connection in connections:
            connection.writer.close()
    found.seconds = time.perf_counter() - began
    return found


async def open_loop(target: str, request: bytes, *, per_second: float, seconds: float) -> Found:
    """Ask by a timetable, whatever became of the requests before."""
    found = Found()
    free = [await _connect(target) for _ in range(_READY_CONNECTIONS)]
    due: asyncio.Queue[float | None] = asyncio.Queue()
    pacer = threading.Thread(
        target=pace,
        args=(asyncio.get_running_loop(), due, timetable(per_second, seconds)),
        daemon=True,
    )

    async def ask(moment: float) -> None:
        connection = free.pop() if free else await _connect(target)
        await _ask(connection, request, found, since=moment)
        free.append(connection)

    began = time.perf_counter()
    pacer.start()
    try:
        async with asyncio.TaskGroup() as asking:
            while (moment := await due.get()) is not None:
                asking.create_task(ask(moment))
    except* InstructLoopError as errors:
        raise errors.exceptions[0] from None
    finally:
        for connection in free:
            connection.writer.close()
    found.seconds = time.perf_counter() - began
    return found


def pace(
    loop: asyncio.AbstractEventLoop, due: "asyncio.Queue[float | None]", moments: Sequence[float]
) -> None:
    """Say when each request is due, from a thread: a loop's own timers are a millisecond coarse."""
    began = time.perf_counter()
    for moment in moments:
        time.sleep(max(0.0, began + moment - time.perf_counter()))
        if loop.is_closed():
            return
        loop.call_soon_threadsafe(due.put_nowait, began + moment)
    loop.call_soon_threadsafe(due.put_nowait, None)


@dataclass(frozen=True, slots=True)
class _Connection:
    target: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


async def _connect(target: str) -> _Connection:
    if target.startswith("/"):
        return _Connection(target, *await asyncio.open_unix_connection(target))
    host, port = target.split(":")
    return _Connection(target, *await asyncio.open_connection(host, int(port)))


async def _ask(
    connection: _Connection, request: bytes, found: Found, *, since: float | None = None
) -> None:
    """One request and its whole reply. Raises InstructLoopError unless it is a 200."""
    asked_at = time.perf_counter() if since is None else since
    connection.writer.write(request)
    reader = connection.reader
    try:
        head = await reader.readuntil(HEAD_END)
        length = int(header(head, b"content-length") or 0)
        if not head.startswith(b"HTTP/1.1 200"):
            said = await reader.readexactly(length)
            status = head.split(b"\r\n")[0].decode("latin-1")
            raise InstructLoopError(f"{connection.target} answered {status}: {said[:200]!r}")
        if length:
            await reader.readexactly(length)
        else:
            await _read_chunks(reader, found, asked_at)
    except asyncio.IncompleteReadError:
        raise InstructLoopError(f"{connection.target} broke off a reply") from None
    found.latencies.append(time.perf_counter() - asked_at)


async def _read_chunks(reader: asyncio.StreamReader, found: Found, asked_at: float) -> None:
    first = True
    while size := int(await reader.readuntil(b"\r\n"), 16):
        data = await reader.readexactly(size + 2)
        for written_at in _WRITTEN_AT.findall(data):
            found.chunk_delays.append(time.monotonic() - float(written_at))
        if first and b'"content"' in data:
            found.first_chunks.append(time.perf_counter() - asked_at)
            first = False
    await reader.readexactly(2)
