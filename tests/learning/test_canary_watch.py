"""A canary is watched: what users say is read on, kept and judged, on a real Redis."""

import math
import time
from itertools import count

import pytest

from core import canary, keys, loop, metrics, registry
from core.canary import cohort_of
from core.errors import LeaseLost
from core.records import Feedback, Output, Replica, Run
from core.settings import Settings
from learning.canary import sequential
from learning.canary import watch as canary_watch
from learning.canary.release import begin_once
from learning.canary.sequential import Decision
from learning.canary.watch import look, look_due
from tests.core.test_registry import publish
from tests.feedback.factory import completion

NOW = 2_000_000_000.0
"""Far ahead, so that all that is said here is old enough."""
numbers = count()


@pytest.fixture
def settings(state_dir):
    wanted = {"settle_seconds": 60.0, "min_users": 5, "signals": ("thumbs",)}
    return Settings(state_dir=state_dir, canary=wanted)


@pytest.fixture(autouse=True)
async def ready(redis):
    await publish(redis, "v0000", "v0001")
    await registry.promote(redis, "v0000", who="test", why="first")
    await loop.heartbeat(redis)


async def replicas(redis, how_many: int) -> None:
    for number in range(how_many):
        said = Replica(
            name=f"e{number}", url="unix:/e", version="v0000", state="ready", seen_at=0.0
        )
        await redis.sadd(keys.replicas(), said.name)
        await redis.set(keys.replica(said.name), said.model_dump_json())


@pytest.fixture
async def split(redis):
    await replicas(redis, 2)
    return await canary.start(redis, "v0001", share=0.5, who="test", why="to see")


@pytest.fixture
async def begun_with_one(redis):
    """What was said of v0000, and after that a watch of v0001."""
    await replicas(redis, 1)
    for user in range(24):
        await says(redis, f"user {user}", "v0000", "up", at=time.time() - 5)
    return await canary.start(redis, "v0001", share=0.5, who="test", why="to see")


async def says(redis, user: str, version: str, thumb: str, *, at: float | None = None) -> str:
    """A user asks, gets an answer of this version, and thumbs it; the log has it all."""
    moment = time.time() + 1.0 if at is None else at
    token = f"t{next(numbers)}"
    asked = completion(token, user=user, policy_versions=(version,), created_at=moment)
    said = Feedback(
        id=f"fb-{token}",
        kind="rating",
        tenant="acme",
        key_id="0a0b0c0d",
        rater="key",
        by_end_user=True,
        created_at=moment,
        updated_at=moment + 0.1,
        outputs=(Output(token=token, choice=0),),
        thumb=thumb,
    )
    await redis.set(keys.completion(token), asked.model_dump_json())
    await redis.zadd(keys.prompts(), {token: int(moment * 1000)})
    await redis.set(keys.feedback(said.id), said.model_dump_json())
    await redis.zadd(keys.feedback_index(), {said.id: int(said.updated_at * 1000)})
    return said.id


async def look_again(redis, settings, *, now=NOW, **options):
    await redis.delete(keys.canary_look())
    return await look(redis, settings, now=now, **options)


def without_end(settings) -> Settings:
    """The canary never runs out of time."""
    group = settings.canary.model_copy(update={"max_days": 1e6})
    return settings.model_copy(update={"canary": group})


def remembering(seen: list):
    """A judge that only remembers what it was shown."""

    def decide(observations, **limits):
        seen.append((observations, limits))
        return Decision("continue", "no verdict", {"worse": 1.0})

    return decide


async def test_users_of_both_sides_are_counted_and_their_words_shown_to_the_judge(
    redis, settings, split
):
    for number in range(30):
        user = f"user {number}"
        chosen = cohort_of(user, split.salt, 0.5) == "candidate"
        await says(redis, user, "v0001" if chosen else "v0000", "down" if chosen else "up")
    seen: list = []
    assert await look_due(redis)
    decision = await look(redis, without_end(settings), now=NOW, decide=remembering(seen))
    assert decision.action == "continue"
    (observations, limits) = seen[0]
    assert set(observations.candidate["thumbs"]) == {0.0}
    assert set(observations.live["thumbs"]) == {1.0}
    sizes = len(observations.candidate["thumbs"]), len(observations.live["thumbs"])
    assert sizes == (observations.users_candidate, observations.users_live)
    assert sum(sizes) == 30
    assert limits["min_users"] == 5
    assert not await look_due(redis)  # a moment's rest
    assert metrics.CANARY_USERS.labels("live")._value.get() == sizes[1]


