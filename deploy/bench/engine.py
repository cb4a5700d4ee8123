"""An engine that answers at once, as a bare protocol on a socket, and requests for it.

It speaks just enough HTTP/1.1 for the gateways that are measured in front of it. The prompt says
how it answers: after how long, and in how many chunks. Each chunk of a stream says when it was
written; its reader (deploy/bench/client.py) has the same clock, because both are processes of one
machine. Knows nothing of gateways.
"""

import asyncio
import json
import re
import time
from typing import cast

CHUNKS_PER_SECOND = 20
HEAD_END = b"\r\n\r\n"
_QUESTION = "What is the capital of France, and what is it known for?"
_ANSWER = "The capital of France is Paris. It lies on the Seine and is known for its museums."
_ORDER = re.compile(rb"\(chunks=(\d+) wait=(\d+)\)")
_USAGE = {"prompt_tokens": 31, "total_tokens": 51, "completion_tokens": 20}
_CHUNK = (
    b'data: {"id":"chatcmpl-%b","object":"chat.completion.chunk","created":1790000000,'
    b'"model":"instructloop","choices":[{"index":0,"delta":{"content":"at=%.6f "},'
    b'"finish_reason":null}]}\n\n'
)
_LAST_CHUNK = (
    b'data: {"id":"chatcmpl-%b","object":"chat.completion.chunk","created":1790000000,'
    b'"model":"instructloop","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
)
_USAGE_CHUNK = (
    b'data: {"id":"chatcmpl-%b","object":"chat.completion.chunk","created":1790000000,'
    b'"model":"instructloop","choices":[],"usage":' + json.dumps(_USAGE).encode() + b"}\n\n"
)


def chat_request(secret: str, *, chunks: int = 0, wait_ms: int = 0) -> bytes:
    """A chat completion as bytes; streamed where it has chunks. The engine waits before it."""
    text = f"{_QUESTION} (chunks={chunks} wait={wait_ms})"
    return http_request(
        secret,
        {"messages": [{"role": "user", "content": text}], "max_tokens": 32}
        | ({"stream": True} if chunks else {}),
    )


def http_request(secret: str, said: dict[str, object]) -> bytes:
    """A chat completion with these fields as a request on the wire."""
    body = json.dumps({"model": "instructloop", **said}).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\nx-request-id: bench\r\n"
        b"authorization: Bearer %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        % (secret.encode(), len(body))
    ) + body


def header(head: bytes, name: bytes) -> bytes:
    """The value of a header, empty when it is not there; `name` in lower case."""
    at = head.lower().find(b"\r\n" + name + b":")
    return head[at:].split(b"\r\n")[1].split(b":", 1)[1].strip() if at >= 0 else b""


class InstantEngine(asyncio.Protocol):
    """Answers each request as soon as it is complete, or after the wait that it asks for."""

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
            self._buffer = self._buffer[len(head) + len(HEAD_END) + len(body) :]
            name = header(head, b"x-request-id") or b"bench"
            chunks, wait_ms = _order(body)
            if chunks:
                self._streams.add(asyncio.create_task(self._stream(name, chunks)))
            elif wait_ms:
                loop = asyncio.get_running_loop()
                loop.call_later(wait_ms / 1000, self._reply, name)
            else:
                self._reply(name)

    def _reply(self, name: bytes) -> None:
        body = _whole_reply(name.decode())
        length = b"content-length: %d\r\n\r\n" % len(body)
        self._transport.write(_status_line(b"application/json") + length + body)

    async def _stream(self, name: bytes, chunks: int) -> None:
        write = self._transport.write
        write(_status_line(b"text/event-stream") + b"transfer-encoding: chunked\r\n\r\n")
        for number in range(chunks):
            if number:
                await asyncio.sleep(1 / CHUNKS_PER_SECOND)
            write(_chunked(_CHUNK % (name, time.monotonic())))
        write(_chunked(_LAST_CHUNK % name))
        write(_chunked(_USAGE_CHUNK % name))
        write(_chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n")


async def run_instant_engine(port: int) -> None:
    """Serve on a port of this machine until cancelled."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(InstantEngine, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


def _order(body: bytes) -> tuple[int, int]:
    """In how many chunks, and after how many milliseconds; a probe of a gateway says neither."""
    match = _ORDER.search(body)
    return (int(match[1]), int(match[2])) if match else (0, 0)


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


def _whole_message(buffer: bytes) -> tuple[bytes, bytes] | None:
    head, end, rest = buffer.partition(HEAD_END)
    length = int(header(head, b"content-length") or 0)
    return (head, rest[:length]) if end and len(rest) >= length else None
