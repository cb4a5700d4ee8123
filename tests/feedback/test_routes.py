import asyncio

import httpx
import orjson
import pytest

from core import keys, metrics
from core.ids import token_of
from core.redis_client import connect
from feedback import store
from tests.feedback.factory import (
    api_key,
    client_of,
    completion,
    completion_id,
    make_app,
)

APP = api_key()
RATER = api_key("rater-1", scopes=("label",), key_id="11111111")
OTHER_RATER = api_key("rater-2", scopes=("label",), key_id="22222222")
STRANGER = api_key("theirs", tenant="other", key_id="33333333")
READER = api_key("reader", scopes=("complete",), key_id="44444444")
ADMIN = api_key("boss", scopes=("admin",), key_id="55555555")
EVERYBODY = (APP, RATER, OTHER_RATER, STRANGER, READER, ADMIN)


@pytest.fixture
def app(redis, keyring, settings):
    return make_app(redis, keyring, settings, *EVERYBODY)


@pytest.fixture
async def client(app):
    async with client_of(app, APP) as client:
        yield client


async def counts(redis) -> dict[str, int]:
    return {k.decode(): int(v) for k, v in (await redis.hgetall(keys.counts())).items()}


async def log(redis, cid, **fields):
    """As ingest does it, for what only depends on the record being there."""
    record = completion(token_of(cid), id=cid, **fields)
    stored = record.model_dump_json(exclude_defaults=True)
    await redis.set(keys.completion(record.token), stored)


async def test_feedback_is_recorded_and_says_what_became_of_it(client, redis, keyring):
    cid = completion_id(keyring, choices=2)
    reply = await client.post(
        "/v1/feedback", json={"completion_id": cid, "choice": 1, "thumb": "down", "rating": 2}
    )
    assert reply.status_code == 201
    assert reply.json() == {"id": reply.json()["id"], "status": "recorded"}
    fid = reply.json()["id"]
    assert (await client.get(f"/v1/feedback/{fid}")).json()["status"] == "pending"
    await log(redis, cid)
    state = (await client.get(f"/v1/feedback/{fid}")).json()
    assert (state["status"], state["kind"], state["used_in"]) == ("joined", "rating", [])
    await store.mark_used(redis, [fid], "v0003")
    state = (await client.get(f"/v1/feedback/{fid}")).json()
    assert (state["status"], state["used_in"]) == ("used", ["v0003"])
    assert await counts(redis) == {"ratings": 1, "comparisons": 0}


async def test_what_cannot_be_joined_says_why(client, redis, keyring):
    reasons = {
        "a swap of policies crossed the answer": {"policy_versions": ("v0000", "v0001")},
        "the prompt is over its user's cap": {"outcome": "over_user_cap"},
        "the end user opted out": {"outcome": "opted_out", "answers": ()},
    }
    for reason, fields in reasons.items():
        cid = completion_id(keyring)
        reply = await client.post("/v1/feedback", json={"completion_id": cid, "thumb": "up"})
        await log(redis, cid, **fields)
        state = (await client.get(f"/v1/feedback/{reply.json()['id']}")).json()
        assert (state["status"], state["reason"]) == ("unjoinable", reason)


async def test_an_answer_that_broke_off_is_refused_once_it_is_known(client, redis, keyring):
    cid = completion_id(keyring)
    await log(redis, cid, error="hung_up")
    reply = await client.post("/v1/feedback", json={"completion_id": cid, "thumb": "up"})
    assert reply.status_code == 422
    assert "hung_up" in reply.json()["error"]["message"]
    assert await counts(redis) == {}


async def test_even_in_a_very_long_record_a_broken_answer_is_seen(client, redis, keyring):
    long = [{"role": "user", "content": 'long "error":"no" ' * 10_000}]
    for error, status in ((None, 201), ("engine", 422)):
        cid = completion_id(keyring)
        await log(redis, cid, messages=long, error=error)
        reply = await client.post("/v1/feedback", json={"completion_id": cid, "thumb": "up"})
        assert reply.status_code == status


