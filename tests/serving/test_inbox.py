"""The way into the inbox on a real Redis that dies, hangs, is slow or full: in order, once each."""

import asyncio
import signal
import threading
from contextlib import asynccontextmanager

import orjson
import pytest

from core import keys, metrics
from core.keyring import Keyring
from core.redis_client import connect
from serving.inbox import Inbox
from serving.spool import Spool
from tests.conftest import eventually


@asynccontextmanager
async def writing(redis, keyring, folder, *, max_entries=10_000, spool_max_bytes=1 << 20):
    inbox = Inbox(
        redis=redis,
        keyring=keyring,
        folder=folder,
        max_entries=max_entries,
        spool_max_bytes=spool_max_bytes,
    )
    task = asyncio.create_task(inbox.run())
    try:
        yield inbox
    finally:
        if not task.done():
            await inbox.close(task)


async def numbers(redis, keyring) -> list[int]:
    """What is in the inbox, in order."""
    entries = await redis.xrange(keys.inbox())
    return [orjson.loads(keyring.open(fields[b"sealed"]))["number"] for _, fields in entries]


async def append(inbox: Inbox, *which: int) -> None:
    await asyncio.gather(*[inbox.append({"number": number}) for number in which])


async def back_to_direct(inbox: Inbox) -> None:
    await eventually(lambda: inbox.direct, seconds=20)


async def test_an_entry_is_in_redis_when_its_future_is_done(redis, keyring, state_dir):
    async with writing(redis, keyring, state_dir) as inbox:
        for number in range(5):
            await inbox.append({"number": number})
            assert await numbers(redis, keyring) == list(range(number + 1))
        await append(inbox, *range(5, 300))  # more than a batch
        assert await numbers(redis, keyring) == list(range(300))
        assert inbox.spooled_bytes == 0


async def test_nothing_readable_reaches_redis(redis, keyring, state_dir):
    async with writing(redis, keyring, state_dir) as inbox:
        await inbox.append({"number": 0, "text": "a secret of Ada's"})
    dump = await redis.dump(keys.inbox())
    assert b"secret" not in dump
    assert b"Ada" not in dump


async def test_redis_killed_in_the_middle_loses_and_doubles_nothing(
    redis_server, keyring, state_dir
):
    async with (
        connect(redis_server.url) as redis,
        writing(redis, keyring, state_dir / "spool") as inbox,
    ):
        total = 600
        futures = []
        for number in range(total):
            futures.append(inbox.append({"number": number}))
            if number in (150, 400):
                redis_server.kill()
            if number in (300, 550):
                redis_server.start()
            await asyncio.sleep(0)  # the writer gets its turn between any two
        await asyncio.gather(*futures)
        await back_to_direct(inbox)
        assert await numbers(redis, keyring) == list(range(total))
        await append(inbox, total)
        assert (await numbers(redis, keyring))[-1] == total


async def test_a_batch_that_redis_took_late_is_not_doubled(redis_server, keyring, state_dir):
    async with (
        connect(redis_server.url) as redis,
        writing(redis, keyring, state_dir / "spool") as inbox,
    ):
        await append(inbox, 0)
        redis_server.process.send_signal(signal.SIGSTOP)
        await append(inbox, *range(1, 20))  # sent, but the answer does not come: spooled
        assert not inbox.direct
        redis_server.process.send_signal(signal.SIGCONT)  # now Redis runs what was sent
        await append(inbox, *range(20, 25))
        await back_to_direct(inbox)
        assert await numbers(redis, keyring) == list(range(25))


async def test_entries_of_a_process_that_died_go_in_before_those_of_the_next(
    redis_server, keyring, state_dir
):
    folder = state_dir / "spool"
    async with connect(redis_server.url) as redis:
        redis_server.kill()
        async with writing(redis, keyring, folder) as first:
            await append(first, 0, 1, 2)
        assert len(list(folder.iterdir())) == 1
        async with writing(redis, keyring, folder) as second:
            assert not second.direct
            await append(second, 3, 4)
            redis_server.start()
            await back_to_direct(second)
            await append(second, 5)
            assert await numbers(redis, keyring) == list(range(6))
    assert list(folder.iterdir()) == []


async def test_a_process_that_died_after_delivering_is_not_delivered_again(
    redis_server, keyring, state_dir
):
    """A crash between Redis' taking a batch and the spool's noting it."""
    folder = state_dir / "spool"
    async with connect(redis_server.url) as redis:
        redis_server.kill()
        async with writing(redis, keyring, folder) as first:
            await append(first, 0, 1, 2)
        (left,) = folder.iterdir()
        content = left.read_bytes()
        redis_server.start()
        async with writing(redis, keyring, folder) as second:
            await back_to_direct(second)
        left.write_bytes(content)
        left.chmod(0o600)
        async with writing(redis, keyring, folder) as third:
            await back_to_direct(third)
        assert await numbers(redis, keyring) == [0, 1, 2]


