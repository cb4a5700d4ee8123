import json
import os
import time

import pyarrow.parquet as parquet
import pytest

from core import keys
from core.errors import InstructLoopError
from core.setting_groups import FeedbackSettings, LogSettings
from feedback import erasure, store
from feedback.erasing import erase_what_is_due
from feedback.export import read_rows
from feedback.export_files import write_export
from feedback.export_shapes import FORMATS
from feedback.import_data import Import, import_lines
from feedback.import_files import read_lines
from feedback.imported import MAX_TEXT, parse
from feedback.ingest import ingest_batch
from tests.feedback.factory import EmailFilter, api_key
from tests.feedback.test_snapshot import World

ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a river."}]
WHATS = ("comparisons", "ratings", "demonstrations", "prompts")


@pytest.fixture
def settings(settings):
    log = LogSettings(split_by_prompt_under_users=0, pii_second_tier=False)
    feedback = FeedbackSettings(heldout_raters=("heldout-*",))
    return settings.model_copy(update={"log": log, "feedback": feedback})


@pytest.fixture
def world(redis, keyring, settings):
    return World(redis, keyring, settings)


async def fill(world) -> None:
    one = await world.ask("Name a river.", "Elbe", "Rhine", "Mount Fuji")
    two = await world.ask("Name a lake, ü.", "Como", "Garda", user="bob")
    raw = await world.ask("", "text", messages={"prompt": "Once"}, user="carl")
    await world.ask("Who am I?", "me@example.org", user="dora")
    await world.rank("r1", [(one, 1)], [(one, 0)], [(one, 2)])
    await world.rank("heldout-1", [(two, 1)], [(two, 0)])
    await world.show("r2", "Lake Constance", completion_id=two, choice=0)
    await world.show("r2", "upon a time", completion_id=raw, choice=0)
    await world.show("r1", "Sahara", prompt="A desert:")
    await world.rate("r1", one, 0, thumb="up", rating=6, flags={"hallucination": False})
    await world.rate("heldout-1", two, 1, flags={"fails_task": True})
    await world.rate("r2", raw, 0, signal="copy")


async def exported(world, what, tenant=None) -> list[dict]:
    rows = await read_rows(
        world.redis, world.keyring, world.settings, what=what, tenant=tenant, now=time.time()
    )
    return list(rows)


async def taken_in(world, path, what, tenant="acme"):
    async def make_room():
        for _ in range(50):
            done = await ingest_batch(
                world.redis, world.keyring, world.settings, EmailFilter(), limit=100
            )
            if not done:
                return

    work = Import(world.redis, world.keyring, world.settings, tenant, path.name)
    told = []
    summary = await import_lines(
        work, read_lines(path), what, make_room=make_room, progress=told.append
    )
    return summary


def shapes(what, rows) -> list[str]:
    """What matters of rows: not the ids that each service gives."""
    ours = {"feedback_id", "chosen_id", "rejected_id", "completion_id", "policy_version"}
    ours |= {"group_id"}
    return sorted(
        json.dumps({n: v for n, v in row.items() if n not in ours}, sort_keys=True) for row in rows
    )


@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize("form", FORMATS)
async def test_a_round_trip_through_each_format_loses_nothing(world, state_dir, what, form):
    await fill(world)
    before = await exported(world, what)
    assert len(before) >= 3
    path = state_dir / "out"
    count = write_export(before, path, what=what, form=form, force=False, progress=lambda _: None)
    assert count == len(before)
    await world.redis.flushall()
    summary = await taken_in(world, path, what)
    assert summary.counts == {"imported": len(before)}, summary.bad
    after = await exported(world, what)
    assert shapes(what, after) == shapes(what, before)

    async def records():
        names = [name for name in await world.redis.keys("*") if await world.redis.type(name)]
        kept = [n for n in sorted(names) if await world.redis.type(n) == b"string"]
        return kept, await world.redis.mget(kept)

    once = await records()
    again = await taken_in(world, path, what)
    assert again.counts == {"known": len(before)}
    assert await records() == once


