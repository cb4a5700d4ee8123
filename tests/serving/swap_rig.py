"""Replicas with agents over doubles, a real gateway and a real Redis: swaps under traffic, broken.

Each round publishes a version, promotes it, lets one fault strike, and waits until all is quiet.
Clients ask all the while and check what each reply says of every token in it.
"""

import asyncio
import json
import re
import struct
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

import aiohttp
import numpy as np
import pytest

from core import keys, registry
from core.engine import client as clients
from core.engine import launch
from core.errors import InstructLoopError
from core.records import Card
from core.redis_client import Redis
from core.settings import Settings
from core.versions import weights_sha256
from serving import agent as agents
from serving import agent_records, replicas
from serving import swap as swaps
from serving.agent_state import Agent
from tests.conftest import eventually
from tests.serving.conftest import Gateway, running_gateway
from tests.serving.fault_engine import NAME_BYTES, Fault, FaultEngine, checksums

STEPS = (
    *("stage", "hold", "drain", "pause", "install", "reset", "name", "name_vllm", "resume"),
    *("probe", "admit", "attest"),
)
KINDS = ("error", "late_error", "cut", "lost", "hang", "delay", "die", "redis", "agent")
OF_THE_ANSWER = (("stage", "wrong"), ("attest", "wrong"), ("install", "wrong"))
OF_THE_VERSION = (("stage", "refuse"), ("probe", "nan"))
TWICE = ("stage", "wrong twice")
TAMPERED = ("files", "tampered")
LONGEST_WAIT_SECONDS = 5.0
RESTORING = ("reload", "checksums", "reset", "probe", "admit", "pause")
_MARK = re.compile(rb": policy-version (\S+)")


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same in a hundredth of the time."""
    for module, name, seconds in (
        (agents, "TICK_SECONDS", 0.01),
        (agents, "FAREWELL_SECONDS", 0.03),
        (agents, "FIRST_RETRY_SECONDS", 0.02),
        (agents, "PROGRESS_SECONDS", 60.0),
        (agent_records, "HEARTBEAT_SECONDS", 0.05),
        (agent_records, "SWAP_LEASE_SECONDS", 0.6),
        (replicas, "WATCH_SECONDS", 0.02),
        (launch, "_POLL_SECONDS", 0.01),
        (clients, "_CONTROL_SECONDS", 0.4),
        (clients, "_LOAD_SECONDS", 0.4),
        (swaps, "EXCHANGE_SECONDS", 0.8),
    ):
        monkeypatch.setattr(module, name, seconds)


class SometimesAway:
    """A client of Redis that loses it, for a while or for good."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.away = False

    def __getattr__(self, name: str):
        if self.away:
            raise ConnectionError("Redis is away")
        return getattr(self._redis, name)


@dataclass
class Life:
    """An agent until it is killed."""

    agent: Agent
    redis: SometimesAway
    task: asyncio.Task


@dataclass
class Heard:
    """What clients got."""

    replies: int = 0
    crossed: int = 0
    failed: list[str] = field(default_factory=list)
    cut: list[tuple[float, float]] = field(default_factory=list)
    """When a stream that its engine broke off began and ended."""
    untrue: list[str] = field(default_factory=list)


