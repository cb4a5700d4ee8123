import asyncio
import hashlib
import multiprocessing
import random
import time
from pathlib import Path
from unittest.mock import Mock

import pytest

from core import keys, metrics
from core.errors import ArchiveBroken, Unprocessable
from core.ids import token_of
from core.setting_groups import LogSettings, RetentionSettings
from feedback import archive_files, erasure, store
from feedback.archive_manifest import FileEntry, change, read_manifest
from feedback.compaction import compact, compaction_due, sweep
from feedback.erasing import erase_what_is_due
from feedback.export import read_rows
from feedback.ingest import ingest_batch
from feedback.retention import expire, keep_small, retention_due
from feedback.snapshot import gather
from feedback.snapshot import read_manifest as read_snapshot
from feedback.user_data import read_page
from tests.feedback.compacting_child import compact_and_die
from tests.feedback.factory import (
    EmailFilter,
    api_key,
    client_of,
    completion,
    entry,
    make_app,
    put,
)
from tests.feedback.test_snapshot import World

NOW = time.time()
DAY = 86_400
CANARY = "canaryxylophone"
KILLS = 14


@pytest.fixture
def settings(settings):
    log = LogSettings(pii_second_tier=False, keep_in_redis=0)
    return settings.model_copy(update={"log": log})


@pytest.fixture
async def world(redis, keyring, settings):
    await redis.hset(keys.api_keys(), "0a0b0c0d", api_key().model_dump_json())
    return World(redis, keyring, settings)


async def fill(world, *, at=NOW - 60) -> dict[str, str]:
    """Ten completions of three users, and what was said about some; none is in the archive."""
    ids = {}
    users = ("ann", "bob", "carl")
    for i in range(9):
        ids[f"{users[i % 3]}{i // 3}"] = await world.ask(
            f"{i}: {CANARY if i % 3 == 0 else 'say'} something?", "one", "two",
            user=users[i % 3], at=at + i,
        )  # fmt: skip
    ids["again"] = await world.ask("1: say something?", "three", user="bob", at=at + 20)
    ids["rank"] = await world.rank("r1", [(ids["bob0"], 0)], [(ids["bob0"], 1)], at=at + 30)
    ids["vote"] = await world.rate("r2", ids["ann1"], thumb="up", at=at + 30)
    return ids


async def all_compacted(world, **options) -> int:
    total = 0
    while moved := await compact(
        world.redis, world.settings, now=NOW, **{"least": 1, "most": 4, **options}
    ):
        total += moved
    return total


async def exported(world) -> list:
    return [
        list(
            await read_rows(
                world.redis, world.keyring, world.settings, what=what, tenant="acme", now=NOW
            )
        )
        for what in ("prompts", "comparisons", "demonstrations")
    ]


async def test_readers_see_no_difference(world, state_dir):
    ids = await fill(world)
    tokens = [token_of(cid) for name, cid in ids.items() if name not in ("rank", "vote")]

    async def seen(name):
        manifest = await world.snapshot(state_dir / name)
        page = await read_page(
            world.redis, world.keyring, tenant="acme", user="ann", cursor="", limit=50
        )
        gathered = await gather(world.redis, world.settings.log, now=NOW)
        return (
            manifest.sha256,
            manifest.counts,
            gathered.prompt_tokens,
            await exported(world),
            page,
            await store.completions(world.redis, tokens),
            await world.redis.hgetall(keys.counts()),
        )

    before = await seen("before")
    assert len(before[2]) == 9
    assert await all_compacted(world) == 10
    assert await world.redis.keys(keys.completion("*")) == []
    assert await world.redis.keys(keys.user_completions("*")) == []
    for key in (keys.prompts(), keys.logged()):
        assert await world.redis.exists(key) == 0
    assert await seen("after") == before
    assert read_snapshot(state_dir / "after").sha256 == before[0]
    manifest = await read_manifest(world.redis)
    assert [entry.rows for entry in manifest.files.values()] == [4, 4, 2]
    for name, file in manifest.files.items():
        assert archive_files.is_whole(manifest.root, name, file)
        assert (Path(manifest.root) / name).stat().st_mode & 0o777 == 0o600
    assert Path(manifest.root).stat().st_mode & 0o777 == 0o700


