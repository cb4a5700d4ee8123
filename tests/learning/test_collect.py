"""What stays of old versions and runs, decided on facts and done on a disk, killed anywhere."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import keys, registry
from core.errors import Conflict, LeaseLost
from core.keyring import Keyring
from core.policy_store import PolicyStore
from core.records import Card, Replica, Run
from core.setting_groups import RetentionSettings
from core.settings import Settings
from learning.rounds import collect as collecting
from learning.rounds.collect import collect
from learning.rounds.folders import Folders
from learning.rounds.publish import reward_model_cards
from learning.rounds.retention import Facts, decide
from learning.rounds.stage_inputs import Sources
from learning.rounds.work import Work


def card(number: int, **fields) -> Card:
    name = f"v{number:04d}"
    known = {
        "version": name,
        "parent": "v0000" if number else None,
        "created_at": "2026-01-01T00:00:00+00:00",
        "kind": "ppo-ptx" if number else "base",
        "algorithm": {},
        "data": {},
        "reward_model": f"rm{number:04d}" if number else None,
        "anchor": "v0000" if number else None,
        "weights_sha256": "0" * 64,
        "figures": {},
        "gate": {},
        "compatible": {},
    }
    return Card(**{**known, **fields})


def run(number: int, **fields) -> Run:
    """Run n made v000n out of the version before it."""
    known = {
        "id": f"r{number}",
        "stages": ("snapshot", "reward_model", "policy"),
        "outcome": "promoted",
        "created_at": float(number),
        "finished_at": number + 0.5,
        "parent": f"v{number - 1:04d}",
        "version": f"v{number:04d}",
    }
    return Run(**{**known, **fields})


def facts(count: int, **changes) -> Facts:
    """After `count` rounds, each of which was promoted."""
    numbers = range(1, count + 1)
    known = Facts(
        cards=[card(n) for n in range(count + 1)],
        target=f"v{count:04d}",
        history=[f"v{n:04d}" for n in reversed(range(count))],
        unusable=frozenset(),
        served=frozenset(),
        canary=frozenset(),
        runs=[run(n) for n in reversed(numbers)],
        sources={f"r{n}": Sources(f"r{n}", f"r{n}", f"r{n}") for n in numbers},
        outputs=frozenset((f"r{n}", s) for n in numbers for s in ("reward_model", "policy")),
        reward_models={f"rm{n:04d}": f"r{n}" for n in numbers},
    )
    return replace(known, **changes)


def keep(versions=3, runs=2, pinned=()) -> RetentionSettings:
    return RetentionSettings(versions=versions, runs=runs, pinned=pinned)


def numbers(names) -> list[int]:
    return sorted(int(name.lstrip("vrm")) for name in names)


# --- the decision ---------------------------------------------------------------------------


def test_the_live_version_some_before_it_and_the_anchor_stay():
    kept = decide(facts(9), keep())
    assert numbers(kept.versions) == [0, 6, 7, 8, 9]
    assert numbers(kept.reward_models) == [6, 7, 8, 9]
    assert numbers(kept.runs) == [8, 9]


def test_what_nobody_can_go_back_to_does_not_count_as_a_version_before():
    history = ["v0008", "v0009", "v0007", "v0008", "v0005", "v0004", "v0003"]
    known = facts(9, history=history, unusable=frozenset({"v0007", "v0004"}))
    assert numbers(decide(known, keep(runs=1)).versions) == [0, 3, 5, 8, 9]


def test_what_serves_is_pinned_or_is_an_anchor_stays_with_its_reward_model():
    known = facts(9, served=frozenset({"v0003"}))
    cards = [card(n, anchor="v0002") if n == 4 else card(n) for n in range(10)]
    kept = decide(replace(known, cards=cards), keep(pinned=("v0004",)))
    assert numbers(kept.versions) == [0, 2, 3, 4, 6, 7, 8, 9]
    assert {"rm0003", "rm0004"} <= kept.reward_models


def test_a_refused_candidate_can_be_promoted_by_hand_for_some_rounds():
    refused = [run(n, outcome="refused", parent="v0008") for n in (11, 10, 9)]
    runs = [*refused, *facts(8).runs]
    before = {"target": "v0008", "history": ["v0007", "v0006", "v0005"]}
    known = facts(9, runs=runs[2:], **before)
    assert numbers(decide(known, keep()).versions) == [0, 5, 6, 7, 8, 9]
    known = facts(11, runs=runs, **before)
    assert numbers(decide(known, keep()).versions) == [0, 5, 6, 7, 8, 10, 11]


def test_runs_stay_on_which_others_build_or_could_build():
    judged = run(10, stages=("evaluate",))
    sources = {**facts(9).sources, "r10": Sources("r4", "r4", "r5")}
    known = facts(9, runs=[judged, *facts(9).runs], sources=sources)
    assert numbers(decide(known, keep(runs=1)).runs) == [4, 5, 9, 10]
    without = frozenset({("r2", "reward_model"), ("r3", "policy")})
    assert numbers(decide(facts(9, outputs=without), keep(runs=1)).runs) == [2, 3, 9]


def test_a_run_that_is_not_over_stays():
    runs = [r if r.id != "r2" else run(2, finished_at=None) for r in facts(9).runs]
    kept = decide(facts(9, runs=runs), keep())
    assert numbers(kept.runs) == [2, 8, 9]
    assert {"v0001", "v0002"} <= kept.versions


def test_nothing_goes_while_there_is_little():
    kept = decide(facts(3), keep())
    assert numbers(kept.versions) == [0, 1, 2, 3]
    empty = facts(0, target=None, cards=[], history=[])
    assert decide(empty, keep()).runs == frozenset()


@given(
    count=st.integers(0, 12),
    versions=st.integers(1, 4),
    runs=st.integers(1, 4),
    served=st.sets(st.integers(0, 12), max_size=2),
    target=st.integers(0, 12),
    broken=st.sets(st.integers(1, 12), max_size=4),
    canary=st.sets(st.integers(0, 12), max_size=2),
    pinned=st.sets(st.integers(0, 12), max_size=2),
    shuffled=st.randoms(),
)
def test_more_room_never_keeps_less_and_what_is_in_use_always_stays(
    count, versions, runs, served, target, broken, canary, pinned, shuffled
):
    def names(some):
        return frozenset(f"v{n:04d}" for n in some if n <= count)

    before = [f"v{n:04d}" for n in range(count + 1)]
    shuffled.shuffle(before)
    known = facts(
        count,
        served=names(served),
        target=f"v{min(target, count):04d}",
        history=before,
        unusable=names(broken),
        canary=names(canary),
    )
    pins = tuple(names(pinned))
    last_good = [v for v in before if v != known.target and v not in known.unusable][:1]
    less = decide(known, keep(versions, runs, pins))
    more = decide(known, keep(versions + 1, runs + 1, pins))
    assert less.versions <= more.versions
    assert less.runs <= more.runs
    assert less.reward_models <= more.reward_models
    needed = {known.target, "v0000", *last_good, *pins, *known.canary, *known.served}
    assert needed <= less.versions
    named = {c.reward_model for c in known.cards if c.version in less.versions and c.reward_model}
    assert named <= less.reward_models
    assert len(less.versions) <= len(needed) + versions + 2 * len(less.runs)


# --- on the disk ----------------------------------------------------------------------------


class Held:
    """A lease that is lost after so many looks."""

    token = 1

    def __init__(self, looks=10_000):
        self.looks = looks

    def check(self):
        self.looks -= 1
        if self.looks < 0:
            raise LeaseLost("somebody else has it")


class Killed(BaseException):
    """Stands for kill -9."""


def fill(folder, *files):
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


@pytest.fixture
async def work(redis, state_dir):
    """Nine rounds, with everything that they left."""
    settings = Settings(state_dir=state_dir, retention={"versions": 3, "runs": 2})
    folders = Folders.of(state_dir)
    for number, one in enumerate(facts(9).cards):
        token = await registry.acquire_fence(redis)
        await registry.publish(redis, one, fencing_token=token)
        await registry.promote(redis, one.version, who="test", why="better")
        fill(folders.policy(one.version), "model.safetensors", "tokenizer.json", "card.json")
        if number:
            await leave_behind(redis, folders, run(number), one.reward_model)
    return Work(
        redis=redis,
        redis_url="",
        settings=settings,
        keyring=Keyring(state_dir / "secrets"),
        folders=folders,
        stopping=lambda: False,
    )


async def leave_behind(redis, folders, one, reward_model):
    await redis.set(keys.run(one.id), one.model_dump_json())
    await redis.zadd(keys.runs(), {one.id: one.created_at})
    (folders.run(one.id) / "snapshot" / "out").mkdir(parents=True)
    sources = dict.fromkeys(("snapshot", "reward_model", "policy"), one.id)
    (folders.run(one.id) / "sources.json").write_text(json.dumps(sources))
    fill(folders.out(one.id, "snapshot"), "rankings.parquet", "manifest.json")
    for stage in ("reward_model", "policy"):
        fill(folders.out(one.id, stage), "model/model.safetensors", "figures.json")
        fill(folders.stage(one.id, stage), "log", "stage.json", "checkpoint/state.pt")
    fill(folders.stage(one.id, "policy"), "out.partial-7/model.safetensors", "tensorboard/events")
    kept = {"version": reward_model, "run": one.id, "created_at": "x", "anchor": "v0000"}
    kept |= {"algorithm": {}, "data": {}, "weights_sha256": "x", "figures": {}}
    fill(folders.reward_models / reward_model, "model.safetensors")
    (folders.reward_models / reward_model / "card.json").write_text(json.dumps(kept))


def names(folder):
    return {path.name for path in folder.iterdir()}


async def check_collected(work):
    """Exactly what the decision says is there, and everything that people may look up."""
    folders, redis = work.folders, work.redis
    for number in range(10):
        whole = number in (0, 6, 7, 8, 9)
        files = {"model.safetensors", "tokenizer.json", "card.json"} if whole else {"card.json"}
        assert names(folders.policy(f"v{number:04d}")) == files
        assert (await registry.card(redis, f"v{number:04d}")).version == f"v{number:04d}"
    for number in range(1, 10):
        kept = number >= 6
        files = {"model.safetensors", "card.json"} if kept else {"card.json"}
        assert names(folders.reward_models / f"rm{number:04d}") == files
        check_run(folders, f"r{number}", whole=number >= 8)
    assert len(reward_model_cards(folders)) == 9
    gone = {f"v{n:04d}" for n in range(1, 6)}
    assert await registry.collected(redis) == gone
    for version in gone:
        noted = [e["action"] for e in await registry.history(redis, version)]
        assert noted.count("weights removed") == 1


def check_run(folders, run_id, *, whole):
    policy, snapshot = folders.stage(run_id, "policy"), folders.out(run_id, "snapshot")
    assert {"log", "stage.json", "out"} <= names(policy)
    of_training = {"checkpoint", "out.partial-7", "tensorboard"}
    assert of_training & names(policy) == (of_training if whole else set())
    assert names(policy / "out") == ({"model", "figures.json"} if whole else {"figures.json"})
    tables = {"rankings.parquet", "manifest.json"} if whole else {"manifest.json"}
    assert names(snapshot) == tables


async def test_old_weights_and_outputs_go_and_cards_figures_and_logs_stay(work):
    await collect(work, Held())
    await check_collected(work)
    await collect(work, Held())
    await check_collected(work)


async def test_a_version_without_weights_is_promoted_no_more_and_rollback_passes_it_over(work):
    await collect(work, Held())
    with pytest.raises(Conflict, match="promote another version"):
        await registry.promote(work.redis, "v0003", who="test", why="best of all")
    assert await registry.target(work.redis) == "v0009"
    for version in ("v0008", "v0007", "v0006", "v0000"):
        assert await registry.rollback(work.redis, who="test", why="worse") == version
    with pytest.raises(Conflict, match="no earlier version"):
        await registry.rollback(work.redis, who="test", why="worse")


async def test_a_version_that_an_engine_says_it_serves_stays(work):
    said = Replica(name="e1", url="unix:/x", version="v0002", state="ready", seen_at=1.0)
    await work.redis.sadd(keys.replicas(), "e1", "gone")
    await work.redis.set(keys.replica("e1"), said.model_dump_json())
    await collect(work, Held())
    assert "model.safetensors" in names(work.folders.policy("v0002"))
    assert "v0002" not in await registry.collected(work.redis)


async def test_one_that_is_promoted_in_the_last_moment_keeps_its_weights(work, monkeypatch):
    known = await collecting.read_facts(work)

    async def stale(_):
        return known

    await registry.promote(work.redis, "v0003", who="test", why="best of all")
    monkeypatch.setattr(collecting, "read_facts", stale)
    await collect(work, Held())
    assert "model.safetensors" in names(work.folders.policy("v0003"))
    assert "v0003" not in await registry.collected(work.redis)


async def test_killed_at_any_removal_it_is_finished_the_next_time(work, monkeypatch):
    live = collecting._remove
    removals = []

    def mortal(path):
        removals.append(path)
        if len(removals) % 2:
            raise Killed
        live(path)

    monkeypatch.setattr(collecting, "_remove", mortal)
    for _ in range(200):
        try:
            await collect(work, Held())
        except Killed:
            continue
        break
    assert len(removals) > 50
    await check_collected(work)


async def test_a_worker_that_lost_its_lease_removes_nothing_more(work):
    with pytest.raises(LeaseLost):
        await collect(work, Held(looks=3))
    assert await registry.collected(work.redis) == {"v0001", "v0002"}
    assert "model.safetensors" in names(work.folders.policy("v0003"))
    await collect(work, Held())
    await check_collected(work)


async def test_what_is_kept_for_other_machines_goes_too_and_what_nobody_registered(work, tmp_path):
    work = replace(
        work, settings=work.settings.model_copy(update={"policies_url": str(tmp_path / "kept")})
    )
    store = PolicyStore(work.folders.policies, work.settings.policies_url)
    for version in ("v0002", "v0009"):
        prefix = store.put(version, token=3)
        await work.redis.hset(keys.policy_prefixes(), version, prefix)
    store.put("v0002", token=2)  # its worker was stopped before the registry knew of it
    store.put("v0009", token=50)  # is being written now
    lease = Held()
    lease.token = 9
    await collect(work, lease)
    assert store.prefixes() == ["v0002-3", "v0009-3", "v0009-50"]
    assert names(tmp_path / "kept" / "v0002-3") == {"card.json"}
    assert names(tmp_path / "kept" / "v0009-3") == {
        "card.json",
        "model.safetensors",
        "tokenizer.json",
    }
