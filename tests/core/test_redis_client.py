"""The door to Redis: a cancellation counts, a Redis that does not read is noticed, in time."""

import asyncio
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import redis as redis_py

from core import keys
from core.errors import StartError, Unavailable
from core.redis_check import check_redis
from core.redis_client import Line, connect, redis_errors, script
from core.schema import SCHEMA
from deploy.redis_server import find_redis_server
from tests.redis_fleet import until


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


async def test_what_goes_away_by_itself_is_unavailable_also_when_a_script_meets_it(redis_server):
    async with connect(redis_server.url) as client:
        take = ("lease", ["held", "fence"], ["take", 60_000, ""])
        await client.config_set("maxmemory", 1)
        for write in (lambda: script(client, *take), lambda: client.set("name", "value")):
            with pytest.raises(Unavailable, match="maxmemory"), redis_errors():
                await write()
        await client.config_set("maxmemory", 0)
        await client.replicaof("127.0.0.1", 1)
        for write in (lambda: script(client, *take), lambda: client.set("name", "value")):
            with pytest.raises(Unavailable), redis_errors():
                await write()
        await client.replicaof("NO", "ONE")
        assert await script(client, *take) == 1


async def test_a_cluster_is_refused_at_the_start_unless_the_url_says_that_it_is_one(state_dir):
    """Also with a node that owns every slot: there may be another any day."""
    with single_cluster(state_dir) as url:
        async with connect(url) as client:
            with pytest.raises(redis_py.ResponseError, match="CROSSSLOT|same slot"):
                await script(client, "lease", ["held", "fence"], ["take", 60_000, ""])
            with pytest.raises(StartError, match=r"node of a Cluster.*redis\+cluster://"):
                await check_redis(client)


@contextmanager
def single_cluster(folder: Path) -> Iterator[str]:
    """One node of a Cluster."""
    socket = folder / "cluster.sock"
    server = subprocess.Popen(
        [find_redis_server(), "--port", "0", "--unixsocket", str(socket)]
        + ["--cluster-enabled", "yes", "--dir", str(folder), "--save", ""],
        stdout=subprocess.DEVNULL,
    )
    try:
        with redis_py.Redis(unix_socket_path=str(socket)) as client:
            until(lambda: socket.exists() and client.ping(), what="the node answers")
            client.execute_command("CLUSTER ADDSLOTS", *range(16384))
            until(lambda: client.cluster("info")["cluster_state"] == "ok", what="it is well")
        yield f"unix://{socket}"
    finally:
        server.kill()
        server.wait()


async def test_a_user_who_may_not_ask_what_this_redis_is_passes_the_check(redis_server):
    user = ["ACL", "SETUSER", "plain", "on", ">word", "~*", "&*", "+@all", "-info", "-config"]
    async with connect(redis_server.url) as client:
        await client.execute_command(*user)
        await client.set(keys.schema(), SCHEMA)
    url = redis_server.url.replace(f":{redis_server.password}@", "plain:word@")
    async with connect(url) as client:
        (warning,) = await check_redis(client)
    assert "durability is not checked" in warning


async def test_a_user_who_lacks_a_right_is_told_where_the_rules_are(redis_server):
    async with connect(redis_server.url) as client:
        await client.execute_command(
            "ACL", "SETUSER", "other", "on", ">word", "~other:*", "&*", "+@all"
        )
    url = redis_server.url.replace(f":{redis_server.password}@", "other:word@")
    async with connect(url) as client:
        take = ("lease", ["held", "fence"], ["take", 60_000, ""])
        within = ("return redis.call('SET', 'il', 'value')", 0)
        for write in (
            lambda: script(client, *take),
            lambda: client.set("name", "value"),
            lambda: client.eval(*within),
        ):
            with pytest.raises(Unavailable, match=r"docs/redis\.md"), redis_errors():
                await write()
