"""A canary at the gateway: cohorts keep their version, and no request fails by it."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from types import SimpleNamespace

import pytest

from core import canary, loop, metrics, registry
from core.canary import Canary, Release, cohort_of
from core.errors import Unavailable
from feedback.entries import user_hash
from serving import replicas as replicas_module
from serving.replicas import Replicas
from serving.routing import ANY, Wish, wish_for
from tests.conftest import eventually
from tests.core.test_registry import publish
from tests.serving.conftest import CHAT, announce, running_gateway
from tests.serving.engine_double import EngineDouble

USERS = [f"user {n}" for n in range(40)]
ON = Canary(
    candidate="v0001", parent="v0000", share=0.4, salt="s", mode="split", started_at=1.0, why="x"
)
OVER = ON.model_copy(update={"state": "rolled_back", "ended_at": 50.0})


# --- what may answer whom -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "cohort", "fresh", "versions"),
    [
        (Release("v0000", ON), "candidate", True, ("v0001", "v0000")),
        (Release("v0000", ON), "live", True, ("v0000",)),
        (Release("v0000", ON), "candidate", False, ("v0001", "v0000", None)),
        (Release("v0000", ON), "live", False, ("v0000", None)),
        (Release("v0003", ON), None, True, (None,)),
        (Release("v0000", None), None, True, (None,)),
    ],
)
def test_what_may_answer_a_user(release, cohort, fresh, versions):
    assert wish_for(release, cohort, fresh=fresh, now=60.0) == Wish(
        versions, candidate="v0001" if cohort == "candidate" else ""
    )


@pytest.mark.parametrize(
    ("target", "now", "shunned"),
    [("v0000", 60.0, "v0001"), ("v0003", 60.0, "v0001"), ("v0001", 60.0, ""), ("v0003", 700.0, "")],
    ids=["rolled back", "another by hand", "live after all", "long ago"],
)
def test_a_candidate_that_was_not_promoted_is_the_last_resort_for_a_while(target, now, shunned):
    assert wish_for(Release(target, OVER), None, fresh=True, now=now) == Wish(shunned=shunned)


def test_with_redis_away_the_last_canary_holds_for_a_while(monkeypatch):
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now, time=lambda: clock.now)
    monkeypatch.setattr(replicas_module, "time", clock)
    known = Replicas()
    assert known.wish(None, lambda: "u") == ANY
    assert known.wish("v0007", lambda: "u") == Wish(("v0007",), pinned=True)
    known.follow(Release("v0000", ON))
    first = known.wish(None, lambda: "u")
    assert not first.allows("v0002")
    clock.now += 10
    later = known.wish(None, lambda: "u")
    assert later.versions == (*first.versions, None)
    assert later.allows("v0002")
    clock.now += 60
    assert known.wish(None, lambda: "u") == ANY


def test_a_user_of_the_live_version_never_gets_the_candidate():
    known = Replicas()
    known.follow(Release("v0000", ON))
    engine = known.add_fixed("http://a")
    engine.state, engine.version = "ready", "v0001"
    with pytest.raises(Unavailable, match="live version"):
        known.find(Wish(("v0000",)))
    assert known.find(Wish(("v0001", "v0000"), candidate="v0001")) is engine


# --- at a gateway ---------------------------------------------------------------------------


class Fleet:
    """A gateway before three doubles, of which the first serves the candidate."""

    def __init__(self, gateway, redis, doubles, urls, begun) -> None:
        self.gateway, self.redis, self.begun = gateway, redis, begun
        self.doubles, self.urls = doubles, urls

    async def serve(self, number: int, version: str, state="ready") -> None:
        """An engine takes up a version, and its agent says so."""
        self.doubles[number].version = version
        await announce(
            self.redis, self.urls[number], name=f"engine-{number}", version=version, state=state
        )

    def cohort(self, user: str) -> str:
        hashed = user_hash(
            self.gateway.keyring, tenant="acme", key_id=self.gateway.secret[:8], user=user
        )
        return cohort_of(hashed, self.begun.salt, self.begun.share)

    async def ask(self, user: str, **said) -> tuple[int, str | None]:
        async with self.gateway.post("/v1/chat/completions", {**CHAT, "user": user, **said}) as r:
            await r.read()
            return r.status, r.headers.get("x-policy-version")

    async def all_get(self) -> dict[str, str | None]:
        replies = await asyncio.gather(*(self.ask(user) for user in USERS))
        assert {status for status, _ in replies} == {200}
        return dict(zip(USERS, (version for _, version in replies), strict=True))

    async def splits(self) -> bool:
        got = await self.all_get()
        return all((got[u] == "v0001") == (self.cohort(u) == "candidate") for u in USERS)

    async def everybody_gets(self, version: str) -> bool:
        return set((await self.all_get()).values()) == {version}


@pytest.fixture
async def fleet(redis, gateway_settings, state_dir):
    await publish(redis, "v0000", "v0001")
    await registry.promote(redis, "v0000", who="test", why="first")
    await loop.heartbeat(redis)
    doubles = [EngineDouble(version="v0000") for _ in range(3)]
    async with AsyncExitStack() as stack:
        urls = [
            await stack.enter_async_context(double.listening(state_dir / f"{number}.sock"))
            for number, double in enumerate(doubles)
        ]
        fleet = Fleet(None, redis, doubles, urls, None)
        for number in range(3):
            await fleet.serve(number, "v0000")
        fleet.begun = await canary.start(redis, "v0001", share=0.4, who="test", why="to see")
        await fleet.serve(0, "v0001")
        fleet.gateway = await stack.enter_async_context(running_gateway(gateway_settings, redis))
        yield fleet


@asynccontextmanager
async def traffic(fleet: Fleet):
    """Clients that keep asking; gives what each got, in order."""
    got: list[tuple[str, int, str | None]] = []
    stopping = asyncio.Event()

    async def keep_asking(user: str, stream: bool) -> None:
        while not stopping.is_set():
            got.append((user, *await fleet.ask(user, stream=stream)))

    tasks = [asyncio.create_task(keep_asking(u, n % 2 == 0)) for n, u in enumerate(USERS[:12])]
    try:
        yield got
    finally:
        stopping.set()
        await asyncio.gather(*tasks)


def fallbacks() -> float:
    return metrics.CANARY_FALLBACKS._value.get()


async def test_users_keep_their_version_and_the_log_says_who_got_what(fleet):
    before = fallbacks()
    for _ in range(3):
        assert await fleet.splits()
    assert fallbacks() == before
    entries = await fleet.gateway.logged_once(3 * len(USERS))
    for entry in entries:
        expected = "v0001" if fleet.cohort(entry["user"]) == "candidate" else "v0000"
        assert entry["policy_versions"] == [expected]
    chosen = sum(fleet.cohort(user) == "candidate" for user in USERS)
    assert 0 < chosen < len(USERS)


async def test_a_pinned_version_is_nobodys_cohort(fleet):
    for user in USERS[:8]:
        assert await fleet.ask(user, model="instructloop@v0000") == (200, "v0000")
        assert await fleet.ask(user, model="instructloop@v0001") == (200, "v0001")


async def test_the_live_version_answers_where_nobody_serves_the_candidate(fleet):
    before = fallbacks()
    await fleet.serve(0, "v0001", state="failed")
    await eventually(lambda: fleet.everybody_gets("v0000"))
    assert fallbacks() > before


async def test_a_candidate_engine_that_refuses_costs_no_request(fleet):
    fleet.doubles[0].status = 503
    assert await fleet.everybody_gets("v0000")


async def test_a_replica_that_swapped_since_its_heartbeat_answers_no_user_of_the_live_version(
    fleet,
):
    fleet.doubles[1].version = "v0001"  # its agent has not said so yet
    assert await fleet.splits()


@pytest.mark.parametrize(("ending", "live"), [("promoted", "v0001"), ("rolled_back", "v0000")])
async def test_it_ends_under_traffic_without_a_failed_request(fleet, ending, live):
    async with traffic(fleet) as got:
        await eventually(lambda: len(got) > 100)
        for user, _, version in got:
            assert version == ("v0001" if fleet.cohort(user) == "candidate" else "v0000")
        await canary.end(fleet.redis, fleet.begun, ending, who="test", why="seen")
        for number in range(3):
            await fleet.serve(number, live)
            await asyncio.sleep(0)
        await eventually(lambda: fleet.everybody_gets(live))
        seen = len(got)
        await eventually(lambda: len(got) > seen + 100)
    assert {status for _, status, _ in got} == {200}
    assert {version for _, _, version in got[seen + 12 :]} == {live}


async def test_after_a_roll_back_who_still_serves_the_candidate_is_asked_last(fleet):
    await canary.end(fleet.redis, fleet.begun, "rolled_back", who="test", why="worse")
    await eventually(lambda: fleet.everybody_gets("v0000"))
    for number in (1, 2):
        await fleet.serve(number, "v0000", state="failed")
    await eventually(lambda: fleet.everybody_gets("v0001"))  # better than no answer