async def test_the_last_word_of_a_rater_counts_once(client, redis, keyring):
    cid = completion_id(keyring, choices=3)

    async def rank(*order, rater="ann"):
        ranking = [[{"completion_id": cid, "choice": c} for c in tie] for tie in order]
        reply = await client.post("/v1/rankings", json={"ranking": ranking, "rater": rater})
        assert reply.status_code == 201
        return reply.json()["id"]

    first = await rank([0], [1], [2])
    assert await counts(redis) == {"rankings": 1, "comparisons": 3}
    created = (await store.get(redis, first)).created_at
    assert await rank([2, 1], [0]) == first
    assert await counts(redis) == {"rankings": 1, "comparisons": 2}
    now = await store.get(redis, first)
    assert [[now.outputs[p].choice for p in tie] for tie in now.ranking] == [[1, 2], [0]]
    assert (now.created_at, now.updated_at > created) == (created, True)
    assert await rank([0], [1], [2], rater="bob") != first
    assert await counts(redis) == {"rankings": 2, "comparisons": 5}
    assert await redis.scard(keys.feedback_of(token_of(cid))) == 2


async def test_taking_back_removes_what_was_said_and_its_count(client, redis, keyring):
    cid = completion_id(keyring, choices=2)
    body = {"completion_id": cid, "choice": 0, "text": "The Rhine.", "rater": "ann"}
    fid = (await client.post("/v1/demonstrations", json=body)).json()["id"]
    assert await counts(redis) == {"demonstrations": 1, "comparisons": 1}
    assert await redis.smembers(keys.feedback_text()) == {fid.encode()}
    for _ in range(2):
        reply = await client.delete(f"/v1/feedback/{fid}")
        assert (reply.status_code, reply.json()["status"]) == (200, "withdrawn")
    assert await counts(redis) == {"demonstrations": 0, "comparisons": 0}
    record = await store.get(redis, fid)
    assert (record.sealed, record.text, record.withdrawn) == (None, None, True)
    assert await redis.scard(keys.feedback_text()) == 0
    assert (await client.get(f"/v1/feedback/{fid}")).json()["status"] == "withdrawn"
    assert (await client.post("/v1/demonstrations", json=body)).json()["id"] == fid
    assert await counts(redis) == {"demonstrations": 1, "comparisons": 1}


async def test_a_hold_outlives_a_second_word(client, redis, keyring):
    cid = completion_id(keyring)
    fid = (await client.post("/v1/feedback", json={"completion_id": cid, "rating": 7})).json()["id"]
    await store.change(redis, fid, lambda old: old.model_copy(update={"held": "burst"}))
    await client.post("/v1/feedback", json={"completion_id": cid, "rating": 1})
    state = (await client.get(f"/v1/feedback/{fid}")).json()
    assert (state["status"], state["reason"]) == ("held", "burst")
    assert (await store.get(redis, fid)).rating == 1


async def test_the_same_idempotency_key_gives_the_same_reply_and_writes_once(
    client, redis, keyring
):
    cid = completion_id(keyring)
    up = {"completion_id": cid, "thumb": "up", "comment": "good"}
    once = {"Idempotency-Key": "abc"}
    first = await client.post("/v1/feedback", json=up, headers=once)
    await client.post("/v1/feedback", json={"completion_id": cid, "thumb": "down"})
    replayed = await client.post("/v1/feedback", json=up, headers=once)
    assert (replayed.status_code, replayed.content) == (201, first.content)
    assert (await store.get(redis, first.json()["id"])).thumb == "down"  # not written again
    other = await client.post("/v1/feedback", json={**up, "thumb": "down"}, headers=once)
    assert other.status_code == 409
    elsewhere = await client.post(
        "/v1/demonstrations", json={"completion_id": cid, "text": "x"}, headers=once
    )
    assert elsewhere.status_code == 409
    assert await counts(redis) == {"ratings": 1, "comparisons": 0}
    ttl = await redis.ttl((await redis.keys(keys.idempotency("*")))[0])
    assert 23 * 3600 < ttl <= 24 * 3600


