"""From one schema to the next: one at a time, while nobody else is there, whenever it is killed."""

import asyncio
import multiprocessing
import random
import re
from contextlib import suppress

import pytest
from typer.testing import CliRunner

import deploy.migrate as module
from core import keys, logs
from core.errors import StartError
from core.redis_check import check_redis
from core.redis_client import connect
from core.schema import FOLDER_SCHEMA, SCHEMA, check_folder, refuse_other
from core.schema_steps import FolderStep
from core.settings import Settings
from core.start import refuse_foreign_data
from deploy.cli import app
from deploy.document import ROOT
from deploy.migrate import Patience, folder_forward, redis_forward
from deploy.up import _wait_for_redis
from learning.worker.tasks import _with_work
from tests.conftest import eventually
from tests.deploy.backup_rig import dumps
from tests.deploy.test_redis_acl import documented_rules
from tests.upgrade import golden
from tests.upgrade.migrating_child import migrate_and_die
from tests.upgrade.test_golden import forward

run = CliRunner(env={"COLUMNS": "300"})
KILLS = 2
NOTHING = {"say": lambda _: None, "begin": lambda *_: lambda _: None}


@pytest.fixture
async def old(redis):
    """A Redis that the first release left."""
    left = golden.read(golden.fixture(1))
    await golden.put_keys(left, redis)
    return left


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(module, "QUIET_SECONDS", 0)


