"""A gateway whose Redis dies, hangs or is slow, and that dies itself: no entry lost or doubled."""

import asyncio
import json
import subprocess
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from core import keys, metrics
from core.auth import create_key
from core.redis_client import connect, local_redis_url, socket_path
from serving.inbox import PATIENCE_SECONDS
from tests.conftest import eventually
from tests.serving.conftest import CHAT, announce, running_gateway
from tests.serving.engine_double import EngineDouble
from tests.serving.slow_line import SlowLine
from tests.serving.test_server import answers, free_port, gateway_process, logged

pytestmark = pytest.mark.thorough

CLIENTS = 8


@asynccontextmanager
async def with_line(settings, redis_server, state_dir, line: SlowLine):
    """A gateway in front of a double, on a Redis at the end of a line."""
    near = state_dir / "near"
    url = local_redis_url(near, redis_server.password)
    here, there = socket_path(near), socket_path(redis_server.state_dir)
    async with (
        line.between(here, there),
        connect(redis_server.url) as redis,
        EngineDouble().listening(state_dir / "engine.sock") as engine,
    ):
        await announce(redis, engine)
        async with running_gateway(
            settings.model_copy(update={"redis_url": url}), redis
        ) as gateway:
            await eventually(gateway.app.state.services.replicas.can_serve)
            await eventually(lambda: gateway.app.state.keys.loaded)
            yield gateway


async def ask(gateway, number: int) -> str:
    """The id of a completion, once all of it is there."""
    body = {**CHAT, "stream": number % 2 == 0, "user": str(number)}
    async with gateway.post("/v1/chat/completions", body) as response:
        assert response.status == 200
        return id_of(await response.read())


def id_of(body: bytes) -> str:
    whole = body.endswith((b"data: [DONE]\n\n", b"}"))
    assert whole, body
    return json.loads(body.removeprefix(b"data: ").split(b"\n\n")[0])["id"]


async def test_while_redis_answers_nothing_completions_do_and_none_is_lost(
    gateway_settings, redis_server, state_dir
):
    line = SlowLine()
    async with with_line(gateway_settings, redis_server, state_dir, line) as gateway:
        inbox = gateway.app.state.services.inbox
        ids = [await ask(gateway, 0)]
        line.open.clear()
        passed = line.commands
        ids += await asyncio.gather(*[ask(gateway, number) for number in range(1, 20)])
        ids += [await ask(gateway, number) for number in range(20, 25)]
        assert line.commands == passed  # so no completion waited for an answer
        line.open.set()
        await eventually(lambda: inbox.direct, seconds=20)
        assert Counter(entry["id"] for entry in await gateway.logged()) == Counter(ids)


async def test_a_completion_does_not_wait_for_a_redis_that_is_too_slow(
    gateway_settings, redis_server, state_dir
):
    line = SlowLine()
    async with with_line(gateway_settings, redis_server, state_dir, line) as gateway:
        inbox = gateway.app.state.services.inbox
        ids = [await ask(gateway, 0)]
        line.seconds = 8 * PATIENCE_SECONDS
        scripts = line.scripts
        ids += await asyncio.gather(*[ask(gateway, number) for number in range(1, 10)])
        assert line.scripts == scripts  # the entries are on the disk, and not in Redis yet
        assert not inbox.direct
        ids += [await ask(gateway, number) for number in range(10, 13)]
        line.seconds = 0.0
        await eventually(lambda: inbox.direct, seconds=20)
        assert Counter(entry["id"] for entry in await gateway.logged()) == Counter(ids)


async def test_without_redis_feedback_says_503_and_comes_back(
    gateway_settings, redis_server, state_dir
):
    line = SlowLine()
    async with with_line(gateway_settings, redis_server, state_dir, line) as gateway:
        await eventually(lambda: not gateway.app.state.durability_warnings)
        completion_id = await ask(gateway, 1)
        said = {"completion_id": completion_id, "thumb": "up"}
        redis_server.kill()
        await ask(gateway, 2)
        async with gateway.post("/v1/feedback", said) as response:
            assert response.status == 503
            assert int(response.headers["Retry-After"]) >= 1
        redis_server.start()

        async def taken() -> bool:
            async with gateway.post("/v1/feedback", said) as response:
                return response.status == 201

        await eventually(taken)


