"""The list of engines: what agents say, fixed URLs, and patience with a silent Redis."""

import asyncio
import time

import pytest

from core import keys, metrics
from core.errors import NotFound, Unavailable
from core.records import Replica
from core.redis_client import connect
from serving.breaker import FAILURES
from serving.replicas import Replicas, watch
from tests.conftest import eventually
from tests.serving.conftest import announce


def replica(name: str, *, version="v0000", state="ready", url=None) -> Replica:
    return Replica(name=name, url=url or f"unix:/{name}", version=version, state=state, seen_at=0.0)


def test_no_engine_is_said_at_once_and_a_version_nobody_serves_is_not_found():
    replicas = Replicas()
    with pytest.raises(Unavailable) as caught:
        replicas.pick(None)
    assert caught.value.retry_after >= 1
    replicas.update(["a"], [replica("a", version="v0002")], now=0.0)
    with pytest.raises(NotFound):
        replicas.pick("v0001")
    assert replicas.pick("v0002").name == "a"


def test_a_heartbeat_keeps_what_the_gateway_knows_of_an_engine():
    replicas = Replicas()
    replicas.update(["a"], [replica("a")], now=0.0)
    known = replicas.pick(None)
    known.in_flight = 4
    replicas.update(["a"], [replica("a", version="v0001", state="swapping")], now=1.0)
    (same,) = replicas
    assert same is known
    assert (same.version, same.state, same.in_flight) == ("v0001", "swapping", 4)
    replicas.update(["a"], [replica("a", url="unix:/elsewhere")], now=2.0)
    (moved,) = replicas
    assert moved is not known


def test_a_silent_replica_is_kept_for_a_moment_and_one_that_left_is_gone_at_once():
    replicas = Replicas()
    replicas.update(["a", "b"], [replica("a"), replica("b")], now=0.0)
    replicas.update(["a"], [], now=10.0)  # b left; a's heartbeat has expired
    assert [e.name for e in replicas] == ["a"]
    replicas.update(["a"], [], now=12.0)
    assert replicas.can_serve()
    replicas.update(["a"], [], now=13.5)
    assert not replicas.can_serve()
    replicas.update(["a"], [replica("a")], now=14.0)
    assert replicas.can_serve()


def test_an_engine_whose_agent_has_just_proved_it_is_asked_at_once():
    replicas = Replicas()
    replicas.update(["a"], [replica("a")], now=0.0)
    known = replicas.pick(None)
    for _ in range(FAILURES):
        known.failed()
    assert not replicas.can_serve()
    replicas.update(["a"], [replica("a")], now=1.0)  # the agent has seen no trouble
    assert not replicas.can_serve()
    replicas.update(["a"], [replica("a", state="starting")], now=2.0)
    replicas.update(["a"], [replica("a")], now=3.0)
    assert replicas.pick(None) is known


def test_a_pinned_version_on_an_engine_that_is_ill_is_there_but_not_now():
    replicas = Replicas()
    replicas.update(["a"], [replica("a", version="v0003")], now=0.0)
    for engine in replicas:
        engine.disproved("it hangs")
    with pytest.raises(Unavailable):
        replicas.pick("v0003")
    assert replicas.versions() == ["v0003"]


@pytest.mark.parametrize("state", ["starting", "failed", "draining"])
def test_with_no_engine_ready_a_pinned_version_may_come_back_so_it_is_not_said_to_be_unknown(state):
    replicas = Replicas()
    with pytest.raises(Unavailable):
        replicas.pick("v0003")
    replicas.update(["a"], [replica("a", version="", state=state)], now=0.0)
    with pytest.raises(Unavailable):
        replicas.pick("v0003")


def test_the_figures_say_how_many_engines_are_in_which_state():
    def shown(version: str, state: str) -> float:
        return metrics.REPLICAS.labels(version, state)._value.get()

    replicas = Replicas()
    heard = [replica("a"), replica("b"), replica("c", version="v0001", state="draining")]
    replicas.update(["a", "b", "c"], heard, now=0.0)
    replicas.show()
    assert (shown("v0000", "ready"), shown("v0001", "draining")) == (2, 1)
    replicas.pick(None).disproved("it hangs")
    replicas.update(["a", "b"], heard[:2], now=1.0)
    replicas.show()
    assert (shown("v0000", "ready"), shown("v0000", "unhealthy")) == (1, 1)
    assert shown("v0001", "draining") == 0


def test_a_fixed_engine_stays_whatever_agents_say():
    replicas = Replicas()
    fixed = replicas.add_fixed("http://127.0.0.1:1")
    assert not replicas.can_serve()
    fixed.state = "ready"
    replicas.update([], [], now=0.0)
    assert replicas.pick(None) is fixed


async def test_without_redis_the_last_known_list_stays(redis_server):
    replicas = Replicas()
    async with connect(redis_server.url) as redis:
        await announce(redis, "unix:/a")
        await redis.expire(keys.replica("r0"), 1)  # as an agent's does, but sooner
        task = asyncio.create_task(watch(redis, replicas))
        try:
            await eventually(replicas.can_serve)
            redis_server.kill()
            until = time.monotonic() + 1.2
            await eventually(lambda: time.monotonic() > until)
            assert replicas.can_serve()
            redis_server.start()  # the heartbeat has expired meanwhile, and none came since
            await eventually(lambda: redis.ping())
            assert replicas.can_serve()
            await announce(redis, "unix:/a", version="v0005")
            await eventually(lambda: replicas.versions() == ["v0005"])
        finally:
            task.cancel()