async def test_the_cap_and_duplicates_still_hold(world):
    world.settings = world.settings.model_copy(
        update={"log": LogSettings(prompts_per_user=2, keep_in_redis=0)}
    )
    first = await world.ask("the first?", "a", at=NOW - 3)
    await world.ask("the second?", "b", at=NOW - 2)
    await all_compacted(world)
    over = await world.ask("the third?", "c", at=NOW - 1)
    copy = await world.ask("The FIRST?", "d", user="bob", at=NOW)
    found = await store.completions(world.redis, map(token_of, (first, over, copy)))
    outcomes = [found[token_of(cid)].outcome for cid in (first, over, copy)]
    assert outcomes == ["logged", "over_user_cap", "duplicate"]


async def test_feedback_on_what_is_archived_joins_unless_the_answer_broke_off(world, state_dir):
    fine = await world.ask("a whole answer?", "one", "two", at=NOW)
    broken = await world.ask("a broken one?", "on", at=NOW, error="hung_up")
    await all_compacted(world)
    said = await world.rank("r1", [(fine, 0)], [(fine, 1)])
    with pytest.raises(Unprocessable, match="hung_up"):
        await world.rate("r1", broken, thumb="up")
    manifest = await world.snapshot(state_dir / "snap")
    assert manifest.counts["comparisons"] == 1
    assert [f.id for f in await store.get_all(world.redis)] == [said]


async def test_what_is_due_waits_for_enough_and_spares_the_newest(world):
    await fill(world)
    log = LogSettings(keep_in_redis=6)
    assert await compaction_due(world.redis, log, now=NOW, least=4) == 4
    assert await compaction_due(world.redis, log, now=NOW, least=5) == 0
    old = LogSettings(keep_in_redis=100, archive_after_days=1)
    assert await compaction_due(world.redis, old, now=NOW, least=1) == 0
    assert await compaction_due(world.redis, old, now=NOW + 2 * DAY, least=1) == 10
    world.settings = world.settings.model_copy(update={"log": log})
    assert await compact(world.redis, world.settings, now=NOW, least=4) == 4
    assert await world.redis.zcard(keys.logged()) == 6


async def test_completions_from_before_the_index_move_too(world):
    await fill(world)
    await world.redis.delete(keys.logged())
    assert await compaction_due(world.redis, world.settings.log, now=NOW, least=1) == 0
    assert await compact(world.redis, world.settings, now=NOW, least=1) == 10


async def test_killed_at_any_line_nothing_is_lost_or_doubled(world, shared_redis, state_dir):
    ids = await fill(world)
    tokens = [token_of(cid) for name, cid in ids.items() if name not in ("rank", "vote")]
    wanted = await store.completions(world.redis, tokens)
    sha256 = (await world.snapshot(state_dir / "snap")).sha256
    start = {key: await world.redis.dump(key) for key in await world.redis.keys(f"{keys.PREFIX}*")}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.feedback.compacting_child"])
    lines = context.Value("i", 0)

    async def run(at_line: int) -> int:
        await world.redis.flushall()
        for key, value in start.items():
            await world.redis.restore(key, 0, value)
        lines.value = 0
        args = (shared_redis.url, world.settings, NOW, at_line, lines)
        child = context.Process(target=compact_and_die, args=args)
        child.start()
        await asyncio.to_thread(child.join, 60)
        return child.exitcode

    async def check() -> None:
        assert await store.completions(world.redis, tokens) == wanted
        assert (await world.snapshot(state_dir / "snap")).sha256 == sha256
        await all_compacted(world)
        await sweep(world.redis)
        manifest = await read_manifest(world.redis)
        assert sum(file.rows for file in manifest.files.values()) == len(tokens)
        assert archive_files.names_in(manifest.root) == set(manifest.files)
        assert await world.redis.keys(keys.completion("*")) == []
        assert await store.completions(world.redis, tokens) == wanted
        assert (await world.snapshot(state_dir / "snap")).sha256 == sha256

    assert await run(at_line=-1) == 0
    total = lines.value
    assert total > 100
    await check()
    draw = random.Random(3)
    for at_line in sorted({1, total - 1, *draw.sample(range(2, total - 1), KILLS)}):
        assert await run(at_line) == -9, at_line
        await check()


async def test_two_who_compact_at_once_double_nothing(world):
    ids = await fill(world)
    tokens = [token_of(cid) for name, cid in ids.items() if name not in ("rank", "vote")]
    await asyncio.gather(*(all_compacted(world, most=2) for _ in range(3)))
    await all_compacted(world)
    manifest = await read_manifest(world.redis)
    assert sum(file.rows for file in manifest.files.values()) == len(tokens)
    assert set(await store.completions(world.redis, tokens)) == set(tokens)
    await sweep(world.redis)
    assert archive_files.names_in(manifest.root) == set(manifest.files)


