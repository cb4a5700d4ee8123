"""Limits, usage and revoked keys as clients of one or two gateways see them."""

import asyncio
import time

import openai
import pytest

from core import keys
from core.auth import create_key, revoke_key
from core.errors import Unavailable
from core.records import KeyLimits
from core.redis_client import connect
from core.setting_groups import LimitSettings
from serving.usage import Usage, today
from tests.conftest import eventually
from tests.serving.conftest import CHAT, running_gateway
from tests.serving.engine_double import WORDS

CHAT_PATH = "/v1/chat/completions"


@pytest.fixture
def limited(gateway, redis):
    """Make the gateway's key one with limits."""

    async def make(**limits):
        scopes = ["complete", "feedback"]
        key, gateway.secret = await create_key(
            redis, name="l", tenant="acme", scopes=scopes, limits=KeyLimits(**limits)
        )
        return key

    return make


def client_of(gateway, **options):
    return openai.AsyncOpenAI(
        base_url=gateway.url + "/v1", api_key=gateway.secret, **{"max_retries": 0, **options}
    )


async def status_of(gateway, **more) -> int:
    async with gateway.post(CHAT_PATH, {**CHAT, **more}) as response:
        await response.read()
        return response.status


async def test_replies_say_what_is_left_and_the_client_raises_its_own_error(gateway, limited):
    key = await limited(requests_per_minute=2, tokens_per_minute=6000)
    async with client_of(gateway) as client:
        raw = await client.chat.completions.with_raw_response.create(**CHAT, max_tokens=100)
        assert raw.headers["x-ratelimit-limit-requests"] == "2"
        assert raw.headers["x-ratelimit-remaining-requests"] == "1"
        assert 25 < float(raw.headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 30
        assert raw.headers["x-ratelimit-limit-tokens"] == "6000"
        assert 5800 < int(raw.headers["x-ratelimit-remaining-tokens"]) < 5900
        stream = await client.chat.completions.create(**CHAT, stream=True)
        assert stream.response.headers["x-ratelimit-remaining-requests"] == "0"
        await stream.close()
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(**CHAT)
    error = caught.value
    assert (error.type, error.code) == ("rate_limit_error", "rate_limit_exceeded")
    assert f"key {key.id} is reached, 2 requests a minute" in error.message
    assert 25 <= int(error.response.headers["retry-after"]) <= 30
    assert error.response.headers["x-ratelimit-remaining-requests"] == "0"
    async with gateway.get("/metrics") as response:
        assert 'rate_limited_total{limit="key_requests"} ' in await response.text()


async def test_the_openai_client_waits_and_asks_again(gateway, limited):
    await limited(requests_per_minute=60, concurrency=1)
    async with client_of(gateway, max_retries=4) as client:
        asked = (client.chat.completions.create(**CHAT) for _ in range(2))
        replies = await asyncio.gather(*asked)
    assert len({reply.id for reply in replies}) == 2


async def test_anthropics_clients_get_their_own_error_object(gateway, limited):
    await limited(concurrency=1, tokens_per_minute=20)
    body = {"messages": CHAT["messages"], "model": "instructloop", "max_tokens": 500}
    async with gateway.post("/v1/messages", body) as response:
        assert response.status == 429
        said = await response.json()
        assert response.headers["x-should-retry"] == "false"
    assert (said["type"], said["error"]["type"]) == ("error", "rate_limit_error")


async def test_tokens_are_settled_with_what_was_really_used(gateway, limited, double):
    await limited(tokens_per_minute=1000)
    for stream in (False, True, False):
        assert await status_of(gateway, max_tokens=900, stream=stream) == 200
        await eventually(lambda: _open(gateway) == 0)
    double.status = 400
    assert await status_of(gateway, max_tokens=900) == 400
    double.status = None
    (meter,) = gateway.app.state.services.admission.leased.values()
    entries = [entry["sampling"] for entry in await gateway.logged_once(3)]
    used = [entry["prompt_tokens"] + entry["completion_tokens"] for entry in entries]
    assert meter.spent == sum(used) > 3 * len(WORDS)


def _open(gateway) -> int:
    admission = gateway.app.state.services.admission
    return sum(meter.open for meter in admission.leased.values())


async def test_a_place_comes_back_in_whatever_way_a_reply_ends(gateway, limited, double):
    await limited(concurrency=1)

    async def freed() -> bool:
        return await status_of(gateway) == 200

    async with gateway.post("/v1/completions", {"prompt": "x", "n": 0}) as response:
        assert response.status == 400
    for name, value in (("status", 400), ("status", 503), ("hangs", True), ("cut_after", 2)):
        normal = getattr(double, name)
        setattr(double, name, value)
        asked = asyncio.create_task(_ask_and_leave(gateway, stream=name == "cut_after"))
        await asked
        setattr(double, name, normal)
        await eventually(freed)
    double.first_error = {"message": "no", "type": "x", "code": 400}
    assert await status_of(gateway, stream=True) == 400
    double.first_error = None
    assert await freed()
    double.gate = asyncio.Event()
    response = await gateway.post(CHAT_PATH, {**CHAT, "stream": True})
    await response.content.readuntil(b'"content"')
    assert await status_of(gateway) == 429
    response.close()
    double.gate.set()
    await eventually(freed)


async def _ask_and_leave(gateway, *, stream: bool) -> None:
    try:
        async with asyncio.timeout(0.3), gateway.post(CHAT_PATH, {**CHAT, "stream": stream}) as got:
            await got.read()
    except TimeoutError:
        return


async def test_end_users_are_limited_apart_and_nobody_named_counts_as_one(gateway, limited):
    await limited(user_requests_per_minute=1)
    codes = [await status_of(gateway, user=name) for name in ("ada", "bob", "ada")]
    assert codes == [200, 200, 429]
    assert [await status_of(gateway) for _ in range(2)] == [200, 429]
    assert await status_of(gateway, safety_identifier="cy") == 200


async def test_a_reply_that_nobody_waited_for_counts_with_what_was_shown(gateway, limited, double):
    await limited(tokens_per_minute=5000)
    double.gate = asyncio.Event()
    response = await gateway.post(CHAT_PATH, {**CHAT, "stream": True, "max_tokens": 2000})
    await response.content.readuntil(b'"content"')
    assert _open(gateway) == 1
    response.close()
    await eventually(lambda: _open(gateway) == 0)
    double.gate.set()
    (entry,) = await gateway.logged_once()
    assert entry["error"] == "hung_up"
    shown = len(entry["choices"][0]["text"])
    (meter,) = gateway.app.state.services.admission.leased.values()
    total = (await usage_of(gateway))["keys"][0]["total"]
    assert total["completion_tokens"] == -(-shown // 4)
    assert meter.spent == total["prompt_tokens"] + total["completion_tokens"] < 100


async def test_limits_are_in_the_openapi_document(gateway):
    async with gateway.get("/openapi.json") as response:
        paths = (await response.json())["paths"]
    for path in (CHAT_PATH, "/v1/completions", "/v1/responses", "/v1/messages"):
        said = paths[path]["post"]["responses"]
        assert "x-ratelimit-remaining-tokens" in said["200"]["headers"]
        assert {"Retry-After", "x-ratelimit-reset-requests"} <= said["429"]["headers"].keys()
        assert said["429"]["content"]["application/json"]["schema"]


async def usage_of(gateway, secret=None, path="/v1/usage") -> dict:
    headers = {"x-api-key": secret or gateway.secret}
    async with gateway.http.get(gateway.url + path, headers=headers) as response:
        assert response.status == 200
        return await response.json()


async def test_usage_is_counted_by_key_and_day(gateway, limited, double, redis):
    key = await limited(requests_per_minute=3)
    assert [await status_of(gateway, stream=s) for s in (False, True, False, False)][-1] == 429
    said = await usage_of(gateway)
    (mine,) = said["keys"]
    entries = [entry["sampling"] for entry in await gateway.logged_once(3)]
    expected = {
        "requests": 3,
        "prompt_tokens": sum(entry["prompt_tokens"] for entry in entries),
        "completion_tokens": 3 * len(WORDS),
        "refused": 1,
    }
    assert (mine["key_id"], mine["total"]) == (key.id, expected)
    assert mine["days"] == [{"date": today(), **expected}]
    assert await redis.ttl(keys.usage(today())) > 80 * 86_400


async def test_an_admin_sees_the_keys_of_its_tenant_and_others_only_themselves(gateway, redis):
    assert await status_of(gateway) == 200
    _, admin = await create_key(redis, name="boss", tenant="acme", scopes=["admin"])
    _, rater = await create_key(redis, name="rater", tenant="acme", scopes=["label"])
    _, foreign = await create_key(redis, name="boss", tenant="other", scopes=["admin"])
    await gateway.app.state.keys.refresh()
    shown = (await usage_of(gateway, admin))["keys"]
    seen = {key["name"]: key["total"]["requests"] for key in shown}
    assert seen == {"tests": 1, "boss": 0, "rater": 0}
    assert [key["name"] for key in (await usage_of(gateway, rater))["keys"]] == ["rater"]
    assert [key["total"]["requests"] for key in (await usage_of(gateway, foreign))["keys"]] == [0]
    for days in ("0", "367", "x"):
        async with gateway.get(f"/v1/usage?days={days}") as response:
            assert response.status == 422


async def test_a_batch_of_usage_counts_once_however_often_it_is_sent(redis):
    usage = Usage(redis, keep_days=9)
    usage.answered("k", 5, 7)
    usage._begin()
    batch = dict(usage._batch)
    await usage._send()  # its answer is lost: it is sent again
    assert usage._batch == batch
    usage.answered("k", 1, 2)
    usage.refused("k")
    await usage.flush()
    await usage.flush()
    stored = await redis.hgetall(keys.usage(today()))
    assert stored == {
        b"k:requests": b"2",
        b"k:prompt_tokens": b"6",
        b"k:completion_tokens": b"9",
        b"k:refused": b"1",
    }


async def test_usage_waits_for_redis_to_come_back(redis_server):
    async with connect(redis_server.url) as client:
        usage = Usage(client, keep_days=9)
        usage.answered("k", 5, 7)
        await usage.flush()
        redis_server.kill()
        for _ in range(3):
            usage.answered("k", 5, 7)
            with pytest.raises(Unavailable):
                await usage.flush()
        redis_server.start()
        await usage.flush()
        stored = await client.hgetall(keys.usage(today()))
    assert stored[b"k:requests"] == b"4"
    assert stored[b"k:completion_tokens"] == b"28"


async def test_nothing_counted_is_lost_when_a_gateway_stops(double, gateway_settings, redis):
    async with running_gateway(gateway_settings, redis) as gateway:
        assert [await status_of(gateway) for _ in range(3)] == [200, 200, 200]
    stored = await redis.hgetall(keys.usage(today()))
    assert sorted(stored.values()) == [b"21", b"27", b"3"]


async def test_limits_may_be_counted_in_a_redis_of_their_own(
    double, gateway_settings, redis, redis_server
):
    settings = gateway_settings.model_copy(update={"redis_limits_url": redis_server.url})
    limits = LimitSettings(requests_per_minute=1)
    async with (
        connect(redis_server.url) as apart,
        running_gateway(settings.model_copy(update={"limits": limits}), redis) as gateway,
    ):
        assert [await status_of(gateway) for _ in range(2)] == [200, 429]
        await eventually(lambda: apart.keys("*limit:requests:*"))
        assert await redis.keys("*limit*") == []
        assert await apart.keys("*usage*") == []


async def test_a_revoked_key_is_refused_by_two_gateways_within_two_seconds(
    gateway, gateway_settings, redis
):
    key, secret = await create_key(redis, name="r", tenant="acme", scopes=["complete", "feedback"])
    async with running_gateway(gateway_settings, redis) as second:
        doors = [gateway, second]
        cookie = await _sign_in(gateway, secret)
        for door in doors:
            door.secret = secret
            assert await status_of(door) == 200
            assert await _models_by_cookie(door, cookie) == 200
        await revoke_key(redis, key.id)
        revoked_at = time.monotonic()

        async def refused_everywhere() -> bool:
            codes = [await status_of(door) for door in doors]
            codes += [await _models_by_cookie(door, cookie) for door in doors]
            return set(codes) == {401}

        await eventually(refused_everywhere, seconds=2)
        assert time.monotonic() - revoked_at < 2


async def _sign_in(gateway, secret: str) -> str:
    async with gateway.http.post(gateway.url + "/v1/session", json={"key": secret}) as response:
        assert response.status == 200
        return response.headers["Set-Cookie"].split(";")[0]


async def _models_by_cookie(gateway, cookie: str) -> int:
    async with gateway.http.get(gateway.url + "/v1/models", headers={"Cookie": cookie}) as response:
        return response.status