async def test_an_idempotency_key_belongs_to_an_api_key(app, client, keyring):
    once = {"Idempotency-Key": "abc"}
    await client.post(
        "/v1/feedback", json={"completion_id": completion_id(keyring), "rating": 1}, headers=once
    )
    async with client_of(app, RATER) as rater:
        reply = await rater.post(
            "/v1/feedback",
            json={"completion_id": completion_id(keyring), "rating": 7},
            headers=once,
        )
    assert reply.status_code == 201


async def test_duplicates_in_flight_are_one_write(client, redis, keyring):
    cid = completion_id(keyring, choices=2)
    body = {"ranking": [[{"completion_id": cid}], [{"completion_id": cid, "choice": 1}]]}
    replies = await asyncio.gather(
        *(
            client.post("/v1/rankings", json=body, headers={"Idempotency-Key": "k"})
            for _ in "x" * 20
        )
    )
    assert {(r.status_code, r.content) for r in replies} == {(201, replies[0].content)}
    assert await counts(redis) == {"rankings": 1, "comparisons": 1}


async def test_nothing_of_one_tenant_is_visible_to_another(app, client, keyring):
    cid = completion_id(keyring)
    fid = (await client.post("/v1/feedback", json={"completion_id": cid, "rating": 1})).json()["id"]
    async with client_of(app, STRANGER) as stranger:
        assert (await stranger.get(f"/v1/feedback/{fid}")).status_code == 404
        assert (await stranger.delete(f"/v1/feedback/{fid}")).status_code == 404
        rated = await stranger.post("/v1/feedback", json={"completion_id": cid, "rating": 1})
        assert rated.status_code == 404
        absent = await stranger.post("/v1/feedback", json={"completion_id": "no", "rating": 1})
        assert absent.json() == rated.json()  # not there and not yours look the same
    assert (await client.get("/v1/feedback/fb-0")).status_code == 404


async def test_a_label_key_speaks_for_itself_and_sees_only_that(app, client, redis, keyring):
    cid = completion_id(keyring)
    body = {"completion_id": cid, "rating": 4, "rater": "somebody"}
    async with client_of(app, RATER) as one, client_of(app, OTHER_RATER) as two:
        first = (await one.post("/v1/feedback", json=body)).json()["id"]
        again = (await one.post("/v1/feedback", json={**body, "rater": "else"})).json()["id"]
        other = (await two.post("/v1/feedback", json=body)).json()["id"]
        assert first == again != other
        assert (await one.get(f"/v1/feedback/{first}")).status_code == 200
        assert (await two.get(f"/v1/feedback/{first}")).status_code == 404
        assert (await two.delete(f"/v1/feedback/{first}")).status_code == 404
    assert (await client.get(f"/v1/feedback/{first}")).status_code == 200
    async with client_of(app, ADMIN) as admin:
        assert (await admin.get(f"/v1/feedback/{first}")).status_code == 200


async def test_a_key_without_the_scope_is_refused(app, keyring):
    async with client_of(app, READER) as reader:
        body = {"completion_id": completion_id(keyring), "rating": 4}
        assert (await reader.post("/v1/feedback", json=body)).status_code == 403
        assert (await reader.get("/v1/feedback/fb-0")).status_code == 403


