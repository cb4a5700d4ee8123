"""Keys, bounds, ids and errors at the edge of every request."""

import asyncio
import time

import orjson
import pytest

from core.auth import create_key, revoke_key
from tests.conftest import eventually
from tests.serving.conftest import CHAT, running_gateway

FEEDBACK = "/v1/feedback"


async def status_of(gateway, path="/v1/models", **headers) -> int:
    async with gateway.http.get(gateway.url + path, headers=headers) as response:
        return response.status


async def test_only_health_and_readiness_are_open(gateway):
    for path in ("/healthz", "/readyz"):
        assert await status_of(gateway, path) == 200
    paths = ("/v1/models", "/openapi.json", "/metrics", "/v1/policies", "/nothing", "/healthz/x")
    for path in paths:
        async with gateway.http.get(gateway.url + path) as response:
            assert response.status == 401
            assert response.headers["WWW-Authenticate"] == "Bearer"
            assert (await response.json())["error"]["type"] == "authentication_error"


async def test_head_is_answered_like_get_without_a_body(gateway):
    for path in ("/healthz", "/readyz"):
        async with gateway.http.head(gateway.url + path) as response:
            assert (response.status, await response.read()) == (200, b"")
            assert int(response.headers["Content-Length"]) > 0
            assert response.headers["Content-Type"] == "application/json"


async def test_a_key_is_taken_as_bearer_token_or_as_x_api_key(gateway):
    secret = gateway.secret
    assert await status_of(gateway, authorization=f"Bearer {secret}") == 200
    assert await status_of(gateway, authorization=f"bearer {secret}") == 200
    assert await status_of(gateway, **{"x-api-key": secret}) == 200
    for wrong in ("", secret, f"Basic {secret}", "Bearer ", "Bearer il-x", f"Bearer {secret}x"):
        assert await status_of(gateway, authorization=wrong) == 401
    assert await status_of(gateway, authorization="Bearer \u00e9") == 401


async def test_a_key_without_the_scope_is_refused(gateway, redis):
    _, gateway.secret = await create_key(redis, name="r", tenant="acme", scopes=["label"])
    async with gateway.post("/v1/chat/completions", CHAT) as response:
        assert response.status == 403
        assert "complete" in (await response.json())["error"]["message"]


async def test_a_revoked_or_expired_key_is_refused_within_two_seconds(gateway, redis):
    key, revoked = await create_key(redis, name="r", tenant="acme", scopes=["complete"])
    _, expiring = await create_key(
        redis, name="e", tenant="acme", scopes=["complete"], expires_at=time.time() + 1
    )
    for secret in (revoked, expiring):
        assert await status_of(gateway, **{"x-api-key": secret}) == 200
    await revoke_key(redis, key.id)

    async def both_refused() -> bool:
        codes = [await status_of(gateway, **{"x-api-key": s}) for s in (revoked, expiring)]
        return codes == [401, 401]

    await eventually(both_refused, seconds=2)


async def test_another_tenants_completion_is_not_found(gateway, redis):
    async with gateway.post("/v1/chat/completions", CHAT) as response:
        completion_id = (await response.json())["id"]
    said = {"completion_id": completion_id, "thumb": "up"}
    await eventually(lambda: not gateway.app.state.durability_warnings)
    async with gateway.post(FEEDBACK, said) as response:
        assert response.status == 201
    _, gateway.secret = await create_key(redis, name="o", tenant="other", scopes=["feedback"])
    async with gateway.post(FEEDBACK, said) as response:
        assert response.status == 404


async def test_every_response_has_an_id_of_ours_and_careful_headers(gateway):
    seen = set()
    for path in ("/healthz", "/v1/models", "/nothing"):
        async with gateway.get(path, headers={"x-request-id": "mine"}) as response:
            seen.add(response.headers["x-request-id"])
            assert response.headers["x-content-type-options"] == "nosniff"
            assert "default-src 'none'" in response.headers["content-security-policy"]
            assert "server" not in response.headers
    assert len(seen) == 3
    assert "mine" not in seen