async def test_a_value_that_was_looked_at_stays_whatever_is_said_later(redis, settings, split):
    settings, soon = without_end(settings), time.time() + 100
    first = await says(redis, "ann", "v0001", "up")
    seen: list = []
    await look_again(redis, settings, now=soon, decide=remembering(seen))
    await redis.delete(keys.feedback(first))
    await says(redis, "bob", "v0001", "down", at=NOW - 100)
    await says(redis, "ann", "v0001", "down", at=NOW - 100)
    await look_again(redis, settings, decide=remembering(seen))
    values = [[*o.candidate["thumbs"], *o.live["thumbs"]] for o, _ in seen]
    assert values[0] == [1.0]
    assert sorted(values[1]) == [0.0, 1.0]
    await redis.hset(keys.tombstones(), "ann", int(time.time() * 1000) + 5000)
    await look_again(redis, settings, decide=remembering(seen))
    erased, _ = seen[-1]
    assert [*erased.candidate["thumbs"], *erased.live["thumbs"]] == [0.0]
    assert erased.users_candidate + erased.users_live == 1
    assert not [n for n in await redis.hkeys(keys.canary_units()) if n.endswith(b"ann")]


async def test_a_candidate_that_users_dislike_is_rolled_back(redis, settings, split):
    for number in range(120):
        user = f"user {number}"
        chosen = cohort_of(user, split.salt, 0.5) == "candidate"
        await says(redis, user, "v0001" if chosen else "v0000", "down" if chosen else "up")
    decision = await look_again(redis, settings)
    assert decision.action == "rollback"
    over = await canary.read(redis)
    assert (over.target, over.canary.state) == ("v0000", "rolled_back")
    assert over.canary.evidence["worse"] > 100
    assert over.canary.evidence["users.live"] > 30
    assert not await redis.exists(keys.canary_units())
    assert not await look_due(redis)
    assert await look_again(redis, settings) is None


async def test_a_candidate_that_users_like_is_promoted(redis, settings, split):
    for number in range(160):
        user = f"user {number}"
        chosen = cohort_of(user, split.salt, 0.5) == "candidate"
        await says(redis, user, "v0001" if chosen else "v0000", "up" if chosen else "down")
    assert (await look_again(redis, settings)).action == "promote"
    assert (await canary.read(redis)).target == "v0001"
    actions = [entry["action"] for entry in await registry.history(redis, "v0001")]
    assert actions == ["published", "canary started", "promoted"]


async def test_cohorts_of_the_wrong_sizes_stop_it(redis, settings, split):
    for number in range(200):
        user = f"user {number}"
        if cohort_of(user, split.salt, 0.5) == "live":
            await says(redis, user, "v0000", "up")
    assert (await look_again(redis, settings)).action == "stop"
    over = await canary.read(redis)
    assert (over.target, over.canary.state) == ("v0000", "stopped")


async def test_a_candidate_that_an_engine_refused_is_rolled_back_at_once(redis, settings, split):
    await registry.quarantine(redis, "v0001", why="NaN")
    assert (await look_again(redis, settings)).action == "rollback"
    assert (await canary.read(redis)).canary.state == "rolled_back"


async def test_without_a_verdict_it_ends_after_its_time(redis, settings, split):
    decision = await look_again(redis, settings)
    assert (decision.action, "no verdict in 7 days" in decision.why) == ("stop", True)
    assert (await canary.read(redis)).target == "v0000"


async def test_many_words_are_read_a_part_at_a_time_and_all_of_them(
    redis, settings, split, monkeypatch
):
    monkeypatch.setattr(canary_watch, "MOST_WORDS", 4)
    monkeypatch.setattr(canary_watch, "MOST_PROMPTS", 3)
    far = {"max_days": 1e6, "settle_seconds": 0.5}
    settings = settings.model_copy(update={"canary": settings.canary.model_copy(update=far)})
    for number in range(12):
        await says(redis, f"user {number}", "v0000", "up", at=split.started_at + 1 + number)
    seen: list = []
    for _ in range(12):
        await look_again(redis, settings, decide=remembering(seen))
    last, _ = seen[-1]
    assert len(last.candidate["thumbs"]) + len(last.live["thumbs"]) == 12
    assert last.users_candidate + last.users_live == 12
    assert len(seen[0][0].candidate["thumbs"]) + len(seen[0][0].live["thumbs"]) <= 4


