"""Runs and the brakes, on a real Redis."""

import asyncio

import pytest

from core import keys, lease, loop
from core.errors import Conflict, LeaseLost, NotFound
from core.records import STAGES, StageState


async def request(redis, *stages):
    return await loop.request_run(redis, stages=stages or STAGES, wanted_by="a test")


async def test_two_requests_at_once_give_one_run_and_one_conflict(redis):
    answers = await asyncio.gather(*(request(redis) for _ in range(8)), return_exceptions=True)
    runs = [answer for answer in answers if not isinstance(answer, Exception)]
    assert len(runs) == 1
    assert all(isinstance(a, Conflict) for a in answers if isinstance(a, Exception))
    assert (await loop.current_run(redis)).id == runs[0].id
    assert [run.id for run in await loop.list_runs(redis)] == [runs[0].id]


async def test_a_paused_loop_takes_no_run_until_it_is_resumed(redis):
    await loop.pause(redis)
    assert await loop.is_paused(redis)
    with pytest.raises(Conflict, match="paused"):
        await request(redis)
    assert await loop.current_run(redis) is None
    await loop.resume(redis)
    assert (await request(redis)).outcome == "running"


async def test_pausing_leaves_the_current_run_alone(redis):
    run = await request(redis)
    await loop.pause(redis)
    assert (await loop.current_run(redis)).id == run.id


async def test_a_round_remembers_how_many_comparisons_it_began_with(redis):
    await redis.hset(keys.counts(), "comparisons", 321)
    run = await request(redis)
    notes = await loop.read_notes(redis)
    assert run.comparisons == notes.tried == 321
    assert notes.consumed == 0
    assert notes.last_round == pytest.approx(run.created_at)


async def test_a_run_without_a_reward_model_is_no_round(redis):
    await redis.hset(keys.counts(), "comparisons", 321)
    await request(redis, "policy")
    notes = await loop.read_notes(redis)
    assert (notes.tried, notes.last_round) == (0, None)


async def test_a_stale_token_writes_nothing_to_a_run(redis):
    run = await request(redis)
    stale = await lease.take(redis, seconds=0.02)
    await asyncio.sleep(0.05)
    await lease.take(redis)
    changed = run.model_copy(update={"version": "v0009"})
    with pytest.raises(LeaseLost):
        await loop.save_run(redis, changed, fencing_token=stale, remember={"consumed": 9})
    assert await loop.get_run(redis, run.id) == run
    assert (await loop.read_notes(redis)).consumed == 0


async def test_a_run_that_is_over_is_never_written_again_and_makes_room(redis):
    run = await request(redis)
    token = await lease.take(redis)
    over = loop.ended(run, "passed", "enough", now=2.0)
    await redis.hset(keys.loop(), mapping={"cancel": run.id, "failures": 2, "retry_at": 3.5})
    await loop.save_run(redis, over, fencing_token=token, remember={"consumed": 5})
    notes = await loop.read_notes(redis)
    assert (notes.cancel, notes.failures, notes.retry_at, notes.consumed) == ("", 0, 0.0, 5)
    with pytest.raises(LeaseLost):
        await loop.save_run(redis, run, fencing_token=token)
    assert await loop.get_run(redis, run.id) == over
    assert (await request(redis)).id != run.id


async def test_cancelling_without_a_worker_ends_the_run_here(redis):
    run = await request(redis)
    assert (await loop.cancel(redis, run.id)).outcome == "cancelled"
    assert await loop.current_run(redis) is None
    assert not await lease.is_held(redis)
    with pytest.raises(Conflict, match="over already"):
        await loop.cancel(redis, run.id)


async def test_cancelling_beside_a_worker_leaves_the_end_to_it(redis):
    run = await request(redis)
    await loop.heartbeat(redis)
    assert (await loop.cancel(redis, run.id)).outcome == "running"
    assert (await loop.read_notes(redis)).cancel == run.id


async def test_an_unknown_run_is_not_found(redis):
    with pytest.raises(NotFound):
        await loop.cancel(redis, "r-unknown")


async def test_a_worker_is_alive_for_seconds_after_a_tick(redis):
    assert not await loop.worker_alive(redis)
    await loop.heartbeat(redis)
    assert await loop.worker_alive(redis)
    seconds, _ = await redis.time()
    await redis.hset(keys.loop(), "ticked_at", seconds - loop.WORKER_SILENCE_SECONDS - 1)
    assert not await loop.worker_alive(redis)


async def test_the_state_shows_the_newest_end_of_every_stage(redis):
    await redis.hset(keys.counts(), "comparisons", 40)
    for consumed, accuracy in ((10, 0.6), (30, 0.7)):
        run = await request(redis, "snapshot", "reward_model")
        token = await lease.take(redis)
        state = StageState(started_at=1.0, finished_at=3.5, figures={"accuracy.test": accuracy})
        run = loop.ended(run, "passed", "", now=4.0).model_copy(
            update={"states": {"reward_model": state}}
        )
        await loop.save_run(redis, run, fencing_token=token, remember={"consumed": consumed})
        await lease.drop(redis, token)
        await asyncio.sleep(0.002)  # runs are listed by the millisecond
    shown = await loop.loop_state(redis)
    assert shown["stages"]["reward_model"]["figures"] == {"accuracy.test": 0.7}
    assert shown["stages"]["reward_model"]["seconds"] == 2.5
    assert shown["last"]["id"] == run.id
    assert (shown["new_comparisons"], shown["paused"], shown["current"]) == (10, False, None)
