"""Votes, learning, promotion, roll back, erasure, and deaths at any edge, in any order.

Hypothesis drives a real Redis, real agents over engines in memory, and the real snapshots and
erasures. Canaries have a machine of their own (test_canary_machine.py).
"""

import asyncio
import tempfile
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from core import keys, registry
from core.engine.client import GuardState
from core.errors import Conflict, CorruptVersion, EngineError, LeaseLost, Unprocessable
from core.keyring import Keyring
from core.redis_client import connect
from core.settings import Settings
from feedback import erasure
from feedback.erasing import erase_what_is_due
from serving import agent as agents
from serving import agent_copies, agent_records
from serving.agent_state import Agent
from tests.core.test_registry import card
from tests.feedback.factory import api_key
from tests.feedback.test_snapshot import World, rows

pytestmark = pytest.mark.thorough

NAMES = st.sampled_from(["engine-0", "engine-1"])
USERS = st.sampled_from(["ann", "bob", "eve"])
EDGES = st.integers(0, 14)


class Killed(BaseException):
    """kill -9 of an agent, and of its engine with it."""


class Engine:
    """An engine in memory, and its client; at its `edge`-th call it does what it is told."""

    def __init__(self, spec) -> None:
        self.weights = self.version = spec.policy_version
        self.staged, self.held, self.returncode = "", False, None
        self.edge, self.what = -1, ""
        self.bad: set[str] = set()

    def poll(self) -> int | None:
        return self.returncode

    async def _call(self) -> None:
        self.edge -= 1
        if self.edge == -1 and self.what == "kill":
            raise Killed
        if self.edge == -1 and self.what == "fail":
            raise EngineError("it failed")
        if self.returncode is not None:
            raise EngineError("it is gone")

    async def checksums(self) -> dict[str, str]:
        await self._call()
        return {"w": self.weights}

    async def attest(self, rest: float = 0.0) -> dict[str, str]:
        assert rest == 0.0
        return await self.checksums()

    async def stage(self, folder: Path) -> dict[str, str]:
        await self._call()
        if folder.name in self.bad:
            raise CorruptVersion("NaN")
        self.staged = folder.name
        return {"w": self.staged}

    async def install(self) -> None:
        self.weights = self.staged
        await self._call()

    async def reload(self, folder: Path) -> None:
        self.weights = folder.name
        await self._call()

    async def hold(self) -> None:
        self.held = True
        await self._call()

    async def drain(self, seconds: float) -> int:
        assert seconds == 0.0
        await self._call()
        return 0

    async def set_weight_version(self, version: str) -> None:
        self.version = version
        await self._call()

    async def admit(self, version: str) -> None:
        await self._call()
        assert version == self.version == self.weights
        self.held = False

    async def pause(self) -> None:
        await self._call()

    resume = probe = pause

    async def reset_prefix_cache(self, *, keep: bool) -> None:
        await self._call()

    async def state(self) -> GuardState:
        return GuardState(self.version, self.held, 0, 0)

    async def tokens(self) -> float:
        return 0.0

    async def in_flight(self) -> int:
        return 0

    async def __aenter__(self) -> "Engine":
        return self

    async def __aexit__(self, *error: object) -> None:
        """There is nothing to close."""


