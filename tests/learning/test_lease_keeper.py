"""Keeping the lease while a stage runs, and knowing when it is lost."""

import asyncio
import time

import pytest

from core import keys
from core import lease as record
from core.errors import LeaseLost
from core.redis_client import connect
from learning.rounds.lease_keeper import leased
from tests.conftest import eventually


async def test_a_lease_outlives_its_length_while_it_is_kept(redis, shared_redis):
    async with leased(redis, shared_redis.url, seconds=0.5) as lease:
        began = time.monotonic()
        while time.monotonic() - began < 1.2:
            await asyncio.sleep(0.05)
            lease.check()
        assert await record.take(redis) is None
    assert not await record.is_held(redis)


async def test_it_is_renewed_while_this_thread_computes(redis, shared_redis):
    async with leased(redis, shared_redis.url, seconds=0.5) as lease:
        time.sleep(1.2)  # as a bootstrap would: the event loop stands still
        lease.check()
        assert await redis.get(keys.learning_lease()) == str(lease.token).encode()


async def test_only_one_gets_it(redis, shared_redis):
    async with leased(redis, shared_redis.url), leased(redis, shared_redis.url) as second:
        assert second is None
    assert not await record.is_held(redis)


async def test_one_who_was_replaced_notices_and_leaves_the_new_holder_alone(redis, shared_redis):
    async with leased(redis, shared_redis.url, seconds=0.5) as lease:
        await redis.set(keys.learning_lease(), "999")
        await eventually(lambda: lease.lost)
        with pytest.raises(LeaseLost):
            lease.check()
    assert await redis.get(keys.learning_lease()) == b"999"


async def test_a_redis_that_is_away_for_a_moment_is_forgiven(redis_server):
    async with (
        connect(redis_server.url) as redis,
        leased(redis, redis_server.url, seconds=5.0) as lease,
    ):
        redis_server.kill()
        await asyncio.sleep(1.2)  # two renewals fail meanwhile
        redis_server.start()
        await redis.persist(keys.learning_lease())

        async def renewed():
            return await redis.pttl(keys.learning_lease()) > 0

        await eventually(renewed)
        assert not lease.lost
        assert await redis.get(keys.learning_lease()) == str(lease.token).encode()


async def test_a_redis_that_stays_away_loses_it_before_another_could_have_it(redis_server):
    async with (
        connect(redis_server.url) as redis,
        leased(redis, redis_server.url, seconds=1.0) as lease,
    ):
        expires_at = time.time() + await redis.pttl(keys.learning_lease()) / 1000
        redis_server.kill()
        await eventually(lambda: lease.lost)
        assert time.time() < expires_at