async def test_a_body_over_the_limit_is_refused_declared_or_not(gateway, double):
    limit = gateway.app.state.settings.gateway.max_body_bytes
    big = orjson.dumps({**CHAT, "user": "x" * limit})

    async def in_pieces():
        for start in range(0, len(big), 1 << 16):
            yield big[start : start + (1 << 16)]

    headers = {"Authorization": f"Bearer {gateway.secret}", "content-type": "application/json"}
    for path in ("/v1/chat/completions", FEEDBACK):
        for data in (big, in_pieces()):
            async with gateway.http.post(gateway.url + path, data=data, headers=headers) as got:
                assert got.status == 413, path
                assert (await got.json())["error"]["type"] == "invalid_request_error"
    assert double.requests == []


async def test_a_body_that_never_ends_is_not_waited_for(redis, gateway_settings, double):
    group = gateway_settings.gateway.model_copy(update={"body_seconds": 0.2})
    settings = gateway_settings.model_copy(update={"gateway": group})
    async with running_gateway(settings, redis) as gateway:
        host, port = gateway.url.removeprefix("http://").split(":")
        for path in (b"/v1/completions", FEEDBACK.encode()):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(
                b"POST %b HTTP/1.1\r\nHost: x\r\nx-api-key: %b\r\ncontent-length: 90\r\n"
                b"content-type: application/json\r\n\r\n{" % (path, gateway.secret.encode())
            )
            assert (await reader.readline()).split()[1] == b"408", path
            writer.close()
    assert double.requests == []


async def test_a_length_that_lies_is_not_believed(gateway):
    host, port = gateway.url.removeprefix("http://").split(":")
    for length in ("-1", "1e3", "99999999999999999999"):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nx-api-key: %b\r\n"
            b"content-length: %b\r\n\r\n{}" % (gateway.secret.encode(), length.encode())
        )
        status = (await reader.readline()).split()[1]
        assert status in (b"400", b"413")
        writer.close()


async def test_errors_of_the_framework_are_openai_errors_too(gateway):
    for method, path, status in (
        ("GET", "/nothing", 404),
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/healthz", 405),
    ):
        send = gateway.get(path) if method == "GET" else gateway.post(path, {})
        async with send as response:
            assert response.status == status
            error = (await response.json())["error"]
            assert error.keys() == {"message", "type", "param", "code"}


async def test_a_failure_of_ours_is_an_error_object_without_details(gateway, monkeypatch):
    def broken(*_):
        raise RuntimeError("the password is hunter2")

    monkeypatch.setattr("serving.requests.parse", broken)
    async with gateway.post("/v1/chat/completions", CHAT) as response:
        assert response.status == 500
        text = await response.text()
    assert response.headers["x-request-id"] in text
    assert "hunter2" not in text


async def test_requests_are_counted_by_route_and_never_by_what_was_asked(gateway):
    for path in ("/v1/models/instructloop", "/v1/models/other", "/secret-path"):
        async with gateway.get(path):
            pass
    async with gateway.get("/metrics") as response:
        text = await response.text()
    assert 'instructloop_requests_total{route="/v1/models/{model}",status="200"} ' in text
    assert 'instructloop_requests_total{route="/v1/models/{model}",status="404"} ' in text
    assert "secret-path" not in text


@pytest.mark.parametrize("origin", ["https://app.example", "https://evil.example"])
async def test_browsers_of_named_origins_may_call(redis, gateway_settings, origin):
    group = gateway_settings.gateway.model_copy(update={"cors_origins": ("https://app.example",)})
    settings = gateway_settings.model_copy(update={"gateway": group})
    async with running_gateway(settings, redis) as gateway:
        preflight = {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,idempotency-key",
        }
        async with gateway.http.options(gateway.url + FEEDBACK, headers=preflight) as response:
            allowed = response.headers.get("Access-Control-Allow-Origin")
        assert allowed == (origin if "app" in origin else None)
        for path in (FEEDBACK, "/nothing"):  # a page has to be able to read why not
            headers = {"Origin": origin, "Authorization": "Bearer il-unknown"}
            async with gateway.http.post(gateway.url + path, json={}, headers=headers) as response:
                assert response.status == 401
                assert response.headers.get("Access-Control-Allow-Origin") == allowed
