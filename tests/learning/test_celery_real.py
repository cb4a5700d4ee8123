"""The loop with a real worker, a real beat and a real Redis, each of them killed in turn.

The stages are tiny children (tests/learning/stages); all around them is what production runs.
"""

import asyncio
import json
import os
import re
import signal
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from celery import Celery

from core import keys, lease, loop, registry
from core.keyring import Keyring
from core.records import STAGES
from core.redis_client import connect, redis_url
from core.versions import verify
from learning.rounds.child import last_line
from learning.worker.tasks import configuration
from tests.conftest import eventually
from tests.learning.loop_rig import WAIT, furnish, is_alive, kill, make_rig, vote_on_all

pytestmark = pytest.mark.slow

NO_VOTES = {"evaluation": {"votes_wait_seconds": 0}}


@asynccontextmanager
async def rigged(state_dir, **learning):
    rig = make_rig(state_dir, **learning)
    try:
        async with connect(redis_url(rig.settings)) as redis:
            await furnish(rig, redis)
            yield rig, redis
    finally:
        rig.stop_all()
        rig.server.kill()


async def request(redis, stages=STAGES):
    return await loop.request_run(redis, stages=stages, wanted_by="a test")


async def ended(redis, run, *, seconds=WAIT):
    async def over():
        found = await loop.get_run(redis, run.id)
        return found if found.finished_at is not None else None

    return await eventually(over, seconds=seconds, every=0.1)


async def begun(rig, run, stage, *, starts=1, fraction=0.0):
    """The last start of a stage, once it is so far."""

    def so_far():
        noted = rig.starts(run.id, stage)
        path = rig.folders.stage(run.id, stage) / "progress.json"
        if len(noted) < starts or not path.exists():
            return None
        return noted[-1] if json.loads(path.read_text())["fraction"] >= fraction else None

    return await eventually(so_far, seconds=WAIT)


async def versions(redis):
    return [card.version for card in await registry.cards(redis)]


async def test_a_whole_round_is_voted_on_published_and_promoted(state_dir):
    async with rigged(state_dir) as (rig, redis):
        worker = rig.start("worker")
        for _ in range(2):
            rig.start("beat")
        await redis.hset(keys.counts(), "comparisons", 500)  # a round is due: nobody asks for it
        run = await eventually(lambda: loop.current_run(redis), seconds=WAIT)
        voted = await eventually(lambda: vote_on_all(redis, rig.settings), seconds=WAIT)
        run = await ended(redis, run)
        assert (run.outcome, run.version, run.parent) == ("promoted", "v0001", "v0000")
        assert voted == 16
        assert "held-out raters preferred it in 87.5% of 16 comparisons" in run.reason
        assert [run.states[stage].fraction for stage in STAGES] == [1.0] * 6
        assert all(len(rig.starts(run.id, s)) == 1 for s in ("reward_model", "policy", "evaluate"))
        assert len(await loop.list_runs(redis)) == 1
        assert await registry.target(redis) == "v0001"
        assert (await loop.read_notes(redis)).consumed == 500
        await check_card(rig, redis, run)
        check_child(rig, run)
        assert "libtorch" not in Path(f"/proc/{worker.pid}/maps").read_text()
        assert rig.server.password not in rig.said("worker") + rig.said("beat")


async def check_card(rig, redis, run):
    card = await registry.card(redis, "v0001")
    public_key = Keyring(rig.state_dir / "secrets").public_key()
    parent = rig.folders.policy("v0000")
    verify(rig.folders.policy("v0001"), card, like=parent, public_key=public_key)
    assert (card.parent, card.kind, card.anchor) == ("v0000", "ppo-ptx", "v0000")
    assert (card.reward_model, card.data["run"]) == ("rm0001", run.id)
    assert card.data["prompts"] == 16
    assert card.gate["passed"]
    assert card.gate["attempt"] == 1
    rate = card.figures["win_rate_vs_parent"]
    assert (rate["value"], rate["users"]) == (0.875, 8)
    assert rate["interval"][0] <= 0.875 <= rate["interval"][1]
    assert card.figures["win_rate_vs_sft"] == rate
    assert card.figures["kl_to_anchor"] == 2.0
    assert card.compatible["engine_checksums"] == {"layer.weight": "abc"}
    assert card.algorithm["policy"]["kl_coef"] == rig.settings.learning.policy.kl_coef
    assert await redis.hgetall(keys.policy_checksums("v0001")) == {b"layer.weight": b"abc"}
    assert (rig.folders.reward_models / "rm0001" / "model.safetensors").exists()


def check_child(rig, run):
    (start,) = rig.starts(run.id, "policy")
    assert start["policy"] == os.SCHED_IDLE
    assert not [n for n in start["environ"] if "INSTRUCTLOOP" in n or "API_KEY" in n]
    assert "GOMP_SPINCOUNT" in start["environ"]
    assert "100.0% step 10" in rig.log(run.id, "policy")
    assert last_line(rig.folders.stage(run.id, "gate")).endswith("done")
    assert [stage for stage, _ in rig.folders.logs(run.id)] == list(STAGES)


