"""A canary on one replica: from a second engine where there is room, else a watch."""

import pytest

from core import canary, keys, loop, registry
from core.canary import SECOND_ENGINE
from tests.core.test_canary import replica, start
from tests.core.test_registry import publish


@pytest.fixture(autouse=True)
async def alone(redis):
    """v0000 live on one replica, v0001 and v0002 there, a worker alive, room for an engine."""
    await publish(redis, "v0000", "v0001", "v0002")
    await registry.promote(redis, "v0000", who="test", why="first")
    await loop.heartbeat(redis)
    await replica(redis, "engine-0")
    await redis.set(keys.canary_room(), "1")


async def wanted(redis) -> tuple[str | None, str | None]:
    """What the replica of all users and the second engine should serve."""
    return (
        await canary.wanted_version(redis, "engine-0"),
        await canary.wanted_version(redis, SECOND_ENGINE),
    )


async def test_where_there_is_room_users_are_split_and_only_the_second_engine_serves_it(redis):
    begun = await start(redis, share=0.4)
    assert (begun.mode, begun.share, begun.second_engine) == ("split", 0.4, True)
    assert await registry.target(redis) == "v0000"
    assert await wanted(redis) == ("v0000", "v0001")
    await replica(redis, SECOND_ENGINE, version="v0001")
    assert await wanted(redis) == ("v0000", "v0001")


@pytest.mark.parametrize(
    ("ending", "live"), [("promoted", "v0001"), ("stopped", "v0000"), ("rolled_back", "v0000")]
)
async def test_at_its_end_both_follow_the_live_version(redis, ending, live):
    begun = await start(redis)
    assert await canary.end(redis, begun, ending, who="c", why="seen") == live
    assert await wanted(redis) == (live, live)


async def test_without_room_it_is_a_watch(redis):
    await redis.delete(keys.canary_room())
    begun = await start(redis)
    assert (begun.mode, begun.share, begun.second_engine) == ("watch", 1.0, False)


async def test_several_replicas_need_no_second_engine(redis):
    await replica(redis, "engine-1")
    begun = await start(redis)
    assert (begun.mode, begun.second_engine) == ("split", False)
    # one that has not left yet is no replica to count with
    assert await wanted(redis) == ("v0001", "v0000")


async def test_a_second_engine_that_is_about_to_leave_is_taken_again(redis):
    await replica(redis, SECOND_ENGINE)
    begun = await start(redis, "v0002")
    assert (begun.mode, begun.second_engine) == ("split", True)
    assert await wanted(redis) == ("v0000", "v0002")


async def test_a_candidate_that_it_refused_is_wanted_by_nobody(redis):
    await start(redis)
    await registry.quarantine(redis, "v0001", why="NaN")
    assert await wanted(redis) == ("v0000", "v0000")
