"""Records in a Redis Cluster: all in one slot, whoever owns it, however it changes hands."""

import asyncio
import inspect
from contextlib import suppress

import pytest
from redis.asyncio import Redis as RedisPy
from redis.crc import key_slot

from core import keys
from core.errors import InstructLoopError, StartError, Unavailable
from core.redis_check import check_redis
from core.redis_client import Batches, Line, connect, held, promise, redis_errors, script
from core.redis_finders import SLOT, Finder, Place
from core.settings import Settings
from deploy.supervisor import Supervisor
from deploy.up import _wait_for_redis
from tests.conftest import eventually
from tests.redis_cluster import redis_cluster
from tests.redis_fleet import PASSWORD, redis_fleet, until

TAKE = ["take", 60_000, ""]
FENCE = keys.fence()


@pytest.fixture(scope="module")
def cluster():
    with redis_cluster() as running:
        yield running


@pytest.fixture
async def client(cluster):
    async with connect(f"{cluster.url}?wait_replicas=1") as connected:
        await connected.flushall()
        yield connected


def named(number: int | str) -> str:
    return f"{keys.PREFIX}{number}"


def test_every_key_of_the_service_is_in_one_slot():
    """But the one that the first release looks for, which no Cluster has."""
    makers = dict(inspect.getmembers(keys, inspect.isfunction))
    makers.pop("first_schema")
    assert len(makers) > 60
    for name, make in makers.items():
        key = make(*("{x}:1" for _ in inspect.signature(make).parameters))
        assert key_slot(key.encode()) == SLOT, name


async def test_every_way_to_use_redis_works_in_a_cluster(client, cluster):
    assert await check_redis(client) == []
    assert await script(client, "lease", [named("one"), FENCE], TAKE) == 1
    assert await promise(client, "lease", [named("two"), FENCE], TAKE) == 2
    batches, line = Batches(client), Line(client)
    assert await batches.script("lease", [named("three"), FENCE], TAKE) == 3
    assert await line.script("lease", [named("four"), FENCE], TAKE) == 4
    for transaction in (True, False):
        async with client.pipeline(transaction=transaction) as step:
            step.incr(FENCE)
            step.hset(keys.counts(), "prompts", 7)
            await step.execute()
    assert await client.mget(FENCE, named("one")) == [b"6", b"1"]
    found = {name async for name in client.scan_iter(match=named("*"))}
    assert found >= {name.encode() for name in (FENCE, named("one"), keys.counts())}
    await held(client)
    (replica,) = cluster.replicas
    replica.asked("READONLY")
    assert replica.info["master_repl_offset"] == cluster.owner.info["master_repl_offset"]
    await line.close()
    await batches.close()


async def test_open_connections_follow_the_slot_to_a_replica_that_was_promoted(client, cluster):
    """Nobody closes them: all that they hear is MOVED."""
    batches, line = Batches(client), Line(client)
    assert await batches.script("lease", [named("one"), FENCE], TAKE) == 1
    assert await line.script("lease", [named("two"), FENCE], TAKE) == 2
    await client.ping()
    before = cluster.owner
    (replica,) = cluster.replicas
    replica.asked("CLUSTER", "FAILOVER")
    await asyncio.to_thread(until, lambda: cluster.owner is replica, what="it is promoted")
    await asyncio.to_thread(until, lambda: cluster.replicas == [before], what="the old one follows")
    # the scripts are not loaded there; callers see nothing of all this
    assert await batches.script("lease", [named("three"), FENCE], TAKE) == 3
    assert await line.script("lease", [named("four"), FENCE], TAKE) == 4
    with suppress(Unavailable), redis_errors():  # a shared client does not try twice
        await client.delete(named("one"))
    assert await client.get(FENCE) == b"4"
    assert (await client.info("replication"))["role"] == "master"
    await line.close()
    await batches.close()


