"""The two ends of a measurement understand each other, and what they find is what happened."""

import asyncio
from contextlib import asynccontextmanager

from deploy.bench_wire import InstantEngine, chat_request, load


@asynccontextmanager
async def engine(folder):
    path = folder / "e.sock"
    server = await asyncio.get_running_loop().create_unix_server(InstantEngine, str(path))
    try:
        yield str(path)
    finally:
        server.close()


async def test_every_whole_reply_is_counted(tmp_path):
    async with engine(tmp_path) as target:
        found = await load(target, chat_request("il-x"), clients=3, seconds=0.1)
    assert len(found.latencies) >= 3
    assert found.delays == []
    assert found.per_second == len(found.latencies) / found.seconds
    assert 0 < max(found.latencies) <= found.seconds


async def test_each_chunk_of_a_stream_is_timed_and_the_first_apart(tmp_path):
    async with engine(tmp_path) as target:
        request = chat_request("il-x", stream_seconds=0.2)  # four chunks, an end and the usage
        found = await load(target, request, clients=2, seconds=0.05)
    assert len(found.latencies) == len(found.first_delays) == 2
    assert len(found.delays) == 2 * 6
    assert all(0 <= delay < 5 for delay in found.delays)
