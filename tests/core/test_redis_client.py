"""The door to Redis: a cancellation counts, a Redis that does not read is noticed, in time."""

import asyncio
import signal
from contextlib import suppress

import pytest
import redis as redis_py

from core.errors import Unavailable
from core.redis_client import Line, connect, redis_errors


async def test_a_task_ends_whenever_it_is_cancelled_between_commands(redis):
    """Also in the moment in which a command is sent but its sender does not know it yet."""

    async def commands() -> None:
        while True:
            await redis.ping()

    async def lives_on(steps: int) -> bool:
        task = asyncio.create_task(commands())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task}, timeout=0.2)
        lives = not task.done()
        while not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=0.01)
        return lives

    await redis.ping()
    assert [steps for steps in range(40) if await lives_on(steps)] == []
    assert await redis.ping()


async def test_a_cancelled_command_leaves_no_reply_for_the_next_one(redis):
    await redis.set("name", "value")
    for steps in range(12):
        task = asyncio.create_task(redis.get("name"))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert await redis.incr("number") == steps + 1


async def test_a_redis_that_reads_nothing_is_a_timeout_of_writing(redis_server):
    async with connect(redis_server.url, timeout=0.5) as client:
        await client.ping()
        redis_server.process.send_signal(signal.SIGSTOP)
        with pytest.raises(redis_py.TimeoutError, match="writing"):
            await client.set("name", b"x" * (64 << 20))
        with pytest.raises(Unavailable), redis_errors():
            await client.ping()
        redis_server.process.send_signal(signal.SIGCONT)
        assert await client.ping()


async def test_a_line_runs_scripts_like_the_client_and_survives_a_restart_of_redis(redis_server):
    append = ("append_inbox", ["stream", "mark"])
    async with connect(redis_server.url) as client:
        line = Line(client)
        assert await line.script(*append, [9, 60, 0, b"zero"]) == [1, 1]
        assert await line.script(*append, [9, 60, 0, b"again", 1, b"one"]) == [2, 2]
        redis_server.kill()
        with pytest.raises(Unavailable), redis_errors():
            await line.script(*append, [9, 60, 2, b"two"])
        redis_server.start()  # it has forgotten the script
        assert await line.script(*append, [9, 60, 2, b"two"]) == [1, 3]
        redis_server.kill()
        redis_server.start()  # the connection is closed, and the line does not know yet
        assert await line.script(*append, [9, 60, 3, b"three"]) == [1, 4]
        assert [f[b"sealed"] for _, f in await client.xrange("stream")] == [
            b"zero",
            b"one",
            b"two",
            b"three",
        ]
        await line.close()


async def test_a_cancelled_script_leaves_no_reply_for_the_next_one_on_its_line(redis):
    line = Line(redis)
    await line.script("append_inbox", ["stream", "mark"], [99, 60, 0, b"first"])
    for steps in range(1, 12):
        run = line.script("append_inbox", ["stream", "mark"], [99, 60, steps, b"cut"])
        task = asyncio.create_task(run)
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await line.script("append_inbox", ["stream", "mark"], [99, 60, steps, b"whole"])
        length = await redis.xlen("stream")
        assert length == steps + 1
        assert await line.script("append_inbox", ["stream", "mark"], [99, 60, 0, b"old"]) == [
            1,
            length,
        ]
    await line.close()