async def test_a_watch_goes_back_when_users_say_worse_than_before(redis, settings, begun_with_one):
    assert (begun_with_one.mode, await registry.target(redis)) == ("watch", "v0001")
    seen: list = []
    await look_again(redis, settings, now=time.time(), decide=remembering(seen))
    assert (seen[0][0].candidate["thumbs"], seen[0][0].share) == ([], 1.0)
    for user in range(24):
        await says(redis, f"user {user}", "v0001", "down")
    assert (await look_again(redis, settings)).action == "rollback"
    over = await canary.read(redis)
    assert (over.target, over.canary.state) == ("v0000", "rolled_back")


async def test_a_watch_without_a_verdict_keeps_what_is_live(redis, settings, begun_with_one):
    assert (await look_again(redis, settings)).action == "stop"
    over = await canary.read(redis)
    assert (over.target, over.canary.state) == ("v0001", "stopped")


async def test_evidence_without_bounds_is_kept_as_a_number(redis, settings, split):
    def endless(observations, **limits):
        return Decision("rollback", "beyond doubt", {"worse": math.inf, "odd": math.nan})

    decision = await look_again(redis, settings, decide=endless)
    assert decision.evidence["worse"] == 1e300
    assert (await canary.read(redis)).canary.evidence["odd"] == 0.0


def test_the_judge_is_the_one_of_the_statistics():
    assert look.__kwdefaults__["decide"] is sequential.decide


# --- learning begins it ---------------------------------------------------------------------


def run(run_id="r1", parent="v0000") -> Run:
    return Run(id=run_id, stages=("gate",), created_at=1.0, parent=parent)


async def begin(redis, *, token=None, **options) -> str:
    fence = await registry.acquire_fence(redis) if token is None else token
    return await begin_once(
        redis, "v0001", run=run(**options), share=0.25, why="the gate: good", fencing_token=fence
    )


async def test_a_worker_that_takes_over_finds_the_canary_of_its_run(redis):
    await replicas(redis, 4)
    said = await begin(redis)
    assert "25% of users" in said
    first = (await canary.read(redis)).canary
    assert (first.run_id, first.share) == ("r1", 0.25)
    assert await begin(redis) == said
    assert (await canary.read(redis)).canary == first


async def test_what_was_given_to_users_before_is_left_to_people(redis):
    await replicas(redis, 2)
    await begin(redis)
    on = (await canary.read(redis)).canary
    await canary.end(redis, on, "rolled_back", who="c", why="worse")
    assert "left to people" in await begin(redis, run_id="r2")
    assert (await canary.read(redis)).canary.state == "rolled_back"


async def test_a_stale_worker_begins_nothing_and_a_moved_target_is_an_obstacle(redis):
    await replicas(redis, 2)
    stale = await registry.acquire_fence(redis)
    await registry.acquire_fence(redis)
    with pytest.raises(LeaseLost):
        await begin(redis, token=stale)
    assert "v0000 now" in await begin(redis, parent="v0007")
    assert (await canary.read(redis)).canary is None


async def test_with_one_replica_it_is_live_and_watched(redis):
    await replicas(redis, 1)
    assert "watched" in await begin(redis)
    assert await registry.target(redis) == "v0001"


@pytest.mark.parametrize("another", [True, False])
async def test_a_look_that_was_overtaken_leaves_nothing_to_the_next_canary(
    redis, settings, split, monkeypatch, another
):
    for number in range(10):
        await says(redis, f"user {number}", "v0000", "up")

    async def ended_meanwhile(*given):
        await canary.stop(redis, who="ops", why="enough")
        if another:
            await canary.start(redis, "v0001", share=0.5, who="ops", why="again")
        return await words(*given)

    words = canary_watch._words
    monkeypatch.setattr(canary_watch, "_words", ended_meanwhile)
    await look_again(redis, without_end(settings))
    assert await redis.hgetall(keys.canary_units()) == {}
    over = (await canary.read(redis)).canary
    assert over.state == ("running" if another else "stopped")
