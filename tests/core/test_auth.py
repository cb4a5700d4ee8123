"""API keys on a real Redis: hashed at rest, scoped, expiring, revoked everywhere soon."""

import asyncio
import time
from contextlib import asynccontextmanager

import pytest

from core import auth, keys, registry
from core.errors import Conflict, Forbidden, NotFound, Unauthenticated, Unavailable, Unprocessable
from core.redis_client import connect
from tests.conftest import eventually


async def make(redis, *scopes, **options):
    return await auth.create_key(redis, name="app", tenant="acme", scopes=scopes, **options)


@asynccontextmanager
async def refreshing(redis):
    cache = auth.KeyCache(redis)
    task = asyncio.create_task(cache.run())
    try:
        await eventually(lambda: cache.loaded)
        yield cache
    finally:
        task.cancel()


def is_refused(cache: auth.KeyCache, secret: str) -> bool:
    try:
        cache.lookup(secret)
    except Unauthenticated:
        return True
    return False


async def test_a_secret_is_nowhere_in_redis(redis):
    key, secret = await make(redis, "complete")
    stored = b"".join((await redis.hgetall(keys.api_keys())).values())
    audit = str(await registry.history(redis)).encode()
    assert secret.encode() not in stored + audit
    assert secret.removeprefix("il-").encode() not in stored + audit
    assert key.digest.encode() in stored
    assert len(bytes.fromhex(key.id)) == 4  # fits a completion id


async def test_a_key_is_found_by_its_secret_and_by_no_other(redis):
    key, secret = await make(redis, "complete", "feedback")
    cache = auth.KeyCache(redis)
    await cache.refresh()
    assert cache.lookup(secret) == key
    for wrong in ("", "il-", secret[:-1], secret + "x", secret.upper(), key.digest):
        with pytest.raises(Unauthenticated):
            cache.lookup(wrong)


async def test_scopes_let_in_what_they_name_and_admin_everything(redis):
    rater, _ = await make(redis, "label")
    admin, _ = await make(redis, "admin")
    auth.require(rater, "label")
    for scope in ("complete", "feedback", "label", "admin"):
        auth.require(admin, scope)
    for scope in ("complete", "feedback", "admin"):
        with pytest.raises(Forbidden, match=scope):
            auth.require(rater, scope)


async def test_a_key_without_a_scope_is_not_made(redis):
    with pytest.raises(Unprocessable):
        await make(redis)
    assert await auth.list_keys(redis) == []


async def test_an_expired_key_is_refused(redis):
    _, secret = await make(redis, "complete", expires_at=time.time() - 1)
    _, good = await make(redis, "complete", expires_at=time.time() + 60)
    cache = auth.KeyCache(redis)
    await cache.refresh()
    assert is_refused(cache, secret)
    assert not is_refused(cache, good)


async def test_a_revoked_key_is_refused_by_every_cache_within_two_seconds(redis):
    key, secret = await make(redis, "complete")
    async with refreshing(redis) as one, refreshing(redis) as other:
        assert not is_refused(one, secret)
        await auth.revoke_key(redis, key.id)
        await eventually(lambda: is_refused(one, secret) and is_refused(other, secret), seconds=2)


async def test_revoking_twice_keeps_the_first_moment_and_an_unknown_key_is_not_found(redis):
    key, _ = await make(redis, "complete")
    first = await auth.revoke_key(redis, key.id)
    assert (await auth.revoke_key(redis, key.id)).revoked_at == first.revoked_at
    with pytest.raises(NotFound):
        await auth.revoke_key(redis, "00000000")
    actions = [entry["action"] for entry in await registry.history(redis)]
    assert actions == ["key created", "key revoked"]


async def test_a_key_made_a_moment_ago_is_found_at_once(redis):
    cache = auth.KeyCache(redis)
    await cache.refresh()
    key, secret = await make(redis, "complete")
    assert is_refused(cache, secret)
    assert await cache.find(secret) == key
    assert cache.lookup(secret) == key


async def test_unknown_secrets_ask_redis_seldom(redis):
    cache = auth.KeyCache(redis)
    await cache.refresh()
    before = (await redis.info("commandstats"))["cmdstat_hgetall"]["calls"]
    finds = [cache.find(f"il-{number}") for number in range(200)]
    refused = await asyncio.gather(*finds, return_exceptions=True)
    assert all(isinstance(error, Unauthenticated) for error in refused)
    asked = (await redis.info("commandstats"))["cmdstat_hgetall"]["calls"] - before
    assert asked == 1


async def test_without_redis_known_keys_stay_good_and_nothing_else_gets_in(redis_server):
    async with connect(redis_server.url) as redis:
        key, secret = await make(redis, "complete")
        cache, empty = auth.KeyCache(redis), auth.KeyCache(redis)
        await cache.refresh()
        redis_server.kill()
        with pytest.raises(Unavailable):
            await cache.refresh()
        assert await cache.find(secret) == key
        with pytest.raises(Unauthenticated):
            await cache.find("il-unknown")
        with pytest.raises(Unavailable):
            await empty.find(secret)


async def test_keys_are_listed_oldest_first_revoked_ones_too(redis):
    made = [(await make(redis, "complete"))[0].id for _ in range(3)]
    await auth.revoke_key(redis, made[1])
    listed = await auth.list_keys(redis)
    assert [key.id for key in listed] == made
    assert [key.revoked_at is not None for key in listed] == [False, True, False]


async def test_a_key_that_was_never_rotated_reads_as_in_the_release_before(redis):
    key, _ = await make(redis, "complete")
    assert b"previous" not in await redis.hget(keys.api_keys(), key.id)


# --- rotation -------------------------------------------------------------------------------


async def test_both_secrets_of_a_rotated_key_are_good_until_the_grace_is_over(redis, monkeypatch):
    key, old = await make(redis, "label", limits=None)
    rotated, new = await auth.rotate_key(redis, key.id, grace_seconds=60.0, who="ops")
    assert (rotated.id, rotated.scopes, rotated.tenant) == (key.id, key.scopes, key.tenant)
    cache = auth.KeyCache(redis)
    await cache.refresh()
    assert cache.lookup(old) == cache.lookup(new) == rotated
    later = time.time() + 61.0
    monkeypatch.setattr(auth.time, "time", lambda: later)
    assert cache.lookup(new) == rotated
    with pytest.raises(Unauthenticated, match="has a new secret"):
        cache.lookup(old)
    assert (await registry.history(redis))[-1]["action"] == "key rotated"


async def test_a_rotation_that_nobody_saw_is_repeated_without_harm_and_a_revocation_ends_all(redis):
    key, used = await make(redis, "complete")
    _, unseen = await auth.rotate_key(redis, key.id, grace_seconds=60.0)
    with pytest.raises(Conflict, match="still good"):
        await auth.rotate_key(redis, key.id, grace_seconds=60.0)
    _, seen = await auth.rotate_key(redis, key.id, grace_seconds=60.0, again=True)
    cache = auth.KeyCache(redis)
    await cache.refresh()
    assert [is_refused(cache, secret) for secret in (used, unseen, seen)] == [False, True, False]
    await auth.revoke_key(redis, key.id)
    await cache.refresh()
    assert is_refused(cache, used)
    assert is_refused(cache, seen)
    with pytest.raises(Conflict, match="was revoked"):
        await auth.rotate_key(redis, key.id, grace_seconds=60.0)
    with pytest.raises(NotFound):
        await auth.rotate_key(redis, "00000000", grace_seconds=60.0)
