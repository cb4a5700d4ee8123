"""Steps of a run, each cut short at every command of Redis: one version, the right outcome.

Stages are real child processes (tests/learning/stages); Redis is real, and so are the kills, as
far as a test can have them: an exception that nothing catches, and a lease that runs out.
"""

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager

import pytest

from core import keys, lease, loop, registry, room
from core.keyring import Keyring
from core.lineage import read_ids
from core.records import SFT_STAGES, STAGES
from core.redis_client import connect
from core.setting_groups import RetentionSettings
from core.versions import weights_sha256
from learning.reward_model.labeling_worth import read_disagreement
from learning.rounds import judging, runner
from learning.rounds.publish import reward_model_cards
from learning.rounds.runner import advance, run_inline
from learning.rounds.work import Work
from tests.conftest import eventually
from tests.learning.loop_rig import Rig, furnish, kill

pytestmark = pytest.mark.slow
QUICK = {"evaluation": {"votes_wait_seconds": 0}, "idle_priority": False}


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


class Fate:
    """When the user of a client is killed: at the nth command, before or after it is done."""

    def __init__(self, at, *, after):
        self.at, self.after, self.count = at, after, 0

    @property
    def struck(self):
        return self.count >= self.at


@asynccontextmanager
async def mortal(url, fate):
    """A client whose user dies as fate wills."""
    async with connect(url) as client:
        live = client.execute_command

        async def execute_command(*args, **options):
            fate.count += 1
            if fate.count == fate.at and not fate.after:
                raise Killed
            reply = await live(*args, **options)
            if fate.count == fate.at:
                raise Killed
            return reply

        client.execute_command = execute_command
        yield client


async def advance_until_killed(rig, redis, fate):
    """One step, cut short; the lease of the dead runs out."""
    try:
        async with mortal(rig.server.url, fate) as client:
            await advance(work(rig, client))
    except Killed:
        await redis.delete(keys.learning_lease())


@pytest.fixture
async def rig(state_dir, shared_redis, redis):
    rig = Rig(state_dir, shared_redis, learning=dict(QUICK))
    rig.script(
        **{stage: {"seconds": 0.02} for stage in ("sft", "reward_model", "policy", "evaluate")}
    )
    await furnish(rig, redis)
    return rig


def work(rig, redis, *, stopping=lambda: False):
    return Work(
        redis=redis,
        redis_url=rig.server.url,
        settings=rig.settings,
        keyring=Keyring(rig.state_dir / "secrets"),
        folders=rig.folders,
        stopping=stopping,
    )


async def finish(rig, redis, run):
    """Go on with a run until it is over, as ticks would."""
    while (run := await loop.get_run(redis, run.id)).finished_at is None:
        await redis.hset(keys.loop(), "retry_at", 0)
        await advance(work(rig, redis))
    return run


async def request(redis, *stages):
    return await loop.request_run(redis, stages=stages or STAGES, wanted_by="a test")


async def versions(redis):
    return [card.version for card in await registry.cards(redis)]


async def test_a_round_ends_promoted_and_later_rounds_start_from_it(rig, redis):
    first = await finish(rig, redis, await request(redis))
    assert (first.outcome, first.version, first.parent) == ("promoted", "v0001", "v0000")
    assert "stand in" in first.reason
    second = await finish(rig, redis, await request(redis))
    assert (second.outcome, second.version, second.parent) == ("promoted", "v0002", "v0001")
    told = json.loads((rig.folders.stage(second.id, "policy") / "stage.json").read_text())
    assert told["anchor"] == str(rig.folders.policy("v0000"))
    assert told["parent"] == str(rig.folders.policy("v0001"))
    card = await registry.card(redis, "v0002")
    assert (card.parent, card.anchor, card.reward_model) == ("v0001", "v0000", "rm0002")
    over_anchor = card.figures["win_rate_vs_sft"]
    assert (over_anchor["judge"], over_anchor["value"]) == ("reward model", 0.875)
    assert "to the anchor in 87.5%" in second.reason
    assert (card.figures["retention"], card.figures["over_optimised"]) == ("kept", False)
    assert [one["suite"] for one in card.figures["regressions"]] == ["basics"]
    told = json.loads((rig.folders.stage(second.id, "evaluate") / "stage.json").read_text())
    assert (told["attempt"], told["gate"]["min_users"]) == (1, 5)
    told = json.loads((rig.folders.stage(second.id, "reward_model") / "stage.json").read_text())
    assert told["anchor"] == str(rig.folders.policy("v0000"))
    assert not list(rig.folders.run(second.id).glob("*/checkpoint*"))
    assert await read_disagreement(redis, ["somebody-asked"]) == {"somebody-asked": 0.125}