async def test_a_file_that_another_sweeps_up_while_it_is_written_is_written_later(
    world, monkeypatch
):
    ids = await fill(world)
    tokens = [token_of(cid) for name, cid in ids.items() if name not in ("rank", "vote")]
    replace = archive_files.os.replace

    def after_a_sweep(beside, path):
        Path(beside).unlink()
        replace(beside, path)

    with monkeypatch.context() as patched:
        patched.setattr(archive_files.os, "replace", after_a_sweep)
        assert await all_compacted(world) == 0
    assert not (await read_manifest(world.redis)).files
    assert await all_compacted(world) == len(tokens)
    assert set(await store.completions(world.redis, tokens)) == set(tokens)


async def test_a_change_that_rests_on_an_old_manifest_is_refused(world):
    await fill(world)
    old = await read_manifest(world.redis)
    await all_compacted(world)
    entry = FileEntry(rows=1, bytes=1, sha256="", first_ms=0, last_ms=0, ranges=())
    assert not await change(world.redis, old, add=("x.parquet", entry))
    assert "x.parquet" not in (await read_manifest(world.redis)).files


async def erase(world, user: str) -> erasure.Receipt:
    erasure_id = await erasure.begin(
        world.redis, world.keyring, tenant="acme", user=user, now=time.time()
    )
    await erase_what_is_due(world.redis, world.keyring, world.settings)
    return await erasure.receipt(world.redis, erasure_id)


async def test_erasure_reaches_the_archive(world, state_dir):
    ids = await fill(world)
    await all_compacted(world)
    ids["here"] = await world.ask(f"{CANARY} here?", "x", at=NOW)
    bobs = [ids[name] for name in ("bob0", "bob1", "bob2", "again")]
    kept = await store.completions(world.redis, map(token_of, bobs))
    receipt = await erase(world, "ann")
    assert receipt.state == "erased"
    assert receipt.counts["completions"] == 4
    for path in (state_dir / "archive").iterdir():
        root = str(path.parent)
        assert CANARY not in str(archive_files.parquet.read_table(path).to_pylist())
        assert archive_files.tokens_of_users(
            root, path.name, [world.keyring.hashed("acme", "user", "ann")]
        ) == []  # fmt: skip
    assert set(archive_files.names_in(str(state_dir / "archive"))) == set(
        (await read_manifest(world.redis)).files
    )
    assert await store.completions(world.redis, map(token_of, bobs)) == kept
    assert int(await world.redis.hget(keys.counts(), "prompts")) == 6
    assert await store.completions(world.redis, [token_of(ids["ann0"])]) == {}
    assert not await world.redis.sismember(
        keys.users(), world.keyring.hashed("acme", "user", "ann")
    )
    again = await world.ask(f"3: {CANARY} something?", "again", user="dora", at=time.time())
    assert (await store.completions(world.redis, [token_of(again)]))[token_of(again)].counted


async def test_one_that_is_in_both_places_is_erased_and_counted_once(world):
    await fill(world)
    names = await world.redis.keys(keys.completion("*"))
    here = {key: await world.redis.dump(key) for key in names}
    await all_compacted(world)
    for key, value in here.items():
        await world.redis.restore(key, 0, value)
    receipt = await erase(world, "ann")
    assert receipt.counts["completions"] == 3
    assert int(await world.redis.hget(keys.counts(), "prompts")) == 6


async def test_an_erasure_touches_only_its_own_of_thousands_of_rows(world, settings):
    ann = world.keyring.hashed("acme", "user", "ann")
    records = [
        completion(f"{i:052d}", user=ann if i % 2 else "b" * 32, created_at=NOW - 99)
        for i in range(4_000)
    ]
    async with world.redis.pipeline(transaction=False) as step:
        for record in records:
            step.set(keys.completion(record.token), record.model_dump_json())
            step.zadd(keys.logged(), {record.token: int(record.created_at * 1000)})
            step.sadd(keys.user_completions(record.user), record.token)
        await step.execute()
    assert await compact(world.redis, settings, now=NOW) == 4_000
    receipt = await erase(world, "ann")
    assert receipt.counts["completions"] == 2_000
    assert sum(f.rows for f in (await read_manifest(world.redis)).files.values()) == 2_000


