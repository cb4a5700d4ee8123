"""The POSTs of feedback go past the framework, and nobody can tell but by the time it takes."""

import httpx
import orjson
import pytest
from fastapi import APIRouter, FastAPI

from feedback import routes
from feedback.edge import DirectRoute, OurErrors
from tests.feedback.factory import api_key, completion_id, make_app

JSON = {"content-type": "application/json"}
LONG = "k" * 256


@pytest.fixture
async def both(redis, keyring, settings):
    """A client of the app as it is, and one of the same endpoints carried out by the framework."""
    apps = [make_app(redis, keyring, settings, api_key()) for _ in range(2)]
    router = apps[1].router
    router.routes[:] = [route for route in router.routes if not isinstance(route, DirectRoute)]
    slow = APIRouter(prefix="/v1", route_class=OurErrors)
    for route in routes.said.routes:
        slow.add_api_route(route.path, route.endpoint, methods=["POST"], status_code=201)
    apps[1].include_router(slow)
    headers = {"Authorization": f"Bearer {api_key().id}"}
    at = "http://test/v1"
    clients = [
        httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=at, headers=headers)
        for app in apps
    ]
    yield clients
    for client in clients:
        await client.aclose()


@pytest.mark.parametrize(
    ("status", "path", "said", "headers"),
    [
        (201, "feedback", {"thumb": "up"}, JSON),
        (201, "feedback", {"thumb": "up"}, {"content-type": "application/vnd.x+json; charset=x"}),
        (201, "feedback", {"rating": 3}, {**JSON, "Idempotency-Key": "once"}),
        (201, "demonstrations", {"text": "better"}, JSON),
        (400, "feedback", {"thumb": "up"}, {"content-type": "text/plain"}),
        (400, "feedback", {"thumb": "up"}, {}),
        (400, "feedback", {"thumb": "up"}, {**JSON, "Idempotency-Key": ""}),
        (400, "feedback", {"thumb": "up"}, {**JSON, "Idempotency-Key": LONG}),
        (400, "feedback", b"", JSON),
        (400, "feedback", b"{", JSON),
        (400, "feedback", b"[]", JSON),
        (400, "feedback", b"null", JSON),
        (400, "rankings", b"7", JSON),
        (422, "feedback", {}, JSON),
        (422, "feedback", {"rating": 8}, JSON),
        (422, "feedback", {"rating": "3"}, JSON),
        (422, "feedback", {"choice": True, "thumb": "up"}, JSON),
        (422, "feedback", {"flags": {"no_flag": True}}, JSON),
        (422, "feedback", {"thumb": "up", "unknown": 1}, JSON),
        (422, "rankings", {"ranking": []}, JSON),
        (422, "demonstrations", {"text": "better", "prompt": "two things"}, JSON),
    ],
)
async def test_a_reply_is_what_the_framework_would_have_given(
    both, keyring, status, path, said, headers
):
    if isinstance(said, dict):
        about = {} if path == "rankings" else {"completion_id": completion_id(keyring)}
        said = orjson.dumps({**about, **said})
    past, through = [await client.post(path, content=said, headers=headers) for client in both]
    assert (past.status_code, past.json()) == (through.status_code, through.json())
    assert past.status_code == status


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, b"\xff{}"),
        (400, b"[" * 100_000),
        (422, b'{"completion_id": "x", "rating": 1%s}' % (b"0" * 30)),
    ],
)
async def test_a_body_that_no_client_library_writes_is_an_error_too(both, status, body):
    reply = await both[0].post("feedback", content=body, headers=JSON)
    assert (reply.status_code, "error" in reply.json()) == (status, True)


def test_the_framework_still_documents_them(redis, keyring, settings):
    document = make_app(redis, keyring, settings, api_key()).openapi()
    for path in ("feedback", "rankings", "demonstrations"):
        operation = document["paths"][f"/v1/{path}"]["post"]
        (schema,) = (kind["schema"] for kind in operation["requestBody"]["content"].values())
        assert schema["$ref"].endswith("Request")
        assert [one["name"] for one in operation["parameters"]] == ["Idempotency-Key"]
        assert operation["responses"].keys() >= {"201", "400", "403", "422", "503"}


def test_all_three_go_past_it():
    app = FastAPI()
    app.include_router(routes.router)
    past = {route.path for route in app.routes if isinstance(route, DirectRoute)}
    assert past == {"/v1/feedback", "/v1/rankings", "/v1/demonstrations"}