async def test_with_the_spool_full_completions_flow_and_what_is_dropped_is_counted(
    gateway_settings, redis_server, state_dir
):
    dropped = metrics.LOGS_DROPPED.labels("spool_full")._value
    before = dropped.get()
    log = gateway_settings.log.model_copy(update={"spool_max_bytes": 4000})
    settings = gateway_settings.model_copy(update={"log": log})
    async with with_line(settings, redis_server, state_dir, SlowLine()) as gateway:
        redis_server.kill()
        ids = [await ask(gateway, number) for number in range(20)]
        lost = int(dropped.get() - before)
        assert 0 < lost < 20
        redis_server.start()
        await eventually(lambda: gateway.app.state.services.inbox.direct, seconds=20)
        ids.append(await ask(gateway, 20))
        entries = Counter(entry["id"] for entry in await gateway.logged())
        assert len(entries) == 21 - lost
        assert set(entries.values()) == {1}
        assert entries.keys() <= set(ids)


class Clients:
    """They keep asking, whatever is killed, and note the ids of what they got whole."""

    def __init__(self, url: str, secret: str) -> None:
        self.url, self.secret = url, secret
        self.acknowledged: list[str] = []
        self.stopping = False

    @asynccontextmanager
    async def asking(self):
        async with aiohttp.ClientSession(self.url, headers={"x-api-key": self.secret}) as http:
            tasks = [asyncio.create_task(self._keep_asking(http, n)) for n in range(CLIENTS)]
            try:
                yield
            finally:
                self.stopping = True
                await asyncio.gather(*tasks)

    async def _keep_asking(self, http: aiohttp.ClientSession, number: int) -> None:
        body = {**CHAT, "stream": number % 2 == 0}
        while not self.stopping:
            try:
                async with http.post("/v1/chat/completions", json=body) as response:
                    said = await response.read()
                if response.status == 200:
                    self.acknowledged.append(id_of(said))
                    continue
            except aiohttp.ClientError:
                pass  # the gateway was killed: this one was never acknowledged
            await asyncio.sleep(0.02)

    async def more(self, count: int) -> None:
        """Wait for so many further completions."""
        wanted = len(self.acknowledged) + count
        await eventually(lambda: len(self.acknowledged) >= wanted, seconds=60)


def spool_is_empty(state_dir: Path) -> bool:
    return sum(path.stat().st_size for path in (state_dir / "spool").iterdir()) == 0


async def test_whatever_is_killed_each_acknowledged_completion_is_logged_exactly_once(
    settings, redis_server, state_dir
):
    group = settings.gateway.model_copy(update={"port": free_port()})
    settings = settings.model_copy(update={"gateway": group, "redis_url": redis_server.url})
    url = f"http://127.0.0.1:{group.port}"
    async with EngineDouble(pace=0.001).listening(state_dir / "engine.sock") as engine:
        async with connect(redis_server.url) as redis:
            await announce(redis, engine)
            _, secret = await create_key(redis, name="k", tenant="acme", scopes=["complete"])
        clients = Clients(url, secret)
        gateway = await started(settings, url)
        try:
            async with clients.asking():
                await clients.more(40)
                redis_server.kill()
                await clients.more(40)  # into the spool
                redis_server.start()
                await clients.more(40)
                redis_server.kill()
                await clients.more(40)
                gateway.kill()  # with a spool on the disk
                gateway.wait()
                redis_server.start()
                gateway = await started(settings, url)
                await clients.more(40)
                gateway.kill()  # with entries on their way to Redis
                gateway.wait()
                gateway = await started(settings, url)
                await clients.more(20)
            await eventually(lambda: spool_is_empty(state_dir), seconds=30)
            entries = await logged(redis_server, state_dir)
        finally:
            gateway.kill()
            gateway.wait()
    counts = Counter(entry["id"] for entry in entries)
    assert set(counts.values()) == {1}
    assert set(clients.acknowledged) <= counts.keys()
    assert len(set(clients.acknowledged)) == len(clients.acknowledged) >= 220
    async with connect(redis_server.url) as redis:
        assert await redis.xlen(keys.inbox()) == len(entries)


async def started(settings, url: str) -> subprocess.Popen:
    """A gateway process that serves."""
    process = gateway_process(settings)
    async with aiohttp.ClientSession(url) as http:
        await eventually(lambda: answers(http), seconds=60)
    return process
