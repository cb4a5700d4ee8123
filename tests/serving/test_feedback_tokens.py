"""Tokens for browsers: what they open, what they do not, and how they end."""

import base64

import pytest

from core.auth import create_key, revoke_key
from core.errors import Unauthenticated
from serving import feedback_tokens
from serving.feedback_tokens import Claim
from tests.conftest import eventually
from tests.serving.conftest import CHAT, running_gateway

SECRET = b"s" * 32
CLAIM = Claim("acme", "0a1b2c3d", "t" * 52, 2000)
ORIGIN = "https://app.example"


def test_a_token_says_what_was_written_until_it_ends():
    token = feedback_tokens.write(SECRET, CLAIM)
    assert feedback_tokens.read([SECRET], token, now=1999.9) == CLAIM
    with pytest.raises(Unauthenticated, match="expired"):
        feedback_tokens.read([SECRET], token, now=2000.0)


def test_no_altered_token_is_good():
    token = feedback_tokens.write(SECRET, CLAIM)
    prefix, body = feedback_tokens.PREFIX, token.removeprefix(feedback_tokens.PREFIX)
    raw = bytearray(base64.urlsafe_b64decode(body + "=="))
    altered = []
    for place in range(0, len(raw), 5):
        raw[place] ^= 1
        altered.append(prefix + base64.urlsafe_b64encode(bytes(raw)).decode().rstrip("="))
        raw[place] ^= 1
    for wrong in (*altered, prefix, prefix + "!", body, token + "A" * 4, prefix + "A" * 4000):
        with pytest.raises(Unauthenticated, match="not known"):
            feedback_tokens.read([SECRET], wrong, now=0.0)
    with pytest.raises(Unauthenticated):
        feedback_tokens.read([b"x" * 32, b"y" * 32], token, now=0.0)


@pytest.fixture
async def pages(double, gateway_settings, redis):
    """A gateway that takes calls of browsers from one origin."""
    group = gateway_settings.gateway.model_copy(update={"cors_origins": (ORIGIN,)})
    settings = gateway_settings.model_copy(update={"gateway": group})
    async with running_gateway(settings, redis) as gateway:
        await eventually(lambda: not gateway.app.state.durability_warnings)
        yield gateway


async def completion(gateway, **more) -> str:
    async with gateway.post("/v1/chat/completions", {**CHAT, **more}) as response:
        return (await response.json())["id"]


async def token_for(gateway, completion_id: str) -> dict:
    async with gateway.post("/v1/feedback-tokens", {"completion_id": completion_id}) as response:
        assert response.status == 201
        return await response.json()


async def say(gateway, token: str, completion_id: str, **more):
    said = {"completion_id": completion_id, "thumb": "up", **more}
    headers = {"Authorization": f"Bearer {token}", "Origin": ORIGIN}
    url = gateway.url + "/v1/feedback"
    async with gateway.http.post(url, json=said, headers=headers) as response:
        return response.status, await response.json()


async def test_a_token_is_good_for_feedback_on_its_completion_only(pages):
    mine, other = await completion(pages), await completion(pages)
    token = (await token_for(pages, mine))["token"]
    status, said = await say(pages, token, mine)
    assert status == 201
    assert (await say(pages, token, other))[0] == 403
    headers = {"Authorization": f"Bearer {token}"}
    for method, path in (
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/rankings"),
        ("POST", "/v1/feedback-tokens"),
        ("GET", f"/v1/feedback/{said['id']}"),
        ("DELETE", f"/v1/feedback/{said['id']}"),
        ("GET", "/v1/usage"),
    ):
        url = pages.url + path
        async with pages.http.request(method, url, json=CHAT, headers=headers) as response:
            assert response.status == 403, path


