"""The key of completion ids and the engines' token change under two gateways and an engine's guard.

Gateways are processes, as on two machines with one folder of secrets; the guard is the real one,
before an application in vLLM's place.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

import aiohttp
import orjson
import pytest
import uvicorn

from core import ids
from core import keyring as keyrings
from core.auth import create_key
from core.engine import guard as guards
from core.engine.guard import EngineGuard, settings_from, tokens_file, write_tokens
from core.errors import NotFound
from core.keyring import ENGINE_DATA, IDS, Keyring
from core.redis_client import connect
from core.settings import Settings
from serving import agent_tokens
from serving.agent import Agent
from tests.conftest import eventually
from tests.serving.conftest import CHAT, announce
from tests.serving.test_server import free_port

REREAD_SECONDS = 0.2
LEAD_SECONDS = 3.0
GATEWAY = (
    "import sys; from core import keyring; from core.settings import Settings;"
    f"keyring.REREAD_SECONDS = {REREAD_SECONDS};"
    "from serving.server import serve; serve(Settings.model_validate_json(sys.argv[1]))"
)


@dataclass
class Seen:
    """What came of everything that was asked."""

    refused: list[str] = field(default_factory=list)
    completions: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    """What gateways showed the engine."""


class Answers:
    """An application in vLLM's place, behind the guard."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen

    async def __call__(self, scope, receive, send) -> None:
        headers = dict(scope["headers"])
        self.seen.tokens.add(headers[b"authorization"].decode().removeprefix("Bearer "))
        name = "chatcmpl-" + headers.get(b"x-request-id", b"none").decode()
        message = {"role": "assistant", "content": "Here."}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = {"id": name, "object": "chat.completion", "created": 1, "choices": [choice]}
        content = orjson.dumps(body)
        ends = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": 200, "headers": ends})
        await send({"type": "http.response.body", "body": content})


@asynccontextmanager
async def guarded_engine(agent: Agent, seen: Seen) -> AsyncIterator[None]:
    """Started and told its tokens as an agent does it."""
    path = tokens_file(agent.socket)
    write_tokens(path, data=agent_tokens.accepted(agent), control=agent.control_token)
    told = settings_from({guards.TOKENS_FILE: str(path), guards.POLICY_VERSION: "v0000"})
    app = EngineGuard(Answers(seen), told)
    config = uvicorn.Config(app, uds=str(agent.socket), log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    renewing = asyncio.create_task(agent_tokens.renew(agent))
    try:
        await eventually(lambda: server.started)
        yield
    finally:
        renewing.cancel()
        server.should_exit = True
        await serving


async def talk(http: aiohttp.ClientSession, urls, seen: Seen, over: asyncio.Event) -> None:
    """Ask one gateway, and say to the other at once what the answer was worth."""
    for turn in count():
        if over.is_set():
            return
        one, other = urls[turn % 2], urls[1 - turn % 2]
        async with http.post(f"{one}/v1/chat/completions", json=CHAT) as reply:
            said = await reply.json()
            if reply.status != 200:
                seen.refused.append(f"completion {reply.status} {said}")
                continue
        seen.completions.append(said["id"])
        await asyncio.sleep(0.02)  # gateways and this share two cores
        body = {"completion_id": said["id"], "thumb": "up"}
        async with http.post(f"{other}/v1/feedback", json=body) as reply:
            if reply.status != 201:
                seen.refused.append(f"feedback {reply.status} {await reply.text()}")


@pytest.fixture
def gateways(settings: Settings, redis_server):
    """Two processes, by their addresses."""
    settings = settings.model_copy(update={"redis_url": redis_server.url})
    running: dict[str, subprocess.Popen] = {}
    for _ in range(2):
        port = free_port()
        group = settings.gateway.model_copy(update={"port": port})
        told = settings.model_copy(update={"gateway": group}).model_dump_json()
        url = f"http://127.0.0.1:{port}"
        running[url] = subprocess.Popen([sys.executable, "-c", GATEWAY, told])
    yield list(running)
    for process in running.values():
        process.kill()
        process.wait()


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(keyrings, "REREAD_SECONDS", REREAD_SECONDS)
    monkeypatch.setattr(guards, "_LOOK_SECONDS", REREAD_SECONDS)
    monkeypatch.setattr(agent_tokens, "EVERY_SECONDS", REREAD_SECONDS)


async def ready(http: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with http.get(f"{url}/readyz") as reply:
            return reply.status == 200
    except aiohttp.ClientError:
        return False


async def say(http: aiohttp.ClientSession, url: str, *names: str) -> int:
    """Of one reply that it was good, of several that the first was better."""
    body, path = {"completion_id": names[0], "thumb": "up"}, "feedback"
    if len(names) > 1:
        body, path = {"ranking": [[{"completion_id": name}] for name in names]}, "rankings"
    async with http.post(f"{url}/v1/{path}", json=body) as reply:
        return reply.status


def made_with(key: bytes, names: list[str]) -> list[str]:
    found = []
    for name in names:
        try:
            ids.read_id([key], "acme", name)
        except NotFound:
            continue
        found.append(name)
    return found


async def test_both_are_exchanged_while_people_ask_and_rate_and_nobody_is_refused(
    gateways, settings, redis_server, state_dir, often
):
    keyring, seen, over = Keyring(settings.secrets), Seen(), asyncio.Event()
    async with connect(redis_server.url) as redis, aiohttp.ClientSession() as http:
        agent = Agent("engine-0", settings, keyring, redis, state_dir / "e.sock")
        await announce(redis, agent.url)
        scopes = ["complete", "feedback"]
        _, http.headers["x-api-key"] = await create_key(
            redis, name="k", tenant="acme", scopes=scopes
        )
        async with guarded_engine(agent, seen):
            for url in gateways:
                await eventually(lambda u=url: ready(http, u), seconds=60)
            people = [asyncio.create_task(talk(http, gateways, seen, over)) for _ in range(3)]
            await eventually(lambda: len(seen.completions) > 20, seconds=30)
            begins = [
                keyring.succeed(name, now=time.time(), lead=LEAD_SECONDS)
                for name in (IDS, ENGINE_DATA)
            ]
            (new, old), tokens = keyring.accepted(IDS), agent_tokens.accepted(agent)
            await eventually(lambda: time.time() > max(begins) + 2 * REREAD_SECONDS)
            then = len(seen.completions)
            await eventually(lambda: len(seen.completions) > then + 20, seconds=30)
            for name in (IDS, ENGINE_DATA):
                before, after = made_with(old, seen.completions), made_with(new, seen.completions)
                if name == IDS:  # answers to one prompt, whichever key made their ids
                    assert await say(http, gateways[0], before[0], after[-1]) == 201
                (keyring.folder / name).unlink()
            await asyncio.sleep(3 * REREAD_SECONDS)
            then = len(seen.completions)
            await eventually(lambda: len(seen.completions) > then + 20, seconds=30)
            over.set()
            await asyncio.gather(*people)
            for url in gateways:
                assert await say(http, url, before[0]) == 404
                assert await say(http, url, after[-1]) == 201
    assert seen.refused == []
    assert min(len(before), len(after)) > 20
    assert {*made_with(new, seen.completions[then:])} == {*seen.completions[then:]}
    assert {*tokens} <= seen.tokens <= {*tokens, agent.control_token}
