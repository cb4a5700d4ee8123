"""What each release left is read by this one: with the same answers, and nobody who was erased."""

import tempfile
from pathlib import Path

import pytest

from core import keys
from core.keyring import Keyring
from core.redis_client import connect
from core.schema import FOLDER_SCHEMA, SCHEMA, check_folder, refuse_other
from deploy import backup_files as files
from deploy.backup import restore
from deploy.backup_redis import save_rdb
from deploy.migrate import Patience, folder_forward, redis_forward
from feedback.ingest import ingest_batch
from tests.conftest import RedisServer, eventually
from tests.deploy.backup_child import quiet
from tests.deploy.backup_rig import dumps
from tests.feedback.factory import EmailFilter
from tests.serving.conftest import running_gateway
from tests.upgrade import golden
from tests.upgrade.installation import ERIN, ERINS, ONCE, answers, settings_of

NOW = Patience(quiet=0, longest=30.0)
"""Nobody else is there; that Redis saves itself, which it may at any time, is waited for."""


async def forward(redis, said: list[str] | None = None) -> bool:
    say = [] if said is None else said
    return await redis_forward(redis, say=say.append, begin=lambda *_: lambda _: None, patience=NOW)


@pytest.fixture
def left(request, state_dir):
    """The fixture of a schema, with its files in the state folder."""
    fixture = golden.read(golden.fixture(request.param))
    golden.put_files(fixture, state_dir)
    folder_forward(state_dir, say=print)
    check_folder(state_dir)
    return fixture


every_schema = pytest.mark.parametrize("left", range(1, SCHEMA + 1), indirect=True)


@every_schema
async def test_what_a_release_left_is_read_with_the_same_answers(
    left, redis, shared_redis, state_dir
):
    await golden.put_keys(left, redis)
    assert await forward(redis) == (left.about["schema"] < SCHEMA)
    await refuse_other(redis)
    settings = settings_of(state_dir, shared_redis.url)
    assert await answers(redis, settings, left.about) == left.answers
    await _every_key_is_there_and_lives_as_long(left, redis)
    before = await dumps(shared_redis.url)
    assert not await forward(redis)
    assert await dumps(shared_redis.url) == before


async def _every_key_is_there_and_lives_as_long(left, redis) -> None:
    for line in left.keys:
        name = keys.PREFIX + line["key"].partition(":")[2]
        if line["key"] == keys.first_schema():
            continue
        assert (await redis.type(name)).decode() == line["type"], name
        lives = await redis.pttl(name)
        assert lives == -1 if "ttl" not in line else line["ttl"] - 30_000 < lives <= line["ttl"]
    strangers = [name async for name in redis.scan_iter() if not name.startswith(b"{il}:")]
    assert strangers == [keys.first_schema().encode()]


@every_schema
async def test_the_erased_stay_erased_and_what_waited_is_recorded(left, redis, state_dir):
    await golden.put_keys(left, redis)
    await forward(redis)
    settings = settings_of(state_dir, None)
    keyring = Keyring(settings.secrets)
    assert await redis.xlen(keys.inbox()) == 2
    while await ingest_batch(redis, keyring, settings, EmailFilter(), limit=100):
        pass
    people = (await answers(redis, settings, left.about))["people"]
    assert people[ERIN]["counts"] == {"completions": 0, "prompts": 0}
    assert people[ERIN]["given"] == []
    assert len(people["ann"]["asked"]) == len(left.answers["people"]["ann"]["asked"]) + 1
    everything = [repr(line) for line in await golden.keys_of(redis)]
    assert not [text for text in everything if ERINS in text or ERIN in text]
    assert not [path for path in state_dir.rglob("*") if path.is_file() and _tells(path)]


def _tells(path: Path) -> bool:
    return ERINS.encode() in path.read_bytes()


@every_schema
async def test_clients_go_on_with_their_keys_and_their_repeated_requests(
    left, redis, shared_redis, state_dir
):
    await golden.put_keys(left, redis)
    await forward(redis)
    settings = settings_of(state_dir, shared_redis.url)
    rated = {"completion_id": left.about["ann"], "rating": 6, "flags": {"fails_task": False}}
    async with running_gateway(settings, redis, with_key=False) as gateway:
        gateway.secret = left.about["secret"]
        await eventually(lambda: not gateway.app.state.durability_warnings)
        once = {"Idempotency-Key": ONCE}
        async with gateway.post("/v1/feedback", rated, headers=once) as response:
            assert response.status == 201, await response.text()
            (known,) = (one for one in left.answers["feedback"] if one["rating"] == 6)
            assert (await response.json())["id"] == known["id"]
        about_it = {"completion_id": left.about["ann"], "choice": 1, "thumb": "down"}
        async with gateway.post("/v1/feedback", about_it) as response:
            assert response.status == 201, await response.text()
        async with gateway.get("/v1/usage?days=366") as response:
            assert len((await response.json())["keys"]) == 1


async def test_a_backup_of_an_earlier_release_is_restored_and_brought_forward(redis, shared_redis):
    left = golden.read(golden.fixture(1))
    await golden.put_keys(left, redis)
    with tempfile.TemporaryDirectory(prefix="il-") as name:
        place = Path(name)
        await _backup_of_the_first_release(redis, left, place)
        restore(place / "old", place / "new", [], quiet, without_erasures=True)
        server = RedisServer(place / "new", Keyring(place / "new" / "secrets").token("x"))
        server.start()
        try:
            async with connect(server.url) as there:
                assert await forward(there)
                settings = settings_of(place / "new", server.url)
                assert await answers(there, settings, left.about) == left.answers
        finally:
            server.kill()


async def _backup_of_the_first_release(redis, left, place: Path) -> None:
    """As that one wrote it: no mark of the folder's schema, no keys of days, Redis of schema 1."""
    golden.put_files(left, place / "state")
    with (place / files.REDIS).open("wb") as file:
        await save_rdb(redis, file, lambda _: None)
    with files.new_backup(place / "old") as sink:
        told = [files.put(sink, files.REDIS, place / files.REDIS, lambda _: None)]
        for line in left.files:
            if not line["file"].startswith(("schema", "secrets/inbox")):
                source = place / "state" / line["file"]
                told.append(files.put(sink, files.STATE + line["file"], source, lambda _: None))
        manifest = files.Manifest(
            made_at="2026-01-01T00:00:00Z",
            release="0.1.0",
            schema_version="1",
            erasures_read=0,
            unreadable={},
            left_out=(),
            files=tuple(told),
        )
        files.put_manifest(sink, manifest)


def test_the_fixture_of_this_schema_is_there_small_and_nobody_s():
    for schema in range(1, SCHEMA + 1):
        fixture = golden.read(golden.fixture(schema))
        assert fixture.about["schema"] == schema
        assert golden.fixture(schema).stat().st_size < 40_000
    assert {line["type"] for line in fixture.keys} == {
        "string", "hash", "set", "zset", "list", "stream"
    }  # fmt: skip
    assert FOLDER_SCHEMA == 1