BAD_FEEDBACK = [
    {},
    {"thumb": "up"},
    {"completion_id": "ID"},
    {"completion_id": "ID", "comment": ""},
    {"completion_id": "ID", "flags": {}},
    {"completion_id": "ID", "thumb": "sideways"},
    {"completion_id": "ID", "rating": 0},
    {"completion_id": "ID", "rating": 8},
    {"completion_id": "ID", "rating": 4.5},
    {"completion_id": "ID", "rating": "4"},
    {"completion_id": "ID", "rating": True},
    {"completion_id": "ID", "rating": 4, "choice": -1},
    {"completion_id": "ID", "rating": 4, "choice": 1},
    {"completion_id": "ID", "flags": {"nice": True}},
    {"completion_id": "ID", "flags": {"hallucination": "yes"}},
    {"completion_id": "ID", "thumb": "up", "coment": "typo"},
    {"completion_id": "ID", "thumb": "up", "rater": "r" * 201},
    {"completion_id": "ID", "thumb": "up", "rater": ""},
    {"completion_id": "ID", "comment": "c" * 10_001},
]


@pytest.mark.parametrize("body", BAD_FEEDBACK, ids=lambda body: str(body)[:60])
async def test_well_formed_but_wrong_feedback_is_422(client, redis, keyring, body):
    cid = completion_id(keyring)
    body = {k: cid if v == "ID" else v for k, v in body.items()}
    reply = await client.post("/v1/feedback", json=body)
    assert reply.status_code == 422
    error = reply.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert await redis.keys(keys.feedback("*")) == []


MALFORMED = [b"", b"{", b"[]", b'"x"', b"null", b"\xff\xfe{}", b'{"a": ' * 100_000]


@pytest.mark.parametrize("content", MALFORMED, ids=lambda content: repr(content[:12]))
async def test_a_body_that_is_no_json_object_is_400(client, content):
    for path in ("/v1/feedback", "/v1/rankings", "/v1/demonstrations"):
        reply = await client.post(
            path, content=content, headers={"content-type": "application/json"}
        )
        assert reply.status_code == 400, reply.text
        assert reply.json()["error"]["type"] == "invalid_request_error"


async def test_text_that_is_no_unicode_is_422_and_a_large_body_413(client, keyring):
    cid = completion_id(keyring)
    for path, field in [("feedback", "comment"), ("feedback", "rater"), ("demonstrations", "text")]:
        body = b'{"completion_id": "%s", "%s": "\\ud800"}' % (cid.encode(), field.encode())
        reply = await client.post(
            f"/v1/{path}", content=body, headers={"content-type": "application/json"}
        )
        assert reply.status_code == 422, (path, field)
    large = {"completion_id": cid, "text": "x" * 1_100_000}
    assert (await client.post("/v1/demonstrations", json=large)).status_code == 413


async def test_errors_never_repeat_what_was_said(client, keyring):
    secret = "ann@example.org"
    body = {"completion_id": completion_id(keyring), "comment": [secret], "thumb": secret}
    reply = await client.post("/v1/feedback", json=body)
    assert reply.status_code == 422
    assert secret not in reply.text


async def test_wrong_rankings_are_422(client, keyring):
    cid = completion_id(keyring, choices=10)
    other = completion_id(keyring, prompt="Another prompt.")

    def one(choice=0, completion=cid):
        return {"completion_id": completion, "choice": choice}

    for ranking in (
        [],
        [[]],
        [[one()]],
        [[one()], []],
        [[one()], [one()]],
        [[one()], [one(completion=other)]],
        [[one(c)] for c in range(10)],
        [[one(0)], [one(10)]],
    ):
        reply = await client.post("/v1/rankings", json={"ranking": ranking})
        assert reply.status_code == 422, ranking
    reply = await client.post("/v1/rankings", json={"ranking": [[one()], [one(completion="no")]]})
    assert reply.status_code == 404


async def test_a_demonstration_is_about_exactly_one_thing(client, redis, keyring):
    cid = completion_id(keyring)
    messages = [{"role": "user", "content": "Name a river."}]
    for about in ({}, {"completion_id": cid, "prompt": "x"}, {"messages": []}, {"prompt": ""}):
        reply = await client.post("/v1/demonstrations", json={**about, "text": "The Rhine."})
        assert reply.status_code == 422, about
    assert (await client.post("/v1/demonstrations", json={"prompt": "x"})).status_code == 422
    for about in ({"completion_id": cid}, {"messages": messages}, {"prompt": "A river:"}):
        reply = await client.post("/v1/demonstrations", json={**about, "text": "The Rhine."})
        assert reply.status_code == 201, reply.text
    assert await counts(redis) == {"demonstrations": 3, "comparisons": 1}