async def test_a_missing_or_damaged_file_is_named(world, state_dir):
    ids = await fill(world)
    await all_compacted(world, most=100)
    (path,) = (state_dir / "archive").iterdir()
    content = path.read_bytes()
    spoilt = bytearray(content)
    spoilt[len(content) // 3] ^= 0xFF
    archive_files._tokens.cache_clear()
    path.write_bytes(bytes(spoilt))
    tokens = [token_of(ids["ann0"])]
    manifest = await read_manifest(world.redis)
    assert not archive_files.is_whole(manifest.root, path.name, manifest.files[path.name])
    with pytest.raises(ArchiveBroken, match=path.name):
        await gather(world.redis, world.settings.log, now=NOW)
    path.unlink()
    with pytest.raises(ArchiveBroken, match=path.name):
        await store.completions(world.redis, tokens)
    (state_dir / "archive" / "other.parquet").write_bytes(b"x")
    assert await sweep(world.redis) == 0  # what lies there may be of a later backup
    path.write_bytes(content)
    assert hashlib.sha256(content).hexdigest() == manifest.files[path.name].sha256
    assert set(await store.completions(world.redis, tokens)) == set(tokens)
    assert await sweep(world.redis) == 1


async def test_what_is_too_old_goes_from_both_places(world):
    old = await fill(world, at=NOW - 12 * DAY)
    await all_compacted(world)
    young = await world.ask("a young one?", "y", at=NOW - DAY)
    late = await world.ask("an old one, here?", "y", at=NOW - 12 * DAY)
    totals = await world.redis.hgetall(keys.counts())
    retention = RetentionSettings(completions_days=10, feedback_days=10)
    assert await retention_due(world.redis)
    settings = world.settings.model_copy(update={"retention": retention})
    assert await expire(world.redis, settings, now=NOW) == 3
    assert not await retention_due(world.redis)
    tokens = [token_of(cid) for cid in (old["bob0"], old["again"], late, young)]
    assert set(await store.completions(world.redis, tokens)) == {token_of(young)}
    assert await store.get_all(world.redis) == []
    assert await world.redis.hgetall(keys.counts()) == totals
    assert archive_files.names_in(str(settings.state_dir / "archive")) == set()
    audit = str(await world.redis.xrange(keys.audit()))
    assert audit.count("expired") == 5
    assert '"feedback": "2"' in audit
    assert await world.redis.hlen(keys.tombstones()) == 0


async def test_an_entry_that_comes_again_is_in_the_archive_once(world):
    one = entry(world.keyring, prompt="twice?", created_at=NOW)
    for _ in range(2):
        await put(world.redis, world.keyring, one)
        await ingest_batch(world.redis, world.keyring, world.settings, EmailFilter(), limit=5)
        await all_compacted(world)
    manifest = await read_manifest(world.redis)
    assert sum(file.rows for file in manifest.files.values()) == 1
    assert await world.redis.exists(keys.completion(one["token"])) == 0


def test_ranges_are_by_key_while_keys_are_few():
    few = archive_files.ranges_of(["aaaaaa1", "aaaaaa2", "bbbbbb1"])
    assert few == (("aaaaaa1", "aaaaaa2"), ("bbbbbb1", "bbbbbb1"))
    many = sorted(f"{i:06d}x" for i in range(40))
    assert archive_files.ranges_of(many) == (("000000x", "000039x"),)


async def test_over_http_feedback_on_an_archived_answer_is_joined_and_can_be_taken_back(world):
    cid = await world.ask("asked long ago?", "an answer", at=NOW)
    await all_compacted(world)
    key = api_key()
    app = make_app(world.redis, world.keyring, world.settings, key)
    async with client_of(app, key) as client:
        body = {"completion_id": cid, "thumb": "up", "rater": "r1"}
        said = await client.post("/v1/feedback", json=body)
        assert said.status_code == 201
        name = f"/v1/feedback/{said.json()['id']}"
        assert (await client.get(name)).json()["status"] == "joined"
        (world.settings.state_dir / "archive").rename(world.settings.state_dir / "elsewhere")
        lost = await client.get(name)
        assert lost.status_code == 500
        assert "archive" in lost.json()["error"]["message"]
        assert (await client.delete(name)).json()["status"] == "withdrawn"


async def test_an_archive_is_looked_after_without_limits_of_age(world, caplog, monkeypatch):
    """Its figures are shown from the start; one out of reach is not tried all the time."""
    metrics.ARCHIVE_ROWS.set(-1)
    assert await keep_small(world.redis, world.settings, now=NOW) == 0
    assert metrics.ARCHIVE_ROWS._value.get() == 0
    assert not await retention_due(world.redis)
    await world.redis.delete(keys.retention_checked())
    monkeypatch.setattr(archive_files, "names_in", Mock(side_effect=OSError("no such bucket")))
    assert await keep_small(world.redis, world.settings, now=NOW) == 0
    assert "the archive of completions" in caplog.text
    assert not await retention_due(world.redis)
    assert 0 < await world.redis.ttl(keys.retention_checked()) <= 60
