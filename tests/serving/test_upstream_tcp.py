"""Engines on other machines: connections are kept, and one that turns out closed costs nothing."""

import asyncio
import json
import re
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from serving.engines import Engine
from serving.upstream import Upstream
from tests.serving.conftest import TEXT, announce, running_gateway
from tests.serving.engine_double import EngineDouble


@dataclass
class Line:
    """An engine at a port that answers as it is told; requests by connection."""

    closes_after: int = 1000
    """So many replies; the next request on the same connection gets none."""
    requests: list[list[str]] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    """Bodies wait for it."""

    async def serve(self, reader, writer) -> None:
        seen: list[str] = []
        self.requests.append(seen)
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                length = int(re.search(r"content-length: (\d+)", head, re.I)[1])
                await reader.readexactly(length)
                seen.append(re.search(r"x-request-id: (\S+)", head, re.I)[1])
                if len(seen) > self.closes_after:
                    break
                head, _, body = reply(seen[-1]).partition(b"\r\n\r\n")
                writer.write(head + b"\r\n\r\n")
                await self.gate.wait()
                writer.write(body)
        except (asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        writer.close()

    def __post_init__(self) -> None:
        self.gate.set()

    @asynccontextmanager
    async def listening(self):
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            self.gate.set()


def reply(name: str) -> bytes:
    choice = {"index": 0, "text": " Paris", "finish_reason": "stop"}
    said = {
        "id": f"cmpl-{name}",
        "object": "text_completion",
        "choices": [choice],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
    body = json.dumps(said).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return f"{head}\r\nx-policy-version: v0000\r\n\r\n".encode() + body


@pytest.fixture
def quiet(gateway_settings):
    """Without probes: all that comes is the test's."""
    gateway = gateway_settings.gateway.model_copy(update={"probe_interval_seconds": 600.0})
    return gateway_settings.model_copy(update={"gateway": gateway})


async def ask(gateway) -> int:
    async with gateway.post("/v1/completions", TEXT) as response:
        await response.read()
        return response.status


async def test_one_connection_carries_one_request_after_the_other(quiet, redis):
    line = Line()
    async with line.listening() as url:
        await announce(redis, url)
        async with running_gateway(quiet, redis) as gateway:
            assert [await ask(gateway) for _ in range(5)] == [200] * 5
    assert [len(seen) for seen in line.requests] == [5]


async def test_a_kept_connection_that_the_engine_closes_meanwhile_is_replaced_unseen(quiet, redis):
    line = Line(closes_after=1)
    async with line.listening() as url:
        await announce(redis, url)
        async with running_gateway(quiet, redis) as gateway:
            assert [await ask(gateway) for _ in range(3)] == [200] * 3
    first, second, third = line.requests
    assert (first[1], second[1]) == (second[0], third[0])  # the same request, on a new connection
    assert len(third) == 1


async def test_a_port_where_nobody_is_any_more_is_passed_over(quiet, redis):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        nobody = f"http://127.0.0.1:{gone.getsockname()[1]}"
    async with EngineDouble().listening() as url:
        await announce(redis, nobody, name="a")
        await announce(redis, url, name="b")
        async with running_gateway(quiet, redis) as gateway:
            assert [await ask(gateway) for _ in range(6)] == [200] * 6


async def test_the_kernel_watches_over_connections_to_other_machines():
    line = Line()
    line.gate.clear()
    upstream = Upstream(lambda: b"data")
    async with line.listening() as url:
        engine = Engine("a", url, "v0000", "ready")
        async with upstream.post(engine, "/v1/completions", b"{}", request_id="x") as response:
            link = response.connection.transport.get_extra_info("socket")
            wanted = {
                (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
                (socket.IPPROTO_TCP, socket.TCP_NODELAY): 1,
                (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): 10,
                (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT): 20_000,
            }
            found = {key: link.getsockopt(*key) for key in wanted}
        await upstream.close()
    assert found == wanted