class Releases(RuleBasedStateMachine):
    """Two replicas, three users, and one loop that learns."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner, self.stack = asyncio.Runner(), AsyncExitStack()
        folder = Path(self.stack.push(_Folder()).path)
        self.folder = folder
        self.redis = self.do(self.stack.enter_async_context(connect(self.url)))
        self.do(self.redis.flushall())
        self.do(self.redis.hset(keys.api_keys(), "0a0b0c0d", api_key().model_dump_json()))
        self.settings = Settings(state_dir=folder, log={"pii_second_tier": False})
        self.keyring = Keyring(folder / "secrets")
        self.world = World(self.redis, self.keyring, self.settings)
        self.engines: dict[str, Engine] = {}
        self.agents: dict[str, Agent] = {}
        self.users: list[str] = []
        self.erased: set[str] = set()
        self.open: set[str] = set()
        self.said: dict[str, set[str]] = {}
        self.versions: list[str] = []
        self.lived: set[str] = set()
        self.bad: set[str] = set()
        self.snapshots = 0
        self.learn()
        self.do(registry.promote(self.redis, "v0000", who="test", why="first"))
        for name in ("engine-0", "engine-1"):
            self.look(name)

    def teardown(self) -> None:
        self.check_history()
        self.do(self.stack.aclose())
        self.runner.close()

    def do(self, what):
        return self.runner.run(what)

    @property
    def target(self) -> str:
        return self.do(registry.target(self.redis))

    # --- people

    @rule(user=USERS)
    def vote(self, user) -> None:
        at = time.time()
        cid = self.do(self.world.ask(f"prompt {at}", "one", "two", user=user, at=at))
        self.do(self.world.rate(user, cid, 0, at=at, thumb="up"))
        self.said.setdefault(user, set()).add(cid.split("-", 1)[1])

    @rule(user=USERS, finish=st.booleans())
    def erase(self, user, finish) -> None:
        """Whoever began it may die before it is done."""
        begun = erasure.begin(
            self.redis, self.keyring, tenant="acme", user=user, now=time.time() + 0.001
        )
        self.do(begun)
        time.sleep(0.002)  # what is said in the same millisecond would go, too
        self.open |= self.said.pop(user, set())
        if finish:
            self.finish_erasures()

    @precondition(lambda self: self.open)
    @rule()
    def finish_erasures(self) -> None:
        self.do(erase_what_is_due(self.redis, self.keyring, self.settings))
        self.erased |= self.open
        self.open = set()

    @rule(number=st.integers(0, 9))
    def promote(self, number) -> None:
        version = self.versions[number % len(self.versions)]
        with suppress(Conflict, Unprocessable):
            self.do(registry.promote(self.redis, version, who="test", why="by hand"))

    @rule()
    def roll_back(self) -> None:
        with suppress(Conflict):
            self.do(registry.rollback(self.redis, who="test", why="by hand"))

    # --- the loop

    @rule()
    def learn(self) -> None:
        """A snapshot, and a version made of it."""
        token = self.do(registry.acquire_fence(self.redis))
        self.snapshot()
        version = self.do(registry.next_version(self.redis))
        self.do(registry.publish(self.redis, card(version), fencing_token=token))
        self.versions.append(version)

    @rule()
    def learn_and_be_overtaken(self) -> None:
        token = self.do(registry.acquire_fence(self.redis))
        version = self.do(registry.next_version(self.redis))
        self.do(registry.acquire_fence(self.redis))
        with pytest.raises(LeaseLost):
            self.do(registry.publish(self.redis, card(version), fencing_token=token))
        assert not self.do(self.redis.exists(keys.policy(version)))

    def snapshot(self) -> None:
        self.snapshots += 1
        target = self.folder / f"snapshot-{self.snapshots}"
        self.do(self.world.snapshot(target))
        text = repr([rows(target, name) for name in ("prompts", "ratings", "fates")])
        assert not [token for token in self.erased if token in text]

    # --- replicas

    @rule(name=NAMES)
    def look(self, name) -> None:
        """With nothing in its way an agent brings its engine to the target, or to the last good."""
        for _ in range(4):
            self._look_once(name)
            self.do(self.redis.delete(keys.swap_lease(0)))  # whoever died with it: time passes
            self.agents[name].not_before = 0.0
        engine, agent = self.engines[name], self.agents[name]
        assert agent.serving == engine.weights == engine.version
        assert agent.state == "ready"
        assert not engine.held
        given_up = agent.attempts.get(self.target, 0) >= 3
        assert agent.serving == self.target or given_up

    @rule(name=NAMES, edge=EDGES, what=st.sampled_from(["kill", "fail"]))
    def look_and_break(self, name, edge, what) -> None:
        if (engine := self.engines.get(name)) is not None:
            engine.edge, engine.what = edge, what
            self._look_once(name)
            engine.edge = -1

    @rule(name=NAMES)
    def an_engine_dies(self, name) -> None:
        self.engines[name].returncode = -9

    @precondition(lambda self: len(self.versions) > 1)
    @rule(number=st.integers(1, 9))
    def a_version_turns_out_bad(self, number) -> None:
        version = self.versions[number % len(self.versions)]
        if version not in self.lived:
            self.bad.add(version)

    def _look_once(self, name: str) -> None:
        agent = self.agents.get(name)
        if agent is None:
            socket = self.folder / f"{name}.sock"
            agent = Agent(name, self.settings, self.keyring, self.redis, socket)
            self.do(agent_records.claim(agent))
            self.agents[name] = agent
        try:
            with pytest.MonkeyPatch.context() as patch:
                self._put_in_memory(patch, name)
                self.do(agents._look(agent))
        except Killed:
            del self.agents[name]
            self.engines[name].returncode = -9

    def _put_in_memory(self, patch: pytest.MonkeyPatch, name: str) -> None:
        def start(spec) -> Engine:
            if spec.policy_version in self.bad:
                raise CorruptVersion("NaN")
            self.engines[name] = Engine(spec)
            self.engines[name].bad = self.bad
            return self.engines[name]

        async def at_once(*where: object, **how: object) -> float:
            return 0.0 * (len(where) + len(how))

        patch.setattr(agents, "start_engine", start)
        patch.setattr(agents, "stop_engine", lambda engine, grace: None)
        patch.setattr(agents, "client_of", lambda spec: self.engines[name])
        patch.setattr(agents, "wait_until_ready", at_once)
        patch.setattr(agent_copies, "verify", lambda *what, **how: None)
        patch.setattr(agents, "PROGRESS_SECONDS", 3600.0)
        patch.setattr(agents, "FIRST_RETRY_SECONDS", 0.0)

    # --- what always holds

    @invariant()
    def one_version_is_live_and_no_other_ever_answers(self) -> None:
        self.lived.add(self.target)
        assert self.target in self.versions
        for engine in self.engines.values():
            if engine.returncode is None and not engine.held:  # then it answers
                assert engine.weights == engine.version
                assert engine.weights in self.lived

    def check_history(self) -> None:
        """Replayed, the audit log ends where we are."""
        log = self.do(registry.history(self.redis))
        published = [e["version"] for e in log if e["action"] == "published"]
        assert published == self.versions
        live = None
        for entry in log:
            if "to" in entry:
                assert entry.get("from") == live
                live = entry["to"]
        assert live == self.target


class _Folder(tempfile.TemporaryDirectory):
    """A temporary folder that an exit stack removes."""

    def __init__(self) -> None:
        super().__init__(prefix="il-")
        self.path = self.name


def run(url: str, *, examples: int, steps: int) -> None:
    machine = type("OnRedis", (Releases,), {"url": url})
    bounds = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=bounds)


def test_in_any_order_only_live_versions_answer_and_the_erased_stay_erased(shared_redis):
    run(shared_redis.url, examples=12, steps=25)
