"""A gateway on a port, with a real Redis behind it and an engine of the test's choice."""

import asyncio
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import orjson
import pytest

from core import keys
from core.auth import create_key
from core.engine.launch import EngineSpec
from core.keyring import Keyring
from core.records import Replica
from core.redis_client import Redis
from core.settings import Settings
from serving.server import http_server
from tests.conftest import RedisServer, eventually
from tests.serving.engine_double import EngineDouble
from tests.serving.real_engine import engine_spec, running_engine
from tests.tiny_model import make_tiny_model

CHAT = {"model": "instructloop", "messages": [{"role": "user", "content": "Where is the Seine?"}]}
TEXT = {"model": "instructloop", "prompt": "The Seine flows through"}


@dataclass
class Gateway:
    """A running gateway and ways to talk to it."""

    url: str
    secret: str
    redis: Redis
    keyring: Keyring
    app: object
    http: aiohttp.ClientSession

    def post(self, path: str, body, **options):
        headers = {"Authorization": f"Bearer {self.secret}", **options.pop("headers", {})}
        return self.http.post(self.url + path, json=body, headers=headers, **options)

    def get(self, path: str, **options):
        headers = {"Authorization": f"Bearer {self.secret}", **options.pop("headers", {})}
        return self.http.get(self.url + path, headers=headers, **options)

    async def logged(self) -> list[dict]:
        """What is in the inbox, opened."""
        entries = await self.redis.xrange(keys.inbox())
        return [orjson.loads(self.keyring.open(fields[b"sealed"])) for _, fields in entries]

    async def logged_once(self, count: int = 1) -> list[dict]:
        """The inbox, as soon as it has so many entries."""
        await eventually(lambda: self._has(count))
        entries = await self.logged()
        assert len(entries) == count
        return entries

    async def _has(self, count: int) -> bool:
        return len(await self.logged()) >= count


async def announce(redis: Redis, url: str, *, name="r0", version="v0000", state="ready") -> None:
    """Say what an agent says every second, for as long as a test runs."""
    replica = Replica(name=name, url=url, version=version, state=state, seen_at=time.time())
    await redis.sadd(keys.replicas(), name)
    await redis.set(keys.replica(name), replica.model_dump_json())


@asynccontextmanager
async def running_gateway(
    settings: Settings, redis: Redis, *, with_key: bool = True
) -> AsyncIterator[Gateway]:
    """A gateway in this process; its engines have been announced before."""
    scopes = ["complete", "feedback"]
    secret = ""
    if with_key:
        _, secret = await create_key(redis, name="tests", tenant="acme", scopes=scopes)
    # with the protocol named asyncio sends at once, as uvloop always does
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    server = http_server(settings)
    app = server.config.app
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await eventually(lambda: server.started or task.done())
        assert server.started
        async with aiohttp.ClientSession() as http:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            yield Gateway(url, secret, redis, app.state.keyring, app, http)
    finally:
        server.should_exit = True
        await task


@pytest.fixture
def gateway_settings(shared_redis: RedisServer, state_dir: Path) -> Settings:
    return Settings(state_dir=state_dir, redis_url=shared_redis.url)


@pytest.fixture
async def double(state_dir: Path, redis: Redis) -> AsyncIterator[EngineDouble]:
    """An engine double that is announced as the only replica."""
    engine = EngineDouble()
    async with engine.listening(state_dir / "engine.sock") as url:
        await announce(redis, url)
        yield engine


@pytest.fixture
async def gateway(
    double: EngineDouble, gateway_settings: Settings, redis: Redis
) -> AsyncIterator[Gateway]:
    """A gateway in front of the double."""
    async with running_gateway(gateway_settings, redis) as running:
        yield running


@pytest.fixture(scope="package")
def vllm() -> Iterator[EngineSpec]:
    """The real engine with a tiny random model, started when the first test wants it."""
    with tempfile.TemporaryDirectory(prefix="il-") as name:
        folder = Path(name)
        spec = engine_spec(folder, make_tiny_model(folder / "model"), version="v0000")
        with running_engine(spec):
            yield spec
