"""Who gets a canary, and how one begins and ends, on a real Redis."""

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import canary, keys, loop, registry
from core.canary import Canary, cohort_of, serve_candidate
from core.errors import Conflict, LeaseLost, NotFound, Unprocessable
from core.records import Replica
from tests.core.test_registry import publish

SHARES = st.floats(0.01, 0.99)
NAMES = st.sets(st.from_regex(r"engine-[0-9]{1,2}", fullmatch=True), min_size=1, max_size=12)


async def replica(redis, name: str, state="ready", version="v0000") -> None:
    said = Replica(name=name, url=f"unix:/{name}", version=version, state=state, seen_at=0.0)
    await redis.sadd(keys.replicas(), name)
    await redis.set(keys.replica(name), said.model_dump_json())


@pytest.fixture
async def registered(redis):
    """v0000 live, v0001 and v0002 there, a worker alive, three replicas."""
    await publish(redis, "v0000", "v0001", "v0002")
    await registry.promote(redis, "v0000", who="test", why="first")
    await loop.heartbeat(redis)
    for number in range(3):
        await replica(redis, f"engine-{number}")


async def start(redis, version="v0001", share=0.3, **options) -> Canary:
    return await canary.start(redis, version, share=share, who="test", why="to see", **options)


async def end_by_hand(redis, how: str) -> str:
    if how == "rollback":
        return await registry.rollback(redis, who="ops", why="complaints")
    return await registry.promote(redis, how, who="ops", why="good")


async def actions(redis, version="v0001") -> list[str]:
    return [entry["action"] for entry in await registry.history(redis, version)]


# --- who gets it ----------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.9])
def test_cohorts_have_the_share_they_should(share):
    users = 20_000
    chosen = sum(cohort_of(f"user {n}", "salt", share) == "candidate" for n in range(users))
    assert abs(chosen - share * users) < 4.5 * math.sqrt(users * share * (1 - share))


@given(user=st.text(max_size=40), salt=st.text(min_size=1, max_size=80), share=SHARES)
def test_a_user_keeps_their_side_and_a_larger_share_takes_nobody_back(user, salt, share):
    side = cohort_of(user, salt, share)
    assert cohort_of(user, salt, share) == side
    if side == "candidate":
        assert cohort_of(user, salt, (1.0 + share) / 2) == "candidate"
    assert cohort_of(user, salt, 0.0) == "live"


def test_another_salt_chooses_other_users():
    first = [cohort_of(str(n), "a", 0.5) for n in range(2000)]
    second = [cohort_of(str(n), "b", 0.5) for n in range(2000)]
    same = sum(a == b for a, b in zip(first, second, strict=True))
    assert 880 < same < 1120


@given(names=NAMES, share=SHARES)
def test_some_replicas_serve_the_candidate_and_never_all(names, share):
    chosen = serve_candidate(names, share)
    assert chosen < names
    if len(names) > 1:
        assert chosen
        wanted = min(math.ceil(share * len(names) - 1e-9), len(names) - 1)
        assert len(chosen) == max(wanted, 1)


def test_a_tenth_of_thirty_replicas_is_three():
    assert len(serve_candidate({f"r{n}" for n in range(30)}, 0.1)) == 3


# --- what replicas serve --------------------------------------------------------------------


async def wanted(redis) -> list[str | None]:
    return [await canary.wanted_version(redis, f"engine-{n}") for n in range(3)]


async def test_replicas_follow_the_target_but_for_the_canarys_share(redis, registered):
    assert await wanted(redis) == ["v0000"] * 3
    begun = await start(redis)
    assert (begun.mode, begun.parent) == ("split", "v0000")
    assert await wanted(redis) == ["v0001", "v0000", "v0000"]
    assert await canary.held_versions(redis) == {"v0000", "v0001"}
    await canary.end(redis, begun, "promoted", who="test", why="good")
    assert await wanted(redis) == ["v0001"] * 3
    assert await canary.held_versions(redis) == frozenset()


async def test_a_replica_that_is_left_alone_serves_the_live_version(redis, registered):
    await start(redis)
    for name in ("engine-1", "engine-2"):
        await replica(redis, name, state="starting")
    assert await canary.wanted_version(redis, "engine-0") == "v0000"


async def test_a_candidate_that_an_engine_refused_is_wanted_by_nobody(redis, registered):
    await start(redis)
    await registry.quarantine(redis, "v0001", why="NaN")
    assert await wanted(redis) == ["v0000"] * 3


# --- begin and end --------------------------------------------------------------------------


async def test_a_canary_leaves_the_target_and_its_end_moves_it(redis, registered):
    begun = await start(redis, run_id="r1")
    assert await registry.target(redis) == "v0000"
    assert await canary.end(redis, begun, "promoted", who="c", why="good") == "v0001"
    said = await canary.read(redis)
    assert (said.target, said.running) == ("v0001", None)
    assert (said.canary.state, said.canary.why, said.canary.run_id) == ("promoted", "good", "r1")
    assert said.canary.salt == begun.salt
    assert await actions(redis) == ["published", "canary started", "promoted"]
    assert await registry.rollback(redis, who="t", why="after all") == "v0000"


@pytest.mark.parametrize("ending", ["rolled_back", "stopped"])
async def test_a_split_that_fails_leaves_the_live_version(redis, registered, ending):
    begun = await start(redis)
    evidence = {"worse": 120.5}
    said = await canary.end(redis, begun, ending, who="c", why="worse", evidence=evidence)
    assert said == "v0000" == await registry.target(redis)
    over = (await canary.read(redis)).canary
    assert (over.state, over.evidence) == (ending, evidence)
    assert over.ended_at == pytest.approx(time.time(), abs=60)
    assert "promoted" not in await actions(redis)
    with pytest.raises(Conflict, match="over already"):
        await canary.end(redis, begun, "promoted", who="c", why="late")
    assert await registry.target(redis) == "v0000"


