"""`instructloop keys`: what can be said of a key, and what is shown of it."""

import asyncio
import time

import pytest
from typer.testing import CliRunner

from core.auth import digest_of, list_keys, revoke_key
from core.keyring import ENGINE_DATA, IDS, Keyring
from core.records import KeyLimits
from core.redis_client import connect
from deploy.cli_keys import app, limits_of

run = CliRunner(env={"COLUMNS": "300"})


@pytest.fixture
def url(redis_server):
    return redis_server.url


def call(*words, url):
    return run.invoke(app, [*words, "--redis-url", url])


def stored(url):
    async def read():
        async with connect(url) as redis:
            return await list_keys(redis)

    return asyncio.run(read())


def test_a_key_is_made_with_its_limits_and_its_end(url):
    words = ["create", "--name", "shop", "--scope", "complete", "--tenant", "acme"]
    more = ["--expires-in", "30d", "--requests-per-minute", "60", "--tokens-per-minute", "0"]
    more += ["--concurrency", "4", "--user-requests-per-minute", "6"]
    before = time.time()
    made = call(*words, *more, url=url)
    assert made.exit_code == 0, made.output
    (key,) = stored(url)
    assert (key.tenant, key.name, key.scopes) == ("acme", "shop", ("complete",))
    assert 30 * 86_400 <= key.expires_at - before < 30 * 86_400 + 60
    assert key.limits == KeyLimits(
        requests_per_minute=60, tokens_per_minute=0, concurrency=4, user_requests_per_minute=6
    )
    shown = call("list", url=url).output
    assert "valid until 20" in shown
    assert "60 requests/min, any tokens/min, 4 at once, each user 6 requests/min" in shown


def test_a_key_without_limits_has_none_of_its_own(url):
    assert call("create", "--name", "n", "--scope", "admin", url=url).exit_code == 0
    (key,) = stored(url)
    assert (key.limits, key.expires_at) == (None, None)
    assert limits_of(None) == ""


@pytest.mark.parametrize("wrong", ["30", "d", "-1d", "0d", "1.5h", "30 days", "1y"])
def test_a_time_that_says_nothing_clear_is_bad_usage(url, wrong):
    words = ["create", "--name", "n", "--scope", "complete", f"--expires-in={wrong}"]
    assert call(*words, url=url).exit_code == 2
    assert stored(url) == []


def test_the_list_tells_valid_expired_and_revoked_apart(url):
    for name in ("good", "brief", "gone"):
        words = ["create", "--name", name, "--scope", "complete"]
        words += ["--expires-in", "1s"] if name == "brief" else []
        assert call(*words, url=url).exit_code == 0
    gone = next(key for key in stored(url) if key.name == "gone")

    async def revoke():
        async with connect(url) as redis:
            await revoke_key(redis, gone.id)

    asyncio.run(revoke())
    brief = next(key for key in stored(url) if key.name == "brief")
    time.sleep(max(0.0, brief.expires_at - time.time()))
    lines = call("list", url=url).output.splitlines()
    for name, state in (("good", "valid"), ("brief", "expired"), ("gone", "revoked")):
        assert state in next(line for line in lines if name in line)


def test_a_key_is_given_a_new_secret_that_is_shown_once(url):
    made = call("create", "--name", "ida", "--scope", "label", url=url)
    (key,) = stored(url)
    rotated = call("rotate", key.id, "--grace", "7d", url=url)
    assert rotated.exit_code == 0, rotated.output
    (after,) = stored(url)
    secret = rotated.stdout.strip().splitlines()[-1]
    assert (after.digest, after.previous_digest) == (digest_of(secret), key.digest)
    assert secret not in made.output
    assert 7 * 86_400 - 60 < after.previous_until - time.time() < 7 * 86_400
    assert call("rotate", key.id, "--grace", "soon", url=url).exit_code == 2


@pytest.mark.parametrize(
    ("command", "name"), [("rotate-ids", IDS), ("rotate-engine-token", ENGINE_DATA)]
)
def test_what_is_used_later_and_what_may_be_deleted_then_is_said(url, state_dir, command, name):
    keyring = Keyring(state_dir / "secrets")
    for count in (2, 3):
        before, old = keyring.present(name), keyring.files(name)
        done = call(command, "--state-dir", str(state_dir), url=url)
        assert done.exit_code == 0, done.output
        assert len(keyring.accepted(name)) == count
        assert keyring.present(name) == before
        said = [f"{keyring.folder / file}" for file in old]
        assert done.output.strip().endswith("delete it: " + ", ".join(said))
