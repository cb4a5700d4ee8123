"""The lease on learning, on a real Redis: one holder, newer tokens, nothing for old holders."""

import asyncio

from core import keys, lease


async def test_only_one_holds_the_lease_and_its_token_is_the_newest(redis):
    first = await lease.take(redis)
    assert await lease.take(redis) is None
    assert await lease.is_held(redis)
    await lease.drop(redis, first)
    second = await lease.take(redis)
    assert second > first


async def test_a_lease_that_ran_out_is_neither_kept_nor_dropped_by_its_old_holder(redis):
    old = await lease.take(redis, seconds=0.02)
    await asyncio.sleep(0.05)
    new = await lease.take(redis)
    assert not await lease.keep(redis, old)
    await lease.drop(redis, old)
    assert await lease.is_held(redis)
    assert await lease.keep(redis, new)


async def test_keeping_a_lease_makes_it_last_longer(redis):
    token = await lease.take(redis, seconds=0.5)
    assert await lease.keep(redis, token, seconds=60)
    assert await redis.pttl(keys.learning_lease()) > 50_000
