"""Draining the inbox under a lease: alone, to the end, and given back."""

import asyncio
import time

import orjson

from core import keys
from core.keyring import day_at
from feedback import quarantine
from learning.rounds.ingesting import drain_inbox
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


async def test_after_the_inbox_a_few_texts_of_the_quarantine_are_tried_again(
    redis, keyring, settings
):
    names = []
    async with redis.pipeline() as step:
        for n in range(6):
            one = entry(keyring, prompt=f"question {n}?")
            names.append(f"{quarantine.PROMPT}{n}-0")
            sealed = keyring.seal(orjson.dumps(one))
            quarantine.put(step, names[-1], sealed, now=time.time() - 70 + n)
        await step.execute()
    await put(redis, keyring, entry(keyring, prompt="new?"))
    assert await drain(redis, keyring, settings) == 1 + 4
    assert sorted(await redis.hkeys(keys.quarantine())) == [n.encode() for n in names[4:]]
    assert await drain(redis, keyring, settings) == 2
    assert await redis.zcard(keys.prompts()) == 7


async def test_keys_of_past_days_go_when_nothing_needs_them_once_an_hour(redis, keyring, settings):
    old = time.time() - 5 * 86_400
    keyring.seal(b"filtered long ago", now=old)
    await drain(redis, keyring, settings)
    assert keyring.sealed_days() == set()
    keyring.seal(b"again", now=old)
    await drain(redis, keyring, settings)
    assert keyring.sealed_days() == {day_at(old)}
    assert 0 < await redis.ttl(keys.day_keys_checked()) <= 3600


async def test_an_empty_inbox_costs_nothing(redis, keyring, settings):
    assert await drain(redis, keyring, settings) == 0
    assert not await redis.exists(keys.ingest_lease())