async def test_while_the_slot_moves_nothing_is_done_by_halves_and_then_all_goes_on(client, cluster):
    for number in range(100):
        await client.set(named(number), number)
    await client.set(FENCE, 41)
    source = cluster.owner
    to = next(node for node in cluster.masters if node is not source)
    batches = Batches(client)
    for moved in cluster.move_slot(to):
        left = await asyncio.to_thread(source.asked, "CLUSTER", "COUNTKEYSINSLOT", SLOT)
        assert moved + left == 101
        for runs in (batches.script, lambda *step: script(client, *step)):
            with pytest.raises(Unavailable), redis_errors():
                await runs("lease", [named("new"), FENCE], TAKE)
        async with client.pipeline(transaction=True) as step:
            step.incr(FENCE)
            step.set(named("new"), "half")
            with pytest.raises(Unavailable), redis_errors():
                await step.execute()
    await asyncio.to_thread(until, lambda: cluster.owner is to, what="it is the owner")
    assert await batches.script("lease", [named("new"), FENCE], TAKE) == 42
    assert await client.mget([named(n) for n in range(100)]) == [b"%d" % n for n in range(100)]
    await held(client)
    await batches.close()


async def test_while_the_slot_moves_completions_leave_in_one_step_with_one_audit_entry(
    client, cluster
):
    """Though the last of a set is taken out of it, with which Redis forgets the set's name."""
    logged, prompts, broken, audit, user = (named(n) for n in ("l", "p", "b", "a", "u"))
    records = [named("r1"), named("r2")]
    await client.mset(dict.fromkeys(records, "text"))
    await client.zadd(logged, {"t1": 1, "t2": 2})
    await client.zadd(prompts, {"t1": 1})
    await client.sadd(user, "t1", "t2")
    await client.hset(broken, "t0", "why")
    await client.xadd(audit, {"entry": "the first"})
    moving = cluster.move_slot(next(node for node in cluster.masters if node is not cluster.owner))
    next(moving)
    names = [logged, prompts, broken, audit, records[0], user, records[1], user]
    await script(client, "drop_completions", names, ["expired", "t1", "", "t2", "cut"])
    for _ in moving:
        pass

    async def is_at_the_new_owner() -> bool:
        with suppress(Unavailable), redis_errors():
            return await client.exists(*records, logged, prompts, user) == 0
        return False

    await eventually(is_at_the_new_owner)
    assert await client.hgetall(broken) == {b"t0": b"why", b"t2": b"cut"}
    said = [fields[b"entry"] for _, fields in await client.xrange(audit)]
    assert said == [b"the first", b"expired"]


async def test_the_url_of_one_node_is_refused_with_the_form_to_use(cluster):
    (node,) = cluster.replicas
    async with connect(f"redis://:{PASSWORD}@127.0.0.1:{node.port}/0") as client:
        with pytest.raises(StartError, match=r"node of a Cluster.*redis\+cluster://"):
            await check_redis(client)
        with pytest.raises(Unavailable, match=r"redis\+cluster://"), redis_errors():
            await client.get(keys.schema())


async def test_up_refuses_the_url_of_a_node_that_does_not_own_the_slot(cluster, tmp_path):
    node = next(node for node in cluster.masters if node is not cluster.owner)
    url = f"redis://:{PASSWORD}@127.0.0.1:{node.port}/0"
    settings = Settings(state_dir=tmp_path, redis_url=url, redis_broker_url="redis://elsewhere")
    with pytest.raises(InstructLoopError, match=r"node of a Cluster.*redis\+cluster://"):
        await _wait_for_redis(Supervisor(say=print), settings)


async def test_a_server_that_is_of_no_cluster_is_named_with_what_it_says():
    with redis_fleet(replicas=0) as fleet:
        async with connect(fleet.url.replace("redis:", "redis+cluster:")) as client:
            said = f"none of 1 nodes .*slot {SLOT}.*{fleet.master.port}.*cluster support disabled"
            with pytest.raises(StartError, match=said):
                await check_redis(client)


async def test_who_leads_nowhere_is_asked_last_and_callers_share_one_answer():
    clients = [RedisPy(host="127.0.0.1", port=port) for port in (1, 2, 3)]
    asked: list[int] = []

    async def ask(client: RedisPy) -> Place | None:
        port = client.connection_pool.connection_kwargs["port"]
        asked.append(port)
        await asyncio.sleep(0)
        return None if port == 1 else ("there", port)

    finder = Finder(clients, ask, unknown="nobody knows")
    assert await asyncio.gather(*(finder.find() for _ in range(9))) == [("there", 2)] * 9
    assert asked == [1, 2]
    assert await finder.find() == ("there", 2)
    assert asked == [1, 2, 2]
    for _ in range(3):  # by as many connections; it is one doubt
        finder.doubt()
    assert await finder.find() == ("there", 3)
    await finder.close()
