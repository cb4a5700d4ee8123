import time

import pytest

from core import keys
from core.ids import token_of
from feedback import erasure, users_routes
from feedback.erasing import erase_what_is_due
from tests.feedback.factory import api_key, client_of, make_app
from tests.feedback.test_snapshot import World

ADMIN = api_key("root", scopes=("admin",), key_id="0a0b0c0d")
APP = api_key("app", scopes=("feedback", "complete", "label"), key_id="0b0b0b0b")
OTHER = api_key("theirs", scopes=("admin",), key_id="0c0c0c0c", tenant="other")
ANN = "ann/smith@example.org"


@pytest.fixture
async def world(redis, keyring, settings):
    await redis.hset(keys.api_keys(), ADMIN.id, ADMIN.model_dump_json())
    return World(redis, keyring, settings)


@pytest.fixture
def clients(redis, keyring, settings):
    app = make_app(redis, keyring, settings, ADMIN, APP, OTHER)
    app.include_router(users_routes.router)
    return {key.name: client_of(app, key) for key in (ADMIN, APP, OTHER)}


async def pages(client, **query) -> list[dict]:
    found, cursor = [], ""
    while cursor is not None:
        reply = await client.get(f"/v1/users/{ANN}/data", params={"cursor": cursor, **query})
        assert reply.status_code == 200, reply.text
        found.append(reply.json())
        cursor = found[-1]["next"]
    return found


async def test_all_that_is_held_is_shown_page_by_page(world, clients):
    asked = [await world.ask(f"question {i}?", f"answer {i}", user=ANN) for i in range(5)]
    others = await world.ask("Name a lake.", "Como", user="bob")
    vote = await world.rate("r1", asked[0], thumb="up")
    given = [await world.rate(ANN, others, rating=6), await world.show(ANN, "Sand", prompt="A:")]
    await world.rate("bob", others, rating=1)
    found = await pages(clients["root"], limit=2)
    completions = [one for page in found for one in page["completions"]]
    assert sorted(c["completion_id"] for c in completions) == sorted(asked)
    assert {c["messages"][0]["content"] for c in completions} == {
        f"question {i}?" for i in range(5)
    }
    (about,) = [said for c in completions for said in c["feedback"]]
    assert (about["id"], about["thumb"]) == (vote, "up")
    said = [one for page in found for one in page["feedback_given"]]
    assert sorted(one["id"] for one in said) == sorted(given)
    assert [one["text"] for one in said if one["text"]] == [{"text": "Sand"}]
    assert found[0]["counts"] == {"completions": 5, "prompts": 5}
    assert all(len(page["completions"]) <= 2 for page in found)
    assert len(await pages(clients["root"])) == 2


async def test_nobody_of_another_tenant_and_no_other_scope_sees_it(world, clients):
    await world.ask("question?", "answer", user=ANN)
    (first, _) = await pages(clients["theirs"])
    assert first["counts"] == {"completions": 0, "prompts": 0}
    for method, path in (
        ("GET", f"/v1/users/{ANN}/data"),
        ("DELETE", f"/v1/users/{ANN}"),
        ("GET", "/v1/erasures/er-1"),
    ):
        assert (await clients["app"].request(method, path)).status_code == 403
    assert (await clients["root"].get("/v1/erasures/er-1")).status_code == 404
    wrong = await clients["root"].get(f"/v1/users/{ANN}/data", params={"cursor": "x"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (422, "cursor")


async def test_an_erasure_is_accepted_done_and_told(world, clients, redis, keyring, settings):
    cid = await world.ask("question?", "answer", user=ANN, at=time.time() - 1)
    reply = await clients["root"].delete(f"/v1/users/{ANN}")
    assert (reply.status_code, reply.json()["state"]) == (202, "accepted")
    where = f"/v1/erasures/{reply.json()['id']}"
    assert (await clients["theirs"].get(where)).status_code == 404
    again = await clients["root"].delete(f"/v1/users/{ANN}")
    assert again.json()["id"] == reply.json()["id"]
    await erase_what_is_due(redis, keyring, settings)
    assert await redis.get(keys.completion(token_of(cid))) is None
    told = (await clients["root"].get(where)).json()
    assert (told["state"], told["counts"]) == ("erased", {"completions": 1})
    assert told["finished_at"] >= told["started_at"]
    said = erasure.Receipt.model_validate(told)
    assert keyring.sign(erasure.receipt_bytes(said)) == told["signature"]
    (first, _) = await pages(clients["root"])
    assert first["erased_until"] == pytest.approx(time.time(), abs=60)
