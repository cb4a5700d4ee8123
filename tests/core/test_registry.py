"""The registry on a real Redis: publishing is fenced, the target moves and goes back."""

import pytest

from core import registry
from core.errors import Conflict, LeaseLost, NotFound, Unprocessable
from core.records import Card


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
