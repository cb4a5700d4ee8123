"""Two gateways are replaced, one after the other, while clients stream through both of them.

Clients choose among gateways as a load balancer does: by `/readyz`, which it asks now and then.
"""

import asyncio
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count

import aiohttp
import pytest

from core.auth import create_key
from core.redis_client import connect
from core.settings import Settings
from tests.conftest import eventually
from tests.serving.conftest import CHAT, announce
from tests.serving.engine_double import EngineDouble
from tests.serving.test_server import free_port, gateway_process

LOOK_SECONDS = 0.3
"""How late a balancer notices."""
LEAVE_SECONDS = 0.8
PACE_SECONDS = 0.06


@dataclass
class Balancer:
    """Which gateways are ready, as of its last look at each."""

    http: aiohttp.ClientSession
    ready: dict[int, bool]

    async def run(self) -> None:
        while True:
            for port in self.ready:
                self.ready[port] = await self.look(port) == 200
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self, port: int) -> int:
        with suppress(aiohttp.ClientError):
            async with self.http.get(f"http://127.0.0.1:{port}/readyz") as reply:
                return reply.status
        return 0

    def choose(self, turn: int) -> int:
        ready = [port for port, yes in self.ready.items() if yes]
        return ready[turn % len(ready)]


@dataclass
class Heard:
    whole: dict[int, int]
    """Replies that came whole, by port."""
    broken: list[str] = field(default_factory=list)


async def talk(balancer: Balancer, heard: Heard, number: int, over: asyncio.Event) -> None:
    """One client with connections that it keeps, as an application has."""
    async with aiohttp.ClientSession(headers=dict(balancer.http.headers)) as http:
        for turn in count(number):
            if over.is_set():
                return
            port, stream = balancer.choose(turn), turn % 3 != 0
            url = f"http://127.0.0.1:{port}/v1/chat/completions"
            try:
                async with http.post(url, json={**CHAT, "stream": stream}) as reply:
                    text = await reply.text()
            except aiohttp.ClientError as error:
                heard.broken.append(f"{port}: {error!r}")
                continue
            end = "data: [DONE]\n\n" if stream else "}"
            if reply.status == 200 and text.endswith(end) and '"error"' not in text:
                heard.whole[port] += 1
            else:
                heard.broken.append(f"{port}: {reply.status} {text[-200:]}")


async def replaced(balancer: Balancer, process: subprocess.Popen, port: int) -> None:
    """The gateway leaves, in order."""
    process.send_signal(signal.SIGTERM)

    async def says_no() -> bool:
        return await balancer.look(port) == 503

    await eventually(says_no, seconds=LEAVE_SECONDS, every=0.01)
    assert process.poll() is None  # streams go on, and new requests are still taken
    assert await asyncio.to_thread(process.wait, 30) == 0


@pytest.fixture
def pair(settings: Settings, redis_server) -> dict[int, Settings]:
    told = {"shutdown_seconds": 20, "leave_seconds": LEAVE_SECONDS}
    ports = [free_port(), free_port()]
    return {
        port: settings.model_copy(
            update={
                "gateway": settings.gateway.model_copy(update={**told, "port": port}),
                "redis_url": redis_server.url,
            }
        )
        for port in ports
    }


async def test_a_rolling_upgrade_of_two_gateways_drops_no_stream_and_refuses_no_request(
    pair, redis_server
):
    processes: dict[int, subprocess.Popen] = {}
    double = EngineDouble(pace=PACE_SECONDS)
    try:
        async with (
            connect(redis_server.url) as redis,
            double.listening() as engine,
            aiohttp.ClientSession() as http,
        ):
            await announce(redis, engine)
            _, secret = await create_key(redis, name="k", tenant="acme", scopes=["complete"])
            http.headers["x-api-key"] = secret
            for port, settings in pair.items():
                processes[port] = gateway_process(settings)
            balancer = Balancer(http, dict.fromkeys(pair, False))
            looking = asyncio.create_task(balancer.run())
            await eventually(lambda: all(balancer.ready.values()), seconds=60)
            heard, over = Heard(dict.fromkeys(pair, 0)), asyncio.Event()
            clients = [asyncio.create_task(talk(balancer, heard, n, over)) for n in range(12)]
            for port, settings in pair.items():
                before = dict(heard.whole)
                await eventually(lambda b=before: all(heard.whole[p] > b[p] for p in pair))
                await replaced(balancer, processes[port], port)
                processes[port] = gateway_process(settings)  # the next release
                await eventually(lambda p=port: balancer.ready[p], seconds=60)
            before = dict(heard.whole)
            await eventually(lambda: all(heard.whole[p] > before[p] for p in pair))
            over.set()
            await asyncio.gather(*clients)
            looking.cancel()
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    assert heard.broken == []
    assert min(heard.whole.values()) > 12