async def test_a_gate_cut_short_at_any_command_still_ends_in_one_promoted_version(rig, redis):
    """Every command of Redis in the gate's step, killed before and after it is done."""
    run = await request(redis)
    while (await loop.get_run(redis, run.id)).stage != "gate":
        await advance(work(rig, redis))
    for cut in itertools.count():
        fate = Fate(cut // 2 + 1, after=bool(cut % 2))
        await advance_until_killed(rig, redis, fate)
        finished = await finish(rig, redis, run)
        there = await versions(redis)
        assert (finished.outcome, finished.version) == ("promoted", there[-1])
        assert len(there) == cut + 2
        assert await registry.target(redis) == finished.version
        assert sorted(path.name for path in rig.folders.policies.iterdir()) == there
        if not fate.struck:
            break
        run = await another_gate(rig, redis, finished)
    assert cut > 40


async def another_gate(rig, redis, finished):
    """A new run that stands before its gate, made of what the finished one had."""
    run = await request(redis)
    for path in rig.folders.run(finished.id).iterdir():
        target = rig.folders.run(run.id) / path.name
        target.parent.mkdir(exist_ok=True)
        if path.name == "sources.json":
            target.write_text(path.read_text().replace(finished.id, run.id))
        elif path.name != "gate":
            path.rename(target)
    token = await lease.take(redis)
    states = {name: state for name, state in finished.states.items() if name != "gate"}
    run = run.model_copy(update={"stage": "gate", "states": states})
    await loop.save_run(redis, run, fencing_token=token)
    await lease.drop(redis, token)
    return run


@pytest.mark.parametrize("stage", ["snapshot", "reward_model"])
async def test_other_steps_cut_short_at_any_command_are_taken_up(rig, redis, stage):
    for cut in itertools.count():
        run = await request(redis)
        while (await loop.get_run(redis, run.id)).stage != stage:
            await advance(work(rig, redis))
        fate = Fate(cut + 1, after=bool(cut % 2))
        await advance_until_killed(rig, redis, fate)
        while (await loop.get_run(redis, run.id)).stage == stage:
            await advance(work(rig, redis))
        assert (await loop.get_run(redis, run.id)).states[stage].fraction == 1.0
        kept = [card.run for card in reward_model_cards(rig.folders)]
        assert len(kept) == len(set(kept))
        await loop.cancel(redis, run.id)
        if not fate.struck:
            break
    assert cut > 10


async def test_parts_of_a_round_build_on_what_earlier_runs_made(rig, redis):
    learned = await finish(rig, redis, await request(redis, "snapshot", "reward_model"))
    assert learned.outcome == "passed"
    assert learned.reason == "the stages that were asked for are done"
    trained = await finish(rig, redis, await request(redis, "policy"))
    assert trained.outcome == "passed"
    assert await versions(redis) == ["v0000"]
    judged = await finish(rig, redis, await request(redis, "evaluate"))
    assert (judged.outcome, judged.stages) == ("passed", ("evaluate",))
    judged = await finish(rig, redis, await request(redis, "evaluate", "gate"))
    assert (judged.outcome, judged.version) == ("promoted", "v0001")
    card = await registry.card(redis, "v0001")
    assert (card.reward_model, card.data["snapshot"]) == ("rm0001", learned.id)


async def test_fine_tuning_gives_a_version_and_an_anchor_that_ppo_can_start_from(rig, redis):
    early = await finish(rig, redis, await request(redis, *SFT_STAGES))
    assert early.outcome == "failed"
    assert "train --stage reward-model" in early.reason
    await finish(rig, redis, await request(redis, "snapshot", "reward_model"))
    tuned = await finish(rig, redis, await request(redis, *SFT_STAGES))
    assert (tuned.outcome, tuned.version) == ("promoted", "v0001"), tuned.reason
    card = await registry.card(redis, "v0001")
    assert (card.kind, card.anchor, card.reward_model) == ("sft", "v0000", "rm0001")
    assert card.algorithm["sft"]["epochs"] == 4
    assert "policy" not in card.algorithm
    anchor = rig.folders.anchor("v0001")
    assert card.data["anchor_sha256"] == weights_sha256(anchor)

    rig.learning["anchor"] = "v0001"
    learned = await finish(rig, redis, await request(redis))
    assert (learned.outcome, learned.version) == ("promoted", "v0002"), learned.reason
    told = json.loads((rig.folders.stage(learned.id, "policy") / "stage.json").read_text())
    assert told["anchor"] == told["parent"] == str(anchor)
    told = json.loads((rig.folders.stage(learned.id, "evaluate") / "stage.json").read_text())
    assert told["parent"] == str(rig.folders.policy("v0001"))
    again = await finish(rig, redis, await request(redis))
    told = json.loads((rig.folders.stage(again.id, "policy") / "stage.json").read_text())
    assert told["parent"] == str(rig.folders.policy("v0002"))

    rig.learning["anchor"] = "v0002"
    wrong = await finish(rig, redis, await request(redis))
    assert wrong.outcome == "failed"
    assert "learning.anchor" in wrong.reason


async def test_when_a_round_ends_old_weights_and_outputs_go_but_for_what_later_rounds_need(
    rig, redis, monkeypatch
):
    small = RetentionSettings(versions=1, runs=1)
    monkeypatch.setattr(Rig, "settings", rig.settings.model_copy(update={"retention": small}))
    runs = [await finish(rig, redis, await request(redis)) for _ in range(4)]
    assert [run.outcome for run in runs] == ["promoted"] * 4
    held = sorted(path.parent.name for path in rig.folders.policies.glob("*/*.safetensors"))
    assert held == ["v0000", "v0003", "v0004"]
    assert await registry.collected(redis) == {"v0001", "v0002"}
    models = sorted(path.parent.name for path in rig.folders.reward_models.glob("*/*.safetensors"))
    assert models == ["rm0003", "rm0004"]
    assert [(rig.folders.out(run.id, "policy") / "model").exists() for run in runs] == [
        False, False, False, True,
    ]  # fmt: skip
    assert all("done" in rig.log(run.id, "policy") for run in runs)
    judged = await finish(rig, redis, await request(redis, "evaluate", "gate"))
    assert (judged.outcome, judged.version) == ("promoted", "v0004"), judged.reason
    policy = await finish(rig, redis, await request(redis, "policy"))
    assert policy.outcome == "passed", policy.reason


async def test_a_candidate_that_is_judged_again_keeps_its_version(rig, redis):
    first = await finish(rig, redis, await request(redis))
    await registry.rollback(redis, who="ops", why="complaints")
    again = await finish(rig, redis, await request(redis, "evaluate", "gate"))
    assert again.version == first.version == "v0001"
    assert again.outcome == "passed"
    assert "was rolled back" in again.reason
    assert await versions(redis) == ["v0000", "v0001"]
    assert await registry.target(redis) == "v0000"


async def test_a_stage_with_nothing_to_build_on_fails_at_once_with_the_reason(rig, redis):
    run = await finish(rig, redis, await request(redis, "policy"))
    assert run.outcome == "failed"
    assert "train --stage reward-model" in run.reason


async def test_a_round_whose_regression_suite_is_none_ends_before_it_computes(rig, redis):
    path = rig.state_dir / "mine.jsonl"
    path.write_text('{"prompt": "a"}')
    rig.learning["gate"] = {"suites": [str(path)]}
    run = await finish(rig, redis, await request(redis))
    assert run.outcome == "failed"
    assert f"{path}, line 1" in run.reason
    assert run.states["snapshot"].attempts == 1
    assert not any(rig.starts(run.id, stage) for stage in STAGES)
    rig.script(reward_model={"seconds": 0.02})
    alone = await finish(rig, redis, await request(redis, "snapshot", "reward_model"))
    assert alone.outcome == "passed"  # nobody would ask the suite


async def test_manual_promotion_leaves_the_live_version_alone(rig, redis):
    rig.promotion = "manual"
    run = await finish(rig, redis, await request(redis))
    assert (run.outcome, run.version) == ("passed", "v0001")
    assert "policies promote v0001" in run.reason
    assert await registry.target(redis) == "v0000"


async def test_a_refused_candidate_is_a_version_too(rig, redis):
    gate = {"min_users": 5, "min_win_rate": 0.95, "bootstrap_samples": 500}
    rig.learning["gate"] = gate | {"require_votes": False}
    run = await finish(rig, redis, await request(redis))
    assert (run.outcome, run.version) == ("refused", "v0001")
    assert not (await registry.card(redis, "v0001")).gate["passed"]
    assert await registry.target(redis) == "v0000"
    await registry.promote(redis, "v0001", who="ops", why="I like it")


async def test_too_few_users_are_not_enough_data_and_say_so(rig, redis):
    rig.learning["gate"] = {"min_users": 40}
    run = await finish(rig, redis, await request(redis))
    assert run.outcome == "not_enough_data"
    assert "too few users" in run.reason
    assert (await registry.card(redis, "v0001")).gate["verdict"] == "not_enough_data"


async def test_without_a_first_policy_the_run_fails_with_what_to_do(rig, redis):
    await redis.delete(keys.target())
    run = await finish(rig, redis, await request(redis))
    assert run.outcome == "failed"
    assert "instructloop up" in run.reason


async def test_feedback_that_trained_says_which_version_came_of_it(rig, redis, monkeypatch):
    marked = []

    async def mark_used(_redis, ids, version):
        marked.extend((feedback_id, version) for feedback_id in ids)

    trained_on = {"f1": "ranking", "f2": "rating"}
    monkeypatch.setattr(judging, "feedback_trained_on", lambda _snapshot: trained_on)
    monkeypatch.setattr(judging.store, "mark_used", mark_used)
    await finish(rig, redis, await request(redis))
    assert marked == [("f1", "v0001"), ("f2", "v0001")]
    card = await registry.card(redis, "v0001")
    assert card.data["feedback_kinds"] == {"ranking": 1, "rating": 1}
    assert read_ids(rig.folders.policy("v0001"), card) == ["f1", "f2"]


async def test_two_workers_at_once_do_one_step_between_them(rig, redis):
    await request(redis)
    steps = await asyncio.gather(*(advance(work(rig, redis)) for _ in range(4)))
    assert sorted(steps) == ["busy", "busy", "busy", "moved"]


async def test_a_process_that_is_ending_starts_no_stage(rig, redis):
    run = await request(redis)
    assert await advance(work(rig, redis, stopping=lambda: True)) == "waiting"
    assert (await loop.get_run(redis, run.id)).states == {}


async def test_a_run_without_a_worker_is_run_to_its_end_here(rig, redis):
    run = await request(redis)
    finished = await asyncio.to_thread(in_main_thread_of_a_child, rig)
    assert finished.returncode == 0, finished.stderr
    assert (await loop.get_run(redis, run.id)).outcome == "promoted"


INLINE = (
    "import json, sys; from core.settings import Settings;"
    "from learning.rounds.runner import run_inline;"
    "run = run_inline(Settings(**json.loads(sys.argv[1]))); print(run.outcome)"
)


def inline_command(rig):
    settings = rig.settings.model_copy(update={"redis_url": rig.server.url})
    return [sys.executable, "-c", INLINE, settings.model_dump_json(exclude_defaults=True)]


def in_main_thread_of_a_child(rig):
    return subprocess.run(inline_command(rig), capture_output=True, text=True, check=False)


async def test_ctrl_c_while_running_here_checkpoints_and_the_next_one_goes_on(rig, redis):
    rig.script(policy={"seconds": 20})
    run = await request(redis)
    here = subprocess.Popen(inline_command(rig), stdout=subprocess.PIPE, text=True)
    await eventually(lambda: rig.starts(run.id, "policy"), seconds=30)
    await eventually(lambda: (rig.folders.stage(run.id, "policy") / "checkpoint").exists())
    kill(here.pid, signal.SIGINT)
    said, _ = await asyncio.to_thread(here.communicate)
    assert said == "running\n"
    assert not await lease.is_held(redis)
    (start,) = rig.starts(run.id, "policy")
    assert not os.path.exists(f"/proc/{start['pid']}")
    rig.script()
    assert (await finish(rig, redis, run)).outcome == "promoted"


def test_running_here_with_nothing_to_run_is_no_error(rig):
    assert run_inline(rig.settings.model_copy(update={"redis_url": rig.server.url})) is None


async def test_a_stage_waits_for_room_on_the_disk_and_may_be_cancelled_meanwhile(
    rig, redis, monkeypatch
):
    run = await request(redis, "sft")
    monkeypatch.setattr(room, "statvfs", lambda _: os.statvfs_result((4096, 4096, *[1] * 8)))
    assert await advance(work(rig, redis)) == "waiting"
    seen = await loop.get_run(redis, run.id)
    assert seen.states[seen.stage].message == "0 MiB of disk are free, learning needs 1024"
    assert seen.states[seen.stage].attempts == 0
    await redis.hset(keys.loop(), mapping={"cancel": run.id, "retry_at": 0})
    assert await advance(work(rig, redis)) == "over"
    monkeypatch.undo()
    room.room_of.cache_clear()
    run = await request(redis, "sft")
    assert await advance(work(rig, redis)) != "waiting"
    run = await loop.get_run(redis, run.id)
    assert run.states[run.stages[0]].attempts == 1


async def test_a_stage_that_waits_for_room_makes_what_room_it_may(rig, redis, monkeypatch):
    free, collected = {"mib": 9}, []

    async def collect(work, lease):
        collected.append(free["mib"])

    def statvfs(_):
        return os.statvfs_result((4096, 4096, *[free["mib"] * 256] * 8))

    monkeypatch.setattr(runner, "collect", collect)
    monkeypatch.setattr(room, "statvfs", statvfs)
    monkeypatch.setattr(room, "_LOOK_SECONDS", 0.0)
    await request(redis, "sft")
    for mib in (9, 9, 8, 8):
        free["mib"] = mib
        await redis.hset(keys.loop(), "retry_at", 0)
        assert await advance(work(rig, redis)) == "waiting"
    assert collected == [9, 8]  # again only when something has changed


async def test_a_disk_that_fills_under_a_stage_stops_it_at_a_checkpoint_and_it_goes_on_later(
    rig, redis, monkeypatch
):
    rig.script(reward_model={"seconds": 4})
    run = await request(redis, "snapshot", "reward_model")
    assert await advance(work(rig, redis)) == "moved"
    step = asyncio.create_task(advance(work(rig, redis)))
    checkpoint = rig.folders.stage(run.id, "reward_model") / "checkpoint"
    await eventually(checkpoint.exists, seconds=30)
    monkeypatch.setattr(room, "statvfs", lambda _: os.statvfs_result((4096, 4096, *[1] * 8)))
    assert await step == "waiting"
    seen = await loop.get_run(redis, run.id)
    assert seen.states["reward_model"].message.startswith("0 MiB of disk are free")
    assert "goes on from its checkpoint" in seen.states["reward_model"].message
    done = int(checkpoint.read_text())
    monkeypatch.undo()
    room.room_of.cache_clear()
    rig.script()
    assert (await finish(rig, redis, run)).outcome == "passed"
    first, second = rig.starts(run.id, "reward_model")
    assert done >= 1
    assert first["pid"] != second["pid"]
