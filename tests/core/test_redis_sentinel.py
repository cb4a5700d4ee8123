"""Following the master: what Sentinels say is done, also by connections that are open already."""

import asyncio
from contextlib import suppress

import pytest

from core.errors import StartError, Unavailable
from core.redis_check import check_redis
from core.redis_client import Batches, Line, connect, redis_errors, script
from tests.redis_fleet import PASSWORD, SERVICE, redis_fleet, until

TAKE = ["take", 60_000, ""]


@pytest.fixture(scope="module")
def fleet():
    with redis_fleet(replicas=1, sentinels=1) as running:
        yield running


async def test_open_connections_leave_a_master_that_became_a_replica(fleet):
    """Nobody closes them: all that they hear is that what they write cannot be written here."""
    async with connect(fleet.url) as client:
        batches, line = Batches(client), Line(client)
        assert await batches.script("lease", ["one", "fence"], TAKE) == 1
        assert await line.script("lease", ["two", "fence"], TAKE) == 2
        assert await script(client, "lease", ["three", "fence"], TAKE) == 3
        assert await client.wait(1, 2000) == 1
        before = await asyncio.to_thread(fleet.fail_over)
        before.asked("REPLICAOF", "127.0.0.1", fleet.master.port)
        # the scripts are not loaded there; callers see nothing of all this
        assert await batches.script("lease", ["four", "fence"], TAKE) == 4
        assert await line.script("lease", ["five", "fence"], TAKE) == 5
        with suppress(Unavailable), redis_errors():  # a shared client does not try twice
            await client.delete("three")
        assert await script(client, "lease", ["three", "fence"], TAKE) in (0, 6)
        assert (await client.info("replication"))["role"] == "master"
        await line.close()
        await batches.close()


async def test_a_service_that_no_sentinel_knows_is_unavailable_and_stops_a_start(fleet):
    async with connect(fleet.url.replace(f"/{SERVICE}/", "/other/")) as client:
        with pytest.raises(Unavailable), redis_errors():
            await client.ping()
        with pytest.raises(StartError, match="none of 1 Sentinels knows a master of 'other'"):
            await check_redis(client)


async def test_a_failover_that_may_lose_what_was_said_is_a_warning(fleet):
    async with connect(fleet.url) as client:
        (warning,) = await check_redis(client)
        assert "INSTRUCTLOOP_REDIS_WAIT_REPLICAS" in warning
    async with connect(f"{fleet.url}?wait_replicas=1") as client:
        await asyncio.to_thread(until, lambda: fleet.has_replicas(1), what="it follows")
        assert await check_redis(client) == []


async def test_callers_who_ask_at_one_time_share_one_answer_and_a_bounded_pool(fleet):
    async with connect(fleet.url) as client:
        await asyncio.gather(*(client.incr("number") for _ in range(500)))
        watching = fleet.sentinels[0]
        clients = watching.asked("CLIENT", "LIST")
        assert len(clients.splitlines()) < 12
        assert PASSWORD not in str(clients)
