import json
import random
import time

import pyarrow.parquet as parquet
import pytest

from core import keys
from core.ids import token_of
from core.records import Answer
from core.setting_groups import FeedbackSettings, LogSettings
from feedback import intake, labeling, store
from feedback.dataset import heldout_raters
from feedback.ingest import ingest_batch
from feedback.schemas import DemonstrationRequest, FeedbackRequest, RankingRequest
from feedback.snapshot import gather, read_manifest, write_snapshot
from feedback.split import split_of
from learning.reward_model.dataset import ranked_groups
from tests.feedback.factory import EmailFilter, api_key, completion_id, entry, put
from tests.feedback.test_preferences import labeling_task

NOW = time.time()


@pytest.fixture
def settings(settings):
    feedback = FeedbackSettings(heldout_raters=("heldout-*",))
    log = LogSettings(split_by_prompt_under_users=3, window_days=30, pii_second_tier=False)
    return settings.model_copy(update={"feedback": feedback, "log": log})


class World:
    """Completions and what people say about them, through the real ingest and store."""

    def __init__(self, redis, keyring, settings):
        self.redis, self.keyring, self.settings = redis, keyring, settings

    async def ask(self, prompt, *answers, user="ann", at=NOW, **fields) -> str:
        cid = completion_id(self.keyring, prompt=prompt, choices=len(answers))
        one = entry(
            self.keyring, prompt=prompt, answers=answers, id=cid, user=user, created_at=at, **fields
        )
        await put(self.redis, self.keyring, one)
        await ingest_batch(self.redis, self.keyring, self.settings, EmailFilter(), limit=10)
        return cid

    def who(self, rater):
        feedback = self.settings.feedback
        return intake.speaker(api_key(), rater, keyring=self.keyring, settings=feedback)

    async def rank(self, rater, *ties, at=NOW) -> str:
        body = RankingRequest(
            ranking=[[{"completion_id": c, "choice": i} for c, i in tie] for tie in ties]
        )
        said = intake.ranking(body, self.who(rater), keyring=self.keyring, now=at)
        await store.record(self.redis, said, reply="{}")
        return said.id

    async def rate(self, rater, cid, choice=0, at=NOW, **fields) -> str:
        body = FeedbackRequest(completion_id=cid, choice=choice, **fields)
        said = intake.rating(body, self.who(rater), keyring=self.keyring, sealed=None, now=at)
        await store.record(self.redis, said, reply="{}")
        return said.id

    async def show(self, rater, text, at=NOW, **about) -> str:
        body = DemonstrationRequest(**about, text=text)
        said = intake.demonstration(
            body, self.who(rater), keyring=self.keyring, sealed=None, now=at
        )
        update = {"text": {"text": text}, "messages": None}
        if body.completion_id is None:
            update["messages"] = intake.prompt_of(body)
        await store.record(self.redis, said.model_copy(update=update), reply="{}")
        return said.id

    async def snapshot(self, folder, **settings):
        chosen = self.settings.model_copy(update=settings)
        return await write_snapshot(self.redis, self.keyring, chosen, folder, now=NOW)


@pytest.fixture
def world(redis, keyring, settings):
    return World(redis, keyring, settings)


def rows(folder, name):
    return parquet.read_table(folder / f"{name}.parquet").to_pylist()


async def small_world(world) -> dict[str, str]:
    ids = {}
    ids["one"] = await world.ask("Name a river.", "Elbe", "Rhine", "Mount Fuji")
    ids["two"] = await world.ask("Name a lake.", "Como", "Garda", user="bob")
    ids["late"] = await world.ask("Name a sea.", "North Sea", user="carl", at=NOW - 40 * 86_400)
    one, two = ids["one"], ids["two"]
    ids["ranked"] = await world.rank("r1", [(one, 1)], [(one, 0)], [(one, 2)])
    ids["tied"] = await world.rank("heldout-1", [(one, 0), (one, 1)], [(one, 2)])
    ids["rated"] = await world.rate("r2", two, 1, thumb="up", rating=5)
    ids["shown"] = await world.show("r2", "Lake Constance", completion_id=two, choice=0)
    ids["free"] = await world.show("r1", "Sahara", prompt="A desert:")
    ids["pending"] = await world.rate("r1", completion_id(world.keyring), thumb="up")
    return ids


