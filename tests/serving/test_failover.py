"""The master dies under load: what was acknowledged is there, once, on the one that follows it."""

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
            await eventually(lambda: len(clients.taken) > before + 200, seconds=20)
            clients.stopping = True
            await asyncio.gather(*asking)

        async with connect(url) as redis:
            assert await redis.zcard(keys.feedback_index()) == len(clients.taken)
            assert len(set(clients.taken)) == len(clients.taken)
            kept = await redis.mget([keys.feedback(i) for i in clients.taken])
            assert None not in kept
            assert int(await redis.hget(keys.counts(), "ratings")) == len(clients.taken)
        await asyncio.to_thread(_celery_reaches_the_master, settings, fleet.master.port)


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
