"""Backup and restore: the same records and files again, and nobody who was erased since."""

import asyncio
import json
import multiprocessing
import resource
import shutil
import tarfile
import tempfile
import time
from pathlib import Path

import pytest
import redis as redis_sync
from typer.testing import CliRunner

from core import audit_log, keys, registry
from core.errors import InstructLoopError, Unavailable
from core.keyring import ENGINE_DATA, IDS
from core.redis_client import connect
from deploy.backup import KEPT_APART, make_backup, restore
from deploy.backup_files import MANIFEST
from deploy.cli import app
from feedback import erasure
from feedback.erasing import FILE, erase_what_is_due
from tests.deploy.backup_child import back_up_and_die, quiet, restore_and_die
from tests.deploy.backup_rig import Installation, dumps, tree

run = CliRunner(env={"COLUMNS": "300"})
KILLS = 4
_KEYS = ("mac", "mac-301000", "signing", "tag", "user")


@pytest.fixture
def place():
    """A short path, because sockets live in it."""
    with tempfile.TemporaryDirectory(prefix="il-") as folder:
        yield Path(folder)


@pytest.fixture
async def here(place):
    installation = Installation(place / "a")
    installation.server.start()
    installation.ids = await installation.fill()
    yield installation
    installation.server.kill()


@pytest.fixture
def elsewhere(place):
    servers = []

    def start(state_dir):
        installation = Installation(state_dir)
        servers.append(installation.server)
        installation.server.start()
        return installation

    yield start
    for server in servers:
        server.kill()


@pytest.mark.parametrize("name", ["monday", "monday.tar"])
async def test_a_restored_installation_holds_the_same(here, elsewhere, place, name):
    here.keyring.succeed(ENGINE_DATA, now=1.0)
    here.keyring.succeed(IDS, now=1.0)
    before = await dumps(here.server.url)
    manifest = await here.back_up(place / name)
    assert manifest.unreadable["completions in the inbox"] == 1
    restore(place / name, place / "b", [], quiet, without_erasures=True)
    there = elsewhere(place / "b")
    assert await dumps(there.server.url) == before
    old, new = tree(place / "a"), tree(place / "b")
    kept = {n for n in old if n.startswith(("policies/v0000/", "reward_models/"))}
    kept |= {"admin.key", *(f"secrets/{n}.key" for n in _KEYS)}
    assert len(kept) >= 10
    assert {n: new.get(n) for n in kept} == {n: old[n] for n in kept}
    assert {n for n in new if not n.startswith(("redis", "secrets/redis"))} == kept
    modes = [(place / "b" / n).stat().st_mode & 0o777 for n in ("admin.key", "secrets/mac.key")]
    assert modes == [0o600, 0o600]


async def test_keys_of_days_and_logs_stay_where_they_are(here, place):
    assert here.keyring.sealed_days()
    manifest = await here.back_up(place / "out")
    names = [line.path for line in manifest.files]
    assert not [name for name in names if "inbox" in name or "password" in name]
    assert not [name for name in names if name.endswith(KEPT_APART) or "v0009" in name]
    assert not (place / "a" / "redis" / "dump.rdb").exists()
    assert (place / "out").stat().st_mode & 0o077 == 0


async def test_it_is_one_moment_while_people_go_on(here, elsewhere, place):
    """Two counters are raised together, without a pause, by somebody who never stops."""
    async with connect(here.server.url) as redis:

        async def raise_both():
            while True:
                async with redis.pipeline(transaction=True) as step:
                    await step.incr("one").incr("two").execute()

        busy = asyncio.create_task(raise_both())
        await here.back_up(place / "out")
        busy.cancel()
        last = int(await redis.get("one"))
    restore(place / "out", place / "b", [], quiet, without_erasures=True)
    there = elsewhere(place / "b")
    async with connect(there.server.url) as redis:
        one, two = await redis.mget("one", "two")
    assert one == two
    assert 0 < int(one) <= last


async def test_who_was_erased_since_stays_erased(here, elsewhere, place):
    await here.back_up(place / "out")
    async with connect(here.server.url) as redis:
        job = await erasure.begin(redis, here.keyring, tenant="acme", user="ann", now=time.time())
        assert await erase_what_is_due(redis, here.keyring, here.settings) == 1
    log = place / "a" / FILE
    with pytest.raises(InstructLoopError, match="would come back"):
        restore(place / "out", place / "b", [], quiet, without_erasures=False)
    assert not (place / "b").exists()
    (place / "b").mkdir()
    shutil.copy(log, place / "b" / FILE)
    restore(place / "out", place / "b", [], quiet, without_erasures=False)
    there = elsewhere(place / "b")
    ann, bob = (here.ids[name].removeprefix("chatcmpl-") for name in ("ann", "bob"))
    async with connect(there.server.url) as redis:
        assert await redis.exists(keys.completion(ann), keys.completion(bob)) == 2
        await erase_what_is_due(redis, there.keyring, there.settings)
        assert not await redis.exists(keys.completion(ann))
        assert await redis.exists(keys.completion(bob))
        assert (await erasure.receipt(redis, job)).state == "erased"


