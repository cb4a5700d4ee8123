"""The master dies under load: what was acknowledged is there, once, on the one that follows it.

With Sentinels, and in a Cluster, where the slot of our keys may also go to another master.
"""

import asyncio
from collections import Counter
from itertools import count

import pytest
from kombu import Connection

from core import keys
from core.redis_client import connect
from core.settings import Settings
from learning.worker.broker import broker_url, transport_options
from tests.conftest import eventually
from tests.feedback.factory import completion_id
from tests.redis_cluster import Cluster, redis_cluster
from tests.redis_fleet import free_ports, redis_fleet, until
from tests.serving.conftest import running_gateway

CLIENTS = 16


class Clients:
    """They say something about one answer after the other, and insist until it is taken."""

    def __init__(self, gateway) -> None:
        self.gateway = gateway
        self.statuses: Counter[int] = Counter()
        self.taken: list[str] = []
        self.stopping = False

    async def insist(self, name: int) -> None:
        for number in count():
            if self.stopping:
                return
            said = {"completion_id": completion_id(self.gateway.keyring), "thumb": "up"}
            once = {"Idempotency-Key": f"{name}-{number}"}
            while True:
                async with self.gateway.post("/v1/feedback", said, headers=once) as response:
                    self.statuses[response.status] += 1
                    if response.status == 201:
                        self.taken.append((await response.json())["id"])
                        break
                    assert response.status == 503, await response.text()
                    assert int(response.headers["Retry-After"]) >= 1
                await asyncio.sleep(0.05)

    async def go_on(self) -> None:
        """Wait until much more is taken."""
        before = len(self.taken)
        await eventually(lambda: len(self.taken) > before + 200, seconds=20)


@pytest.mark.slow
async def test_a_failover_under_load_loses_nothing_that_was_acknowledged_and_doubles_nothing(
    state_dir,
):
    with redis_fleet(replicas=2, sentinels=3) as fleet:
        (nobody,) = free_ports(1)
        url = fleet.url.replace("@", f"@127.0.0.1:{nobody},")  # one Sentinel is away, too
        settings = Settings(
            state_dir=state_dir, redis_url=url, redis_wait_replicas=2, redis_wait_seconds=0.5
        )
        async with connect(url) as redis, running_gateway(settings, redis) as gateway:
            await eventually(lambda: not gateway.app.state.durability_warnings)
            clients = Clients(gateway)
            asking = [asyncio.create_task(clients.insist(n)) for n in range(CLIENTS)]
            await eventually(lambda: len(clients.taken) > 200)

            dead = fleet.master
            dead.kill()
            await asyncio.to_thread(until, lambda: fleet.master is not dead, what="a new master")
            await asyncio.to_thread(until, lambda: fleet.has_replicas(1), what="a replica")
            before = len(clients.taken)
            refused = clients.statuses[503]
            assert refused > 0
            # one replica of two is not enough: it could be lost together with the new master
            await eventually(lambda: clients.statuses[503] > refused + 2 * CLIENTS)
            assert len(clients.taken) == before

            dead.start()
            dead.asked("REPLICAOF", "127.0.0.1", fleet.master.port)
            await clients.go_on()
            clients.stopping = True
            await asyncio.gather(*asking)

        await nothing_is_lost_or_doubled(url, clients.taken)
        await asyncio.to_thread(_celery_reaches_the_master, settings, fleet.master.port)


@pytest.mark.slow
async def test_nor_does_a_cluster_whose_owner_of_the_slot_dies_or_gives_it_away_under_load(
    state_dir,
):
    with redis_cluster() as cluster:
        settings = Settings(
            state_dir=state_dir,
            redis_url=cluster.url,
            redis_wait_replicas=1,
            redis_wait_seconds=0.5,
            redis_broker_url="redis://elsewhere",
        )
        async with connect(cluster.url) as redis, running_gateway(settings, redis) as gateway:
            await eventually(lambda: not gateway.app.state.durability_warnings)
            clients = Clients(gateway)
            asking = [asyncio.create_task(clients.insist(n)) for n in range(CLIENTS)]
            await eventually(lambda: len(clients.taken) > 200)
            await asyncio.to_thread(_the_owner_dies, cluster)
            assert clients.statuses[503] > 0
            await clients.go_on()
            await asyncio.to_thread(_another_owner, cluster)
            await clients.go_on()
            clients.stopping = True
            await asyncio.gather(*asking)
        await nothing_is_lost_or_doubled(cluster.url, clients.taken)


def _the_owner_dies(cluster: Cluster) -> None:
    """kill -9; the one that follows is all alone until the dead one is back."""
    dead, (heir,) = cluster.owner, cluster.replicas
    dead.kill()
    until(lambda: cluster.owner is heir, what="the replica is promoted")
    dead.start()
    until(lambda: cluster.replicas == [dead], what="the dead one follows it")


def _another_owner(cluster: Cluster) -> None:
    """The slot moves to another master key by key, while more keys come or are refused."""
    to = next(node for node in cluster.masters if node is not cluster.owner)
    for _ in cluster.move_slot(to):
        pass
    until(lambda: cluster.owner is to, what="the slot has moved")
    until(lambda: len(cluster.replicas) == 1, what="its replica is there")


async def nothing_is_lost_or_doubled(url: str, taken: list[str]) -> None:
    """What was acknowledged is there, each once, and nothing else."""
    async with connect(url) as redis:
        assert await redis.zcard(keys.feedback_index()) == len(taken)
        assert len(set(taken)) == len(taken)
        kept = await redis.mget([keys.feedback(i) for i in taken])
        assert None not in kept
        assert int(await redis.hget(keys.counts(), "ratings")) == len(taken)


def _celery_reaches_the_master(settings: Settings, port: int) -> None:
    options = transport_options(settings)
    with Connection(broker_url(settings), transport_options=options) as connection:
        channel = connection.default_channel
        assert channel.client.info("replication")["role"] == "master"
        assert channel.client.connection_pool.get_master_address() == ("127.0.0.1", port)
        queue = connection.SimpleQueue("tests")
        queue.put({"it": "arrives"})
        assert queue.get(timeout=5).payload == {"it": "arrives"}
        queue.close()