@pytest.mark.parametrize(
    ("ending", "live"), [("promoted", "v0001"), ("stopped", "v0001"), ("rolled_back", "v0000")]
)
async def test_one_replica_is_watched_live_and_goes_back_alone(redis, registered, ending, live):
    for name in ("engine-1", "engine-2"):
        await redis.srem(keys.replicas(), name)
    begun = await start(redis)
    assert (begun.mode, begun.share) == ("watch", 1.0)
    assert await wanted(redis) == ["v0001"] * 3
    assert await canary.end(redis, begun, ending, who="c", why="seen") == live
    assert await registry.target(redis) == live
    assert (await actions(redis))[1] == "promoted"
    if ending == "rolled_back":
        with pytest.raises(Conflict, match="no earlier version"):
            await registry.rollback(redis, who="t", why="further")


async def test_a_watch_whose_parent_broke_goes_back_further(redis, registered):
    await registry.promote(redis, "v0001", who="t", why="better")
    for name in ("engine-1", "engine-2"):
        await redis.srem(keys.replicas(), name)
    begun = await start(redis, "v0002")
    await registry.quarantine(redis, "v0001", why="NaN")
    assert await canary.end(redis, begun, "rolled_back", who="c", why="worse") == "v0000"


async def test_what_cannot_be_a_canary_is_refused(redis, registered):
    for share in (0.0, 1.0):
        with pytest.raises(Unprocessable, match="between 0 and 1"):
            await start(redis, share=share)
    with pytest.raises(NotFound):
        await start(redis, "v0009")
    with pytest.raises(Conflict, match="live version already"):
        await start(redis, "v0000")
    with pytest.raises(Conflict, match="v0000 now"):
        await start(redis, expected="v0002")
    await registry.quarantine(redis, "v0001", why="NaN")
    with pytest.raises(Unprocessable, match="quarantined"):
        await start(redis)
    await registry.collect(redis, "v0002")
    with pytest.raises(Conflict, match="removed"):
        await start(redis, "v0002")
    assert (await canary.read(redis)).canary is None


async def test_only_one_runs_and_nobody_unwatched(redis, registered):
    await start(redis)
    with pytest.raises(Conflict, match="a canary of v0001 is on"):
        await start(redis, "v0002")
    await redis.hset(keys.loop(), "ticked_at", 0)
    with pytest.raises(Conflict, match="no learning worker"):
        await start(redis, "v0002")


async def test_a_stale_fencing_token_begins_nothing(redis, registered):
    stale = await registry.acquire_fence(redis)
    fresh = await registry.acquire_fence(redis)
    with pytest.raises(LeaseLost):
        await start(redis, fencing_token=stale)
    assert (await canary.read(redis)).canary is None
    await start(redis, fencing_token=fresh)
    assert (await canary.read(redis)).split is not None


async def test_a_candidate_that_broke_is_not_promoted_in_the_end(redis, registered):
    begun = await start(redis)
    await registry.quarantine(redis, "v0001", why="NaN")
    with pytest.raises(Conflict, match="v0001 cannot be loaded"):
        await canary.end(redis, begun, "promoted", who="c", why="good")
    assert await registry.target(redis) == "v0000"


@pytest.mark.parametrize(("chosen", "state"), [("v0001", "promoted"), ("v0002", "stopped")])
async def test_a_promotion_by_hand_ends_it_in_the_same_step(redis, registered, chosen, state):
    begun = await start(redis, share=1 / 3)
    await registry.promote(redis, chosen, who="ann", why="I know better")
    over = (await canary.read(redis)).canary
    assert (over.state, over.why, over.salt) == (state, "I know better", begun.salt)
    assert over.ended_at == pytest.approx(time.time(), abs=60)
    assert await wanted(redis) == [chosen] * 3
    await start(redis, "v0002" if chosen == "v0001" else "v0001")


async def test_a_roll_back_by_hand_ends_a_watch_as_rolled_back(redis, registered):
    for name in ("engine-1", "engine-2"):
        await redis.srem(keys.replicas(), name)
    await start(redis)
    assert await registry.rollback(redis, who="ann", why="complaints") == "v0000"
    over = (await canary.read(redis)).canary
    assert (over.state, over.why) == ("rolled_back", "complaints")


async def test_weights_of_both_versions_stay_while_it_is_on(redis, registered):
    begun = await start(redis)
    assert not await registry.collect(redis, "v0001")
    await canary.end(redis, begun, "rolled_back", who="c", why="worse")
    assert await registry.collect(redis, "v0001")


@pytest.mark.parametrize("how", ["v0001", "v0002", "rollback"])
async def test_what_single_people_said_goes_when_a_person_ends_the_canary(redis, registered, how):
    await registry.promote(redis, "v0002", who="test", why="something to go back from")
    await registry.promote(redis, "v0000", who="test", why="first again")
    await start(redis)
    said = {"unit:thumbs:live:ann": "0 1.0", "evidence": '{"worse": 3.5}'}
    await redis.hset(keys.canary_units(), mapping=said)
    await end_by_hand(redis, how)
    over = (await canary.read(redis)).canary
    assert over.state == ("promoted" if how == "v0001" else "stopped")
    assert over.evidence == {"worse": 3.5}
    assert not await redis.exists(keys.canary_units())
