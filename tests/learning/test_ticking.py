"""What a tick finds due, on a real Redis."""

import asyncio
import os
import time

import pytest

from core import audit_log, keys, lease, loop, room
from core.settings import Settings
from deploy.status import next_round
from deploy.up import without_rounds
from feedback import quarantine
from learning.worker.ticking import due_tasks


@pytest.fixture
def settings(state_dir):
    return Settings(state_dir=state_dir, learning={"min_new_comparisons": 10})


@pytest.fixture(autouse=True)
async def day_keys_were_checked(redis):
    await redis.set(keys.day_keys_checked(), 1)
    await redis.set(keys.retention_checked(), 1)


async def current(redis):
    run = await loop.current_run(redis)
    return run and run.wanted_by


async def test_nothing_is_due_in_a_quiet_loop_but_it_is_seen_to_be_alive(redis, settings):
    assert await due_tasks(redis, settings) == []
    assert await loop.worker_alive(redis)


async def test_a_backlog_starts_ingest_unless_one_is_at_it(redis, settings):
    await redis.xadd(keys.inbox(), {"sealed": b"x"})
    assert await due_tasks(redis, settings) == ["ingest"]
    await redis.set(keys.ingest_lease(), "somebody")
    assert await due_tasks(redis, settings) == []


async def test_text_of_feedback_that_waits_for_the_filter_starts_ingest(redis, settings):
    await redis.sadd(keys.feedback_text(), "f1")
    assert await due_tasks(redis, settings) == ["ingest"]


async def test_a_text_in_quarantine_starts_ingest_when_its_time_has_come(redis, settings):
    async with redis.pipeline() as step:
        quarantine.put(step, "f1", "sealed", now=time.time() - 50)
        await step.execute()
    assert await due_tasks(redis, settings) == []
    await redis.zadd(keys.quarantine_retry(), {"f1": int(time.time() * 1000)})
    assert await due_tasks(redis, settings) == ["ingest"]


async def test_day_keys_are_looked_at_again_after_a_while(redis, settings):
    await redis.delete(keys.day_keys_checked())
    assert await due_tasks(redis, settings) == ["ingest"]


async def test_a_current_run_is_gone_on_with_unless_somebody_holds_the_lease(redis, settings):
    await loop.request_run(redis, stages=("snapshot",), wanted_by="a test")
    assert await due_tasks(redis, settings) == ["run_stage"]
    await lease.take(redis)
    assert await due_tasks(redis, settings) == []


async def test_a_run_that_waits_is_left_alone_until_its_time_or_a_cancel(redis, settings):
    run = await loop.request_run(redis, stages=("snapshot",), wanted_by="a test")
    await redis.hset(keys.loop(), "retry_at", time.time() + 60)
    assert await due_tasks(redis, settings) == []
    await redis.hset(keys.loop(), "cancel", run.id)
    assert await due_tasks(redis, settings) == ["run_stage"]


async def test_enough_comparisons_start_one_round_however_many_tick(redis, settings):
    await redis.set(keys.target(), "v0000")
    await redis.hset(keys.counts(), "comparisons", 10)
    await asyncio.gather(*(due_tasks(redis, settings) for _ in range(5)))
    assert await current(redis) == "the loop: 10 new comparisons"
    assert len(await loop.list_runs(redis)) == 1


async def test_a_paused_loop_and_one_without_a_policy_start_none(redis, settings):
    await redis.hset(keys.counts(), "comparisons", 10)
    await due_tasks(redis, settings)
    assert await current(redis) is None
    await redis.set(keys.target(), "v0000")
    await loop.pause(redis)
    await due_tasks(redis, settings)
    assert await current(redis) is None


async def test_the_interval_counts_from_the_loops_first_tick(redis, settings):
    await redis.set(keys.target(), "v0000")
    await redis.hset(keys.counts(), "comparisons", 3)
    await due_tasks(redis, settings)
    assert await current(redis) is None
    first = (await loop.read_notes(redis)).last_round
    assert first == pytest.approx(time.time(), abs=60)
    await redis.hset(keys.loop(), "last_round", first - settings.learning.interval_seconds)
    await due_tasks(redis, settings)
    assert await current(redis) == "the loop: on schedule, with 3 new comparisons"


async def test_a_tick_copies_the_audit_log_and_a_broken_one_stops_nothing(
    redis, settings, state_dir, caplog
):
    await loop.pause(redis)
    await due_tasks(redis, settings)
    path = state_dir / audit_log.FILE
    assert [line.entry["action"] for line in audit_log.read_lines(path)] == ["loop paused"]
    path.write_text("somebody wrote here\n")
    await redis.sadd(keys.feedback_text(), "f1")
    assert await due_tasks(redis, settings) == ["ingest"]
    assert "the last line of audit.jsonl is not one of ours" in caplog.text


async def test_without_learning_the_log_is_kept_and_no_round_starts(redis, settings):
    await redis.set(keys.target(), "v0000")
    await redis.hset(keys.counts(), "comparisons", 10)
    await redis.xadd(keys.inbox(), {"sealed": b"x"})
    assert await due_tasks(redis, without_rounds(settings)) == ["ingest"]
    assert await current(redis) is None
    assert await due_tasks(redis, settings) == ["ingest", "run_stage"]


async def test_without_room_on_the_disk_no_round_starts_and_status_says_why(
    redis, settings, monkeypatch
):
    await redis.set(keys.target(), "v0000")
    await redis.hset(keys.counts(), "comparisons", 10)
    await redis.xadd(keys.inbox(), {"sealed": b"x"})
    monkeypatch.setattr(room, "statvfs", lambda _: os.statvfs_result((4096, 4096, *[60_000] * 8)))
    assert await due_tasks(redis, settings) == ["ingest"]
    assert await current(redis) is None
    shown = await loop.loop_state(redis)
    assert shown["no_room"] == "234 MiB of disk are free, learning needs 1024"
    assert next_round(shown, settings.learning) == f"when there is room: {shown['no_room']}"
    assert 0 < await redis.ttl(keys.no_room()) <= 6
    monkeypatch.undo()
    room.room_of.cache_clear()
    await due_tasks(redis, settings)
    assert await current(redis) == "the loop: 10 new comparisons"
