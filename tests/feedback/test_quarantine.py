"""What cannot be cleared waits, is tried again ever more rarely, and is seen to wait."""

import pytest

from core import keys, metrics
from feedback import quarantine

NOW = 1_700_000_000.0
DAY = 86_400.0


async def bring(redis, *names, now=NOW):
    async with redis.pipeline(transaction=True) as step:
        for name in names:
            quarantine.put(step, name, f"sealed {name}", now=now)
        await step.execute()


async def due(redis, after, *, limit=10):
    found = await quarantine.take_due(redis, now=NOW + after, limit=limit)
    assert all(sealed == f"sealed {name}".encode() for name, sealed in found)
    return [name for name, _ in found]


@pytest.mark.parametrize(
    ("age", "delay"), [(0, 60), (59, 60), (61, 61), (3600, 3600), (DAY, DAY), (40 * DAY, DAY)]
)
def test_it_waits_as_long_again_as_it_has_waited_but_never_over_a_day(age, delay):
    assert quarantine.delay_after(age) == delay


async def test_the_delay_doubles_with_each_attempt(redis):
    await bring(redis, "a")
    attempts = []
    for second in range(2000):
        if await due(redis, second):
            attempts.append(second)
    assert attempts == [60, 120, 240, 480, 960, 1920]


async def test_at_most_so_many_are_given_out_and_the_longest_overdue_comes_first(redis):
    for position, name in enumerate("cab"):
        await bring(redis, name, now=NOW + position)
    assert await due(redis, 59) == []
    assert await due(redis, 200, limit=2) == ["c", "a"]
    assert await due(redis, 200, limit=2) == ["b"]
    assert await due(redis, 200, limit=2) == []


async def test_one_that_fails_again_keeps_its_times(redis):
    await bring(redis, "a")
    assert await due(redis, 60) == ["a"]
    await bring(redis, "a", now=NOW + 61)
    assert (await quarantine.look(redis, now=NOW + 90)).oldest_seconds == 90
    assert await due(redis, 119) == []
    assert await due(redis, 120) == ["a"]


async def test_it_is_seen_how_many_wait_and_how_long(redis):
    await bring(redis, "a")
    await bring(redis, "b", now=NOW + 7)
    seen = await quarantine.look(redis, now=NOW + 30)
    assert seen == quarantine.Waiting(2, 30.0, False)
    text = metrics.render().decode()
    assert "instructloop_quarantine_texts 2.0" in text
    assert "instructloop_quarantine_oldest_seconds 30.0" in text
    await redis.delete(keys.quarantine())
    assert (await quarantine.look(redis, now=NOW + 31)).texts == 0
    assert "instructloop_quarantine_oldest_seconds 0.0" in metrics.render().decode()


async def test_indexes_that_do_not_agree_are_mended(redis):
    await bring(redis, "a", "gone")
    await redis.hdel(keys.quarantine(), "gone")  # a new word took its place
    await redis.hset(keys.quarantine(), "b", "sealed b")  # of a release without indexes
    await redis.hset(keys.quarantine(), "c", "sealed c")
    assert (await quarantine.look(redis, now=NOW)).is_due
    assert sorted(await due(redis, 1)) == ["b", "c"]
    assert await due(redis, 60) == ["a"]
    assert await redis.zcard(keys.quarantine_since()) == 3
    assert await redis.zcard(keys.quarantine_retry()) == 3
    await redis.delete(keys.quarantine())
    assert await due(redis, 2 * DAY) == []
    assert await redis.exists(keys.quarantine_since(), keys.quarantine_retry()) == 0
