"""The registry and the loop over HTTP, on a real Redis."""

import pytest

from core import loop, registry
from core.auth import create_key
from core.records import STAGES, Card
from tests.serving.conftest import running_gateway


def card(version: str, parent: str | None = None) -> Card:
    return Card(
        version=version,
        parent=parent,
        created_at=registry.timestamp(),
        kind="base" if parent is None else "ppo-ptx",
        algorithm={"kl_coef": 0.02},
        data={"comparisons": 3},
        reward_model=None,
        anchor=None,
        weights_sha256="0" * 64,
        figures={"win_rate_vs_parent": 0.6},
        gate={"passed": True, "reasons": []},
        compatible={},
    )


@pytest.fixture
async def admin(redis, gateway_settings):
    """A gateway, asked with an admin key, where v0000 and v0001 exist and v0000 is live."""
    for version, parent in (("v0000", None), ("v0001", "v0000")):
        fence = await registry.acquire_fence(redis)
        await registry.publish(redis, card(version, parent), fencing_token=fence)
    await registry.promote(redis, "v0000", who="test", why="first")
    async with running_gateway(gateway_settings, redis) as gateway:
        _, gateway.secret = await create_key(redis, name="a", tenant="ops", scopes=["admin"])
        yield gateway


async def ask(gateway, method: str, path: str, body=None):
    send = gateway.get(path) if method == "GET" else gateway.post(path, body)
    async with send as response:
        return response.status, await response.json()


async def test_versions_are_listed_with_their_cards_and_the_live_one(admin):
    status, said = await ask(admin, "GET", "/v1/policies")
    assert status == 200
    assert said["target"] == "v0000"
    assert [(p["version"], p["live"], p["parent"]) for p in said["policies"]] == [
        ("v0000", True, None),
        ("v0001", False, "v0000"),
    ]
    assert said["policies"][1]["figures"] == {"win_rate_vs_parent": 0.6}


async def test_promote_and_rollback_move_the_target_and_are_history(admin, redis):
    status, said = await ask(admin, "POST", "/v1/policies/v0001/promote", {"why": "better"})
    assert (status, said) == (202, {"version": "v0001", "status": "accepted"})
    assert await registry.target(redis) == "v0001"
    status, said = await ask(admin, "POST", "/v1/policies/rollback", {"why": "worse"})
    assert (status, said["version"]) == (202, "v0000")
    assert await registry.target(redis) == "v0000"
    status, said = await ask(admin, "GET", "/v1/policies/v0001")
    assert status == 200
    events = [(e["action"], e.get("why")) for e in said["history"]]
    assert events == [("published", None), ("promoted", "better"), ("rolled back", "worse")]
    assert all(e["who"].startswith("key ") for e in said["history"][1:])


async def test_what_cannot_be_promoted_or_rolled_back_is_refused(admin, redis):
    assert (await ask(admin, "POST", "/v1/policies/v0009/promote", {"why": "x"}))[0] == 404
    assert (await ask(admin, "GET", "/v1/policies/v0009"))[0] == 404
    assert (await ask(admin, "POST", "/v1/policies/rollback", {"why": "x"}))[0] == 409
    moved = {"why": "x", "expected": "v0001"}
    assert (await ask(admin, "POST", "/v1/policies/v0001/promote", moved))[0] == 409
    await registry.quarantine(redis, "v0001", why="NaN")
    assert (await ask(admin, "POST", "/v1/policies/v0001/promote", {"why": "x"}))[0] == 422
    status, said = await ask(admin, "POST", "/v1/policies/v0001/promote", {"because": "x"})
    assert (status, said["error"]["type"]) == (422, "invalid_request_error")
    assert await registry.target(redis) == "v0000"


async def test_a_version_whose_weights_were_removed_is_shown_and_not_promoted(admin, redis):
    assert await registry.collect(redis, "v0001")
    assert not await registry.collect(redis, "v0000")  # it is live
    status, said = await ask(admin, "POST", "/v1/policies/v0001/promote", {"why": "x"})
    assert (status, "promote another version" in said["error"]["message"]) == (409, True)
    _, said = await ask(admin, "GET", "/v1/policies")
    assert [(p["version"], p["weights"]) for p in said["policies"]] == [
        ("v0000", True),
        ("v0001", False),
    ]
    _, said = await ask(admin, "GET", "/v1/policies/v0001")
    assert said["history"][-1]["action"] == "weights removed"
    assert said["figures"] == {"win_rate_vs_parent": 0.6}


async def test_a_run_is_started_shown_and_only_one_at_a_time(admin, redis):
    wanted = {"stages": ["reward_model", "snapshot"]}
    status, said = await ask(admin, "POST", "/v1/loop/runs", wanted)
    assert status == 202
    run_id = said["run_id"]
    assert (await loop.get_run(redis, run_id)).stages == ("snapshot", "reward_model")
    assert (await ask(admin, "POST", "/v1/loop/runs", {}))[0] == 409
    status, said = await ask(admin, "GET", f"/v1/loop/runs/{run_id}")
    assert (said["stage"], said["progress"], said["outcome"]) == ("snapshot", 0.0, "running")
    status, said = await ask(admin, "GET", "/v1/loop/runs?limit=5")
    assert [run["id"] for run in said["runs"]] == [run_id]
    status, said = await ask(admin, "GET", "/v1/loop")
    assert said["current"]["id"] == run_id
    assert (await ask(admin, "GET", "/v1/loop/runs/r1"))[0] == 404
    assert (await ask(admin, "POST", "/v1/loop/runs", {"stages": ["magic"]}))[0] == 422


async def test_a_run_has_all_stages_unless_said(admin, redis):
    _, said = await ask(admin, "POST", "/v1/loop/runs", {})
    assert (await loop.get_run(redis, said["run_id"])).stages == STAGES


async def test_all_of_it_needs_an_admin_key(admin, redis):
    _, admin.secret = await create_key(
        redis, name="app", tenant="ops", scopes=["complete", "feedback", "label"]
    )
    for method, path in (
        ("GET", "/v1/policies"),
        ("GET", "/v1/policies/v0000"),
        ("POST", "/v1/policies/v0001/promote"),
        ("POST", "/v1/policies/rollback"),
        ("GET", "/v1/loop"),
        ("GET", "/v1/loop/runs"),
        ("GET", "/v1/loop/runs/r1"),
        ("POST", "/v1/loop/runs"),
    ):
        body = {} if path.endswith("runs") else {"why": "x"}
        status, said = await ask(admin, method, path, body)
        assert (status, said["error"]["type"]) == (403, "permission_error"), path
    assert await registry.target(redis) == "v0000"