async def test_a_full_inbox_makes_entries_wait_until_ingest_caught_up(redis, keyring, state_dir):
    async with writing(redis, keyring, state_dir, max_entries=3) as inbox:
        await append(inbox, *range(5))
        assert await numbers(redis, keyring) == [0, 1, 2]
        assert inbox.spooled_bytes > 0
        read = []
        while len(read) < 5:
            for entry_id, fields in await redis.xrange(keys.inbox()):
                read.append(orjson.loads(keyring.open(fields[b"sealed"]))["number"])
                await redis.xdel(keys.inbox(), entry_id)
            await asyncio.sleep(0.01)
        assert read == list(range(5))


async def test_what_the_spool_cannot_hold_is_dropped_and_counted(redis_server, keyring, state_dir):
    dropped = metrics.LOGS_DROPPED.labels("spool_full")._value
    before = dropped.get()
    async with (
        connect(redis_server.url) as redis,
        writing(redis, keyring, state_dir / "spool", spool_max_bytes=300) as inbox,
    ):
        redis_server.kill()
        for number in range(20):
            await inbox.append({"number": number})
        lost = int(dropped.get() - before)
        assert 0 < lost < 20
        redis_server.start()
        await back_to_direct(inbox)
        assert await numbers(redis, keyring) == list(range(20 - lost))


async def test_the_spool_is_not_left_while_an_entry_is_being_written_to_it(
    redis_server, keyring, state_dir, monkeypatch
):
    disk, written = threading.Event(), []
    write = Spool.write

    def slow_write(spool, entries):
        if written:  # the first batch is written at once
            disk.wait(20)
        written.append(len(entries))
        write(spool, entries)

    monkeypatch.setattr(Spool, "write", slow_write)
    async with (
        connect(redis_server.url) as redis,
        writing(redis, keyring, state_dir / "spool") as inbox,
    ):
        redis_server.kill()
        await append(inbox, 0)
        second = inbox.append({"number": 1})
        await asyncio.sleep(0)
        redis_server.start()
        await eventually(lambda: _has(redis, 1))
        third = inbox.append({"number": 2})
        beyond = asyncio.get_running_loop().time() + 0.6  # two rounds of the replay
        await eventually(lambda: asyncio.get_running_loop().time() > beyond)
        assert not inbox.direct
        disk.set()
        await asyncio.gather(second, third)
        await back_to_direct(inbox)
        assert await numbers(redis, keyring) == [0, 1, 2]


async def _has(redis, length: int) -> bool:
    return await redis.xlen(keys.inbox()) == length


async def test_a_reply_that_nobody_waits_for_is_logged_all_the_same(redis, keyring, state_dir):
    async with writing(redis, keyring, state_dir) as inbox:
        waiting = asyncio.ensure_future(inbox.append({"number": 0}))
        waiting.cancel()
        await append(inbox, 1)
        assert await numbers(redis, keyring) == [0, 1]


async def test_without_a_key_to_seal_with_a_reply_is_neither_held_up_nor_logged_in_the_clear(
    redis, state_dir
):
    dropped = metrics.LOGS_DROPPED.labels("seal_failed")._value
    before = dropped.get()
    (state_dir / "a-file").touch()
    async with writing(redis, Keyring(state_dir / "a-file"), state_dir / "spool") as inbox:
        await append(inbox, 0)
    assert dropped.get() == before + 1
    assert await redis.xlen(keys.inbox()) == 0


async def test_closing_writes_what_is_queued(redis, keyring, state_dir):
    async with writing(redis, keyring, state_dir) as inbox:
        for number in range(50):
            inbox.append({"number": number})
    assert await numbers(redis, keyring) == list(range(50))


@pytest.mark.parametrize("reply", ["WRONGTYPE", "loading"])
async def test_whatever_redis_answers_a_reply_is_not_held_up(redis, keyring, state_dir, reply):
    """An inbox that is no stream (somebody's mistake) ends in the spool, not in a dead writer."""
    if reply == "WRONGTYPE":
        await redis.set(keys.inbox(), "not a stream")
    else:
        await redis.config_set("min-replicas-to-write", 3)
    try:
        async with writing(redis, keyring, state_dir) as inbox:
            await append(inbox, 0, 1)
            assert not inbox.direct
            await redis.config_set("min-replicas-to-write", 0)
            if reply == "WRONGTYPE":
                await redis.delete(keys.inbox())
            await back_to_direct(inbox)
            assert await numbers(redis, keyring) == [0, 1]
    finally:
        await redis.config_set("min-replicas-to-write", 0)
