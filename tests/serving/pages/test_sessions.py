"""Signing in over HTTP: the cookie, what it may do, and how it ends."""

import time
from http.cookies import SimpleCookie

import pytest

from core import keys
from core.auth import KeyCache, create_key, revoke_key
from core.errors import Unauthenticated
from core.redis_client import connect
from core.settings import Settings
from serving import sessions
from serving.sessions import COOKIE
from tests.conftest import eventually
from tests.serving.conftest import CHAT, running_gateway

SESSION = "/v1/session"
HERE = {"sec-fetch-site": "same-origin"}


async def sign_in(gateway, secret=None, **headers):
    """The cookie of a browser that signed in, and what the reply said."""
    body = {"key": gateway.secret if secret is None else secret}
    async with gateway.http.post(gateway.url + SESSION, json=body, headers=headers) as response:
        jar = SimpleCookie(response.headers.get("set-cookie", ""))
        gateway.http.cookie_jar.clear()
        return jar.get(COOKIE), response.status, await response.json()


async def ask(gateway, method, path, cookie, body=None, **headers):
    """A request of a browser with this cookie: its status and JSON."""
    headers = {"cookie": f"{COOKIE}={cookie}"} | headers if cookie else headers
    url = gateway.url + path
    async with gateway.http.request(method, url, json=body, headers=headers) as response:
        gateway.http.cookie_jar.clear()
        return response.status, None if response.status == 204 else await response.json()


@pytest.fixture
async def cookie(gateway):
    signed, *_ = await sign_in(gateway)
    return signed.value


async def test_signing_in_says_who_and_sets_a_cookie_that_scripts_cannot_read(gateway, redis):
    cookie, status, said = await sign_in(gateway)
    assert status == 200
    assert (said["signed_in"], said["name"], said["tenant"]) == (True, "tests", "acme")
    assert said["scopes"] == ["complete", "feedback"]
    assert cookie["httponly"]
    assert (cookie["samesite"], cookie["path"], cookie["secure"]) == ("strict", "/", "")
    assert int(cookie["max-age"]) == 7 * 86_400  # the server ends it earlier when it is not used
    kept = await redis.keys(keys.session("*"))
    assert len(kept) == 1
    assert cookie.value.split(".")[0] not in kept[0].decode()
    assert gateway.secret not in (await redis.get(kept[0])).decode()
    assert 0 < await redis.ttl(kept[0]) <= 12 * 3600


async def test_behind_https_the_cookie_is_secure(gateway):
    cookie, *_ = await sign_in(gateway, **{"x-forwarded-proto": "https"})
    assert cookie["secure"]


@pytest.mark.parametrize("key", ["il-nobody", "", "x" * 501])
async def test_an_unknown_key_sets_no_cookie(gateway, key):
    cookie, status, said = await sign_in(gateway, key)
    assert cookie is None
    assert status == (401 if key == "il-nobody" else 422)
    assert said["error"]["message"]


async def test_a_session_acts_as_its_key_and_no_more(gateway, cookie):
    assert (await ask(gateway, "GET", "/v1/models", cookie))[0] == 200
    assert (await ask(gateway, "GET", "/v1/policies", cookie))[0] == 403
    status, said = await ask(gateway, "POST", "/v1/chat/completions", cookie, CHAT, **HERE)
    assert (status, said["object"]) == (200, "chat.completion")
    assert (await ask(gateway, "GET", SESSION, cookie))[1]["name"] == "tests"


async def test_a_key_in_a_header_counts_more_than_the_session(gateway, cookie, redis):
    _, other = await create_key(redis, name="other", tenant="acme", scopes=["label"])
    assert (await ask(gateway, "GET", SESSION, cookie, **{"x-api-key": other}))[1][
        "name"
    ] == "other"
    wrong = {"authorization": "Bearer il-wrong"}
    assert (await ask(gateway, "GET", "/v1/models", cookie, **wrong))[0] == 401


async def test_nobody_is_signed_in_without_a_cookie_or_with_a_made_up_one(gateway, redis):
    for cookie in (None, "", "x", "a.b", "." * 9, "\u00e9"):
        assert await ask(gateway, "GET", SESSION, cookie) == (
            200,
            {"signed_in": False, "id": None, "name": None, "tenant": None, "scopes": []},
        )
        assert (await ask(gateway, "GET", "/v1/models", cookie))[0] == 401


async def test_signing_out_ends_the_session_for_whoever_has_the_cookie(gateway, cookie, redis):
    assert (await ask(gateway, "DELETE", SESSION, cookie, **HERE))[0] == 204
    assert (await ask(gateway, "GET", "/v1/models", cookie))[0] == 401
    assert await redis.keys(keys.session("*")) == []
    assert (await ask(gateway, "DELETE", SESSION, None))[0] == 204


async def test_signing_in_again_ends_the_session_before(gateway, cookie):
    again, *_ = await sign_in(gateway, cookie=f"{COOKIE}={cookie}")
    assert (await ask(gateway, "GET", "/v1/models", cookie))[0] == 401
    assert (await ask(gateway, "GET", "/v1/models", again.value))[0] == 200


