"""Completions through the gateway, with an engine double: what clients see and what is logged."""

import asyncio

import aiohttp
import openai
import orjson
import pytest

from core import ids
from tests.conftest import eventually
from tests.serving.conftest import CHAT, TEXT, announce, running_gateway
from tests.serving.engine_double import WORDS, EngineDouble

SAID = "".join(WORDS)


@pytest.fixture
async def client(gateway):
    async with openai.AsyncOpenAI(
        base_url=gateway.url + "/v1", api_key=gateway.secret, max_retries=0
    ) as opened:
        yield opened


async def test_a_chat_is_answered_and_logged_as_it_was_sent(gateway, client):
    reply = await client.chat.completions.create(**CHAT, user="ada", metadata={"page": "help"})
    assert reply.choices[0].message.content == SAID
    (entry,) = await gateway.logged_once()
    assert entry["id"] == reply.id == f"chatcmpl-{entry['token']}"
    assert entry["messages"] == CHAT["messages"]
    assert entry["choices"] == [
        {"text": SAID, "finish_reason": "stop", "tokens": len(WORDS), "tool_calls": None}
    ]
    assert (entry["user"], entry["tenant"], entry["error"]) == ("ada", "acme", None)
    assert entry["policy_versions"] == ["v0000"]
    assert entry["metadata"] == {"page": "help"}
    assert entry["trains"] is True
    said = ids.read_id([gateway.keyring.key("mac")], "acme", reply.id)
    assert (said.key_id, said.choices, said.stored) == (entry["key_id"], 1, True)
    assert said.prompt_tag == entry["prompt_tag"]