@pytest.mark.parametrize(
    "lax",
    [
        '{"thumb": "up", "completion_id": "MINE", "completion_id": "OTHER"}',
        '{"completion_id": "OTHER", "comment": "\\ud800"}',
        '{"completion_id": "OTHER", "rating": NaN}',
        '{"completion_id": "OTHER", "thumb": "up"',
        '[{"completion_id": "OTHER"}]',
        '{"thumb": "up"}',
        "",
    ],
)
async def test_no_form_of_a_body_slips_past_the_check(pages, lax):
    mine, other = await completion(pages), await completion(pages)
    token = (await token_for(pages, mine))["token"]
    headers = {"Authorization": f"Bearer {token}", "content-type": "application/json"}
    body = lax.replace("MINE", mine).replace("OTHER", other)
    for data in (body.encode(), body.encode("utf-16")):
        url = pages.url + "/v1/feedback"
        async with pages.http.post(url, data=data, headers=headers) as response:
            assert response.status in (400, 403, 422), body


async def test_a_body_in_pieces_reaches_the_route_whole(pages):
    mine = await completion(pages)
    token = (await token_for(pages, mine))["token"]

    async def pieces():
        for part in ('{"completion_id": "', mine, '", "thumb": ', '"down"}'):
            yield part.encode()

    headers = {"Authorization": f"Bearer {token}", "content-type": "application/json"}
    url = pages.url + "/v1/feedback"
    async with pages.http.post(url, data=pieces(), headers=headers) as response:
        assert response.status == 201


async def test_a_token_speaks_for_the_end_user_and_for_no_rater_of_its_own_choice(pages):
    mine = await completion(pages)
    token = (await token_for(pages, mine))["token"]
    status, said = await say(pages, token, mine, rater="ada")
    assert status == 403
    assert said["error"]["param"] == "rater"
    by_token = (await say(pages, token, mine))[1]["id"]
    assert by_token == (await say(pages, pages.secret, mine))[1]["id"]


async def test_a_token_dies_with_its_key(pages, redis):
    scopes = ["complete", "feedback"]
    key, pages.secret = await create_key(redis, name="k", tenant="acme", scopes=scopes)
    mine = await completion(pages)
    token = (await token_for(pages, mine))["token"]
    assert (await say(pages, token, mine))[0] == 201
    await revoke_key(redis, key.id)

    async def refused() -> bool:
        return (await say(pages, token, mine))[0] == 401

    await eventually(refused, seconds=2)


async def test_tokens_are_for_completions_of_the_tenant_that_take_feedback(pages, redis):
    mine, unstored = await completion(pages), await completion(pages, store=False)
    for asked, status in ((mine + "x", 404), ("nothing", 404), (unstored, 422), ("", 422)):
        async with pages.post("/v1/feedback-tokens", {"completion_id": asked}) as response:
            assert response.status == status
    for scope, tenant, status in (("complete", "acme", 403), ("feedback", "other", 404)):
        _, pages.secret = await create_key(redis, name="o", tenant=tenant, scopes=[scope])
        async with pages.post("/v1/feedback-tokens", {"completion_id": mine}) as response:
            assert response.status == status


async def test_browsers_of_named_origins_may_ask_before_they_have_a_key(pages):
    for path in ("/v1/chat/completions", "/v1/feedback", "/v1/feedback-tokens"):
        preflight = {
            "Origin": ORIGIN,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
        }
        async with pages.http.options(pages.url + path, headers=preflight) as response:
            assert response.status == 200, path
            assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
            allowed = response.headers["Access-Control-Allow-Headers"]
            assert {"authorization", "x-stainless-lang"} <= set(allowed.replace(" ", "").split(","))
        preflight["Origin"] = "https://evil.example"
        async with pages.http.options(pages.url + path, headers=preflight) as response:
            assert "Access-Control-Allow-Origin" not in response.headers


async def test_errors_can_be_read_by_browsers_too(pages):
    url = pages.url + "/v1/chat/completions"
    for secret, body, status in (("il-x", CHAT, 401), (pages.secret, {"a": 1}, 400)):
        headers = {"Authorization": f"Bearer {secret}", "Origin": ORIGIN}
        async with pages.http.post(url, json=body, headers=headers) as response:
            assert response.status == status
            assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
            exposed = response.headers["Access-Control-Expose-Headers"]
            assert {"retry-after", "x-ratelimit-remaining-tokens"} <= set(exposed.split(", "))
