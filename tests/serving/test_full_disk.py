"""A gateway on a disk that fills, with our own Redis on it: logging stops, then feedback."""

import os

import pytest

from core import keys, metrics, room
from core.keyring import Keyring
from core.redis_client import connect
from core.settings import Settings
from tests.conftest import RedisServer, eventually
from tests.serving.conftest import CHAT, announce, running_gateway
from tests.serving.engine_double import EngineDouble


@pytest.fixture
def disk(monkeypatch):
    """Free MiB of the disk, as the gateway sees it at once."""
    told = {"free": 10_000}

    def statvfs(_):
        return os.statvfs_result((4096, 4096, *[told["free"] * 256] * 8))

    monkeypatch.setattr(room, "statvfs", statvfs)
    monkeypatch.setattr(room, "_LOOK_SECONDS", 0.0)
    return told


@pytest.fixture
def own_redis(state_dir):
    server = RedisServer(state_dir, Keyring(state_dir / "secrets").token("redis.password"))
    server.start()
    yield server
    server.kill()


async def test_completions_go_on_unlogged_then_feedback_is_refused_and_all_comes_back(
    disk, own_redis, state_dir
):
    dropped = metrics.LOGS_DROPPED.labels("disk_full")._value
    settings = Settings(state_dir=state_dir)
    async with (
        connect(own_redis.url) as redis,
        EngineDouble().listening(state_dir / "engine.sock") as engine,
    ):
        await announce(redis, engine)
        async with running_gateway(settings, redis) as gateway:
            await eventually(lambda: not gateway.app.state.durability_warnings)
            await eventually(gateway.app.state.services.replicas.can_serve)

            off: list[str | None] = []

            async def ask() -> str:
                async with gateway.post("/v1/chat/completions", CHAT) as response:
                    assert response.status == 200
                    off.append(response.headers.get("x-feedback-off"))
                    return (await response.json())["id"]

            async def say(completion_id: str) -> tuple[int, str]:
                said = {"completion_id": completion_id, "thumb": "up"}
                async with gateway.post("/v1/feedback", said) as response:
                    return response.status, await response.text()

            async def degraded() -> str:
                async with gateway.get("/readyz") as response:
                    return str((await response.json())["degraded"])

            kept = await ask()
            assert (await say(kept))[0] == 201

            disk["free"], before = 300, dropped.get()
            lost = await ask()
            assert dropped.get() == before + 1
            assert off == [None, "the disk is full: it is not logged"]
            assert (await say(lost))[0] == 201
            assert "logging needs 512" in await degraded()
            assert "feedback" not in await degraded()

            disk["free"] = 100
            status, text = await say(kept)
            assert status == 503
            assert "feedback needs 128" in text
            await ask()

            disk["free"] = 10_000
            assert (await say(kept))[0] == 201
            again = await ask()
            assert [entry["id"] for entry in await gateway.logged()] == [kept, again]
            assert await degraded() == "[]"
            assert await redis.zcard(keys.feedback_index()) == 2


async def test_with_a_redis_elsewhere_only_the_spool_minds_the_disk(disk, redis_server, state_dir):
    disk["free"] = 0
    dropped = metrics.LOGS_DROPPED.labels("disk_full")._value
    settings = Settings(state_dir=state_dir, redis_url=redis_server.url)
    async with (
        connect(redis_server.url) as redis,
        EngineDouble().listening(state_dir / "engine.sock") as engine,
    ):
        await announce(redis, engine)
        async with running_gateway(settings, redis) as gateway:
            await eventually(lambda: not gateway.app.state.durability_warnings)
            await eventually(gateway.app.state.services.replicas.can_serve)
            async with gateway.post("/v1/chat/completions", CHAT) as response:
                said = {"completion_id": (await response.json())["id"], "thumb": "up"}
            await gateway.logged_once()
            async with gateway.post("/v1/feedback", said) as response:
                assert response.status == 201
            before = dropped.get()
            redis_server.kill()
            async with gateway.post("/v1/chat/completions", CHAT) as response:
                assert response.status == 200
            await eventually(lambda: dropped.get() == before + 1)
            assert gateway.app.state.services.inbox.spooled_bytes == 0
