"""`instructloop audit` and `policies verify`: what is proven, and one line on what is wrong."""

import asyncio
import json

import pytest
from typer.testing import CliRunner

from core import keys, lineage, registry
from core.audit_log import FILE, AuditBroken
from core.errors import CorruptVersion, NotFound
from core.redis_client import connect
from deploy.cli import app
from learning.rounds.folders import Folders
from learning.rounds.publish import place_version
from tests.learning.test_publish import fields, model_folder

run = CliRunner(env={"COLUMNS": "300"})
TRAINED_ON = {"fb-1": "ranking", "fb-2": "rating", "task-3": "labeling"}


@pytest.fixture
def call(redis_server, state_dir):
    def call(*words):
        options = ["--redis-url", redis_server.url, "--state-dir", str(state_dir)]
        return run.invoke(app, [*words, *options])

    return call


@pytest.fixture
def versions(redis_server, state_dir, keyring):
    """v0000, and v0001 that learned from three pieces of feedback and went live and back."""
    folders, base = Folders.of(state_dir), model_folder(state_dir / "base")

    async def publish():
        async with connect(redis_server.url) as redis:
            for version, parent, trained_on in (
                ("v0000", None, {}),
                ("v0001", "v0000", TRAINED_ON),
            ):
                wanted = fields(version) | {"parent": parent}
                wanted["data"] |= lineage.card_data(trained_on) if trained_on else {}
                card = place_version(
                    folders, keyring, model=base, fields=wanted, owner=1, trained_on=trained_on
                )
                token = await registry.acquire_fence(redis)
                await registry.publish(redis, card, fencing_token=token)
                await registry.promote(redis, version, who="the test", why="to see")

    asyncio.run(publish())
    return folders


def test_a_good_version_is_proven_line_by_line(call, versions):
    done = call("policies", "verify", "v0001")
    assert done.exit_code == 0, done.exception
    for said in ("our signature", "the hash of its card", "the 3 pieces", "v0001 from v0000"):
        assert said in done.output
    assert call("policies", "verify", "v0000").exit_code == 0
    assert isinstance(call("policies", "verify", "v0009").exception, NotFound)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("model.safetensors", "the files are not those"),
        (lineage.FILE, "feedback.ids is not the list"),
        ("card.json", "card.json is not the card"),
    ],
)
def test_a_file_that_was_changed_is_named(call, versions, file, said):
    path = versions.policy("v0001") / file
    changed = path.read_bytes().replace(b"fb-2", b"fb-9").replace(b"rm0001", b"rm0002")
    path.write_bytes(changed[:-1] + b"~" if file == "model.safetensors" else changed)
    done = call("policies", "verify", "v0001")
    assert isinstance(done.exception, CorruptVersion)
    assert said in done.exception.message


def test_a_list_or_a_parent_that_is_missing_is_named(call, versions, redis_server):
    (versions.policy("v0001") / lineage.FILE).unlink()
    assert "not on this machine" in call("policies", "verify", "v0001").exception.message

    async def lose_the_parent():
        async with connect(redis_server.url) as redis:
            await redis.zrem(keys.policies(), "v0000")

    (versions.policy("v0001") / lineage.FILE).write_text(lineage.as_text(TRAINED_ON))
    asyncio.run(lose_the_parent())
    assert "parent v0000 is not registered" in call("policies", "verify", "v0001").exception.message


def test_a_version_is_shown_with_all_that_is_known_of_it(call, versions):
    said = json.loads(call("policies", "show", "v0001").output)
    assert said["data"]["feedback_count"] == 3
    assert [entry["action"] for entry in said["history"]] == ["published", "promoted"]
    assert (said["live"], said["probes"], said["gate"]["passed"]) == (True, {}, True)


def test_going_back_says_why(call, versions):
    assert call("policies", "rollback", "--why", " ").exit_code == 2
    assert call("policies", "rollback", "--why", "users complain").exit_code == 0
    *_, last = call("audit", "--json").output.splitlines()
    entry = json.loads(last)
    assert (entry["action"], entry["why"], entry["to"]) == (
        "rolled back",
        "users complain",
        "v0000",
    )
    assert entry["who"].endswith("(command line)")


def test_the_audit_log_is_shown_and_proven(call, versions, state_dir):
    shown = call("audit").output
    assert "v0000 → v0001" in shown
    assert "to see" in shown
    done = call("audit", "--verify")
    assert "4 entries: none was changed" in done.output
    path = state_dir / FILE
    path.write_text(path.read_text().replace("the test", "somebody"))
    done = call("audit", "--verify")
    assert isinstance(done.exception, AuditBroken)
    assert "was changed after it was written" in done.exception.message


def test_keys_and_brakes_say_who_used_them(call):
    assert call("keys", "create", "--name", "n", "--scope", "admin").exit_code == 0
    assert call("loop", "pause").exit_code == 0
    assert call("loop", "resume").exit_code == 0
    entries = [json.loads(line) for line in call("audit", "--json").output.splitlines()]
    assert [entry["action"] for entry in entries] == ["key created", "loop paused", "loop resumed"]
    assert all(entry["who"].endswith("(command line)") for entry in entries)
    assert entries[0]["scopes"] == "admin"
