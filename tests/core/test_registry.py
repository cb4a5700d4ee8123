"""The registry on a real Redis: publishing is fenced, the target moves and goes back."""

import asyncio
import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import keys, registry
from core.errors import Conflict, InstructLoopError, LeaseLost, NotFound, Unprocessable
from core.records import Card
from core.redis_client import connect

VERSIONS = ["v0000", "v0001", "v0002", "v0003"]
versions = st.sampled_from(VERSIONS)


def card(version: str, parent: str | None = None) -> Card:
    return Card(
        version=version,
        parent=parent,
        created_at=registry.timestamp(),
        kind="base",
        algorithm={},
        data={},
        reward_model=None,
        anchor=None,
        weights_sha256="0" * 64,
        figures={},
        gate={},
        compatible={},
    )


async def publish(redis, *versions: str) -> None:
    for version in versions:
        token = await registry.acquire_fence(redis)
        await registry.publish(redis, card(version), fencing_token=token)


async def test_a_stale_fencing_token_publishes_nothing(redis):
    stale = await registry.acquire_fence(redis)
    await registry.acquire_fence(redis)
    with pytest.raises(LeaseLost):
        await registry.publish(redis, card("v0001"), fencing_token=stale)
    assert await registry.cards(redis) == []


async def test_publishing_twice_keeps_the_first_card(redis):
    await publish(redis, "v0000")
    token = await registry.acquire_fence(redis)
    changed = card("v0000").model_copy(update={"weights_sha256": "f" * 64})
    await registry.publish(redis, changed, fencing_token=token)
    assert (await registry.card(redis, "v0000")).weights_sha256 == "0" * 64


async def test_rollback_goes_back_one_version_at_a_time_and_then_refuses(redis):
    await publish(redis, "v0000", "v0001", "v0002")
    for version in ("v0000", "v0001", "v0002"):
        await registry.promote(redis, version, who="test", why="better")
    assert await registry.rollback(redis, who="test", why="worse") == "v0001"
    assert await registry.rollback(redis, who="test", why="worse") == "v0000"
    with pytest.raises(Conflict, match="no earlier version"):
        await registry.rollback(redis, who="test", why="worse")
    assert await registry.target(redis) == "v0000"


async def test_rollback_skips_a_quarantined_version(redis):
    await publish(redis, "v0000", "v0001", "v0002")
    for version in ("v0000", "v0001", "v0002"):
        await registry.promote(redis, version, who="test", why="better")
    await registry.quarantine(redis, "v0001", why="NaN")
    assert await registry.rollback(redis, who="test", why="worse") == "v0000"


async def test_an_unknown_or_quarantined_version_is_never_the_target(redis):
    await publish(redis, "v0000", "v0001")
    await registry.promote(redis, "v0000", who="test", why="first")
    await registry.quarantine(redis, "v0001", why="NaN")
    with pytest.raises(Unprocessable):
        await registry.promote(redis, "v0001", who="test", why="try")
    with pytest.raises(NotFound):
        await registry.promote(redis, "v0009", who="test", why="try")
    assert await registry.target(redis) == "v0000"


async def test_a_promotion_against_a_target_that_moved_is_refused(redis):
    await publish(redis, "v0000", "v0001", "v0002")
    await registry.promote(redis, "v0000", who="a", why="first")
    await registry.promote(redis, "v0001", who="b", why="better")
    with pytest.raises(Conflict, match="v0001"):
        await registry.promote(redis, "v0002", who="a", why="mine", expected="v0000")


async def test_history_names_every_change_of_a_version(redis):
    await publish(redis, "v0000", "v0001")
    await registry.promote(redis, "v0000", who="a", why="first")
    await registry.promote(redis, "v0001", who="b", why="better")
    actions = [(e["action"], e.get("who")) for e in await registry.history(redis, "v0001")]
    assert actions == [("published", None), ("promoted", "b")]


async def test_version_numbers_count_up_from_zero(redis):
    assert [await registry.next_version(redis) for _ in range(3)] == ["v0000", "v0001", "v0002"]


async def test_what_is_live_last_good_or_in_a_canary_is_never_collected(redis):
    names = [f"v{number:04d}" for number in range(6)]
    await publish(redis, *names)
    for version in names[:4]:
        await registry.promote(redis, version, who="test", why="better")
    await registry.quarantine(redis, "v0002", why="NaN")
    canary = {"state": "running", "candidate": "v0005", "parent": "v0003"}
    await redis.set(keys.canary(), json.dumps(canary))
    # v0003 is live, v0002 broken, so v0001 is what a roll back goes to
    assert [v for v in names if await registry.collect(redis, v)] == ["v0000", "v0002", "v0004"]
    await redis.set(keys.canary(), json.dumps(canary | {"state": "stopped"}))
    assert await registry.collect(redis, "v0005")
    assert await registry.rollback(redis, who="test", why="worse") == "v0001"


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["promote", "roll back", "quarantine", "collect"]), versions),
        max_size=25,
    )
)
@settings(max_examples=25, deadline=None)
def test_whatever_happens_one_can_always_go_back_as_the_registry_says(shared_redis, steps):
    """The target is never collected, and a collection does not change where a roll back goes."""
    asyncio.run(live_through(shared_redis.url, steps))


async def live_through(url, steps):
    async with connect(url) as client:
        await client.flushall()
        await publish(client, *VERSIONS)
        await registry.promote(client, VERSIONS[0], who="test", why="first")
        for action, version in steps:
            before = await last_good(client)
            with suppress(InstructLoopError):
                await act_on(client, action, version)
            gone, target = await registry.collected(client), await registry.target(client)
            assert target not in gone
            if action == "collect":
                assert await last_good(client) == before
            if action == "roll back" and before is not None:
                assert target == before


async def act_on(client, action, version):
    match action:
        case "promote":
            await registry.promote(client, version, who="test", why="better")
        case "roll back":
            await registry.rollback(client, who="test", why="worse")
        case "quarantine":
            await registry.quarantine(client, version, why="NaN")
        case "collect":
            await registry.collect(client, version)


async def last_good(client):
    target = await registry.target(client)
    barred = await registry.collected(client) | {
        raw.decode() for raw in await client.hkeys(keys.quarantined())
    }
    raw = await client.lrange(keys.target_history(), 0, -1)
    before = [version.decode() for version in raw]
    return next((v for v in before if v != target and v not in barred), None)