async def test_the_audit_log_goes_on_where_it_was(here, elsewhere, place):
    await here.back_up(place / "out")
    async with connect(here.server.url) as redis:
        await registry.record(redis, "said since", who="a test")
        await audit_log.mirror(redis, here.keyring, place / "a")
    log = place / "a" / audit_log.FILE
    restore(place / "out", place / "b", [log], quiet, without_erasures=True)
    there = elsewhere(place / "b")
    async with connect(there.server.url) as redis:
        await registry.record(redis, "said after", who="a test")
        await audit_log.mirror(redis, there.keyring, place / "b")
        lines = audit_log.read_lines(place / "b" / audit_log.FILE)
        audit_log.check(lines, here.keyring.public_key())
        await audit_log.compare(redis, lines)
    assert [line.entry["action"] for line in lines[-2:]] == ["said since", "said after"]


def change(folder: Path, how: str) -> None:
    path = folder / "state" / "policies" / "v0000" / "model.safetensors"
    manifest = json.loads((folder / MANIFEST).read_text())
    match how:
        case "changed":
            path.write_bytes(path.read_bytes()[:-1] + b"~")
        case "cut off":
            path.write_bytes(path.read_bytes()[:-1])
        case "missing":
            path.unlink()
        case "a link":
            path.unlink()
            path.symlink_to("/dev/zero")
        case "no manifest":
            (folder / MANIFEST).unlink()
        case "leads outside":
            manifest["files"][-1]["path"] = "state/../../evil"
        case "newer":
            manifest["format"] = 2
    if how in ("leads outside", "newer"):
        (folder / MANIFEST).write_text(json.dumps(manifest))


CHANGES = {
    "changed": "not as it was written",
    "cut off": "not as it was written",
    "missing": "is missing in the backup",
    "a link": "is missing in the backup",
    "no manifest": "broken off",
    "leads outside": "was changed",
    "newer": "newer release",
}


async def test_a_backup_that_was_changed_is_refused_and_nothing_is_touched(here, place):
    await here.back_up(place / "good")
    (place / "b").mkdir()
    (place / "b" / audit_log.FILE).write_text("mine")
    for how, said in CHANGES.items():
        shutil.copytree(place / "good", place / how)
        change(place / how, how)
        with pytest.raises(InstructLoopError, match=said):
            restore(place / how, place / "b", [], quiet, without_erasures=True)
        assert tree(place / "b").keys() == {audit_log.FILE}, how
    assert not [path for path in place.iterdir() if path.name.startswith(".")]


