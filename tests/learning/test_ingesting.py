"""Draining the inbox under a lease: alone, to the end, and given back."""

import asyncio
import time

from core import keys
from learning.ingesting import drain_inbox
from tests.feedback.factory import EmailFilter, entry, put


class SlowFilter(EmailFilter):
    """Takes its time, and looks at who holds the lease meanwhile."""

    def filter_record(self, texts, *, deadline_seconds):
        time.sleep(0.2)
        return super().filter_record(texts, deadline_seconds=deadline_seconds)


async def drain(redis, keyring, settings, pii=None, *, seconds=30):
    return await drain_inbox(redis, keyring, settings, pii or EmailFilter(), seconds=seconds)


async def test_everything_that_waits_is_recorded_and_the_lease_given_back(redis, keyring, settings):
    await put(redis, keyring, *(entry(keyring, prompt=f"question {n}?") for n in range(70)))
    assert await drain(redis, keyring, settings) == 70
    assert await redis.xlen(keys.inbox()) == 0
    assert await redis.zcard(keys.prompts()) == 70
    assert not await redis.exists(keys.ingest_lease())


async def test_a_second_worker_leaves_it_to_the_first(redis, keyring, settings):
    await put(redis, keyring, *(entry(keyring, prompt=f"question {n}?") for n in range(3)))
    first = asyncio.create_task(drain(redis, keyring, settings, SlowFilter()))
    while not await redis.exists(keys.ingest_lease()):
        await asyncio.sleep(0)
    assert await drain(redis, keyring, settings) == 0
    assert await first == 3


async def test_an_ingest_that_was_replaced_does_not_take_the_lease_of_the_new_one(
    redis, keyring, settings
):
    await put(redis, keyring, entry(keyring, prompt="question?"))
    slow = asyncio.create_task(drain(redis, keyring, settings, SlowFilter()))
    while not await redis.exists(keys.ingest_lease()):
        await asyncio.sleep(0)
    await redis.set(keys.ingest_lease(), "another")
    await slow
    assert await redis.get(keys.ingest_lease()) == b"another"


async def test_an_empty_inbox_costs_nothing(redis, keyring, settings):
    assert await drain(redis, keyring, settings) == 0
    assert not await redis.exists(keys.ingest_lease())
