"""A canary on a machine with one engine, for real: a second vLLM comes, serves its users, leaves.

One service with a tiny model. A copy of its version is the candidate: what counts here is who
answers whom, and that nobody notices how engines come and go.
"""

import asyncio
import shutil
from collections import deque
from contextlib import asynccontextmanager

import pytest

from core import canary, keys, registry
from core.canary import SECOND_ENGINE
from core.keyring import Keyring
from core.redis_client import connect, redis_url
from core.versions import weights_sha256
from deploy.monitoring.panels import BOARDS
from tests.conftest import eventually
from tests.loop import test_whole_loop
from tests.loop.prometheus_server import prometheus

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
service = test_whole_loop.service
USERS = 16
LATELY = 3


class Heard:
    """Which versions answered whom lately, and what failed at any time."""

    def __init__(self) -> None:
        names = [f"user {number}" for number in range(USERS)]
        self.lately: dict[str, deque[str]] = {name: deque(maxlen=LATELY) for name in names}
        self.failed: list[str] = []

    def sides(self) -> dict[str, str] | None:
        """The version of each user; None while one of them had two, or has not asked enough."""
        if any(len(seen) < LATELY or len(set(seen)) > 1 for seen in self.lately.values()):
            return None
        return {user: seen[0] for user, seen in self.lately.items()}

    def all_have(self, *versions: str) -> bool:
        return set((self.sides() or {}).values()) == set(versions)


async def ask_on(client, user: str, heard: Heard) -> None:
    body = {
        "model": "instructloop",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 8,
        "user": user,
    }
    while True:
        reply = await client.post("/v1/chat/completions", json=body)
        if reply.status_code != 200:
            heard.failed.append(f"{reply.status_code} {reply.text[:200]}")
        heard.lately[user].append(reply.headers.get("x-policy-version", "none"))
        await asyncio.sleep(0.2)


@asynccontextmanager
async def users(service):
    """Users who ask until the block ends, and what they got."""
    heard = Heard()
    async with service.client() as client:
        tasks = [asyncio.create_task(ask_on(client, user, heard)) for user in heard.lately]
        try:
            yield heard
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
    assert [task.exception() for task in tasks if not task.cancelled()] == []


async def publish_copy(redis, service) -> str:
    version = await registry.next_version(redis)
    folder = service.state_dir / "policies" / version
    shutil.copytree(service.state_dir / "policies" / "v0000", folder)
    card = await registry.card(redis, "v0000")
    card = card.model_copy(update={"version": version, "weights_sha256": weights_sha256(folder)})
    signed = registry.signed(card, Keyring(service.state_dir / "secrets"))
    (folder / "card.json").write_text(signed.model_dump_json())
    token = await registry.acquire_fence(redis)
    await registry.publish(redis, signed, fencing_token=token)
    return version


async def begin(redis, service, version: str) -> None:
    async with service.client() as client:
        change = {"why": "the test", "canary": 0.5}
        reply = await client.post(f"/v1/policies/{version}/promote", json=change)
    assert reply.status_code == 202, reply.text
    on = (await canary.read(redis)).split
    assert on is not None
    assert on.second_engine


async def until_it_left(redis) -> None:
    async def left() -> bool:
        return not await redis.sismember(keys.replicas(), SECOND_ENGINE)

    await eventually(left, seconds=60, every=0.2)


async def until_its_panels_show_something(service, folder) -> None:
    queries = [
        query
        for panel in [panel for board in BOARDS for panel in board.panels]
        if panel.title in test_whole_loop.OF_CANARIES
        for query in panel.queries.values()
    ]
    assert len(queries) == 2
    target = service.url.removeprefix("http://")
    with prometheus(folder, target=target, key=service.key, rules=test_whole_loop.ALERTS) as watch:
        await eventually(lambda: all(watch.ask(query) for query in queries), seconds=60, every=0.5)


async def test_it_comes_for_a_canary_and_leaves_and_no_request_fails(service, tmp_path):
    async with connect(redis_url(service.settings)) as redis, users(service) as heard:
        await eventually(lambda: redis.exists(keys.canary_room()), seconds=30)
        version = await publish_copy(redis, service)
        await begin(redis, service, version)
        await eventually(lambda: heard.all_have("v0000", version), seconds=120)
        sides = heard.sides()
        for seen in heard.lately.values():
            seen.clear()
        assert await eventually(heard.sides, seconds=60) == sides
        await until_its_panels_show_something(service, tmp_path / "prometheus")
        await canary.stop(redis, who="test", why="enough")
        await until_it_left(redis)
        await eventually(lambda: heard.all_have("v0000"), seconds=60)
        assert heard.failed == []
