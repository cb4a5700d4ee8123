"""A client of the feedback route on bare connections, and one that asks until it has its word.

`Line` is one HTTP/1.1 connection with one request at a time, a protocol without streams, so that
two cores have room for what is measured. `insist` is what a good client does: on a 503, or when
the connection breaks, the same request with the same Idempotency-Key once more.
"""

import asyncio
from dataclasses import dataclass, field
from typing import cast

from core.errors import InstructLoopError
from deploy.bench.engine import HEAD_END, header

_LONGEST_WAIT_SECONDS = 1.0
_AGAIN_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole reply."""

    status: int
    head: bytes
    body: bytes


class Line(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._buffer = b""
        self._answer: asyncio.Future[Answer] | None = None
        self._lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The other side is there."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def connection_lost(self, _: Exception | None) -> None:
        """Whoever waits for an answer will not get it."""
        self._lost = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError("the connection broke"))

    def data_received(self, data: bytes) -> None:
        """Give the answer once it is whole."""
        self._buffer += data
        head, end, rest = self._buffer.partition(HEAD_END)
        if not end:
            return
        length = int(header(head, b"content-length") or 0)
        if len(rest) < length:
            return
        self._buffer = rest[length:]
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(Answer(int(head[9:12]), head, rest[:length]))

    async def ask(self, request: bytes) -> Answer:
        """One request and its reply. Raises OSError when the connection breaks."""
        if self._lost:
            raise ConnectionResetError("the connection broke")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        """Hang up."""
        self._transport.close()


async def open_line(address: str) -> Line:
    """A connection to HOST:PORT. Raises OSError."""
    host, port = address.split(":")
    loop = asyncio.get_running_loop()
    _, line = await loop.create_connection(Line, host, int(port))
    return line


def checked(answer: Answer) -> Answer:
    """The answer, if it is a 2xx. Raises InstructLoopError."""
    if not 200 <= answer.status < 300:
        raise InstructLoopError(f"the gateway answered {answer.status}: {answer.body[:200]!r}")
    return answer


@dataclass(slots=True)
class Insisting:
    """A client that asks until it has its word; it counts what came between."""

    address: str
    refused: int = 0
    """Replies with 503."""
    broken: int = 0
    """Connections that broke or were not taken."""
    _line: Line | None = field(default=None, repr=False)

    async def insist(self, request: bytes) -> Answer:
        """The 2xx to a request that carries an Idempotency-Key. Raises InstructLoopError."""
        while True:
            try:
                if self._line is None:
                    self._line = await open_line(self.address)
                answer = await self._line.ask(request)
            except OSError:
                self._line = None
                self.broken += 1
                await asyncio.sleep(_AGAIN_SECONDS)
                continue
            if answer.status != 503:
                return checked(answer)
            self.refused += 1
            wait = float(header(answer.head + HEAD_END, b"retry-after") or _AGAIN_SECONDS)
            await asyncio.sleep(min(wait, _LONGEST_WAIT_SECONDS))

    def close(self) -> None:
        """Hang up."""
        if self._line is not None:
            self._line.close()
