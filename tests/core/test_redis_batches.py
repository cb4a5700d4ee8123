"""Many callers on one connection: each gets its own answer, whatever becomes of the others."""

import asyncio

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from core.errors import Unavailable
from core.redis_client import Batches, connect, redis_errors


@pytest.fixture
async def batches(redis):
    made = Batches(redis)
    yield made
    await made.close()


async def take(batches: Batches, name: object) -> int:
    """Counts up over all callers: the answer tells who came when."""
    return await batches.script("lease", [f"lease {name}", "fence"], ["take", 60_000, ""])


async def test_each_caller_gets_its_own_answer(batches):
    assert await asyncio.gather(*(take(batches, n) for n in range(300))) == [*range(1, 301)]
    again = await asyncio.gather(*(take(batches, n) for n in (7, "new", 8, "newer")))
    assert again == [0, 301, 0, 302]


async def test_a_script_that_fails_fails_for_its_caller_alone(batches, redis):
    await redis.set("text", "no stream")
    bad = batches.script("append_inbox", ["text", "mark"], [9, 60, 0, b"sealed"])
    answers = await asyncio.gather(take(batches, 1), bad, take(batches, 2), return_exceptions=True)
    assert isinstance(answers[1], ResponseError)
    assert [answers[0], answers[2], await take(batches, 3)] == [1, 2, 3]


async def test_a_caller_that_goes_leaves_its_answer_to_nobody(batches):
    for steps in range(8):
        asked = [asyncio.create_task(take(batches, f"{steps} {n}")) for n in range(3)]
        for _ in range(steps):
            await asyncio.sleep(0)
        asked[1].cancel()
        _, gone, _ = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(gone, asyncio.CancelledError) or gone > 0
        last = await take(batches, f"{steps} last")
        assert await take(batches, f"{steps} next") == last + 1


async def test_with_redis_gone_all_are_told_and_once_it_is_back_all_goes_on(redis_server):
    async with connect(redis_server.url) as client:
        batches = Batches(client)
        assert await take(batches, "before") == 1
        redis_server.kill()

        async def told(name: int) -> bool:
            with pytest.raises(Unavailable), redis_errors():
                await take(batches, name)
            return True

        assert all(await asyncio.gather(*map(told, range(200))))
        redis_server.start()  # it has forgotten the scripts
        assert sorted(await asyncio.gather(*(take(batches, n) for n in range(5)))) == [
            2,
            3,
            4,
            5,
            6,
        ]
        redis_server.kill()
        redis_server.start()  # the connection is closed, and nobody has noticed
        assert await take(batches, "after") == 7
        await batches.close()


async def test_what_cannot_be_sent_leaves_nobody_waiting(batches):
    bad = batches.script("lease", ["\ud800", "fence"], ["take", 60_000, ""])
    behind = [take(batches, n) for n in range(300)]
    async with asyncio.timeout(5):
        answers = await asyncio.gather(bad, *behind, return_exceptions=True)
    assert {type(answer) for answer in answers} == {RedisConnectionError}
    assert await take(batches, "next") == 1
