"""The two ends of a measurement understand each other, and what they find is what happened."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from core.errors import InstructLoopError
from deploy.bench.client import closed_loop, open_loop
from deploy.bench.engine import HEAD_END, InstantEngine, chat_request, header, http_request


@asynccontextmanager
async def serving(folder, protocol=InstantEngine):
    path = folder / "e.sock"
    server = await asyncio.get_running_loop().create_unix_server(protocol, str(path))
    try:
        yield str(path)
    finally:
        server.close()


class Stalls(InstantEngine):
    """An engine that does nothing for a while, once, after the tenth request."""

    answered = 0

    def data_received(self, data):
        Stalls.answered += 1
        pause = 0.3 if Stalls.answered == 10 else 0.0
        if pause:
            Stalls.until = asyncio.get_running_loop().time() + pause
        wait = max(0.0, getattr(Stalls, "until", 0.0) - asyncio.get_running_loop().time())
        asyncio.get_running_loop().call_later(wait, super().data_received, data)


class Refuses(asyncio.Protocol):
    """Says that it is full, or says nothing and goes."""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        if b"chunks=0" in data:
            self.transport.write(b"HTTP/1.1 429 Too Many\r\ncontent-length: 4\r\n\r\nfull")
        else:
            self.transport.close()


async def test_every_whole_reply_is_counted(tmp_path):
    async with serving(tmp_path) as target:
        found = await closed_loop(target, chat_request("il-x"), clients=3, seconds=0.1)
    assert len(found.latencies) >= 3
    assert found.chunk_delays == found.first_chunks == []
    assert found.per_second == len(found.latencies) / found.seconds
    assert 0 < max(found.latencies) <= found.seconds


async def test_each_client_asks_at_least_once_and_no_more_often_than_it_may(tmp_path):
    async with serving(tmp_path) as target:
        request = chat_request("il-x")
        once = await closed_loop(target, request, clients=5, seconds=0.0)
        thrice = await closed_loop(target, request, clients=5, seconds=60.0, times=3)
    assert len(once.latencies) == 5
    assert len(thrice.latencies) == 15


async def test_each_chunk_of_a_stream_is_timed_and_the_first_apart(tmp_path):
    async with serving(tmp_path) as target:
        request = chat_request("il-x", chunks=4)
        found = await closed_loop(target, request, clients=2, seconds=0.0)
    assert len(found.latencies) == len(found.first_chunks) == 2
    assert len(found.chunk_delays) == 2 * 4
    assert all(delay >= 0 for delay in found.chunk_delays)
    assert all(
        first < whole for first, whole in zip(found.first_chunks, found.latencies, strict=True)
    )
    assert min(found.latencies) >= 3 / 20  # chunks are a twentieth of a second apart


async def test_the_engine_takes_as_long_as_it_is_asked_to(tmp_path):
    async with serving(tmp_path) as target:
        request = chat_request("il-x", wait_ms=60)
        found = await closed_loop(target, request, clients=4, seconds=0.0)
    assert min(found.latencies) >= 0.055
    assert len(found.latencies) == 4


async def test_a_timetable_asks_as_often_as_it_says(tmp_path):
    async with serving(tmp_path) as target:
        found = await open_loop(target, chat_request("il-x"), per_second=200, seconds=0.25)
    assert len(found.latencies) == 50
    assert found.seconds >= 49 / 200


async def test_who_comes_while_the_server_stalls_is_counted_with_the_wait(tmp_path):
    async with serving(tmp_path, Stalls) as target:
        found = await open_loop(target, chat_request("il-x"), per_second=100, seconds=0.4)
    # 0.3 s of stall: about thirty requests were due in it, and waited 0.15 s on average
    assert len(found.latencies) == 40
    assert sum(latency > 0.1 for latency in found.latencies) >= 15


async def test_an_error_ends_a_load_with_what_was_said(tmp_path):
    async with serving(tmp_path, Refuses) as target:
        with pytest.raises(InstructLoopError, match="429 Too Many.*full"):
            await closed_loop(target, chat_request("il-x"), clients=2, seconds=0.1)
        with pytest.raises(InstructLoopError, match="broke off"):
            await open_loop(target, chat_request("il-x", chunks=1), per_second=50, seconds=0.1)


def test_a_request_says_how_long_it_is_and_whose():
    head, _, body = http_request("il-secret", {"max_tokens": 3}).partition(HEAD_END)
    assert int(header(head, b"content-length")) == len(body)
    assert header(head, b"authorization") == b"Bearer il-secret"
    assert header(head, b"accept") == b""
    assert body == b'{"model": "instructloop", "max_tokens": 3}'
