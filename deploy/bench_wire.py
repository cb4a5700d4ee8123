"""The two ends of a gateway measurement: an engine that answers at once, and a client that waits.

Both are bare protocols on sockets, so that what is measured is what stands between them. They speak
just enough HTTP/1.1 for one another, and know nothing of gateways; deploy/bench_gateway.py does.
"""

import asyncio
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

CHUNKS_PER_SECOND = 20
_HEAD_END = b"\r\n\r\n"
_QUESTION = "What is the capital of France, and what is it known for?"
_ANSWER = "The capital of France is Paris. It lies on the Seine and is known for its museums."
_USAGE = {"prompt_tokens": 31, "total_tokens": 51, "completion_tokens": 20}


def chat_request(secret: str, *, stream_seconds: float = 0.0, store: bool = True) -> bytes:
    """A chat completion as bytes; a stream lasts about so long."""
    said = {"messages": [{"role": "user", "content": _QUESTION}], "max_tokens": 32}
    if stream_seconds:
        said |= {"stream": True, "seed": int(stream_seconds * CHUNKS_PER_SECOND)}
    if not store:
        said["store"] = False
    body = json.dumps({"model": "instructloop", **said}).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\nx-request-id: bench\r\n"
        b"authorization: Bearer %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        % (secret.encode(), len(body))
    ) + body


# --- the engine -----------------------------------------------------------------------------


class InstantEngine(asyncio.Protocol):
    """Answers each request in the moment it is complete; a stream keeps its pace."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._buffer = b""
        self._streams: set[asyncio.Task[None]] = set()

    def connection_lost(self, _: Exception | None) -> None:
        """The client is gone, and so are its streams."""
        for stream in self._streams:
            stream.cancel()

    def data_received(self, data: bytes) -> None:
        """Answer every request that is complete."""
        self._buffer += data
        while (request := _whole_message(self._buffer)) is not None:
            head, body = request
            self._buffer = self._buffer[len(head) + len(_HEAD_END) + len(body) :]
            name = _header(head, b"x-request-id").decode()
            if b'"stream":true' in body.replace(b" ", b""):
                stream = asyncio.create_task(self._stream(name, int(json.loads(body)["seed"])))
                self._streams.add(stream)
            else:
                self._reply(b"application/json", _whole_reply(name))

    def _reply(self, kind: bytes, body: bytes) -> None:
        self._transport.write(_status_line(kind) + b"content-length: %d\r\n\r\n" % len(body) + body)

    async def _stream(self, name: str, chunks: int) -> None:
        self._transport.write(
            _status_line(b"text/event-stream") + b"transfer-encoding: chunked\r\n\r\n"
        )
        for _ in range(chunks):
            # its reader compares this with the same clock: both are processes of one machine
            self._send_event(_chunk(name, [{"index": 0, "delta": {"content": " word"}}]))
            await asyncio.sleep(1 / CHUNKS_PER_SECOND)
        last = {"index": 0, "delta": {}, "finish_reason": "stop"}
        self._send_event(_chunk(name, [last]))
        self._send_event(_chunk(name, []) | {"usage": _USAGE})
        self._transport.write(_chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    def _send_event(self, content: dict[str, object]) -> None:
        self._transport.write(_chunked(b"data: " + json.dumps(content).encode() + b"\n\n"))


async def run_instant_engine(socket: Path) -> None:
    """Serve until cancelled."""
    server = await asyncio.get_running_loop().create_unix_server(InstantEngine, str(socket))
    await server.serve_forever()


def _chunk(name: str, choices: list[object]) -> dict[str, object]:
    return {"id": f"chatcmpl-{name}", "choices": choices, "sent_at": time.monotonic()}


def _whole_reply(name: str) -> bytes:
    message = {"role": "assistant", "content": _ANSWER}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return json.dumps(
        {"id": f"chatcmpl-{name}", "object": "chat.completion", "created": 1790000000}
        | {"model": "instructloop", "choices": [choice], "usage": _USAGE}
    ).encode()


def _status_line(kind: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\nx-policy-version: v0000\r\n" % kind


def _chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


# --- the client -----------------------------------------------------------------------------


@dataclass(slots=True)
class Load:
    """What a load found, in seconds."""

    latencies: list[float] = field(default_factory=list)
    """Of whole replies."""
    first_delays: list[float] = field(default_factory=list)
    """Of a stream's first chunk: from the engine's writing it to its reading here."""
    delays: list[float] = field(default_factory=list)
    """Of all chunks."""
    seconds: float = 0.0

    @property
    def per_second(self) -> float:
        """Whole replies in a second."""
        return len(self.latencies) / self.seconds


async def load(target: str, request: bytes, *, clients: int, seconds: float) -> Load:
    """Ask again and again from so many connections; `target` is a socket's path or HOST:PORT."""
    found = Load()
    began = time.perf_counter()
    until = began + seconds
    await asyncio.gather(*[_client(target, request, until, found) for _ in range(clients)])
    found.seconds = time.perf_counter() - began
    return found


async def _client(target: str, request: bytes, until: float, found: Load) -> None:
    reader, writer = await _connection(target)
    try:
        while (asked_at := time.perf_counter()) < until:
            writer.write(request)
            await _read_reply(reader, found)
            found.latencies.append(time.perf_counter() - asked_at)
    finally:
        writer.close()


async def _connection(target: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if target.startswith("/"):
        return await asyncio.open_unix_connection(target)
    host, port = target.split(":")
    return await asyncio.open_connection(host, int(port))


async def _read_reply(reader: asyncio.StreamReader, found: Load) -> None:
    head = await reader.readuntil(_HEAD_END)
    assert head.startswith(b"HTTP/1.1 200"), head
    if length := _header(head, b"content-length"):
        await reader.readexactly(int(length))
        return
    first = True
    while size := int(await reader.readuntil(b"\r\n"), 16):
        data = (await reader.readexactly(size + 2)).rstrip()
        for sent_at in _moments(data):
            delay = time.monotonic() - sent_at
            found.delays.append(delay)
            if first:
                found.first_delays.append(delay)
                first = False
    await reader.readexactly(2)


def _moments(data: bytes) -> list[float]:
    mark = b'"sent_at": '
    return [float(part[: part.index(b"}")].split(b",")[0]) for part in data.split(mark)[1:]]


def _whole_message(buffer: bytes) -> tuple[bytes, bytes] | None:
    head, end, rest = buffer.partition(_HEAD_END)
    length = int(_header(head, b"content-length") or 0)
    return (head, rest[:length]) if end and len(rest) >= length else None


def _header(head: bytes, name: bytes) -> bytes:
    at = head.lower().find(b"\r\n" + name + b":")
    return head[at:].split(b"\r\n")[1].split(b":", 1)[1].strip() if at >= 0 else b""
