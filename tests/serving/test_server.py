"""The gateway as a process: it starts light, ends in order, and says why it cannot start."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager

import aiohttp
import orjson
import pytest

from core import keys
from core.auth import create_key
from core.errors import StartError
from core.keyring import Keyring
from core.redis_client import connect
from core.settings import Settings
from serving.server import serve
from tests.conftest import eventually
from tests.serving.conftest import CHAT, announce
from tests.serving.engine_double import WORDS, EngineDouble

HEAVY = ("torch", "vllm", "celery", "transformers")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def gateway_process(settings: Settings) -> subprocess.Popen:
    script = (
        "import sys; from core.settings import Settings; from serving.server import serve;"
        "serve(Settings.model_validate_json(sys.argv[1]))"
    )
    return subprocess.Popen([sys.executable, "-c", script, settings.model_dump_json()])


def test_nothing_heavy_is_imported_to_serve():
    script = f"import sys, serving.server; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout == b"[]\n"


def test_a_port_in_use_is_said_in_one_line(settings, shared_redis):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        group = settings.gateway.model_copy(update={"port": taken.getsockname()[1]})
        update = {"gateway": group, "redis_url": shared_redis.url}
        with pytest.raises(StartError, match="--port") as caught:
            serve(settings.model_copy(update=update))
    assert "\n" not in caught.value.message


async def test_a_redis_of_another_schema_stops_the_start(settings, redis, shared_redis):
    await redis.set(keys.schema(), "99")
    settings = settings.model_copy(update={"redis_url": shared_redis.url})
    with pytest.raises(StartError, match="schema 99"):
        await asyncio.to_thread(serve, settings)


@asynccontextmanager
async def running_process(settings, redis_server, state_dir, *, shutdown_seconds: int):
    """A gateway process in front of a double whose replies stop half-way."""
    group = settings.gateway.model_copy(
        update={"port": free_port(), "shutdown_seconds": shutdown_seconds}
    )
    update = {"gateway": group, "redis_url": redis_server.url}
    double = EngineDouble(gate=asyncio.Event())
    async with (
        connect(redis_server.url) as redis,
        double.listening(state_dir / "engine.sock") as engine,
        aiohttp.ClientSession(f"http://127.0.0.1:{group.port}") as http,
    ):
        await announce(redis, engine)
        _, secret = await create_key(redis, name="k", tenant="acme", scopes=["complete"])
        http.headers["x-api-key"] = secret
        process = gateway_process(settings.model_copy(update=update))
        try:
            await eventually(lambda: answers(http), seconds=60)
            yield process, double, http, group.port
        finally:
            process.kill()
            process.wait()


async def logged(redis_server, state_dir) -> list[dict]:
    async with connect(redis_server.url) as redis:
        sealed = [fields[b"sealed"] for _, fields in await redis.xrange(keys.inbox())]
    return [orjson.loads(Keyring(state_dir / "secrets").open(text)) for text in sealed]


async def test_sigterm_lets_what_is_in_flight_finish_and_logs_it(settings, redis_server, state_dir):
    async with running_process(settings, redis_server, state_dir, shutdown_seconds=20) as running:
        process, double, http, port = running
        asked = [
            asyncio.create_task(read(http, {**CHAT, "stream": stream})) for stream in (True, False)
        ]
        await eventually(lambda: double.answering == 2)
        process.send_signal(signal.SIGTERM)
        await eventually(lambda: is_closed(port))
        double.gate.set()
        streamed, unary = await asyncio.gather(*asked)
        assert streamed.endswith(b"data: [DONE]\n\n")
        assert json.loads(unary)["choices"][0]["message"]["content"] == "".join(WORDS)
        assert await asyncio.to_thread(process.wait, 30) == 0
    entries = await logged(redis_server, state_dir)
    assert [entry["error"] for entry in entries] == [None, None]
    assert list((state_dir / "spool").iterdir()) == []


async def test_what_does_not_finish_in_time_is_logged_as_cut_off(settings, redis_server, state_dir):
    async with running_process(settings, redis_server, state_dir, shutdown_seconds=1) as running:
        process, double, http, _ = running
        asked = asyncio.create_task(read(http, {**CHAT, "stream": True}))
        await eventually(lambda: double.answering == 1)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 30) == 0
        with pytest.raises(aiohttp.ClientError):
            await asked
    (entry,) = await logged(redis_server, state_dir)
    assert entry["error"] == "shutdown"
    assert entry["choices"][0]["text"] == "".join(WORDS[:3])


async def read(http, body) -> bytes:
    async with http.post("/v1/chat/completions", json=body) as response:
        return await response.read()


async def answers(http) -> bool:
    try:
        async with http.get("/readyz") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


def is_closed(port: int) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) != 0