async def test_a_small_snapshot_by_hand(world, keyring, state_dir):
    ids = await small_world(world)
    manifest = await world.snapshot(state_dir / "snap")
    folder = state_dir / "snap"

    def digest(kind, name):
        return keyring.hashed("acme", kind, name)

    raters = {name: world.who(name).rater for name in ("r1", "r2", "heldout-1")}
    by_id = {row["feedback_id"]: row for row in rows(folder, "rankings")}
    assert by_id.keys() == {ids["ranked"], ids["tied"], ids["shown"]}

    ranked = by_id[ids["ranked"]]
    assert [(a["rank"], a["text"], a["choice"]) for a in ranked["answers"]] == [
        (1, "Rhine", 1), (2, "Elbe", 0), (3, "Mount Fuji", 2),
    ]  # fmt: skip
    assert {a["finish_reason"] for a in ranked["answers"]} == {"stop"}
    assert {a["completion_id"] for a in ranked["answers"]} == {ids["one"]}
    assert json.loads(ranked["messages"]) == [{"role": "user", "content": "Name a river."}]
    assert ranked["user"] == digest("user", "ann")
    assert ranked["split"] == split_of(digest("user", "ann"), world.settings.log)
    assert (ranked["rater"], ranked["heldout_rater"], ranked["weight"]) == (raters["r1"], False, 1)

    tied = by_id[ids["tied"]]
    assert tied["group_id"] == ranked["group_id"] == token_of(ids["one"])
    assert [(a["rank"], a["text"]) for a in tied["answers"]] == [
        (1, "Elbe"), (1, "Rhine"), (2, "Mount Fuji"),
    ]  # fmt: skip
    assert tied["heldout_rater"] is True

    shown = by_id[ids["shown"]]
    assert [a["text"] for a in shown["answers"]] == ["Lake Constance", "Como"]
    assert [(r["kind"], r["value"], r["text"]) for r in rows(folder, "ratings")] == [
        ("rating", 5.0, "Garda"), ("thumb", 1.0, "Garda"),
    ]  # fmt: skip
    assert sorted(r["text"] for r in rows(folder, "demonstrations")) == ["Lake Constance", "Sahara"]
    prompts = rows(folder, "prompts")
    assert {p["prompt_id"] for p in prompts} == {token_of(ids["one"]), token_of(ids["two"])}
    assert {p["tenant"] for p in prompts} == {"acme"}

    assert manifest.counts == {
        "comparisons": 3 + 2 + 1,
        "rankings": 3,
        "ratings": 2,
        "demonstrations": 2,
        "prompts": 2,  # the third is older than the window
        "raters": 3,
        "users": 2,
        "recorded_comparisons": 6,
    }
    assert manifest.heldout_raters == (raters["heldout-1"],)
    assert manifest.split_by == "user"
    assert manifest.left_out == {"pending": 1}
    assert read_manifest(folder) == manifest
    fates = {r["feedback_id"]: r["status"] for r in rows(folder, "fates")}
    assert fates.pop(ids["pending"]) == "pending"
    assert set(fates.values()) == {"joined"}


async def test_the_same_records_give_the_same_hash_in_whatever_order_they_came(
    world, redis, keyring, settings, state_dir
):
    await small_world(world)
    first = await world.snapshot(state_dir / "a")
    feedback = await store.get_all(redis)
    random.Random(3).shuffle(feedback)
    for place, said in enumerate(feedback):
        await redis.zadd(keys.feedback_index(), {said.id: place})
    second = await world.snapshot(state_dir / "b")
    assert second.sha256 == first.sha256
    for name in ("rankings", "ratings", "demonstrations", "prompts", "fates"):
        one, two = ((state_dir / f / f"{name}.parquet").read_bytes() for f in "ab")
        assert one == two
    await world.rate("r3", (await world.ask("Name a hill.", "Hill")), thumb="down")
    assert (await world.snapshot(state_dir / "a")).sha256 != first.sha256


async def test_no_user_is_in_two_splits_and_few_users_are_split_by_prompt(world, state_dir):
    for number in range(60):
        cid = await world.ask(f"Prompt {number}?", "a", "b", user=f"u{number % 12}")
        await world.rank("r1", [(cid, 0)], [(cid, 1)])

    async def splits(under: int):
        log = LogSettings(split_by_prompt_under_users=under, prompts_per_user=200)
        manifest = await world.snapshot(state_dir / "s", log=log)
        split_of_user: dict[str, set[str]] = {}
        for name in ("prompts", "rankings"):
            for row in rows(state_dir / "s", name):
                split_of_user.setdefault(row["user"], set()).add(row["split"])
        return manifest.split_by, split_of_user

    by, per_user = await splits(under=12)
    assert by == "user"
    assert len(per_user) == 12
    assert all(len(found) == 1 for found in per_user.values())
    by, per_user = await splits(under=13)
    assert by == "prompt"
    assert any(len(found) > 1 for found in per_user.values())


