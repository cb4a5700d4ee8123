"""The agent and an engine that hangs."""

import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from aiohttp import web

from core import keys
from core.engine.client import EngineClient
from core.records import Replica
from serving import agent as agents
from serving.agent import Agent
from tests.conftest import eventually


@dataclass
class Engine:
    """The routes by which an agent looks at an engine."""

    tokens: int = 100
    in_flight: int = 1
    moves: bool = False

    async def metrics(self, request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer data"
        self.tokens += self.moves
        return web.Response(text=f'vllm:generation_tokens_total{{engine="0"}} {self.tokens}')

    async def state(self, request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer control"
        said = {"version": "v0000", "held": False, "in_flight": self.in_flight, "waiting": 0}
        return web.json_response(said)


@asynccontextmanager
async def watched(settings, keyring, redis, state_dir, engine: Engine):
    """An agent that has such an engine up, its process a stand-in that only ends."""
    app = web.Application()
    app.router.add_get("/metrics", engine.metrics)
    app.router.add_get("/instructloop/state", engine.state)
    runner = web.AppRunner(app)
    await runner.setup()
    socket = state_dir / "e.sock"
    await web.UnixSite(runner, str(socket)).start()
    group = settings.engine.model_copy(update={"hang_seconds": 0.2})
    agent = Agent("engine-1", settings.model_copy(update={"engine": group}), keyring, redis, socket)
    agent.process = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True
    )
    agent.client = EngineClient(socket=socket, data_token="data", control_token="control")
    await agent.client.__aenter__()
    agent.serving, agent.state = "v0000", "ready"
    process = agent.process
    try:
        yield agent, process
    finally:
        process.kill()
        process.wait()
        if agent.client is not None:
            await agent.client.__aexit__(None, None, None)
        await runner.cleanup()


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(agents, "PROGRESS_SECONDS", 0.0)


async def said(redis) -> Replica:
    return Replica.model_validate_json(await redis.get(keys.replica("engine-1")))


async def test_an_engine_that_hangs_is_ended_so_that_it_can_start_again(
    settings, keyring, redis, state_dir, often
):
    async with watched(settings, keyring, redis, state_dir, Engine()) as (agent, process):

        async def ended() -> bool:
            await agents._look(agent)
            return process.poll() is not None

        await eventually(ended)
        assert agent.process is None  # the next look starts it
        assert agent.serving == ""
        assert ((await said(redis)).state, (await said(redis)).detail) == (
            "failed",
            "the engine hung",
        )


class GoneAfterTheTarget:
    """A Redis that says which version is wanted, and nothing after that."""

    def __init__(self, redis) -> None:
        self._redis = redis
        self.asked = []

    def __getattr__(self, name):
        self.asked.append(name)
        if len(self.asked) > 1:
            raise ConnectionError("Redis is gone")
        return getattr(self._redis, name)


@pytest.mark.parametrize("serving", ["v0000", ""], ids=["swap", "start"])
async def test_a_redis_that_goes_away_in_the_middle_of_a_look_ends_neither_agent_nor_engine(
    settings, keyring, redis, state_dir, serving
):
    await redis.set(keys.target(), "v0001")
    async with watched(settings, keyring, redis, state_dir, Engine()) as (agent, process):
        agent.serving = serving
        if not serving:
            agent.process = None
        agent.redis = GoneAfterTheTarget(redis)
        await agents._look(agent)
        assert len(agent.redis.asked) > 1
        assert process.poll() is None
        assert agent.state == ("ready" if serving else "starting")
        assert agent.refused == set()


@pytest.mark.parametrize("engine", [Engine(moves=True), Engine(in_flight=0)], ids=["busy", "idle"])
async def test_an_engine_that_is_busy_or_idle_is_left_alone(
    settings, keyring, redis, state_dir, often, engine
):
    async with watched(settings, keyring, redis, state_dir, engine) as (agent, process):
        await agents._look(agent)  # the first count is news
        began = agents.time.monotonic()
        while agents.time.monotonic() < began + 2 * agent.settings.engine.hang_seconds:
            await agents._look(agent)
        assert process.poll() is None
        assert (agent.state, agent.serving) == ("ready", "v0000")