async def test_raw_text_is_sealed_in_redis(client, redis, keyring):
    cid = completion_id(keyring)
    secret = "call ann on 4155550123"
    await client.post(
        "/v1/feedback", json={"completion_id": cid, "comment": secret, "rater": "Ann"}
    )
    await client.post("/v1/demonstrations", json={"prompt": secret, "text": secret})
    for name in await redis.keys("*"):
        if await redis.type(name) == b"string":
            assert secret.encode() not in await redis.get(name)
            assert b'"Ann"' not in await redis.get(name)
    (rating,) = [f for f in await store.get_all(redis) if f.kind == "rating"]
    assert rating.sealed is not None


async def test_a_redis_that_cannot_promise_refuses_unless_told_otherwise(redis, keyring, settings):
    weak = ["Redis has appendonly = no, feedback needs yes"]
    body = {"completion_id": completion_id(keyring), "rating": 4}
    async with client_of(make_app(redis, keyring, settings, APP, warnings=weak), APP) as client:
        for reply in (
            await client.post("/v1/feedback", json=body),
            await client.get("/v1/feedback/fb-0"),
        ):
            assert reply.status_code == 503
            assert int(reply.headers["retry-after"]) > 0
            assert "appendonly" in reply.json()["error"]["message"]
    relaxed = settings.model_copy(update={"durability": "relaxed"})
    async with client_of(make_app(redis, keyring, relaxed, APP, warnings=weak), APP) as client:
        assert (await client.post("/v1/feedback", json=body)).status_code == 201


async def test_the_counter_knows_kind_and_version_and_ignores_replays(client, redis, keyring):
    def value(version):
        return metrics.FEEDBACK.labels("rating", version)._value.get()

    cid = completion_id(keyring)
    await log(redis, cid, policy_versions=("v0042",))
    before = value("v0042")
    for _ in range(3):
        await client.post(
            "/v1/feedback",
            json={"completion_id": cid, "rating": 4},
            headers={"Idempotency-Key": "k"},
        )
    assert value("v0042") == before + 1


async def test_the_openapi_document_describes_bodies_and_errors(client):
    document = (await client.get("/openapi.json")).json()
    for path in ("/v1/feedback", "/v1/rankings", "/v1/demonstrations", "/v1/labeling/{task_id}"):
        post = document["paths"][path]["post"]
        assert {"201", "400", "401", "403", "404", "409", "413", "422", "503"} <= set(
            post["responses"]
        )
        assert "$ref" in post["requestBody"]["content"]["application/json"]["schema"]
        assert "Idempotency-Key" in orjson.dumps(post["parameters"]).decode()
        error = post["responses"]["422"]["content"]["application/json"]["schema"]
        assert error == {"$ref": "#/components/schemas/ErrorBody"}


async def test_redis_away_is_503_with_retry_after(redis_server, keyring, settings):
    async with connect(redis_server.url) as redis:
        app = make_app(redis, keyring, settings, APP)
        body = {"completion_id": completion_id(keyring), "rating": 4}
        async with client_of(app, APP) as client:
            assert (await client.post("/v1/feedback", json=body)).status_code == 201
            redis_server.kill()
            for reply in (
                await client.post("/v1/feedback", json=body),
                await client.get("/v1/feedback/fb-0"),
                await client.delete("/v1/feedback/fb-0"),
            ):
                assert isinstance(reply, httpx.Response)
                assert reply.status_code == 503
                assert reply.headers["retry-after"]
            redis_server.start()
            assert (await client.post("/v1/feedback", json=body)).status_code == 201
            assert await counts(redis) == {"ratings": 1, "comparisons": 0}