async def test_killed_at_any_line_it_goes_on_where_it_was(old, redis, shared_redis):
    start = {name: await redis.dump(name) for name in await redis.keys("*")}
    await forward(redis)
    wanted = await dumps(shared_redis.url)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.upgrade.migrating_child"])
    lines = context.Value("i", 0)

    async def run_child(at_line: int) -> int:
        await redis.flushall()
        for name, value in start.items():
            await redis.restore(name, 0, value)
        lines.value = 0
        child = context.Process(target=migrate_and_die, args=(shared_redis.url, at_line, lines))
        child.start()
        await asyncio.to_thread(child.join, 60)
        return child.exitcode

    assert await run_child(-1) == 0
    assert await dumps(shared_redis.url) == wanted
    total = lines.value
    draw = random.Random(5)
    halfway = 0
    for at_line in sorted({1, total // 2, total - 1, *draw.sample(range(2, total - 1), KILLS)}):
        assert await run_child(at_line) == -9, at_line
        await redis.delete(keys.migration())  # as if its seconds were over
        first, left = await redis.get(keys.first_schema()), await redis.keys("il:*")
        halfway += 1 < len(left) < len(start)
        assert first == b"2" or len(left) == len(start)
        if await redis.get(keys.schema()) != str(SCHEMA).encode():
            with pytest.raises(StartError, match="instructloop migrate"):
                await refuse_other(redis)
        await forward(redis)
        assert await dumps(shared_redis.url) == wanted, at_line
    assert halfway


async def test_the_first_release_refuses_from_the_first_moment_on(old, redis):
    """It reads its own key, and takes a larger number for a later release's."""

    class _Died(Exception):
        pass

    def die(_: int) -> None:
        raise _Died

    with suppress(_Died):
        await redis_forward(redis, say=print, begin=lambda *_: die, patience=Patience(0, 30.0))
    assert int(await redis.get("il:schema")) > 1
    with pytest.raises(StartError, match="holds schema 1, .* `instructloop migrate`"):
        await check_redis(redis)
    await forward(redis)
    assert int(await redis.get("il:schema")) > 1
    assert await check_redis(redis) == []


async def unused_for(redis, seconds: int) -> None:
    for name in await redis.keys("il:*"):
        value = await redis.dump(name)
        await redis.restore(name, 0, value, replace=True, idletime=seconds)


async def test_while_somebody_reads_it_does_nothing(old, redis, shared_redis):
    await unused_for(redis, 7200)
    before = await dumps(shared_redis.url)
    await unused_for(redis, 7200)
    await redis.hgetall("il:api-keys")  # as a gateway does, every second
    with pytest.raises(StartError, match=r"il:api-keys was used \d+ s ago: .* Stop gateways"):
        await redis_forward(redis, **NOTHING, patience=Patience(3600, 0.3))
    assert await dumps(shared_redis.url) == before
    await unused_for(redis, 7200)
    assert await redis_forward(redis, **NOTHING, patience=Patience(3600, 0.3))


async def test_that_redis_saves_itself_is_waited_for_and_is_nobody_s_fault(old, redis, monkeypatch):
    saves = iter([1, 1, 0])

    async def of(_client, section):
        assert section == "persistence"
        return {"aof_rewrite_in_progress": next(saves, 1)}

    monkeypatch.setattr(module, "info_of", of)
    assert await redis_forward(redis, **NOTHING, patience=Patience(0, 30.0))
    await redis.mset({"il:schema": 1, keys.schema(): 1})
    with pytest.raises(StartError, match="saves itself.* wait until it has, and migrate again"):
        await redis_forward(redis, **NOTHING, patience=Patience(0, 0.0))
    assert await redis.get(keys.first_schema()) == b"1"


async def test_who_read_while_redis_saved_itself_is_seen_after_it(old, redis, monkeypatch):
    """Until then nothing looks used, although somebody reads every second."""
    await unused_for(redis, 7200)
    looked = module._touched
    looks = 0

    async def after_a_save(*said):
        nonlocal looks
        looks += 1
        if looks == 2:
            await redis.hgetall("il:api-keys")
        return await looked(*said)

    monkeypatch.setattr(module, "_touched", after_a_save)
    with pytest.raises(StartError, match="il:api-keys was used"):
        await redis_forward(redis, **NOTHING, patience=Patience(3600, 0.3))
    assert await redis.get("il:schema") == b"1"


async def test_it_waits_until_they_are_gone(old, redis):
    assert await redis_forward(redis, **NOTHING, patience=Patience(1, 60.0))
    assert await redis.get(keys.schema()) == str(SCHEMA).encode()


async def test_a_user_with_few_rights_may_with_what_the_page_adds(old, redis, shared_redis):
    page = (ROOT / "docs" / "install.md").read_text()
    more = re.search(r"^ACL SETUSER instructloop (.*)$", page, re.M)[1].split()
    try:
        await redis.execute_command("ACL SETUSER", "instructloop", *documented_rules(), *more)
        url = shared_redis.url.replace(f":{shared_redis.password}@", "instructloop:PASSWORD@")
        async with connect(url) as client:
            await forward(client)
            assert await check_redis(client) == []
        assert await redis.get(keys.schema()) == str(SCHEMA).encode()
    finally:
        await redis.execute_command("ACL DELUSER", "instructloop")


async def test_a_user_who_may_not_rename_changes_nothing(old, redis, shared_redis):
    try:
        rules = [*documented_rules(), "~*", "+object|idletime"]
        await redis.execute_command("ACL SETUSER", "instructloop", *rules)
        url = shared_redis.url.replace(f":{shared_redis.password}@", "instructloop:PASSWORD@")
        async with connect(url) as client:
            with pytest.raises(StartError, match="allow RENAMENX"):
                await forward(client)
        assert await redis.get("il:schema") == b"1"
        assert await redis.get(keys.schema()) is None
    finally:
        await redis.execute_command("ACL DELUSER", "instructloop")


async def test_two_at_a_time_are_one_after_the_other(old, redis, shared_redis):
    said: list[str] = []
    await asyncio.gather(forward(redis, said), forward(redis, said))
    assert len([line for line in said if "keys in" in line]) == 1
    assert await redis.exists(keys.migration()) == 0


async def test_while_another_migrates_nothing_happens(old, redis, monkeypatch):
    monkeypatch.setattr(module, "_LOCK_WAIT_SECONDS", 0.0)
    await redis.set(keys.migration(), "another's")
    with pytest.raises(StartError, match="another process migrates"):
        await forward(redis)
    assert await redis.get(keys.migration()) == b"another's"
    assert await redis.get("il:schema") == b"1"


async def test_a_key_under_both_names_stops_it_and_engines_say_themselves_again(old, redis):
    await redis.set(keys.loop(), "of another process")
    await redis.sadd(keys.replicas(), "new")
    with pytest.raises(StartError, match=r"1 keys .* such as il:loop: some process wrote"):
        await forward(redis)
    with pytest.raises(StartError, match="instructloop migrate"):
        await check_redis(redis)
    await redis.delete(keys.loop())
    await forward(redis)
    assert await redis.hget(keys.loop(), "paused") is not None
    assert await redis.smembers(keys.replicas()) == {b"new"}


async def test_everybody_refuses_what_an_earlier_release_left(
    old, redis, shared_redis, state_dir, monkeypatch
):
    monkeypatch.setattr(logs, "set_up", lambda *_, **__: None)
    settings = Settings(state_dir=state_dir, redis_url=shared_redis.url)
    before = await dumps(shared_redis.url)
    with pytest.raises(StartError, match="instructloop migrate"):
        await asyncio.to_thread(refuse_foreign_data, settings)
    with pytest.raises(StartError, match="instructloop migrate"):
        await _with_work(settings, lambda work: work.redis.set("x", "y"))
    options = ["--redis-url", shared_redis.url, "--state-dir", str(state_dir)]
    for command in (
        ("keys", "create", "--name", "n", "--scope", "admin"),
        ("loop", "resume"),
        ("backup", "--out", str(state_dir / "out")),
        ("status",),
    ):
        done = await asyncio.to_thread(run.invoke, app, [*command, *options])
        assert isinstance(done.exception, StartError), command
        assert "instructloop migrate" in done.exception.message
    assert await dumps(shared_redis.url) == before


async def test_the_command_says_what_it_would_do_does_it_and_says_that_it_is_done(
    old, redis, shared_redis, state_dir, at_once
):
    golden.put_files(old, state_dir)
    options = ["--redis-url", shared_redis.url, "--state-dir", str(state_dir)]

    async def migrate(*more: str) -> str:
        done = await asyncio.to_thread(run.invoke, app, ["migrate", *options, *more])
        assert done.exit_code == 0, done.exception
        return done.stdout

    count = len(old.keys) - 1
    wanted = "Redis, schema 1 to 2: every key that begins with il: begins with {il}: instead"
    said = await migrate("--dry-run")
    assert wanted in said
    assert f"({count} keys)" in said
    assert await redis.get("il:schema") == b"1"
    said = await migrate()
    assert wanted in said
    assert f"{count} keys in" in said
    assert "Redis has schema 2" in said
    assert f"the state folder {state_dir}: nothing to do" in said
    assert "Redis: nothing to do" in await migrate()


async def test_up_migrates_before_it_starts_anything(old, redis, shared_redis, state_dir, at_once):
    class Said(list):
        stopping = False
        say = list.append

    settings = Settings(state_dir=state_dir, redis_url=shared_redis.url)
    supervisor = Said()
    await _wait_for_redis(supervisor, settings)
    assert [line for line in supervisor if "keys in" in line]
    await refuse_other(redis)
    again = Said()
    await _wait_for_redis(again, settings)
    assert again == []


async def test_a_redis_of_a_later_release_and_one_that_is_no_number_stay_as_they_are(redis):
    for said in (str(SCHEMA + 1), "one", "0"):
        await redis.set(keys.schema(), said)
        with pytest.raises(StartError, match="this Redis"):
            await forward(redis)
        assert (await redis.get(keys.schema())).decode() == said


async def test_a_redis_that_does_not_answer_is_said_at_once_where_nobody_would_start_it(tmp_path):
    done = await asyncio.to_thread(run.invoke, app, ["migrate", "--state-dir", str(tmp_path / "s")])
    assert isinstance(done.exception, StartError)
    assert "our own runs while `up` does" in done.exception.message


def test_a_folder_comes_forward_step_by_step_and_says_so(tmp_path):
    (tmp_path / "secrets").mkdir()
    steps = [
        FolderStep(since, f"step {since}", lambda folder, n=since: (folder / f"{n}").touch())
        for since in (1, 2)
    ]
    said: list[str] = []
    assert folder_forward(tmp_path, say=said.append, dry_run=True, steps=steps)
    assert [path.name for path in tmp_path.iterdir()] == ["secrets"]
    assert folder_forward(tmp_path, say=said.append, steps=steps)
    assert said[:2] == said[2:]
    assert said[0].endswith("schema 1 to 2: step 1")
    assert (tmp_path / "schema").read_text() == "3\n"
    assert (tmp_path / "1").exists()
    assert (tmp_path / "2").exists()
    assert not folder_forward(tmp_path, say=said.append, steps=steps)
    (tmp_path / "schema").write_text("0")
    with pytest.raises(StartError, match="too old for this release, which comes from 1"):
        folder_forward(tmp_path, say=said.append, steps=steps)


def test_a_new_folder_needs_nothing_and_is_marked_by_the_start(tmp_path):
    assert not folder_forward(tmp_path / "new", say=print)
    assert not (tmp_path / "new").exists()
    check_folder(tmp_path / "new")
    assert (tmp_path / "new" / "schema").read_text() == f"{FOLDER_SCHEMA}\n"


async def test_a_killed_one_s_lock_ends_by_itself(old, redis, monkeypatch):
    await redis.set(keys.migration(), "of one that was killed", px=300)
    await forward(redis)
    await eventually(lambda: redis.get(keys.schema()))
    assert await redis.get(keys.schema()) == str(SCHEMA).encode()