async def test_what_the_formats_look_like(world, state_dir):
    await fill(world)
    path = state_dir / "out"

    async def written(what, form):
        rows = await exported(world, what)
        write_export(rows, path, what=what, form=form, force=True, progress=lambda _: None)
        if form == "argilla":
            return json.loads(path.read_text())
        if form == "parquet":
            return parquet.read_table(path).to_pylist()
        return [json.loads(line) for line in path.read_text().splitlines()]

    pairs = await written("comparisons", "trl")
    assert len(pairs) == 3 + 1 + 2
    rivers = [p for p in pairs if p["prompt"] == [{"role": "user", "content": "Name a river."}]]
    assert {(p["chosen"][0]["content"], p["rejected"][0]["content"]) for p in rivers} == {
        ("Rhine", "Elbe"), ("Rhine", "Mount Fuji"), ("Elbe", "Mount Fuji"),
    }  # fmt: skip
    assert {m["role"] for p in rivers for m in p["chosen"] + p["rejected"]} == {"assistant"}
    (plain,) = [p for p in pairs if p["plain"]]
    assert plain["prompt"] == [{"role": "user", "content": "Once"}]
    assert (plain["chosen"][0]["content"], plain["rejected"][0]["content"]) == (
        "upon a time", "text",
    )  # fmt: skip
    assert {p["split"] for p in pairs} <= {"train", "validation", "test"}
    shown = await written("demonstrations", "trl")
    assert {d["completion"][0]["content"] for d in shown} == {
        "Lake Constance", "upon a time", "Sahara",
    }  # fmt: skip
    prompts = await written("prompts", "parquet")
    wanted = {"completion_id", "messages", "completion", "policy_version", "created_at", "split"}
    assert all(wanted <= row.keys() for row in prompts)
    assert {row["completion"] for row in prompts} == {"Elbe", "Como", "text", "<EMAIL_1>"}
    records = await written("comparisons", "argilla")
    assert all(r["suggestions"]["preference"]["value"] == "response_a" for r in records)
    assert {r["fields"]["response_a"] for r in records} >= {"Rhine", "Elbe", "Garda"}
    assert all(isinstance(v, str) for r in records for v in r["metadata"].values())


async def test_an_export_of_one_tenant_shows_no_other(world, state_dir):
    await fill(world)
    assert await exported(world, "prompts", tenant="other") == []
    assert len(await exported(world, "prompts", tenant="acme")) == 4


async def test_an_export_replaces_nothing_and_is_there_whole_or_not_at_all(state_dir):
    def broken():
        yield {"prompt": [], "chosen": "a"}
        raise InstructLoopError("Redis went away")

    path = state_dir / "out.jsonl"
    with pytest.raises(InstructLoopError, match="went away"):
        write_export(
            broken(), path, what="comparisons", form="jsonl", force=False, progress=lambda _: None
        )
    assert list(state_dir.iterdir()) == []
    path.write_text("mine")
    with pytest.raises(InstructLoopError, match="--force"):
        write_export(
            [], path, what="comparisons", form="jsonl", force=False, progress=lambda _: None
        )
    assert path.read_text() == "mine"


async def test_a_bad_line_is_told_by_number_and_the_rest_goes_in(world, state_dir):
    good = {"prompt": "Name a river.", "chosen": "Elbe", "rejected": "Fuji"}
    lines = [
        json.dumps(good),
        "{",
        json.dumps({"prompt": "x", "chosen": "only"}),
        json.dumps(good | {"prompt": ASKED}),
        json.dumps(good | {"rejected": "Elbe"}),
        json.dumps(good | {"chosen": "x" * (MAX_TEXT + 1)}),
        json.dumps(good | {"prompt": [{"role": "user", "content": [1]}]}),
        "[1, 2]",
    ]
    path = state_dir / "in.jsonl"
    path.write_text("\n".join(lines))
    summary = await taken_in(world, path, "comparisons")
    assert summary.counts == {"imported": 2, "bad": 6}
    assert [number for number, _ in summary.bad] == [2, 3, 5, 6, 7, 8]
    assert len(await exported(world, "comparisons")) == 2


async def test_what_is_imported_goes_through_the_filter_and_is_marked(world, state_dir):
    path = state_dir / "in.jsonl"
    row = {"prompt": "Mail me@example.org", "chosen": "to me@example.org", "rejected": "no"}
    path.write_text(json.dumps(row) + "\n")
    await taken_in(world, path, "comparisons")
    path.write_text(json.dumps({"prompt": "you@example.org?", "completion": "you@example.org"}))
    await taken_in(world, path, "demonstrations")
    (pair,) = await exported(world, "comparisons")
    assert (pair["chosen"], pair["prompt"][0]["content"]) == ("to <EMAIL_1>", "Mail <EMAIL_1>")
    (shown,) = await exported(world, "demonstrations")
    assert shown["completion"] == "<EMAIL_1>"
    for name in await world.redis.keys("*"):
        if await world.redis.type(name) == b"string":
            assert b"example.org" not in await world.redis.get(name)
    tokens = [name.decode() for name in await world.redis.zrange(keys.prompts(), 0, -1)]
    found = await store.completions(world.redis, tokens)
    assert {c.policy_versions for c in found.values()} == {("imported",)}