class Rig:
    """Some replicas, their versions, and what strikes them."""

    def __init__(self, settings: Settings, redis: Redis, keyring, seed: int) -> None:
        self.settings, self.redis, self.keyring = settings, redis, keyring
        self.engines: dict[str, FaultEngine] = {}
        self.lives: dict[str, Life] = {}
        self.deaths: list[float] = []
        self.heard = Heard()
        self.gateway: Gateway | None = None
        self.asked: dict[int, float] = {}
        self.struck: Counter[tuple[str, str]] = Counter()
        self.random = np.random.default_rng(seed)
        self.loop = asyncio.get_running_loop()
        self.background: set[asyncio.Task] = set()

    # --- processes

    def start_engine(self, spec) -> FaultEngine:
        engine = FaultEngine(spec, on_strike=self.strike, deaths=self.deaths)
        self.engines[spec.socket.stem] = engine
        return engine

    def stop_engine(self, engine: FaultEngine, grace: float) -> None:
        del grace
        asyncio.run_coroutine_threadsafe(engine.stop(), self.loop).result(10)

    def strike(self, engine: FaultEngine, kind: str) -> None:
        """A fault that is not the engine's own: its agent is killed, or loses Redis."""
        name = engine.spec.socket.stem
        if kind == "redis":
            life = self.lives[name]
            life.redis.away = True
            self.loop.call_later(0.1, setattr, life.redis, "away", False)
        else:
            self.kill(name)

    def kill(self, name: str) -> None:
        """kill -9 of an agent: its engine dies with it; the supervisor starts another."""
        life = self.lives[name]
        life.redis.away = True
        self.engines[name].die()
        life.task.cancel()
        again = asyncio.create_task(self._born_again(name, life))
        self.background.add(again)
        again.add_done_callback(self.background.discard)

    async def _born_again(self, name: str, life: Life) -> None:
        await asyncio.wait([life.task])
        self.begin(name)

    def begin(self, name: str) -> None:
        redis = SometimesAway(self.redis)
        socket = self.settings.state_dir / f"{name}.sock"
        agent = Agent(name, self.settings, self.keyring, redis, socket)
        self.lives[name] = Life(agent, redis, asyncio.create_task(agents.live(agent)))

    # --- versions

    async def publish(self, *, tampered: bool = False) -> str:
        """A new version on disk and in the registry; half of them with known checksums."""
        version = await registry.next_version(self.redis)
        folder = self.settings.state_dir / "policies" / version
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        entry = {"dtype": "U8", "shape": [NAME_BYTES], "data_offsets": [0, NAME_BYTES]}
        header = json.dumps({"layer.weight": entry}).encode()
        content = struct.pack("<Q", len(header)) + header
        (folder / "model.safetensors").write_bytes(content + version.ljust(NAME_BYTES).encode())
        known = {name: {} for name in ("algorithm", "data", "figures", "gate", "compatible")}
        card = Card(
            version=version,
            parent=None,
            created_at=registry.timestamp(),
            kind="base",
            reward_model=None,
            anchor=None,
            weights_sha256=weights_sha256(folder),
            **known,
        )
        if tampered:
            other = "tampered".ljust(NAME_BYTES).encode()
            (folder / "model.safetensors").write_bytes(content + other)
        token = await registry.acquire_fence(self.redis)
        await registry.publish(self.redis, registry.signed(card, self.keyring), fencing_token=token)
        if self.random.random() < 0.5:
            await self.redis.hset(keys.policy_checksums(version), mapping=checksums(version))
        return version

    async def settled(self) -> bool:
        """Whether every replica serves the target, in truth and by its own word."""
        target = await registry.target(self.redis)
        for name, life in self.lives.items():
            engine, agent = self.engines.get(name), life.agent
            if engine is None or agent.process is not engine or engine.returncode is not None:
                return False
            door = engine.guard._state()
            told = (agent.serving, agent.state, engine.weights, door["version"], door["held"])
            if told != (target, "ready", target, target, False) or not engine.awake.is_set():
                return False
        if self.gateway is not None:  # two engines that fail at one time are one too many
            known = list(self.gateway.app.state.services.replicas)
            if not all(e.version == target and e.shown_state == "ready" for e in known):
                return False
        return not self.background and not await self.redis.exists(keys.swap_lease(0))

    async def round(self, *faults: tuple[str, str]) -> str:
        """Promote a new version while these faults strike one replica; returns what came of it."""
        before = await registry.target(self.redis)
        version = await self.publish(tampered=TAMPERED in faults)
        told = [*faults, *([("stage", "wrong")] * 2 if TWICE in faults else [])]
        if TWICE in faults:
            await self.redis.hset(keys.policy_checksums(version), mapping=checksums(version))
        name = self.random.choice(sorted(self.engines))
        armed = [Fault(*fault) for fault in told]
        self.engines[str(name)].faults = armed
        await registry.promote(self.redis, version, who="rig", why="a round")
        await eventually(lambda: self._is_over(version), seconds=20.0)
        self.struck.update((of.step, of.kind) for of in armed if of.struck)
        for engine in self.engines.values():
            engine.faults = []
        target = await registry.target(self.redis)
        bad = await self.redis.hexists(keys.quarantined(), version)
        blamed = {TAMPERED, TWICE, *OF_THE_VERSION} & set(faults)
        assert (target, bool(bad)) == ((before, True) if blamed else (version, False)), faults
        return target

    async def _is_over(self, version: str) -> bool:
        target = await registry.target(self.redis)
        bad = await self.redis.hexists(keys.quarantined(), version)
        return (target == version) != bool(bad) and await self.settled()

    # --- clients

    async def ask(self, gateway: Gateway, number: int) -> None:
        for turn in count():
            stream = (number + turn) % 2 == 0
            messages = [{"role": "user", "content": f"prompt {(number + turn) % 3}"}]
            body = {"model": "instructloop", "messages": messages, "stream": stream}
            began = self.asked[number] = self.loop.time()
            try:
                async with gateway.post("/v1/chat/completions", body) as reply:
                    raw = await reply.read()
            except aiohttp.ClientError as error:
                self.heard.failed.append(repr(error))
                return
            self.heard.replies += 1
            if reply.status != 200:
                self.heard.failed.append(f"{reply.status} {raw!r:.200}")
            elif stream:
                self._check_stream(raw, reply.headers, began)
            else:
                self._check_whole(raw, reply.headers)

    def _check_stream(self, raw: bytes, headers, began: float) -> None:
        claimed, versions, words = headers["x-policy-version"], set(), 0
        for event in raw.split(b"\n\n"):
            if mark := _MARK.fullmatch(event):
                claimed = mark[1].decode()
            elif event.startswith(b"data: {"):
                choices = json.loads(event[6:]).get("choices", [])
                for word in choices[0]["delta"]["content"].split() if choices else []:
                    versions.add(word)
                    words += 1
                    if word != claimed:
                        self.heard.untrue.append(f"{word} as {claimed}: {raw!r}")
        self.heard.crossed += len(versions) > 1
        if b"[DONE]" not in raw or b'"error"' in raw:
            self.heard.cut.append((began, self.loop.time()))
        elif words != 12:
            self.heard.failed.append(f"{words} words: {raw!r:.300}")

    def _check_whole(self, raw: bytes, headers) -> None:
        words = json.loads(raw)["choices"][0]["message"]["content"].split()
        claimed = headers.get("x-policy-versions", headers["x-policy-version"]).split(",")
        self.heard.crossed += len(set(words)) > 1
        places = [claimed.index(word) if word in claimed else -1 for word in words]
        if len(words) != 12 or -1 in places or claimed[0] != headers["x-policy-version"]:
            self.heard.untrue.append(f"{words} as {claimed}")

    def longest_wait(self) -> float:
        """How long the oldest request has waited that has no answer yet."""
        return self.loop.time() - min(self.asked.values(), default=self.loop.time())

    def cut_for_nothing(self) -> list[tuple[float, float]]:
        """Streams that were broken off though no engine died meanwhile."""
        return [
            (began, ended)
            for began, ended in self.heard.cut
            if not any(began <= death <= ended for death in self.deaths)
        ]