async def test_a_tar_that_was_cut_off_is_refused(here, place):
    await here.back_up(place / "x.tar")
    whole = (place / "x.tar").read_bytes()
    with tarfile.open(place / "x.tar") as tar:
        last = tar.getmembers()[-1]
        assert last.name == MANIFEST
    for size in (len(whole) // 2, last.offset, last.offset_data + 10, 10, 0):
        (place / "y.tar").write_bytes(whole[:size])
        with pytest.raises(InstructLoopError):
            restore(place / "y.tar", place / "b", [], quiet, without_erasures=True)
        assert not (place / "b").exists()


async def test_what_is_there_is_never_written_over(here, place):
    await here.back_up(place / "out")
    with pytest.raises(InstructLoopError, match="is there already"):
        await here.back_up(place / "out")
    with pytest.raises(InstructLoopError, match="is not empty"):
        restore(place / "out", place / "a", [], quiet, without_erasures=True)
    (place / FILE).write_text("")
    manifest = json.loads((place / "out" / MANIFEST).read_text()) | {"erasures_read": 5}
    (place / "out" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InstructLoopError, match="older than the backup"):
        restore(place / "out", place / "b", [place / FILE], quiet, without_erasures=False)


async def test_a_full_disk_leaves_nothing_behind(here, place):
    """The system lets no file grow beyond a limit, which a write then hears as an error."""
    await here.back_up(place / "good")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (200, 2000):  # the copy of Redis is larger than the first, smaller than the second
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        try:
            with pytest.raises(InstructLoopError, match="cannot write"):
                await here.back_up(place / "out.tar")
            with pytest.raises(InstructLoopError, match="cannot write"):
                restore(place / "good", place / "b", [], quiet, without_erasures=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name for path in place.iterdir()} == {"a", "good"}


async def test_a_redis_that_is_away_is_said(here, place):
    here.server.kill()
    with pytest.raises(Unavailable, match="Redis does not answer"):
        await here.back_up(place / "out")
    assert {path.name for path in place.iterdir()} == {"a"}


async def test_archive_or_versions_that_change_meanwhile_make_it_begin_again(here, place):
    begun = []

    def begin(what, _total):
        begun.append(what)
        if len(begun) == 1:
            with redis_sync.Redis.from_url(here.server.url) as client:
                client.hset(keys.archive(), "#generation", 7)
        elif len(begun) == 4:
            raise FileNotFoundError("as when a file goes while it is copied")
        return lambda _done: None

    async with connect(here.server.url) as redis:
        manifest = await make_backup(redis, here.settings, place / "out", begin)
    assert begun == ["Redis", "files"] * 3
    assert len(manifest.files) == len(tree(place / "out")) - 1


async def test_an_archive_in_the_state_folder_is_in_it_and_another_is_named(here, place):
    archive = place / "a" / "archive"
    archive.mkdir()
    (archive / "f.parquet").write_bytes(b"rows")
    (archive / "stray.parquet").write_bytes(b"never registered")
    entry_of = {"rows": 1, "bytes": 4, "sha256": "", "first_ms": 1, "last_ms": 1, "ranges": []}
    async with connect(here.server.url) as redis:
        await redis.hset(keys.archive(), "f.parquet", json.dumps(entry_of))
        await redis.hset(keys.archive(), "#root", str(archive.resolve()))
        manifest = await here.back_up(place / "one")
        names = [line.path for line in manifest.files if "archive" in line.path]
        assert names == ["state/archive/f.parquet"]
        await redis.hset(keys.archive(), "#root", "s3://far/away")
        manifest = await here.back_up(place / "two")
    assert not [line.path for line in manifest.files if "archive" in line.path]
    assert manifest.left_out[0] == "the archive in s3://far/away"


def killed(target, *args, at_line: int) -> int:
    """Lines that ran before it was killed, or all of them."""
    lines = multiprocessing.Value("i", 0)
    child = multiprocessing.get_context("fork").Process(target=target, args=(*args, at_line, lines))
    child.start()
    child.join()
    assert child.exitcode in (0, -9)
    return lines.value


async def test_killed_anywhere_it_leaves_nothing_that_looks_whole(here, place):
    out, url = place / "out.tar", here.server.url
    total = killed(back_up_and_die, url, here.settings, place / "all.tar", at_line=-1)
    seen = set()
    for at in range(1, total, max(total // KILLS, 1)):
        killed(back_up_and_die, url, here.settings, out, at_line=at)
        seen.add(out.exists())
        if out.exists():
            restore(out, place / "whole", [], quiet, without_erasures=True)
            shutil.rmtree(place / "whole")
            out.unlink()
    assert False in seen
    await here.back_up(out)
    assert not [path for path in place.iterdir() if path.name.startswith(".")]


async def test_a_restore_that_was_killed_can_be_done_again(here, place):
    source, target = place / "out", place / "b"
    await here.back_up(source)

    def logs():
        target.mkdir()
        (target / FILE).write_text("kept")

    logs()
    total = killed(restore_and_die, source, target, at_line=-1)
    whole = tree(target)
    for at in [*range(1, total, max(total // KILLS, 1)), *range(total - 9, total, 3)]:
        shutil.rmtree(target)
        logs()
        killed(restore_and_die, source, target, at_line=at)
        now = tree(target) if target.exists() else {}
        assert now in ({}, {FILE: whole[FILE]}, whole), at
        if now != whole:
            restore(source, target, [], quiet, without_erasures=True)
            assert tree(target) == whole, at


async def test_two_commands_do_it(here, place, monkeypatch):
    monkeypatch.chdir(place)
    (place / "instructloop.toml").write_text('promotion = "manual"\n')
    (place / FILE).write_text("")
    out = str(place / "x.tar")
    options = ["--redis-url", here.server.url, "--state-dir", str(place / "a")]
    done = await asyncio.to_thread(run.invoke, app, ["backup", "--out", out, *options])
    assert done.exit_code == 0, done.exception
    assert "1 completions in the inbox" in done.output
    assert "erasures.log: keep a copy apart" in done.output
    words = ["restore", "--in", out, "--state-dir", str(place / "b")]
    refused = await asyncio.to_thread(run.invoke, app, words)
    assert "say --without-erasures" in refused.exception.message
    wrong = await asyncio.to_thread(run.invoke, app, [*words, "--audit", str(place / FILE)])
    assert "not a file that is called audit.jsonl" in wrong.exception.message
    done = await asyncio.to_thread(run.invoke, app, [*words, "--erasures", str(place / FILE)])
    assert done.exit_code == 0, done.exception
    assert (place / "b" / "instructloop.toml").read_text() == 'promotion = "manual"\n'
    assert (place / "b" / FILE).exists()
