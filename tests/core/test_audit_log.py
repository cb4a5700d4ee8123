"""The audit log outside Redis: each entry once, chained, signed, and given back after a restore."""

import asyncio
import json

import pytest

from core import audit_log, keys, registry
from core.audit_log import AuditBroken, check, compare, mirror, read_lines
from core.auth import create_key, revoke_key
from core.keyring import Keyring
from tests.core.test_registry import publish


@pytest.fixture
def path(state_dir):
    return state_dir / audit_log.FILE


async def live(redis):
    """Something of everything that is recorded here."""
    await publish(redis, "v0000", "v0001")
    await registry.promote(redis, "v0000", who="start", why="the first")
    await registry.promote(redis, "v0001", who="key 1", why="better")
    await registry.rollback(redis, who="key 1", why="worse")
    await registry.quarantine(redis, "v0001", why="NaN")
    key, _ = await create_key(redis, name="n", tenant="t", scopes=["admin"])
    await revoke_key(redis, key.id)
    await revoke_key(redis, key.id)


ACTIONS = ["published", "published", "promoted", "promoted", "rolled back", "quarantined"]
ACTIONS += ["key created", "key revoked"]


async def test_each_entry_is_copied_once_in_order_and_proven(redis, keyring, state_dir, path):
    await live(redis)
    assert await mirror(redis, keyring, state_dir) == len(ACTIONS)
    assert await mirror(redis, keyring, state_dir) == 0
    await registry.record(redis, "loop paused")
    assert await mirror(redis, keyring, state_dir) == 1
    lines = read_lines(path)
    assert [line.entry["action"] for line in lines] == [*ACTIONS, "loop paused"]
    assert lines[4].entry["from"] == "v0001"
    assert lines[4].entry["why"] == "worse"
    check(lines, keyring.public_key())
    await compare(redis, lines)
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("cut", [1, 40, 300])
async def test_a_line_that_a_crash_has_torn_is_written_again(redis, keyring, state_dir, path, cut):
    await live(redis)
    await mirror(redis, keyring, state_dir)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert await mirror(redis, keyring, state_dir) == 1
    check(read_lines(path), keyring.public_key())
    assert [line.entry["action"] for line in read_lines(path)] == ACTIONS
    assert path.read_bytes() == whole  # a signature of Ed25519 is the same each time


async def test_two_at_once_double_nothing(redis, keyring, state_dir, path):
    await live(redis)
    await asyncio.gather(*(mirror(redis, keyring, state_dir) for _ in range(5)))
    await mirror(redis, keyring, state_dir)
    assert [line.entry["action"] for line in read_lines(path)] == ACTIONS


def reword(lines):
    said = json.loads(lines[3])
    said["entry"]["who"] = "somebody else"
    return [*lines[:3], json.dumps(said), *lines[4:]]


FORGERIES = {
    "changed": (reword, "line 4 .* was changed"),
    "taken out": (lambda lines: [*lines[:3], *lines[4:]], "line 4 .* does not follow"),
    "swapped": (lambda lines: [lines[1], lines[0], *lines[2:]], "line 1 .* does not follow"),
    "doubled": (lambda lines: [*lines, lines[-1]], "does not follow"),
    "no line": (lambda lines: [*lines[:2], "{}", *lines[2:]], "line 3 .* is not one of ours"),
}


@pytest.mark.parametrize("how", FORGERIES)
async def test_a_forgery_is_named(redis, keyring, state_dir, path, how):
    forge, said = FORGERIES[how]
    await live(redis)
    await mirror(redis, keyring, state_dir)
    path.write_text("\n".join(forge(path.read_text().splitlines())) + "\n")
    with pytest.raises(AuditBroken, match=said):
        check(read_lines(path), keyring.public_key())


async def test_a_chain_made_anew_has_not_our_signature(redis, keyring, state_dir, path, tmp_path):
    await live(redis)
    stranger = Keyring(tmp_path / "secrets")
    await mirror(redis, stranger, state_dir)
    with pytest.raises(AuditBroken, match="line 1 .* was changed"):
        check(read_lines(path), keyring.public_key())


async def test_what_was_cut_off_or_changed_in_redis_shows(redis, keyring, state_dir, path):
    await live(redis)
    await mirror(redis, keyring, state_dir)
    lines = read_lines(path)
    with pytest.raises(AuditBroken, match="was cut off"):
        await compare(redis, lines[:-1])
    (first, _), *_ = await redis.xrange(keys.audit())
    await redis.xdel(keys.audit(), first)
    with pytest.raises(AuditBroken, match="not in Redis any more"):
        await compare(redis, lines)


async def test_a_redis_from_a_backup_is_given_back_what_it_lost(redis, keyring, state_dir, path):
    await publish(redis, "v0000")
    backup = await redis.dump(keys.audit())
    await registry.promote(redis, "v0000", who="start", why="the first")
    await registry.record(redis, "erased", user="u")
    await mirror(redis, keyring, state_dir)
    await redis.restore(keys.audit(), 0, backup, replace=True)
    await registry.record(redis, "loop paused")  # after the restore, before anybody looks
    assert await mirror(redis, keyring, state_dir) == 1
    actions = ["published", "promoted", "erased", "loop paused"]
    assert [e["action"] for e in await registry.history(redis)] == actions
    (moved,) = [e for e in await registry.history(redis, "v0000") if e["action"] == "promoted"]
    assert (moved["who"], moved["to"]) == ("start", "v0000")
    check(read_lines(path), keyring.public_key())
    await compare(redis, read_lines(path))


async def test_an_entry_in_the_middle_of_giving_back_does_not_make_it_forgotten(
    redis, keyring, state_dir, path, monkeypatch
):
    await publish(redis, "v0000")
    await mirror(redis, keyring, state_dir)
    await redis.flushall()
    await registry.record(redis, "loop paused")

    async def overtaken(*given):
        monkeypatch.setattr(audit_log, "script", script)
        await registry.record(redis, "loop resumed")
        return await script(*given)

    script = audit_log.script
    monkeypatch.setattr(audit_log, "script", overtaken)
    assert await mirror(redis, keyring, state_dir) == 0
    assert await mirror(redis, keyring, state_dir) == 2
    actions = ["published", "loop paused", "loop resumed"]
    assert [e["action"] for e in await registry.history(redis)] == actions
    await compare(redis, read_lines(path))


async def test_an_empty_redis_is_given_back_all_of_it(redis, keyring, state_dir, path):
    await live(redis)
    await mirror(redis, keyring, state_dir)
    before = await registry.history(redis)
    await redis.flushall()
    assert await mirror(redis, keyring, state_dir) == 0
    assert await registry.history(redis) == before
    await compare(redis, read_lines(path))
