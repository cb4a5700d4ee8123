"""The canary over HTTP and on the command line."""

import asyncio
import json

import pytest
from typer.testing import CliRunner

from core import canary, keys, loop, registry
from core.auth import create_key
from deploy.cli_policies import app as policies_app
from tests.core.test_registry import publish
from tests.serving.conftest import announce
from tests.serving.test_policies import admin, ask

__all__ = ["admin"]  # a fixture

PROMOTE = "/v1/policies/v0001/promote"


@pytest.fixture
async def two_replicas(redis):
    await loop.heartbeat(redis)
    for name in ("a", "b"):
        await announce(redis, "unix:/nowhere", name=name, version="v0000")


async def test_a_canary_begins_shows_itself_and_is_stopped(admin, redis, two_replicas):
    assert await ask(admin, "GET", "/v1/policies/canary") == (200, {"canary": None})
    wanted = {"why": "to see", "canary": 0.25, "expected": "v0000"}
    status, said = await ask(admin, "POST", PROMOTE, wanted)
    assert (status, said) == (202, {"version": "v0001", "status": "canary"})
    assert await registry.target(redis) == "v0000"
    await redis.hset(keys.canary_units(), "evidence", json.dumps({"worse": 3.5}))
    status, said = await ask(admin, "GET", "/v1/policies/canary")
    shown = said["canary"]
    assert (shown["candidate"], shown["parent"], shown["share"]) == ("v0001", "v0000", 0.25)
    assert (shown["mode"], shown["state"], shown["why"]) == ("split", "running", "to see")
    assert shown["evidence"] == {"worse": 3.5}
    assert "salt" not in shown
    _, page = await ask(admin, "GET", "/v1/loop/serving")
    assert (page["canary"]["candidate"], page["canary"]["salt"]) == ("v0001", "")
    status, said = await ask(admin, "POST", "/v1/policies/canary/stop", {"why": "enough"})
    assert (status, said["version"]) == (202, "v0000")
    _, said = await ask(admin, "GET", "/v1/policies/canary")
    over = said["canary"]
    assert (over["state"], over["why"], over["evidence"]) == ("stopped", "enough", {"worse": 3.5})
    _, said = await ask(admin, "GET", "/v1/policies/v0001")
    assert [e["action"] for e in said["history"]][-2:] == ["canary started", "canary stopped"]
    assert said["history"][-1]["who"].startswith("key ")


async def test_what_cannot_be_done_to_a_canary_is_refused(admin, redis, two_replicas):
    stop = "/v1/policies/canary/stop"
    assert (await ask(admin, "POST", stop, {"why": "x"}))[0] == 409
    assert (await ask(admin, "POST", stop, {}))[0] == 422
    for share in (0, 1, -0.5, 2):
        assert (await ask(admin, "POST", PROMOTE, {"why": "x", "canary": share}))[0] == 422
    missing = "/v1/policies/v0009/promote"
    assert (await ask(admin, "POST", missing, {"why": "x", "canary": 0.5}))[0] == 404
    moved = {"why": "x", "canary": 0.5, "expected": "v0001"}
    assert (await ask(admin, "POST", PROMOTE, moved))[0] == 409
    assert (await ask(admin, "POST", PROMOTE, {"why": "x", "canary": 0.5}))[0] == 202
    status, said = await ask(admin, "POST", PROMOTE, {"why": "x", "canary": 0.5})
    assert (status, "is on" in said["error"]["message"]) == (409, True)


async def test_a_promotion_by_hand_ends_it(admin, redis, two_replicas):
    await ask(admin, "POST", PROMOTE, {"why": "to see", "canary": 0.5})
    assert (await ask(admin, "POST", PROMOTE, {"why": "sure"}))[0] == 202
    _, said = await ask(admin, "GET", "/v1/policies/canary")
    assert (said["canary"]["state"], said["canary"]["why"]) == ("promoted", "sure")


async def test_it_needs_an_admin_key(admin, redis):
    scopes = ["complete", "feedback"]
    _, admin.secret = await create_key(redis, name="app", tenant="ops", scopes=scopes)
    for method, path in (("GET", ""), ("POST", "/stop")):
        status, said = await ask(admin, method, f"/v1/policies/canary{path}", {"why": "x"})
        assert (status, said["error"]["type"]) == (403, "permission_error")


async def test_the_command_line_begins_shows_and_stops_one(redis, shared_redis, state_dir):
    await publish(redis, "v0000", "v0001")
    await registry.promote(redis, "v0000", who="test", why="first")
    await loop.heartbeat(redis)
    for name in ("a", "b"):
        await announce(redis, "unix:/nowhere", name=name, version="v0000")

    async def run(*arguments: str) -> str:
        where = ["--state-dir", str(state_dir), "--redis-url", shared_redis.url]
        result = await asyncio.to_thread(CliRunner().invoke, policies_app, [*arguments, *where])
        assert result.exit_code == 0, result.output
        return result.output

    assert "no canary yet" in await run("canary")
    said = await run("promote", "v0001", "--canary", "0.2", "--why", "to see")
    assert "v0001 in place of v0000: 20% of users; running (to see)" in said
    await redis.hset(keys.canary_units(), "evidence", json.dumps({"users.live": 12.0}))
    said = await run("canary")
    assert "running" in said
    assert "users.live" in said
    assert "v0000 is live" in await run("canary", "stop", "--why", "enough")
    assert (await canary.read(redis)).canary.state == "stopped"
