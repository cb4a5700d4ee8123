"""The user that docs/redis.md describes can do what the service does, and nothing else."""

import asyncio
import re
import time
from pathlib import Path

import pytest
import redis as redis_py
from kombu import Connection

from core import audit_log, keys, loop, registry
from core.auth import create_key, revoke_key
from core.redis_check import check_redis
from core.redis_client import connect, redis_url, rewrite_file
from core.redis_finders import SLOT
from core.setting_groups import LogSettings
from core.settings import Settings
from feedback import erasure
from feedback.compaction import compact
from feedback.erasing import erase_what_is_due
from learning.rounds.ingesting import drain_inbox
from learning.worker.broker import broker_url
from learning.worker.ticking import due_tasks
from tests.conftest import eventually
from tests.feedback.factory import EmailFilter
from tests.redis_cluster import redis_cluster
from tests.redis_fleet import PASSWORD
from tests.serving.conftest import CHAT, announce, running_gateway
from tests.serving.engine_double import EngineDouble

DOCUMENT = Path(__file__).parents[2] / "docs" / "redis.md"


def documented_rules() -> list[str]:
    block = re.search(r"^ACL SETUSER instructloop (.*?)^```", DOCUMENT.read_text(), re.S | re.M)
    return block[1].split()


@pytest.fixture
def settings(redis_server, state_dir):
    """Of a service that has the documented user, and of Redis nothing more."""
    with redis_py.Redis.from_url(redis_server.url) as admin:
        allow(admin)
        admin.set("another's", "secret")
    url = redis_server.url.replace(f":{redis_server.password}@", "instructloop:PASSWORD@")
    return Settings(state_dir=state_dir, redis_url=url, log=LogSettings(keep_in_redis=2))


def allow(admin: redis_py.Redis, *more: str) -> None:
    admin.execute_command("ACL SETUSER", "instructloop", *documented_rules(), *more)


@pytest.fixture
def in_a_cluster(settings, redis_server):
    """The same with the records in a Cluster of three masters, and messages where all was."""
    (more,) = re.findall(r"Add `(\+cluster\S+)` in a Cluster", DOCUMENT.read_text())
    with redis_cluster(replicas=False) as cluster:
        for node in cluster.nodes:
            with redis_py.Redis(port=node.port, password=PASSWORD) as admin:
                allow(admin, more)
        url = cluster.url.replace(f":{PASSWORD}@", "instructloop:PASSWORD@")
        changes = {"redis_url": url, "redis_broker_url": settings.redis_url}
        yield settings.model_copy(update={**changes, "durability": "relaxed"}), cluster


async def test_everything_works_with_the_documented_user(settings, redis_server, keyring):
    await _everything(settings, keyring)
    with redis_py.Redis.from_url(redis_server.url) as admin:
        _little_was_refused(admin)


async def test_and_in_a_cluster(in_a_cluster, keyring):
    settings, cluster = in_a_cluster
    await _everything(settings, keyring)
    with redis_py.Redis(port=cluster.owner.port, password=PASSWORD) as admin:
        _little_was_refused(admin)
        assert admin.dbsize() > 30
    others = [node for node in cluster.nodes if node is not cluster.owner]
    assert [node.asked("DBSIZE") for node in others] == [0, 0]
    assert f"one slot, {SLOT}," in DOCUMENT.read_text()


async def _everything(settings, keyring) -> None:
    async with (
        connect(redis_url(settings)) as redis,
        EngineDouble().listening(settings.state_dir / "engine.sock") as engine,
    ):
        warnings = await check_redis(redis)
        assert len(warnings) == ("cluster" in settings.redis_url)  # nobody waits for a replica
        await announce(redis, engine)
        async with running_gateway(settings, redis) as gateway:
            await eventually(lambda: gateway.app.state.durability_warnings == warnings)
            await eventually(gateway.app.state.services.replicas.can_serve)
            for number in range(6):
                body = {**CHAT, "user": f"user {number}"}
                async with gateway.post("/v1/chat/completions", body) as response:
                    completion_id = (await response.json())["id"]
                said = {"completion_id": completion_id, "rating": 5, "comment": "a@b.org says so"}
                once = {"Idempotency-Key": completion_id}
                async with gateway.post("/v1/feedback", said, headers=once) as response:
                    assert response.status == 201, await response.text()
            assert "ingest" in await due_tasks(redis, settings)
            assert await drain_inbox(redis, keyring, settings, EmailFilter(), seconds=30) == 12
            while await compact(redis, settings, now=time.time()):
                pass
        await _erase(redis, keyring, settings)
        await _learn(redis)
        key, _ = await create_key(redis, name="more", tenant="acme", scopes=("label",))
        await revoke_key(redis, key.id)
        await audit_log.mirror(redis, keyring, settings.state_dir)
        assert await rewrite_file(redis, seconds=1) is None  # the page says what this needs
    await asyncio.to_thread(_celery_works, settings)


def _little_was_refused(admin: redis_py.Redis) -> None:
    refused = {entry["object"] for entry in admin.acl_log()}
    assert refused <= {"bgrewriteaof", "client"}, refused


async def test_it_can_neither_read_what_is_not_ours_nor_harm_the_server(settings):
    async with connect(redis_url(settings)) as redis:
        for command in (
            ("GET", "another's"),
            ("EVAL", "return redis.call('GET', 'another''s')", 0),
            ("EVAL", "return redis.call('FLUSHALL')", 0),
            ("CONFIG", "SET", "appendfsync", "no"),
            ("FLUSHALL",),
            ("KEYS", "*"),
            ("SHUTDOWN",),
            ("REPLICAOF", "127.0.0.1", 1),
            ("ACL", "WHOAMI"),
            ("PUBLISH", "channel", "word"),
        ):
            with pytest.raises(redis_py.ResponseError):
                await redis.execute_command(*command)


async def _erase(redis, keyring, settings) -> None:
    begun = await erasure.begin(redis, keyring, tenant="acme", user="user 1", now=time.time())
    assert await erase_what_is_due(redis, keyring, settings) == 1
    assert (await erasure.receipt(redis, begun)).id == begun


async def _learn(redis) -> None:
    run = await loop.request_run(redis, stages=("snapshot",), wanted_by="a test")
    await loop.cancel(redis, run.id)
    assert await registry.target(redis) is None
    assert await registry.next_version(redis) == "v0000"


def _celery_works(settings) -> None:
    options = {"global_keyprefix": f"{keys.PREFIX}broker:"}
    with Connection(broker_url(settings), transport_options=options) as connection:
        queue = connection.SimpleQueue("tests")
        queue.put({"it": "arrives"})
        got = queue.get(timeout=5)
        got.ack()
        assert got.payload == {"it": "arrives"}
        queue.close()