async def test_killing_child_worker_and_redis_in_turn_ends_in_one_version(state_dir):
    async with rigged(state_dir, **NO_VOTES) as (rig, redis):
        rig.script(reward_model={"seconds": 3}, policy={"seconds": 3}, evaluate={"seconds": 3})
        worker = rig.start("worker")
        rig.start("beat")
        run = await request(redis)
        kill((await begun(rig, run, "reward_model", fraction=0.3))["pid"])
        again = await begun(rig, run, "reward_model", starts=2)
        assert is_alive(again["pid"])
        child = await begun(rig, run, "policy", fraction=0.3)
        worker.kill()
        worker.wait()
        await eventually(lambda: not is_alive(child["pid"]))
        rig.start("worker")
        await begun(rig, run, "evaluate", fraction=0.3)
        rig.server.kill()
        await asyncio.sleep(1.0)
        rig.server.start()
        async with connect(redis_url(rig.settings)) as redis_again:
            run = await ended(redis_again, run)
            assert (run.outcome, run.version) == ("promoted", "v0001")
            assert await versions(redis_again) == ["v0000", "v0001"]
        assert [len(rig.starts(run.id, s)) for s in ("reward_model", "policy")] == [2, 2]
        for stage in ("reward_model", "policy"):
            assert "begins at step 0" in rig.log(run.id, stage)
            assert any(f"begins at step {n}" in rig.log(run.id, stage) for n in range(2, 10))
        assert "killed (SIGKILL)" in rig.log(run.id, "reward_model")


async def test_a_redis_that_stays_away_longer_than_the_lease_costs_only_time(state_dir):
    async with rigged(state_dir, **NO_VOTES) as (rig, redis):
        rig.script(policy={"seconds": 25})
        rig.start("worker")
        rig.start("beat")
        run = await request(redis)
        child = await begun(rig, run, "policy", fraction=0.1)
        rig.server.kill()
        await eventually(lambda: not is_alive(child["pid"]), seconds=WAIT)
        rig.script()
        rig.server.start()
        async with connect(redis_url(rig.settings)) as redis_again:
            run = await ended(redis_again, run)
            assert run.outcome == "promoted"
            assert await versions(redis_again) == ["v0000", "v0001"]
        assert len(rig.starts(run.id, "policy")) == 2


async def test_ticks_go_on_soon_after_a_redis_that_was_long_away_is_back(state_dir):
    async with rigged(state_dir) as (rig, redis):
        worker, beat = rig.start("worker"), rig.start("beat")
        await eventually(lambda: loop.worker_alive(redis), seconds=WAIT)
        rig.server.kill()

        def pauses() -> list[float]:
            """What the worker said that it waits before it looks for Redis again."""
            return [float(s) for s in re.findall(r"Trying again in ([\d.]+)", rig.said("worker"))]

        await eventually(lambda: len(pauses()) > 8, seconds=60)
        assert max(pauses()) <= 2.0
        rig.server.start()
        async with connect(redis_url(rig.settings)) as redis_again:
            await redis_again.hdel(keys.loop(), "ticked_at")
            await redis_again.xadd(keys.inbox(), {"sealed": b"x"})
            await eventually(lambda: loop.worker_alive(redis_again), seconds=WAIT)
            await eventually(lambda: entries_read(redis_again), seconds=WAIT)
        assert (worker.poll(), beat.poll()) == (None, None)


async def entries_read(redis):
    """How many entries of the inbox ingest has taken up."""
    groups = await redis.xinfo_groups(keys.inbox())
    return groups[0]["pending"] if groups else 0


async def test_sigterm_makes_the_stage_checkpoint_and_a_new_worker_goes_on(state_dir):
    async with rigged(state_dir, **NO_VOTES) as (rig, redis):
        rig.script(policy={"seconds": 5})
        worker = rig.start("worker")
        rig.start("beat")
        run = await request(redis)
        child = await begun(rig, run, "policy", fraction=0.2)
        worker.send_signal(signal.SIGTERM)
        await eventually(lambda: worker.poll() is not None, seconds=WAIT)
        assert not is_alive(child["pid"])
        assert not await lease.is_held(redis)
        rig.script()
        rig.start("worker")
        assert (await ended(redis, run)).outcome == "promoted"
        assert (await loop.get_run(redis, run.id)).states["policy"].attempts == 2
        assert "begins at step 0" in rig.log(run.id, "policy")
        assert len(rig.starts(run.id, "policy")) == 2


async def test_two_workers_two_beats_and_stray_messages_run_each_stage_once(state_dir):
    async with rigged(state_dir, **NO_VOTES) as (rig, redis):
        rig.script(policy={"seconds": 3})
        for role in ("worker", "worker", "beat", "beat"):
            rig.start(role)
        run = await request(redis)
        await begun(rig, run, "policy", fraction=0.1)
        for _ in range(20):
            send_stray(rig)
        run = await ended(redis, run)
        assert run.outcome == "promoted"
        assert all(len(rig.starts(run.id, s)) == 1 for s in ("reward_model", "policy", "evaluate"))
        assert await versions(redis) == ["v0000", "v0001"]