async def test_a_streamed_chat_is_logged_with_its_token_counts(gateway, client):
    stream = await client.chat.completions.create(**CHAT, stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == SAID
    assert all(chunk.usage is None for chunk in chunks)
    (entry,) = await gateway.logged_once()
    assert entry["choices"][0]["text"] == SAID
    assert entry["choices"][0]["tokens"] == len(WORDS)
    assert entry["user"] == entry["key_id"]


async def test_a_client_that_asks_for_usage_gets_it(client):
    stream = await client.chat.completions.create(
        **CHAT, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].usage.completion_tokens == len(WORDS)


async def test_text_completions_with_several_choices_are_logged_by_index(gateway, client):
    reply = await client.completions.create(**TEXT, n=3)
    stream = await client.completions.create(**TEXT, n=3, stream=True)
    async for _ in stream:
        pass
    for entry in await gateway.logged_once(2):
        assert [choice["text"] for choice in entry["choices"]] == [SAID] * 3
        assert entry["messages"] == {"prompt": TEXT["prompt"]}
        assert entry["sampling"]["completion_tokens"] == 3 * len(WORDS)
    assert ids.read_id([gateway.keyring.key("mac")], "acme", reply.id).choices == 3


async def test_equal_prompts_share_a_tag_and_others_do_not(gateway, client):
    for content in ("one", "one", "two"):
        await client.chat.completions.create(
            model="instructloop", messages=[{"role": "user", "content": content}]
        )
    first, second, third = (e["prompt_tag"] for e in await gateway.logged_once(3))
    assert first == second != third


async def test_what_must_not_be_stored_is_answered_and_nowhere_else(gateway, client):
    reply = await client.chat.completions.create(**CHAT, store=False)
    batch = await client.completions.with_raw_response.create(
        model="instructloop", prompt=["one", "two"]
    )
    assert batch.headers["x-feedback-off"] == "the prompt is not one text"
    assert not ids.read_id([gateway.keyring.key("mac")], "acme", reply.id).stored
    assert await gateway.logged() == []


async def test_the_engine_sees_our_fields_and_token_and_none_of_the_clients_headers(
    gateway, double
):
    async with gateway.post(
        "/v1/chat/completions",
        {**CHAT, "user": "ada", "store": True, "metadata": {"a": "b"}, "temperature": 0.5},
        headers={"X-Request-Id": "mine", "X-Data-Parallel-Rank": "3", "Cookie": "a=b"},
    ) as response:
        assert response.headers["x-request-id"] != "mine"
        completion_id = (await response.json())["id"]
    (asked,) = double.requests
    salt = asked.pop("cache_salt")
    assert len(salt) == 32
    assert asked == {**CHAT, "temperature": 0.5, "priority": 0}
    (headers,) = double.headers
    assert headers["x-request-id"] == ids.token_of(completion_id)
    assert headers["authorization"].removeprefix("Bearer ") != gateway.secret
    assert set(headers) == {
        "host",
        "authorization",
        "content-type",
        "content-length",
        "x-request-id",
    }


async def test_no_cache_entry_is_shared_across_tenants_or_versions(gateway, double, redis):
    await gateway.post("/v1/chat/completions", CHAT)
    await gateway.post("/v1/chat/completions", CHAT)
    await announce(redis, f"unix:{gateway.app.state.settings.state_dir}/engine.sock", version="v1")
    known = gateway.app.state.services.replicas
    await eventually(lambda: known.versions() == ["v1"])
    await gateway.post("/v1/chat/completions", CHAT)
    first, second, third = (asked["cache_salt"] for asked in double.requests)
    assert first == second != third


async def test_errors_are_the_typed_exceptions_of_the_client(gateway, client, double):
    with pytest.raises(openai.BadRequestError, match="n"):
        await client.chat.completions.create(**CHAT, n=99)
    with pytest.raises(openai.NotFoundError, match="instructloop@v0009"):
        await client.chat.completions.create(**{**CHAT, "model": "instructloop@v0009"})
    with pytest.raises(openai.AuthenticationError):
        await client.with_options(api_key="il-unknown").models.list()
    with pytest.raises(openai.PermissionDeniedError, match="admin"):
        await client.get("/policies", cast_to=object)
    double.status = 400
    with pytest.raises(openai.BadRequestError, match="too busy"):
        await client.chat.completions.create(**CHAT)


async def test_a_pinned_version_is_served_by_a_replica_of_it(gateway, client, redis, state_dir):
    other = EngineDouble(version="v0001", words=("new",))
    async with other.listening(state_dir / "other.sock") as url:
        await announce(redis, url, name="r1", version="v0001")
        await eventually(lambda: len(gateway.app.state.services.replicas.versions()) == 2)
        models = [model.id async for model in client.models.list()]
        assert models == ["instructloop", "instructloop@v0000", "instructloop@v0001"]
        assert (await client.models.retrieve("instructloop@v0001")).id == models[2]
        for _ in range(3):
            raw = await client.chat.completions.with_raw_response.create(
                **{**CHAT, "model": "instructloop@v0001"}
            )
            assert raw.headers["x-policy-version"] == "v0001"
        assert len(other.requests) == 3


async def test_a_replica_that_swapped_since_its_heartbeat_does_not_answer_for_the_old_version(
    gateway, client, double
):
    double.version = "v0001"
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(**{**CHAT, "model": "instructloop@v0000"})


async def test_an_error_as_first_event_of_a_stream_gets_its_status(client, double, gateway):
    double.first_error = {"message": "too long", "type": "x", "param": "p", "code": 400}
    with pytest.raises(openai.BadRequestError, match="too long"):
        await client.chat.completions.create(**CHAT, stream=True)
    double.first_error = {"message": "queue full", "type": "x", "param": None, "code": 503}
    async with gateway.post("/v1/chat/completions", {**CHAT, "stream": True}) as response:
        assert response.status == 503
        assert int(response.headers["Retry-After"]) > 0
        assert (await response.json())["error"]["message"] == "queue full"
    assert await gateway.logged() == []


async def test_a_later_error_reaches_the_client_as_an_exception_and_the_log(
    client, double, gateway
):
    double.error_after = 4
    with pytest.raises(openai.APIError, match="too busy"):
        async for _ in await client.chat.completions.create(**CHAT, stream=True):
            pass
    (entry,) = await gateway.logged_once()
    assert entry["error"] == "engine"
    assert entry["choices"][0]["text"] == "".join(WORDS[:3])


async def test_a_stream_that_breaks_off_ends_with_an_error_event(client, double, gateway):
    double.cut_after = 3
    with pytest.raises(openai.APIError, match="broke off"):
        async for _ in await client.chat.completions.create(**CHAT, stream=True):
            pass
    (entry,) = await gateway.logged_once()
    assert entry["error"] == "engine"
    assert entry["choices"][0] == {
        "text": "".join(WORDS[:2]),
        "finish_reason": None,
        "tokens": None,
        "tool_calls": None,
    }


async def test_an_aborted_answer_is_marked(client, double, gateway):
    double.finish_reason = "abort"
    await client.chat.completions.create(**CHAT)
    (entry,) = await gateway.logged_once()
    assert entry["error"] == "aborted"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_swap_that_crosses_a_reply_is_told_and_recorded(gateway, double, stream):
    double.crosses_to = "v0001"
    async with gateway.post("/v1/chat/completions", {**CHAT, "stream": stream}) as response:
        body = await response.read()
        assert response.headers["x-policy-version"] == "v0000"
        if stream:
            assert b"\n\n: policy-version v0001\n\n" in body
        else:
            assert response.headers["x-policy-versions"] == "v0000,v0001"
    (entry,) = await gateway.logged_once()
    assert entry["policy_versions"] == ["v0000", "v0001"]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_hangs_up_stops_the_generation_and_is_recorded(gateway, double, stream):
    double.gate = asyncio.Event()
    async with aiohttp.ClientSession() as http:
        headers = {"Authorization": f"Bearer {gateway.secret}"}
        asked = http.post(
            gateway.url + "/v1/chat/completions",
            json={**CHAT, "stream": stream},
            headers=headers,
        )
        if stream:
            response = await asked
            await response.content.readuntil(b" is")
            response.close()
        else:
            task = asyncio.create_task(asked.__aenter__())
            await eventually(lambda: double.answering)
            task.cancel()
    await eventually(lambda: double.aborted == 1, seconds=2)
    (entry,) = await gateway.logged_once()
    assert entry["error"] == "hung_up"
    said = [choice["text"] for choice in entry["choices"]]
    assert said == (["".join(WORDS[:3])] if stream else [])


async def test_the_end_of_a_reply_waits_for_its_log_entry(gateway, client):
    for stream in (False, True):
        reply = await client.chat.completions.create(**CHAT, stream=stream)
        if stream:
            async for _ in reply:
                pass
        assert len(await gateway.logged()) == 1 + stream


async def test_an_engine_with_ids_of_its_own_takes_no_feedback(redis, gateway_settings, state_dir):
    other = EngineDouble(own_ids=True)
    async with other.listening() as url:
        engine = gateway_settings.engine.model_copy(update={"urls": (url,)})
        settings = gateway_settings.model_copy(update={"engine": engine})
        async with running_gateway(settings, redis) as gateway:
            await eventually(gateway.app.state.services.replicas.can_serve)
            async with gateway.get("/readyz") as response:
                degraded = (await response.json())["degraded"]
            assert "feedback: the engine gives its replies ids of its own" in degraded
            for stream in (False, True):
                async with gateway.post(
                    "/v1/chat/completions", {**CHAT, "stream": stream}
                ) as response:
                    assert "ids of its own" in response.headers["x-feedback-off"]
                    assert response.headers["x-policy-version"] == "v0000"
                    assert b"theirs" in await response.read()
            assert all("cache_salt" not in asked for asked in other.requests)
            assert all("authorization" not in headers for headers in other.headers)


async def test_a_fixed_engine_that_keeps_our_ids_takes_feedback(redis, gateway_settings):
    other = EngineDouble()
    async with other.listening() as url:
        engine = gateway_settings.engine.model_copy(update={"urls": (url + "/v1",)})
        settings = gateway_settings.model_copy(update={"engine": engine})
        async with running_gateway(settings, redis) as gateway:
            await eventually(gateway.app.state.services.replicas.can_serve)
            async with gateway.post("/v1/completions", TEXT) as response:
                assert "x-feedback-off" not in response.headers
                token = ids.token_of((await response.json())["id"])
            (entry,) = await gateway.logged_once()
            assert entry["token"] == token
            assert "cache_salt" in other.requests[-1]


async def test_unknown_and_steering_fields_are_refused_by_name(gateway, double):
    for name in ("priority", "request_id", "cache_salt", "chat_template", "colour"):
        async with gateway.post("/v1/chat/completions", {**CHAT, name: "x"}) as response:
            assert response.status == 400
            error = orjson.loads(await response.read())["error"]
            assert (error["param"], error["type"]) == (name, "invalid_request_error")
    assert double.requests == []
