"""Promises that replicas keep: nobody is told anything before enough of them have it."""

import asyncio
import signal
import time
from contextlib import contextmanager

import pytest
import redis as redis_sync

from core import keys
from core.errors import Unavailable
from core.records import Answer, Feedback
from core.redis_check import check_redis, spare_replicas
from core.redis_client import Batches, connect, held, promise, redis_errors
from core.setting_groups import FeedbackSettings
from feedback import erasure, labeling, store
from feedback.store import Once
from tests.feedback.test_labeling import task
from tests.redis_fleet import PASSWORD, redis_fleet

TAKE = ["take", 60_000, ""]
RATING = Feedback(
    id="fb-1",
    kind="rating",
    tenant="acme",
    key_id="0a0b0c0d",
    rater="r" * 32,
    created_at=1.0,
    updated_at=1.0,
    thumb="up",
)


@pytest.fixture(scope="module")
def fleet():
    with redis_fleet(replicas=2) as running:
        yield running


@pytest.fixture
async def client(fleet):
    async with connect(f"{fleet.url}?wait_replicas=2&wait_seconds=1") as connected:
        await connected.flushall()
        yield connected


@contextmanager
def one_replica_hangs(fleet):
    """It is connected, and says nothing."""
    fleet.nodes[2].process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        fleet.nodes[2].process.send_signal(signal.SIGCONT)


def on_replicas(fleet, name: str) -> list:
    """What each replica has under a name at this moment."""
    return [
        redis_sync.Redis(port=node.port, password=PASSWORD).get(name) for node in fleet.nodes[1:]
    ]


async def test_what_is_promised_is_on_every_replica_when_the_reply_comes(client, fleet):
    batches = Batches(client)
    for number in range(1, 30):
        assert await promise(client, "lease", [f"one {number}", "fence"], TAKE) == 2 * number - 1
        assert None not in on_replicas(fleet, f"one {number}")
        assert await batches.script("lease", [f"two {number}", "fence"], TAKE) == 2 * number
        assert None not in on_replicas(fleet, f"two {number}")
    await batches.close()


async def test_a_batch_waits_once_for_all_that_is_in_it(client):
    batches = Batches(client)
    await batches.script("lease", ["first", "fence"], TAKE)
    await client.config_resetstat()
    await asyncio.gather(*(batches.script("lease", [f"{n}", "fence"], TAKE) for n in range(256)))
    stats = await client.info("commandstats")
    assert stats["cmdstat_evalsha"]["calls"] == 256
    assert stats["cmdstat_wait"]["calls"] <= 4
    await batches.close()


async def test_without_enough_replicas_everybody_is_told_in_time_and_then_all_goes_on(
    client, fleet
):
    batches = Batches(client)
    with one_replica_hangs(fleet):
        began = time.monotonic()
        asked = [batches.script("lease", [f"{n}", "fence"], TAKE) for n in range(9)]
        asked.append(promise(client, "lease", ["alone", "fence"], TAKE))
        asked.append(held(client))
        for answer in await asyncio.gather(*asked, return_exceptions=True):
            with pytest.raises(Unavailable, match="NOREPLICAS 1 of 2"), redis_errors():
                raise answer
        assert time.monotonic() - began < 3
    assert await batches.script("lease", ["after", "fence"], TAKE) == 11
    await held(client)
    await batches.close()


async def test_a_repeated_request_that_writes_nothing_waits_for_what_the_first_wrote(client, fleet):
    """Else a client that heard 503 would hear 201, and a failover would still lose its word."""
    once = Once(keys.idempotency("it"), "digest", 60)
    batches = Batches(client)
    with one_replica_hangs(fleet):
        for writes in (batches, client, batches):
            with pytest.raises(Unavailable, match="NOREPLICAS"):
                await store.record(writes, RATING, reply="first", once=once)
    again = await store.record(client, RATING, reply="second", once=once)
    assert again.reply == "first"
    await batches.close()


async def test_taking_feedback_back_waits_too_also_the_second_time(client, fleet):
    await store.record(client, RATING, reply="{}")
    with one_replica_hangs(fleet):
        for _ in range(2):
            with pytest.raises(Unavailable, match="NOREPLICAS"):
                await store.withdraw(client, RATING.id, now=2.0)
    await store.withdraw(client, RATING.id, now=3.0)
    assert (await store.get(client, RATING.id)).withdrawn


async def test_a_raters_answer_and_a_wish_to_be_forgotten_wait_too_also_when_repeated(
    client, fleet, keyring
):
    await labeling.open_tasks(client, [task("t1")])
    group = FeedbackSettings()
    about = {"tenant": "acme", "rater": "r" * 32, "heldout": False}
    shown = await labeling.next_task(client, **about, settings=group)
    ranking = tuple((output.output_id,) for output in shown.outputs)
    said = Answer(rater="r" * 32, heldout_rater=False, ranking=ranking, answered_at=1.0)

    async def answer() -> str:
        return await labeling.answer_task(
            client, task_id="t1", tenant="acme", answer=said, reply="{}", same=lambda *_: True
        )

    async def forget() -> str:
        return await erasure.begin(client, keyring, tenant="acme", user="ann", now=2.0)

    with one_replica_hangs(fleet):
        for promised in (answer, answer, forget, forget):
            with pytest.raises(Unavailable, match="NOREPLICAS"):
                await promised()
    assert await answer() == "{}"
    assert (await forget()).startswith("er-")
    assert await client.hlen(keys.erasures_open()) == 1
    assert int(await client.hget(keys.counts(), "rankings")) == 1


async def test_the_check_says_when_replicas_are_too_few_or_nobody_waits_for_one(fleet):
    async def said(wanted: int) -> tuple[list[str], str | None]:
        async with connect(f"{fleet.url}?wait_replicas={wanted}") as asking:
            return await check_redis(asking), await spare_replicas(asking)

    assert await said(2) == ([], None)
    too_few, _ = await said(3)
    assert too_few == ["2 replicas are there, INSTRUCTLOOP_REDIS_WAIT_REPLICAS wants 3"]
    fine, advice = await said(1)
    assert fine == []
    assert "INSTRUCTLOOP_REDIS_WAIT_REPLICAS=2 rules it out" in advice
    assert await said(0) == ([], None)