def draw(random: np.random.Generator) -> list[tuple[str, str]]:
    """The faults of a round: none, one at any step, or a second one while the first is mended."""
    what = random.random()
    if what < 0.05:
        return []
    if what < 0.2:
        choices = [*OF_THE_ANSWER, *OF_THE_VERSION, TWICE, TAMPERED]
        return [choices[random.integers(len(choices))]]
    first = (STEPS[random.integers(len(STEPS))], KINDS[random.integers(len(KINDS))])
    if what < 0.85:
        return [first]
    second = RESTORING[random.integers(len(RESTORING))]
    return [first, (second, KINDS[random.integers(len(KINDS))])]


@asynccontextmanager
async def swap_rig(
    settings: Settings,
    redis: Redis,
    keyring,
    monkeypatch: pytest.MonkeyPatch,
    *,
    replicas: int = 2,
    clients: int = 4,
    seed: int = 0,
):
    """Replicas that serve v0000 behind a gateway, and clients that ask until the block ends."""
    quick(monkeypatch)
    limits = settings.engine.model_copy(update={"attest_seconds": 0.0})
    rig = Rig(settings.model_copy(update={"engine": limits}), redis, keyring, seed)
    monkeypatch.setattr(agents, "start_engine", rig.start_engine)
    monkeypatch.setattr(agents, "stop_engine", rig.stop_engine)
    await registry.promote(redis, await rig.publish(), who="rig", why="the first")
    for number in range(replicas):
        rig.begin(f"engine-{number}")
    await eventually(rig.settled, seconds=20.0)
    try:
        async with AsyncExitStack() as stack:
            gateway = await stack.enter_async_context(running_gateway(settings, redis))
            await eventually(lambda: len(gateway.app.state.services.replicas) == replicas)
            rig.gateway = gateway
            asking = [asyncio.create_task(rig.ask(gateway, i)) for i in range(clients)]
            try:
                yield rig
            finally:
                for task in asking:
                    task.cancel()
                await asyncio.wait(asking)
                raised = [t.exception() for t in asking if not t.cancelled()]
            assert raised == []
    finally:
        for life in rig.lives.values():
            life.agent.stopping.set()
        ended = await asyncio.gather(
            *(life.task for life in rig.lives.values()), return_exceptions=True
        )
        assert [e for e in ended if isinstance(e, (InstructLoopError, RuntimeError))] == []


async def broken_swaps(rig: Rig, rounds: int) -> None:
    """So many swaps with faults; raises AssertionError at the first that does not end right."""
    for number in range(rounds):
        faults = draw(rig.random)
        try:
            await rig.round(*faults)
        except AssertionError as error:
            told = {
                n: (li.agent.serving, li.agent.state, li.agent.detail)
                for n, li in rig.lives.items()
            }
            raise AssertionError(f"round {number}, {faults}: {error}; {told}") from error
        heard = rig.heard
        assert heard.untrue == [], f"round {number}, {faults}"
        assert heard.failed == [], f"round {number}, {faults}: {heard.failed[0]}"
        assert rig.cut_for_nothing() == [], f"round {number}, {faults}"
        assert rig.longest_wait() < LONGEST_WAIT_SECONDS, f"round {number}, {faults}"
