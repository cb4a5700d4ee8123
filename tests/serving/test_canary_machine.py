"""Publish, canary, promote, roll back, crash, in any order: one live version for each cohort.

Hypothesis drives a real Redis, replicas that follow it as agents do, and a gateway's view that may
be a look behind. A version answers a user only if it is or was live for them.
"""

import asyncio
import time
from contextlib import AsyncExitStack

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from core import canary, keys, loop, registry
from core.canary import Release, cohort_of
from core.errors import Conflict, InstructLoopError, LeaseLost, Unavailable, Unprocessable
from core.records import Replica
from core.redis_client import connect
from serving import replicas as known
from serving.replicas import Replicas
from tests.core.test_registry import card

pytestmark = pytest.mark.thorough

NAMES = [f"engine-{n}" for n in range(3)]
USERS = [f"user {n}" for n in range(12)]
REFUSALS = (Conflict, Unprocessable)


class Releases(RuleBasedStateMachine):
    """What people, workers, agents and gateways do to what is live."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.redis = self.do(self.stack.enter_async_context(connect(self.url)))
        self.do(self.redis.flushall())
        self.versions: list[str] = []
        self.live_ever = {"v0000"}
        self.serves: dict[str, str] = {}
        self.gateway = Replicas()
        self.seen = Release()
        for _ in range(3):
            self.publish()
        self.do(registry.promote(self.redis, "v0000", who="test", why="first"))
        self.look_as_agents(NAMES)
        self.look_as_gateway()

    def teardown(self) -> None:
        self.do(self.stack.aclose())
        self.runner.close()

    def do(self, what):
        return self.runner.run(what)

    def attempt(self, what):
        """Do it, or be refused; what went wrong otherwise is an error of the test."""
        try:
            return self.do(what)
        except REFUSALS:
            return None

    @property
    def release(self) -> Release:
        return self.do(canary.read(self.redis))

    def any_version(self, number: int) -> str:
        return self.versions[number % len(self.versions)]

    # --- workers and people

    @rule()
    def publish(self) -> None:
        version = f"v{len(self.versions):04d}"
        token = self.do(registry.acquire_fence(self.redis))
        self.do(registry.publish(self.redis, card(version), fencing_token=token))
        self.versions.append(version)

    @rule(number=st.integers(0, 9))
    def a_stale_worker_publishes_and_begins_nothing(self, number) -> None:
        stale = self.do(registry.acquire_fence(self.redis))
        self.do(registry.acquire_fence(self.redis))
        before = self.release
        begin = self._start(self.any_version(number), 0.5, fencing_token=stale)
        for act in (registry.publish(self.redis, card("v0999"), fencing_token=stale), begin):
            try:
                self.do(act)
            except LeaseLost:
                continue
            except InstructLoopError:
                assert act is begin
                continue
            raise AssertionError("a stale token did something")
        assert self.release == before
        assert not self.do(self.redis.exists(keys.policy("v0999")))

    @rule(number=st.integers(0, 9), share=st.sampled_from([0.1, 0.5, 0.9]))
    def start(self, number, share) -> None:
        self.attempt(self._start(self.any_version(number), share))

    async def _start(self, version, share, **options):
        await loop.heartbeat(self.redis)
        return await canary.start(
            self.redis, version, share=share, who="test", why="to see", **options
        )

    @rule(number=st.integers(0, 9), share=st.sampled_from([0.1, 0.5, 0.9]))
    def start_and_take_up(self, number, share) -> None:
        self.look_as_agents(NAMES)
        self.start(number, share)
        self.look_as_agents(NAMES)
        self.look_as_gateway()

    @rule()
    def all_of_the_live_version_crash(self) -> None:
        for name in [n for n, v in self.serves.items() if v == self.release.target]:
            self.crash(name)
        self.look_as_gateway()

    @precondition(lambda self: self.release.running is not None)
    @rule(ending=st.sampled_from(["promoted", "rolled_back", "stopped"]))
    def end(self, ending) -> None:
        on = self.release.running
        live = self.attempt(canary.end(self.redis, on, ending, who="test", why="seen"))
        if live is not None:
            assert self.release.target == live
            if on.mode == "split":
                assert live == (on.candidate if ending == "promoted" else on.parent)
        self.look_as_gateway()

    @rule(number=st.integers(0, 9))
    def promote(self, number) -> None:
        self.attempt(
            registry.promote(self.redis, self.any_version(number), who="test", why="by hand")
        )

    @rule()
    def roll_back(self) -> None:
        self.attempt(registry.rollback(self.redis, who="test", why="by hand"))

    @precondition(lambda self: len(self.versions) > 2)
    @rule(number=st.integers(0, 9))
    def collect(self, number) -> None:
        version = self.any_version(number)
        needed = {self.release.target, *self.do(canary.held_versions(self.redis))}
        collected = self.do(registry.collect(self.redis, version))
        assert not (collected and version in needed)

    # --- agents

    @rule(names=st.sets(st.sampled_from(NAMES)))
    def look_as_agents(self, names) -> None:
        for name in sorted(names):
            self.look_as_agent(name)

    def look_as_agent(self, name: str) -> None:
        """An agent takes up what it should serve, and says so."""
        wanted = self.do(canary.wanted_version(self.redis, name))
        barred = self.do(self.redis.hexists(keys.quarantined(), wanted))
        if not barred:
            self.serves[name] = wanted
        self._say(name, self.serves.get(name, ""), "ready" if name in self.serves else "failed")

    @precondition(lambda self: len(self.versions) > 2)
    @rule(name=st.sampled_from(NAMES))
    def an_engine_refuses_what_it_should_take_up(self, name) -> None:
        """As an agent does with a version that is not what its card says."""
        wanted = self.do(canary.wanted_version(self.redis, name))
        if wanted == self.serves.get(name) or wanted == "v0000":
            return
        self.do(registry.quarantine(self.redis, wanted, why="NaN"))
        if self.release.target == wanted:
            self.attempt(registry.rollback(self.redis, who=name, why="NaN", expected=wanted))

    @rule(name=st.sampled_from(NAMES))
    def crash(self, name) -> None:
        """It is gone as if killed: its heartbeat expires, its name stays."""
        self.serves.pop(name, None)
        self.do(self.redis.delete(keys.replica(name)))

    def _say(self, name: str, version: str, state: str) -> None:
        said = Replica(
            name=name, url=f"unix:/{name}", version=version, state=state, seen_at=time.time()
        )
        self.do(self.redis.sadd(keys.replicas(), name))
        self.do(self.redis.set(keys.replica(name), said.model_dump_json()))

    # --- gateways

    @rule()
    def look_as_gateway(self) -> None:
        # nobody who was not heard is remembered: to the gateway the silence was long
        self.gateway.update([], [], now=0.0)
        self.do(known.refresh(self.redis, self.gateway, now=0.0))
        self.seen = self.release
        self.live_ever.add(self.seen.target)
        self.ask()

    @rule()
    def ask(self) -> None:
        for user in USERS:
            self._ask(user)

    def _ask(self, user: str) -> None:
        wish = self.gateway.wish(None, lambda: user)
        try:
            said = self.gateway.find(wish).version
        except Unavailable:
            return
        last, split = self.seen.canary, self.seen.split
        if split is not None:
            mine = cohort_of(user, split.salt, split.share) == "candidate"
            assert said in ({split.candidate, split.parent} if mine else {split.parent})
            serving = {e.version for e in self.gateway}
            assert (said == split.candidate) == (mine and split.candidate in serving)
            return
        serving = {e.version for e in self.gateway if e.state == "ready"}
        last_resort = last is not None and serving == {said} == {last.candidate}
        assert said in self.live_ever or last_resort

    # --- what always holds

    @invariant()
    def there_is_one_live_version_for_each_cohort(self) -> None:
        release = self.release
        self.live_ever.add(release.target)
        assert release.target in self.versions
        on = release.canary
        if on is not None and on.state == "running":
            assert release.running == on
            assert on.candidate != on.parent
            assert release.target == (on.parent if on.mode == "split" else on.candidate)

    @invariant()
    def a_replica_wants_the_live_version_or_the_canarys(self) -> None:
        release = self.release
        wanted = {self.do(canary.wanted_version(self.redis, name)) for name in NAMES}
        split = release.split
        assert wanted <= {release.target, *([split.candidate] if split else [])}


def test_in_any_order_a_version_answers_only_those_it_is_live_for(shared_redis):
    machine = type("OnRedis", (Releases,), {"url": shared_redis.url})
    quick = settings(
        max_examples=15,
        stateful_step_count=25,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],  # to shorten what failed takes minutes
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=quick)
