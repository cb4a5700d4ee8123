"""A gateway in a thread of its own, before a real engine, for clients that block."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from core.engine.launch import EngineSpec
from core.redis_client import connect
from core.settings import Settings
from tests.serving.conftest import Gateway, announce, running_gateway
from tests.serving.real_engine import control, share_data_token


@dataclass
class Service:
    """The gateway as its clients see it, and its log."""

    gateway: Gateway
    spec: EngineSpec
    loop: asyncio.AbstractEventLoop

    @property
    def base_url(self) -> str:
        return self.gateway.url + "/v1"

    @property
    def secret(self) -> str:
        return self.gateway.secret

    def call(self, coroutine):
        """Run something where the gateway runs."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def logged(self, completion_id: str) -> dict:
        """The log entry of a completion."""
        found = self.find(completion_id)
        assert found is not None, f"{completion_id} is not in the log"
        return found

    def find(self, completion_id: str) -> dict | None:
        """The same, if it is there."""
        entries = self.call(self.gateway.logged())
        return next((entry for entry in entries if entry["id"] == completion_id), None)

    def newest(self) -> dict:
        """The last log entry."""
        return self.call(self.gateway.logged())[-1]

    def seconds_until_idle(self) -> float:
        """How long the engine goes on generating from now."""
        return self.call(self._until_idle())

    async def _until_idle(self) -> float:
        began = time.monotonic()
        async with control(self.spec) as client:
            while await client.in_flight():
                assert time.monotonic() < began + 20, "the engine goes on"
                await asyncio.sleep(0.01)
        return time.monotonic() - began


@contextmanager
def gateway_in_thread(spec: EngineSpec, redis_url: str, state_dir: Path) -> Iterator[Service]:
    """Nobody else may empty that Redis meanwhile."""
    ready: threading.Event = threading.Event()
    started: list[Service] = []
    stop = asyncio.Event()

    async def serve() -> None:
        share_data_token(spec, state_dir)
        settings = Settings(state_dir=state_dir, redis_url=redis_url)
        async with connect(redis_url) as redis, control(spec) as client:
            await redis.flushall()
            await client.admit("v0000")
            await announce(redis, f"unix:{spec.socket}")
            async with running_gateway(settings, redis) as gateway:
                started.append(Service(gateway, spec, asyncio.get_running_loop()))
                ready.set()
                await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(60), "the gateway did not start"
        yield started[0]
    finally:
        for service in started:
            service.loop.call_soon_threadsafe(stop.set)
        thread.join(60)