def send_stray(rig):
    """A message as a redelivery would bring it, from a producer of our own."""
    app = Celery("stray", set_as_current=False)
    app.conf.update(configuration(rig.settings))
    app.send_task("run_stage")
    app.close()


async def test_a_worker_that_was_stopped_and_wakes_up_publishes_nothing(state_dir):
    async with rigged(state_dir, **NO_VOTES) as (rig, redis):
        rig.script(policy={"seconds": 4})
        sleeper = rig.start("worker")
        rig.start("beat")
        run = await request(redis)
        child = await begun(rig, run, "policy", fraction=0.1)
        kill(sleeper.pid, signal.SIGSTOP)
        rig.start("worker")
        run = await ended(redis, run)
        assert (run.outcome, run.version) == ("promoted", "v0001")
        # the child went on alone, and the second worker waited for it instead of starting another
        assert [start["pid"] for start in rig.starts(run.id, "policy")] == [child["pid"]]
        kill(sleeper.pid, signal.SIGCONT)
        refused = "is not this worker's any more"
        await eventually(lambda: refused in rig.said("worker"), seconds=WAIT)
        assert await loop.get_run(redis, run.id) == run
        assert await versions(redis) == ["v0000", "v0001"]


async def test_a_cancelled_run_ends_even_when_its_stage_does_not_listen(state_dir):
    async with rigged(state_dir, **NO_VOTES) as (rig, redis):
        rig.script(policy={"seconds": 300, "ignore_sigterm": True})
        rig.start("worker")
        rig.start("beat")
        run = await request(redis)
        child = await begun(rig, run, "policy")
        assert (await loop.cancel(redis, run.id)).outcome == "running"
        run = await ended(redis, run)
        assert (run.outcome, run.reason) == ("cancelled", "cancelled by hand")
        assert not is_alive(child["pid"])
        assert await versions(redis) == ["v0000"]
        assert (await loop.read_notes(redis)).consumed == 0
        rig.script()
        assert (await ended(redis, await request(redis))).outcome == "promoted"


async def test_a_paused_loop_starts_no_round_until_it_is_resumed(state_dir):
    async with rigged(state_dir, **NO_VOTES) as (rig, redis):
        await loop.pause(redis)
        await redis.hset(keys.counts(), "comparisons", 5000)
        rig.start("worker")
        rig.start("beat")
        await eventually(lambda: loop.worker_alive(redis), seconds=WAIT)
        seen = float(await redis.hget(keys.loop(), "ticked_at"))

        async def ticks_went_by():
            return float(await redis.hget(keys.loop(), "ticked_at")) > seen + 2

        await eventually(ticks_went_by, seconds=WAIT)
        assert await loop.list_runs(redis) == []
        await loop.resume(redis)
        run = await eventually(lambda: loop.current_run(redis), seconds=WAIT)
        assert run.wanted_by == "the loop: 5000 new comparisons"


async def test_a_stage_that_always_fails_ends_the_run_with_the_reason(state_dir):
    async with rigged(state_dir, **NO_VOTES) as (rig, redis):
        rig.script(reward_model={"fail_times": 9})
        rig.start("worker")
        rig.start("beat")
        run = await request(redis)
        await begun(rig, run, "reward_model", starts=2)
        await redis.hset(keys.loop(), "retry_at", 0)  # the second delay is long

        async def third_try():
            await redis.hset(keys.loop(), "retry_at", 0)
            return len(rig.starts(run.id, "reward_model")) == 3

        await eventually(third_try, seconds=WAIT, every=0.5)
        run = await ended(redis, run)
        assert run.outcome == "failed"
        assert "reward_model failed 3 times" in run.reason
        assert "this attempt was to fail" in run.reason
        assert "play.py:" in rig.log(run.id, "reward_model")
        assert (await loop.read_notes(redis)).consumed == 0


async def test_a_stage_that_finds_too_little_data_ends_the_run_with_its_words(state_dir):
    async with rigged(state_dir, **NO_VOTES) as (rig, redis):
        rig.script(reward_model={"refuse": "12 comparisons, 100 are needed"})
        await redis.hset(keys.counts(), "comparisons", 12)
        rig.start("worker")
        rig.start("beat")
        run = await ended(redis, await request(redis))
        assert (run.outcome, run.reason) == ("not_enough_data", "12 comparisons, 100 are needed")
        assert (await loop.read_notes(redis)).consumed == 12
        assert await versions(redis) == ["v0000"]


async def test_beat_adds_no_ticks_to_a_queue_that_nobody_empties(state_dir):
    async with rigged(state_dir) as (rig, redis):
        beat = rig.start("beat")
        queue = f"{keys.PREFIX}broker:control"
        async with connect(redis_url(rig.settings, database=1)) as broker:
            await eventually(lambda: broker.llen(queue), seconds=WAIT)
            await broker.lpush(queue, *(["{}"] * 20))
            before = await broker.llen(queue)
            await asyncio.sleep(2.5)
            assert await broker.llen(queue) == before
        assert beat.poll() is None