@pytest.mark.parametrize("what", WHATS)
async def test_nothing_of_an_erased_person_comes_in_again(world, state_dir, what):
    await world.redis.hset(keys.api_keys(), "0a0b0c0d", api_key().model_dump_json())
    at = time.time() - 5
    cid = await world.ask("Name a river.", "Elbe", "Fuji", at=at)
    await world.rank("ann", [(cid, 0)], [(cid, 1)], at=at)
    await world.show("ann", "Rhine", at=at, completion_id=cid)
    await world.rate("ann", cid, at=at, thumb="up")
    rows = await exported(world, what)
    assert rows
    path = state_dir / "out"
    write_export(rows, path, what=what, form="jsonl", force=False, progress=lambda _: None)
    await erasure.begin(world.redis, world.keyring, tenant="acme", user="ann", now=time.time())
    await erase_what_is_due(world.redis, world.keyring, world.settings)
    assert (await taken_in(world, path, what)).counts == {"erased": len(rows)}
    named = {"prompt": "x", "chosen": "a", "rejected": "b", "completion": "c", "user": "ann"}
    named |= {"rating": 3}
    path.write_text(json.dumps(named))
    assert (await taken_in(world, path, what)).counts == {"erased": 1}
    assert await exported(world, what) == []


async def test_an_imported_user_can_be_erased(world, state_dir):
    path = state_dir / "in.jsonl"
    row = {"prompt": "x", "chosen": "a", "rejected": "b", "completion": "c", "user": "ann"}
    row |= {"label": False}
    path.write_text(json.dumps(row))
    for what in WHATS:
        await taken_in(world, path, what)
    assert [len(await exported(world, what)) for what in WHATS] == [1, 1, 1, 1]
    await erasure.begin(world.redis, world.keyring, tenant="acme", user="ann", now=time.time())
    assert await erase_what_is_due(world.redis, world.keyring, world.settings) == 1
    assert [len(await exported(world, what)) for what in WHATS] == [0, 0, 0, 0]
    assert len(await store.get_all(world.redis)) == 0


@pytest.mark.parametrize(
    ("row", "prompt", "answers"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, {"prompt": "p"}, ("a", "b")),
        (
            {
                "prompt": ASKED,
                "chosen": [{"role": "assistant", "content": "a"}],
                "rejected": [{"role": "assistant", "content": "b"}],
            },
            ASKED,
            ("a", "b"),
        ),
        (
            {
                "chosen": [*ASKED, {"role": "assistant", "content": "a"}],
                "rejected": [*ASKED, {"role": "assistant", "content": "b"}],
            },
            ASKED,
            ("a", "b"),
        ),
        (
            {
                "fields": {"prompt": "p", "response_a": "a", "response_b": "b"},
                "suggestions": {"preference": {"value": "response_a"}},
                "responses": {"preference": [{"value": "response_b", "user_id": "1"}]},
            },
            {"prompt": "p"},
            ("b", "a"),
        ),
    ],
)
def test_the_forms_of_a_comparison(row, prompt, answers):
    item = parse("comparisons", row)
    assert (item.prompt, item.answers) == (prompt, answers)


def test_conversations_that_answer_different_prompts_are_no_comparison():
    said = {"role": "assistant", "content": "a"}
    other = [{"role": "user", "content": "Something else?"}, said]
    with pytest.raises(ValueError, match="different prompts"):
        parse("comparisons", {"chosen": [*ASKED, said], "rejected": other})


def test_an_export_is_for_its_owner_and_follows_no_link_that_others_planted(tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("untouched")
    path = tmp_path / "out.jsonl"
    path.symlink_to(mine)
    (tmp_path / f".{path.name}.{os.getpid()}.partial").symlink_to(mine)
    for form in FORMATS:
        count = write_export(
            [], path, what="prompts", form=form, force=True, progress=lambda _: None
        )
        assert (count, path.is_symlink(), path.stat().st_mode & 0o777) == (0, False, 0o600)
    assert mine.read_text() == "untouched"
    assert len(list(tmp_path.iterdir())) == 3
