"""Completions go past the framework, and nobody can tell but by the time it takes."""

import orjson
import pytest

from core import metrics
from core.auth import create_key
from serving.edge import Edge
from tests.serving.conftest import CHAT, TEXT

OWN = frozenset({"date", "x-request-id"})
"""Headers that differ between any two replies."""


def direct_routes(gateway) -> dict:
    """The routes that go past the framework, in the running gateway."""
    (edge,) = [m for m in gateway.app.user_middleware if m.cls is Edge]
    return edge.kwargs["direct"]


async def seen(gateway, method: str, path: str, body: bytes, **headers) -> tuple:
    sent = {"authorization": f"Bearer {gateway.secret}", **headers}
    async with gateway.http.request(
        method, gateway.url + path, data=body or None, headers=sent
    ) as response:
        kept = {n.lower(): v for n, v in response.headers.items() if n.lower() not in OWN}
        said = await response.read()
    if response.status == 200:  # the id of a completion is new each time
        said = orjson.dumps({**orjson.loads(said), "id": ""})
    return response.status, kept, said


@pytest.mark.parametrize(
    ("status", "method", "path", "body", "headers"),
    [
        (200, "POST", "/v1/chat/completions", orjson.dumps(CHAT), {}),
        (200, "POST", "/v1/completions", orjson.dumps(TEXT), {}),
        (400, "POST", "/v1/chat/completions", b"{", {}),
        (400, "POST", "/v1/messages", b"[]", {}),
        (404, "POST", "/v1/completions", orjson.dumps({**TEXT, "model": "other"}), {}),
        (401, "POST", "/v1/chat/completions", orjson.dumps(CHAT), {"authorization": "Bearer no"}),
        (413, "POST", "/v1/chat/completions", b" " * 1_048_577, {}),
        (405, "GET", "/v1/chat/completions", b"", {}),
        (404, "POST", "/v1/chat/completions/", orjson.dumps(CHAT), {}),
    ],
)
async def test_a_reply_is_what_the_framework_would_have_given(
    gateway, status, method, path, body, headers
):
    assert direct_routes(gateway).keys() >= {"/v1/chat/completions", "/v1/completions"}
    past = await seen(gateway, method, path, body, **headers)
    direct_routes(gateway).clear()
    through = await seen(gateway, method, path, body, **headers)
    assert past == through
    assert past[0] == status


async def test_a_key_without_the_scope_is_refused_there_too(gateway, redis):
    _, gateway.secret = await create_key(redis, name="r", tenant="acme", scopes=["label"])
    past = await seen(gateway, "POST", "/v1/completions", orjson.dumps(TEXT))
    direct_routes(gateway).clear()
    assert past == await seen(gateway, "POST", "/v1/completions", orjson.dumps(TEXT))
    assert past[0] == 403


async def test_requests_are_counted_by_their_route(gateway):
    def count() -> float:
        return metrics.REQUESTS.labels("/v1/completions", 200)._value.get()

    before = count()
    await seen(gateway, "POST", "/v1/completions", orjson.dumps(TEXT))
    assert count() == before + 1
