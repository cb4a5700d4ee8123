"""An erasure is found by the tick, and done by whoever drains the inbox, before any ingest."""

import time

import pytest

from core import keys
from core.ids import token_of
from core.settings import Settings
from feedback import erasure
from feedback.erasing import FILE
from learning.rounds.ingesting import drain_inbox, erase_here
from learning.worker.ticking import due_tasks
from tests.feedback.factory import EmailFilter, entry, put
from tests.feedback.test_snapshot import World


@pytest.fixture
def settings(state_dir) -> Settings:
    return Settings(state_dir=state_dir)


@pytest.fixture(autouse=True)
async def day_keys_were_checked(redis):
    await redis.set(keys.day_keys_checked(), 1)
    await redis.set(keys.retention_checked(), 1)


async def test_an_erasure_is_due_until_the_drain_has_done_it(redis, keyring, settings):
    cid = await World(redis, keyring, settings).ask("Name a river.", "Elbe", at=time.time() - 1)
    assert await due_tasks(redis, settings) == []
    await erasure.begin(redis, keyring, tenant="acme", user="ann", now=time.time())
    assert await due_tasks(redis, settings) == ["ingest"]
    late = entry(keyring, created_at=time.time() - 1)
    await put(redis, keyring, late)
    await drain_inbox(redis, keyring, settings, EmailFilter(), seconds=10)
    for token in (token_of(cid), late["token"]):
        assert await redis.get(keys.completion(token)) is None
    assert await due_tasks(redis, settings) == []


async def test_a_log_that_this_redis_has_not_read_is_due(redis, keyring, settings):
    await erasure.begin(redis, keyring, tenant="acme", user="ann", now=time.time())
    assert await erase_here(redis, keyring, settings)
    assert (settings.state_dir / FILE).stat().st_mode & 0o777 == 0o600
    await redis.delete(keys.erasures_read())
    assert await due_tasks(redis, settings) == ["ingest"]
    assert await erase_here(redis, keyring, settings)
    assert await due_tasks(redis, settings) == []


async def test_only_one_erases_at_a_time(redis, keyring, settings):
    erasure_id = await erasure.begin(redis, keyring, tenant="acme", user="ann", now=time.time())
    await redis.set(keys.ingest_lease(), "somebody")
    assert not await erase_here(redis, keyring, settings)
    assert (await erasure.receipt(redis, erasure_id)).state == "accepted"