async def test_what_was_signed_out_elsewhere_is_signed_out_here_soon(gateway, cookie, redis):
    assert (await ask(gateway, "GET", "/v1/models", cookie))[0] == 200
    await redis.delete(*await redis.keys(keys.session("*")))

    async def refused() -> bool:
        return (await ask(gateway, "GET", "/v1/models", cookie))[0] == 401

    await eventually(refused, seconds=2)


@pytest.mark.parametrize("how", ["revoked", "expired"])
async def test_a_session_dies_with_its_key_within_two_seconds(gateway, redis, how):
    expires = time.time() + 1 if how == "expired" else None
    key, secret = await create_key(
        redis, name="brief", tenant="acme", scopes=["complete"], expires_at=expires
    )
    cookie, *_ = await sign_in(gateway, secret)
    assert (await ask(gateway, "GET", "/v1/models", cookie.value))[0] == 200
    if how == "revoked":
        await revoke_key(redis, key.id)

    async def refused() -> bool:
        return (await ask(gateway, "GET", "/v1/models", cookie.value))[0] == 401

    await eventually(refused, seconds=2)
    assert (await ask(gateway, "GET", SESSION, cookie.value))[1]["signed_in"] is False


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
    ],
)
async def test_another_site_cannot_act_for_somebody_signed_in(gateway, cookie, headers):
    for method, path in (("POST", "/v1/chat/completions"), ("DELETE", "/v1/feedback/fb-x")):
        status, said = await ask(gateway, method, path, cookie, CHAT, **headers)
        assert (status, said["error"]["code"]) == (403, "cross_origin")
    if headers:
        assert (await sign_in(gateway, **headers))[1] == 403
        assert (await ask(gateway, "DELETE", SESSION, cookie, **headers))[0] == 403
    assert (await ask(gateway, "GET", "/v1/models", cookie, **headers))[0] == 200


async def test_our_own_origin_is_enough_where_the_browser_says_no_more(gateway, cookie):
    headers = {"origin": gateway.url}
    status, _ = await ask(gateway, "POST", "/v1/chat/completions", cookie, CHAT, **headers)
    assert status == 200


async def test_redis_is_asked_once_in_a_while_and_a_session_outlives_its_absence(
    redis_server, double, state_dir, monkeypatch
):
    settings = Settings(state_dir=state_dir, redis_url=redis_server.url)
    async with connect(redis_server.url) as own, running_gateway(settings, own) as gateway:
        signed, *_ = await sign_in(gateway)
        before = (await own.info("commandstats")).get("cmdstat_get", {}).get("calls", 0)
        for _ in range(30):
            assert (await ask(gateway, "GET", SESSION, signed.value))[1]["signed_in"]
        after = (await own.info("commandstats")).get("cmdstat_get", {}).get("calls", 0)
        assert after - before < 20
        redis_server.kill()
        monkeypatch.setattr(sessions, "FRESH_SECONDS", -1.0)
        assert (await ask(gateway, "GET", SESSION, signed.value))[1]["signed_in"]


async def test_a_session_that_is_used_goes_on_up_to_its_fixed_end(redis, keyring, monkeypatch):
    _, secret = await create_key(redis, name="r", tenant="acme", scopes=["label"])
    monkeypatch.setattr(sessions, "FRESH_SECONDS", -1.0)
    book = sessions.Sessions(redis, keyring, KeyCache(redis), seconds=600, longest=1000)
    _, cookie = await book.begin(secret)
    (place,) = await redis.keys(keys.session("*"))
    await redis.expire(place, 595)
    await book.key_of(cookie)
    assert await redis.ttl(place) <= 595  # extended only when it is worth a write
    await redis.expire(place, 100)
    await book.key_of(cookie)
    assert 595 < await redis.ttl(place) <= 600
    digest, end = (await redis.get(place)).decode().split()
    assert abs(int(end) - time.time() - 1000) < 10
    await redis.set(place, f"{digest} {int(time.time()) + 300}", ex=50)  # 700 seconds later
    await book.key_of(cookie)
    assert 290 < await redis.ttl(place) <= 300
    await redis.set(place, digest, ex=50)  # as an earlier release kept it: it runs out
    assert (await book.key_of(cookie)).name == "r"
    assert await redis.ttl(place) <= 50


async def test_a_session_is_never_longer_than_its_fixed_end(redis, keyring):
    _, secret = await create_key(redis, name="r", tenant="acme", scopes=["label"])
    book = sessions.Sessions(redis, keyring, KeyCache(redis), seconds=600, longest=60)
    await book.begin(secret)
    (place,) = await redis.keys(keys.session("*"))
    assert await redis.ttl(place) <= 60


async def test_memory_keeps_only_the_recent_sessions(redis, keyring, monkeypatch):
    _, secret = await create_key(redis, name="r", tenant="acme", scopes=["label"])
    monkeypatch.setattr(sessions, "REMEMBERED", 3)
    book = sessions.Sessions(redis, keyring, KeyCache(redis), seconds=60, longest=600)
    cookies = [(await book.begin(secret))[1] for _ in range(5)]
    assert len(book._recent) == 3
    assert (await book.key_of(cookies[0])).name == "r"
    other = sessions.Sessions(redis, keyring, KeyCache(redis), seconds=60, longest=600)
    assert (await other.key_of(cookies[4])).name == "r"
    with pytest.raises(Unauthenticated):
        await other.key_of(cookies[4][:-1] + "!")
