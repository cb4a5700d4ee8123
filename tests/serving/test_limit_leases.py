"""Gateways that share limits over a real Redis, and one that has lost it."""

import asyncio
import random
import time

import pytest

from core import keys
from core.errors import RateLimited
from core.records import ApiKey, KeyLimits
from core.redis_client import connect, script
from core.setting_groups import LimitSettings
from serving import limit_leases
from serving.admission import Admission
from serving.limit_leases import Leases
from serving.limits import Standing
from tests.conftest import eventually
from tests.serving.limit_model import Pool
from tests.serving.test_admission import key


def admitted(door: Admission, who: ApiKey, times: int) -> int:
    """How many of so many requests at once are let in."""
    count = 0
    for _ in range(times):
        try:
            door.admit(who, "ada", 1).settle(1)
            count += 1
        except RateLimited:
            continue
    return count


@pytest.fixture
def make(redis, keyring):
    def make_one(client=redis, settings=None):
        door = Admission(settings or LimitSettings(), keyring)
        return door, Leases(client, door)

    return make_one


@pytest.mark.parametrize(("limit", "fill"), [(37, 37 / 60_000), (5, 0)])
async def test_the_script_does_what_its_description_says(redis, limit, fill):
    rng = random.Random(limit)
    pool, name = Pool(limit, fill), keys.limit("subject", "kind")
    said, before = {"a": 0, "b": 0, "c": 0}, {"a": 0, "b": 0, "c": 0}
    now = 1_000_000
    for step in range(300):
        who = rng.choice("abc")
        want = rng.choice([0, 0, 0, 3, -1])
        said[who] = rng.randint(0, 3) if fill == 0 else said[who] + rng.choice([0, 1, 2, -1])
        expected = pool.lease(f"{who}:1", now, said[who], before[who], want)
        args = [who, now, 1, limit, fill, said[who], before[who], want]
        answer = await script(redis, "lease_limits", [keys.limit_gateways(), name], args)
        got = float(answer[1]), float(answer[2])
        assert got == pytest.approx(expected, abs=1e-3), step
        before[who] = said[who]
        now += rng.choice([0, 40, 100, 700, 2500, 11_000])
    assert int(answer[0]) == await redis.zcard(keys.limit_gateways())


async def test_two_gateways_let_in_one_budget_between_them(make):
    who = key(KeyLimits(requests_per_minute=100))
    (one, leases), (two, others) = make(), make()
    for lease in (leases, others, leases):
        await lease._exchange([], give_back=False)
    assert one.standing.gateways == two.standing.gateways == 2
    counts = {id(one): 0, id(two): 0}
    for _ in range(20):
        for door, lease in ((one, leases), (two, others)):
            counts[id(door)] += admitted(door, who, 12)
            await lease._exchange(list(door.leased.values()), give_back=False)
    assert 98 <= sum(counts.values()) <= 100 + 2 * 50
    assert min(counts.values()) >= 30


async def test_a_slice_goes_back_when_a_gateway_stops(make, redis):
    who = key(KeyLimits(requests_per_minute=10))
    one, leases = make()
    assert admitted(one, who, 4) == 4
    await leases.tick()
    (name,) = one.leased
    assert float(await redis.hget(name, "level")) == 0
    await leases.close()
    assert float(await redis.hget(name, "level")) == pytest.approx(6, abs=0.2)
    two, others = make()
    assert admitted(two, who, 1) == 1
    await others.tick()
    assert admitted(two, who, 99) == 5


async def test_what_nobody_uses_leaves_redis_and_the_memory(make, redis):
    who = key(KeyLimits(requests_per_minute=6000, concurrency=3))
    door, leases = make()
    assert admitted(door, who, 1) == 1
    await leases.tick()
    names = list(door.leased)
    assert await redis.exists(*names) == 2
    start = time.monotonic()
    door.clock = lambda: start + 3
    await leases.tick()
    door.clock = lambda: start + 4
    await leases.tick()
    assert (len(door), door.leased) == (0, {})
    for name in names:
        assert await redis.pttl(name) != -1  # what stays of it expires


async def test_no_redis_is_asked_during_a_request(make, redis):
    who = key(KeyLimits(requests_per_minute=10**6, tokens_per_minute=10**9))
    door, leases = make()
    admitted(door, who, 5)
    await leases.tick()
    before = (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
    assert admitted(door, who, 1000) == 1000
    await leases.tick()
    assert (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"] == before + 1


async def test_without_redis_limits_are_stricter_and_its_return_is_noticed(
    redis_server, make, monkeypatch
):
    monkeypatch.setattr(limit_leases, "ALONE_AFTER_SECONDS", 0.0)
    who = key(KeyLimits(requests_per_minute=40))
    async with connect(redis_server.url) as client:
        door, leases = make(client)
        assert admitted(door, who, 10) == 10
        await leases.tick()
        redis_server.kill()
        assert admitted(door, who, 1) == 1
        await leases.tick()
        assert door.standing == Standing(gateways=1, alone=True)
        assert admitted(door, who, 99) == 20
        (meter,) = door.leased.values()
        spent = meter.spent
        redis_server.start()
        await eventually(lambda: _heard(leases, door))
        assert meter.acknowledged >= spent == 31
        assert admitted(door, who, 99) <= 40 - 31 + 5


async def test_a_redis_that_refuses_the_script_counts_as_away(redis, make, monkeypatch):
    monkeypatch.setattr(limit_leases, "ALONE_AFTER_SECONDS", 0.0)
    door, leases = make()
    assert admitted(door, key(KeyLimits(requests_per_minute=4)), 4) == 4
    await redis.set(next(iter(door.leased)), "not a budget")
    with pytest.raises(Exception, match="WRONGTYPE"):
        await leases.tick()
    assert door.standing.alone


async def _heard(leases: Leases, door: Admission) -> bool:
    await leases.tick()
    return not door.standing.alone


async def test_a_redis_that_hangs_holds_up_no_request(redis_server, make, monkeypatch):
    monkeypatch.setattr(limit_leases, "_PATIENCE_SECONDS", 0.05)
    who = key(KeyLimits(requests_per_minute=10))
    async with connect(redis_server.url) as client:
        door, leases = make(client)
        await client.execute_command("CLIENT", "PAUSE", "2000")
        ticking = asyncio.create_task(leases.tick())
        await asyncio.sleep(0)
        assert admitted(door, who, 99) == 10
        await ticking
        (meter,) = door.leased.values()
        assert meter.acknowledged == 0
        await eventually(lambda: _heard(leases, door))
        assert meter.acknowledged == 10
