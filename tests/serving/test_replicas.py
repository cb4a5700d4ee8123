"""Which engine answers: least in flight, of the right version, and patience with a silent Redis."""

import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import keys
from core.errors import NotFound, Unavailable
from core.records import Replica
from core.redis_client import connect
from serving.replicas import Engine, Replicas, choose, watch
from tests.conftest import eventually
from tests.serving.conftest import announce


def engine(name="a", version="v0000", state="ready", in_flight=0, avoid_until=0.0) -> Engine:
    return Engine(
        name, f"unix:/{name}", version, state, in_flight=in_flight, avoid_until=avoid_until
    )


def pick(*engines, version=None, tried=(), now=10.0):
    return choose(engines, version=version, tried=tried, now=now)


def replica(name: str, *, version="v0000", state="ready", url=None) -> Replica:
    return Replica(name=name, url=url or f"unix:/{name}", version=version, state=state, seen_at=0.0)


def test_the_engine_with_the_fewest_requests_is_asked():
    busy, idle = engine("busy", in_flight=3), engine("idle", in_flight=1)
    assert pick(busy, idle) is idle
    assert pick(busy, idle, tried=[idle]) is busy


def test_an_engine_that_just_failed_is_asked_only_when_there_is_no_other():
    failed, busy = engine("failed", avoid_until=11.0), engine("busy", in_flight=9)
    assert pick(failed, busy) is busy
    assert pick(failed) is failed
    assert pick(failed, busy, now=12.0) is failed


def test_a_swapping_engine_is_better_than_none_and_worse_than_a_ready_one():
    swapping, busy = engine("s", state="swapping"), engine("busy", in_flight=9)
    assert pick(swapping, busy) is busy
    assert pick(swapping) is swapping


@pytest.mark.parametrize("state", ["starting", "failed", "draining"])
def test_an_engine_that_is_not_well_is_never_asked(state):
    assert pick(engine(state=state)) is None


def test_a_pinned_version_is_answered_by_that_version_only():
    old, new = engine("old"), engine("new", version="v0001", in_flight=5)
    assert pick(old, new, version="v0001") is new
    assert pick(old, version="v0001") is None


@settings(deadline=None)
@given(loads=st.lists(st.integers(0, 20), min_size=1, max_size=6))
def test_spreading_requests_never_leaves_one_engine_two_ahead_of_where_it_could_be(loads):
    engines = [engine(str(i), in_flight=load) for i, load in enumerate(loads)]
    for _ in range(sum(max(loads) - load for load in loads)):
        pick(*engines).in_flight += 1
    assert {e.in_flight for e in engines} == {max(loads)}


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