async def test_no_prompt_is_in_two_splits_even_when_users_share_it(world, state_dir, keyring):
    users = [f"u{n}" for n in range(15)]
    prompt = "What everybody asks?"
    for place, user in enumerate(users):
        cid = await world.ask(prompt, "a", "b", user=user, at=NOW - 100 + place)
        await world.rank("r1", [(cid, 0)], [(cid, 1)])
    owner = split_of(keyring.hashed("acme", "user", users[0]), world.settings.log)
    kept = {
        keyring.hashed("acme", "user", user)
        for user in users
        if split_of(keyring.hashed("acme", "user", user), world.settings.log) == owner
    }
    assert 0 < len(kept) < len(users)
    manifest = await world.snapshot(state_dir / "s")
    found = rows(state_dir / "s", "rankings")
    assert {row["split"] for row in found} == {owner}
    assert {row["user"] for row in found} == kept
    assert manifest.left_out == {
        "the prompt is a copy of one in another split": len(users) - len(kept)
    }
    await world.show("r1", "A better answer.", messages=[{"role": "user", "content": prompt}])
    await world.snapshot(state_dir / "s")
    (demonstration,) = rows(state_dir / "s", "demonstrations")
    assert demonstration["split"] == owner


async def test_by_share_nobody_is_held_out_among_few_raters(world, redis, settings, state_dir):
    share = FeedbackSettings(heldout_rater_share=0.5)
    world.settings = settings.model_copy(update={"feedback": share})
    names = [f"rater {n}" for n in range(40)]
    held = [n for n in names if world.who(n).heldout][:2]
    others = [n for n in names if not world.who(n).heldout][:3]
    cid = await world.ask("Name a river.", "a", "b")
    for name in [*held, *others[:2]]:
        await world.rank(name, [(cid, 0)], [(cid, 1)])
    manifest = await world.snapshot(state_dir / "s", feedback=share)
    assert manifest.heldout_raters == ()
    await world.rank(others[2], [(cid, 0)], [(cid, 1)])
    manifest = await world.snapshot(state_dir / "s", feedback=share)
    assert manifest.heldout_raters == tuple(sorted(world.who(n).rater for n in held))
    gathered = await gather(redis, settings.log, now=NOW)
    assert heldout_raters(gathered, by_name=False) == set(manifest.heldout_raters)


async def test_a_rater_who_was_ever_held_out_never_trains(world, settings, state_dir):
    cid = await world.ask("Name a river.", "a", "b")
    world.settings = settings.model_copy(update={"feedback": FeedbackSettings(heldout_raters=())})
    await world.rank("heldout-1", [(cid, 0)], [(cid, 1)])
    world.settings = settings
    await world.rate("heldout-1", cid, thumb="up")
    await world.snapshot(state_dir / "s")
    assert [r["heldout_rater"] for r in rows(state_dir / "s", "rankings")] == [True]


async def test_training_tasks_are_learned_from(world, redis, settings, state_dir):
    task = labeling_task()
    await labeling.open_tasks(redis, [task])
    await labeling.next_task(
        redis, tenant="acme", rater="r", heldout=False, settings=settings.feedback
    )
    answer = Answer(
        rater="r", heldout_rater=False, ranking=(("o0", "o1"), ("o2",), ("o3",)), answered_at=NOW
    )
    await labeling.answer_task(
        redis, task_id="task", tenant="acme", answer=answer, reply="", same=lambda *_: True
    )
    manifest = await world.snapshot(state_dir / "s")
    assert (manifest.counts["comparisons"], manifest.counts["recorded_comparisons"]) == (5, 5)


async def test_a_snapshot_replaces_the_folder_whole_and_leaves_nothing_beside_it(world, state_dir):
    folder = state_dir / "snapshots" / "s"
    await world.snapshot(folder)
    (folder / "old").write_text("x")
    await world.ask("Name a river.", "a")
    await world.snapshot(folder)
    assert sorted(p.name for p in folder.iterdir()) == [
        "demonstrations.parquet", "fates.parquet", "manifest.json",
        "prompts.parquet", "rankings.parquet", "ratings.parquet", "unranked.parquet",
    ]  # fmt: skip
    assert [p.name for p in folder.parent.iterdir()] == ["s"]
    assert (folder.stat().st_mode & 0o077) == 0


async def test_the_learner_reads_what_is_written(world, state_dir):
    ids = await small_world(world)

    class Tokenizer:
        eos_token_id = 0

        def __call__(self, text, **_):
            return {"input_ids": [ord(c) for c in text]}

        def apply_chat_template(self, messages, **_):
            return [len(m["content"]) for m in messages]

    await world.snapshot(state_dir / "s")
    groups = ranked_groups(rows(state_dir / "s", "rankings"), Tokenizer())
    assert sorted(len(g.rankings) for g in groups) == [1, 2]
    (both,) = [g for g in groups if len(g.rankings) == 2]
    assert len(both.group.answers) == 3
    assert ids["ranked"] != ids["tied"]
    assert {r.heldout_rater for r in both.rankings} == {True, False}
