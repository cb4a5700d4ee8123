"""Real servers for tests, each started and stopped by the test session that needs it."""

import asyncio
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis as redis_sync

from core.keyring import Keyring
from core.redis_client import Redis, connect, local_redis_url
from core.settings import Settings
from deploy.redis_server import start_redis


@dataclass
class RedisServer:
    """A Redis of our own that a test may kill and start again."""

    state_dir: Path
    password: str = "tests"
    process: subprocess.Popen | None = field(default=None)

    @property
    def url(self) -> str:
        return local_redis_url(self.state_dir, self.password)

    def start(self) -> None:
        self.process = start_redis(self.state_dir, self.password, log=self.state_dir / "redis.log")
        deadline = time.monotonic() + 20
        while True:
            try:
                with redis_sync.Redis.from_url(self.url) as client:
                    client.ping()
                return
            except redis_sync.RedisError:
                assert self.process.poll() is None, (self.state_dir / "redis.log").read_text()
                assert time.monotonic() < deadline, "Redis did not start"
                time.sleep(0.02)

    def kill(self) -> None:
        """kill -9, as the kernel or an impatient person does it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    with tempfile.TemporaryDirectory(prefix="il-") as folder:
        server = RedisServer(Path(folder))
        server.start()
        yield server
        server.kill()


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A Redis for one test alone, which may kill it."""
    with tempfile.TemporaryDirectory(prefix="il-") as folder:
        server = RedisServer(Path(folder))
        server.start()
        yield server
        server.kill()


@pytest.fixture
async def redis(shared_redis: RedisServer) -> AsyncIterator[Redis]:
    """A client of an empty Redis."""
    async with connect(shared_redis.url) as client:
        await client.flushall()
        yield client


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """A short path, because sockets live in it."""
    with tempfile.TemporaryDirectory(prefix="il-") as folder:
        yield Path(folder)


@pytest.fixture
def keyring(state_dir: Path) -> Keyring:
    return Keyring(state_dir / "secrets")


@pytest.fixture
def settings(state_dir: Path) -> Settings:
    return Settings(state_dir=state_dir)


async def eventually(condition, *, seconds: float = 10.0, every: float = 0.02):
    """Wait until `condition()` (maybe async) is true; return what it gave."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"did not become true within {seconds} s"
        await asyncio.sleep(every)
