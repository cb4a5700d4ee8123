"""A canary counts from the moment in which its own engine serves, and ends if that never comes."""

import time

import pytest

from core import canary, keys, loop, registry
from core.canary import SECOND_ENGINE
from core.settings import Settings
from learning.canary.presence import HEARD_SECONDS, Presence, presence
from learning.canary.watch import look
from tests.core.test_canary import replica
from tests.core.test_registry import publish
from tests.learning.test_canary_watch import look_again, remembering, says

PATIENCE = 300.0


@pytest.fixture
async def begun(redis):
    await publish(redis, "v0000", "v0001")
    await registry.promote(redis, "v0000", who="test", why="first")
    await loop.heartbeat(redis)
    await replica(redis, "engine-0")
    await redis.set(keys.canary_room(), "1")
    return await canary.start(redis, "v0001", share=0.5, who="test", why="to see")


@pytest.fixture
def settings(state_dir):
    wanted = {"settle_seconds": 0.0, "min_users": 5, "signals": ("thumbs",), "max_days": 1e6}
    return Settings(state_dir=state_dir, canary=wanted)


@pytest.mark.parametrize(
    ("of_it", "now", "why"),
    [
        (Presence(absent_from=100.0), 400.0, ""),
        (Presence(absent_from=100.0), 401.0, "did not come up for 301 s"),
        (Presence(absent_from=100.0, detail="no memory"), 401.0, "301 s: no memory"),
        (Presence(served_from=50.0, absent_from=100.0), 401.0, "was away for 301 s"),
        (Presence(served_from=50.0), 9e9, ""),
    ],
)
def test_only_an_absence_longer_than_the_patience_ends_it(of_it, now, why):
    said = of_it.missing_for(PATIENCE, now=now)
    assert (why in said, bool(said)) == (True, bool(why))


async def seen(redis, begun, now: float) -> Presence:
    """What a look finds, kept as a look keeps it."""
    found = await presence(redis, begun, now=now)
    await redis.hset(keys.canary_units(), mapping=found.fields)
    return found


async def test_absence_counts_from_a_look_and_ends_when_it_serves(redis, begun):
    assert (await seen(redis, begun, 1000.0)).absent_from == 1000.0
    await replica(redis, SECOND_ENGINE, state="starting")
    assert (await seen(redis, begun, 1010.0)).absent_from == 1000.0
    await replica(redis, SECOND_ENGINE, version="v0000")  # not what it is there for
    assert (await seen(redis, begun, 1020.0)).served_from is None
    await replica(redis, SECOND_ENGINE, version="v0001")
    assert await seen(redis, begun, 1030.0) == Presence(1030.0 + HEARD_SECONDS)
    await redis.delete(keys.replica(SECOND_ENGINE))
    assert await seen(redis, begun, 9000.0) == Presence(1030.0 + HEARD_SECONDS, 9000.0)


async def test_words_from_before_its_engine_served_are_of_neither_side(redis, settings, begun):
    start, shown = time.time(), []
    for user in range(30):
        await says(redis, f"user {user}", "v0000", "up", at=start + 5)
    decision = await look_again(redis, settings, now=start + 60, decide=remembering(shown))
    assert (decision.action, shown) == ("continue", [])
    await replica(redis, SECOND_ENGINE, version="v0001")
    await look_again(redis, settings, now=start + 70, decide=remembering(shown))
    for user in range(12):
        await says(redis, f"late {user}", "v0001", "up", at=start + 100)
    await look_again(redis, settings, now=start + 200, decide=remembering(shown))
    nobody, later = shown[0][0], shown[1][0]
    assert (nobody.users_candidate, nobody.users_live) == (0, 0)
    assert later.users_candidate + later.users_live == 12


async def test_an_engine_that_does_not_come_stops_it_and_the_live_version_stays(
    redis, settings, begun
):
    start = time.time()
    patience = settings.engine.start_timeout_seconds
    assert (await look(redis, settings, now=start)).action == "continue"
    decision = await look_again(redis, settings, now=start + patience + 1)
    assert decision.action == "stop"
    over = (await canary.read(redis)).canary
    assert (over.state, "did not come up" in over.why) == ("stopped", True)
    assert await registry.target(redis) == "v0000"
