"""A 2xx is a promise: Redis is killed with -9 right after replies; nothing is lost or doubled."""

import asyncio

from core import keys
from core.errors import Unavailable
from core.redis_client import connect
from feedback import store
from tests.conftest import eventually
from tests.feedback.factory import api_key, client_of, completion_id, make_app

APP = api_key()
CLIENTS = 12
WRITES_EACH = 30
KILL_AFTER = [17, 60, 61, 150, 233, 310]
"""Redis dies right after this many things were acknowledged, before anything else can happen."""


async def test_what_was_acknowledged_survives_kill_9_of_redis(redis_server, keyring, settings):
    acknowledged: dict[str, int] = {}
    to_kill, restarts, refused = list(KILL_AFTER), [], []

    def maybe_kill() -> None:
        restarting = restarts and not restarts[-1].done()
        if to_kill and len(acknowledged) >= to_kill[0] and not restarting:
            to_kill.pop(0)
            redis_server.kill()
            restarts.append(asyncio.create_task(asyncio.to_thread(redis_server.start)))

    async with connect(redis_server.url) as redis:
        app = make_app(redis, keyring, settings, APP)
        async with client_of(app, APP) as http:

            async def say(body: dict, once: str) -> str:
                """As a careful client: again with the same key until it is acknowledged."""
                while True:
                    reply = await http.post(
                        "/v1/feedback", json=body, headers={"Idempotency-Key": once}
                    )
                    if reply.status_code == 201:
                        acknowledged[reply.json()["id"]] = body["rating"]
                        maybe_kill()
                        return reply.json()["id"]
                    assert (reply.status_code, "retry-after" in reply.headers) == (503, True)
                    refused.append(once)
                    await asyncio.sleep(0.02)

            async def rater(name: str) -> None:
                for number in range(WRITES_EACH):
                    body = {"completion_id": completion_id(keyring), "rater": name}
                    first = await say({**body, "rating": 1}, f"{name}-{number}-first")
                    last = await say({**body, "rating": 2 + number % 6}, f"{name}-{number}-last")
                    assert first == last

            await asyncio.gather(*(rater(f"rater {n}") for n in range(CLIENTS)))
            await asyncio.gather(*restarts)
            assert len(restarts) == len(KILL_AFTER)
            assert refused
        redis_server.kill()
        redis_server.start()

        async def everything():
            try:
                return await store.get_all(redis)
            except Unavailable:  # a connection from before
                return None

        records = await eventually(everything)
        assert {r.id: r.rating for r in records} == acknowledged
        assert len(records) == CLIENTS * WRITES_EACH
        assert int(await redis.hget(keys.counts(), "ratings")) == CLIENTS * WRITES_EACH
        assert await redis.zcard(keys.feedback_index()) == CLIENTS * WRITES_EACH
