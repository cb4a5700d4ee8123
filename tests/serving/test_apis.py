"""The Responses and the Messages API: their own clients, what the engine gets, what is logged."""

import asyncio

import anthropic
import openai
import pytest

from core import ids
from feedback.entries import Entry, bare_record
from feedback.preferences import refusal
from tests.conftest import eventually
from tests.serving.apis_double import CALL, SAID, USAGE, WORDS, ApisDouble, as_event
from tests.serving.conftest import announce

ASKED = [{"role": "user", "content": "Where is the Seine?"}]
RESPONSE = {"model": "instructloop", "input": "Where is the Seine?"}
MESSAGE = {"model": "instructloop", "messages": ASKED, "max_tokens": 50}
PATHS = [("/v1/responses", RESPONSE), ("/v1/messages", MESSAGE)]
FUNCTION = {"type": "function", "name": "weather", "parameters": {"type": "object"}}


@pytest.fixture
async def double(state_dir, redis):
    engine = ApisDouble()
    async with engine.listening(state_dir / "engine.sock") as url:
        await announce(redis, url)
        yield engine


@pytest.fixture
async def client(gateway):
    async with openai.AsyncOpenAI(
        base_url=gateway.url + "/v1", api_key=gateway.secret, max_retries=0
    ) as opened:
        yield opened


@pytest.fixture
async def claude(gateway):
    async with anthropic.AsyncAnthropic(
        base_url=gateway.url, api_key=gateway.secret, max_retries=0
    ) as opened:
        yield opened


async def test_a_response_is_answered_and_logged_like_a_chat(gateway, client, double):
    reply = await client.responses.create(
        **RESPONSE, instructions="Be brief.", user="ada", metadata={"page": "help"}
    )
    assert reply.output_text == SAID
    assert reply.metadata == {"page": "help"}
    (entry,) = await gateway.logged_once()
    assert entry["id"] == reply.id == f"resp_{entry['token']}"
    assert entry["messages"] == [{"role": "system", "content": "Be brief."}, *ASKED]
    assert entry["choices"] == [
        {"text": SAID, "finish_reason": "stop", "tokens": len(WORDS), "tool_calls": None}
    ]
    assert (entry["user"], entry["metadata"], entry["error"]) == ("ada", {"page": "help"}, None)
    assert entry["sampling"]["prompt_tokens"] == USAGE["input_tokens"]
    assert ids.read_id([gateway.keyring.key("mac")], "acme", reply.id).stored
    (asked,) = double.requests
    assert len(asked.pop("cache_salt")) == 32
    assert asked == {
        **RESPONSE,
        "instructions": "Be brief.",
        "metadata": {"page": "help"},
        "request_id": reply.id,
        "priority": 0,
        "store": False,
    }


async def test_a_message_is_answered_and_logged_like_a_chat(gateway, claude, double):
    reply = await claude.messages.create(
        **MESSAGE, system="Be brief.", metadata={"user_id": "ada"}, stop_sequences=["x"]
    )
    assert reply.content[0].text == SAID
    assert reply.stop_reason == "end_turn"
    (entry,) = await gateway.logged_once()
    assert entry["id"] == reply.id
    assert ids.token_of(reply.id) == entry["token"]
    assert entry["messages"] == [{"role": "system", "content": "Be brief."}, *ASKED]
    assert entry["choices"] == [
        {"text": SAID, "finish_reason": "stop", "tokens": len(WORDS), "tool_calls": None}
    ]
    assert (entry["user"], entry["metadata"]) == ("ada", {})
    (asked,) = double.requests
    assert len(asked.pop("cache_salt")) == 32
    assert asked == {**MESSAGE, "system": "Be brief.", "stop_sequences": ["x"]}


async def test_streams_of_both_are_logged_as_they_were_sent(gateway, client, claude):
    said = []
    async for event in await client.responses.create(**RESPONSE, stream=True):
        if event.type == "response.output_text.delta":
            said.append(event.delta)
    async with claude.messages.stream(**MESSAGE) as stream:
        told = [text async for text in stream.text_stream]
        final = await stream.get_final_message()
    assert "".join(said) == "".join(told) == final.content[0].text == SAID
    for entry in await gateway.logged_once(2):
        assert entry["choices"] == [
            {"text": SAID, "finish_reason": "stop", "tokens": len(WORDS), "tool_calls": None}
        ]
        assert entry["sampling"]["prompt_tokens"] == USAGE["input_tokens"]
        assert entry["error"] is None
    assert entry["id"] == final.id


@pytest.mark.parametrize("stream", [False, True])
async def test_calls_of_tools_are_logged_in_one_form(gateway, client, claude, double, stream):
    double.calls = True
    asked = {**RESPONSE, "tools": [FUNCTION], "stream": stream}
    reply = await client.responses.create(**asked)
    if stream:
        assert [event async for event in reply][-1].response.output[0].name == CALL["name"]
    tool = {"name": "weather", "input_schema": {"type": "object"}}
    message = await claude.messages.create(**MESSAGE, tools=[tool], stream=stream)
    if stream:
        assert [event async for event in message][-1].type == "message_stop"
    for entry in await gateway.logged_once(2):
        (choice,) = entry["choices"]
        assert choice["tool_calls"] == [{"id": "call_1", **CALL}]
        assert (choice["text"], choice["finish_reason"]) == ("", "tool_calls")
        assert not entry["trains"]


@pytest.mark.parametrize(("path", "body"), PATHS)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_was_cut_at_its_limit_says_so(gateway, double, path, body, stream):
    double.cut_off = True
    async with gateway.post(path, {**body, "stream": stream}) as response:
        await response.read()
    (entry,) = await gateway.logged_once()
    assert entry["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(("path", "body"), PATHS)
async def test_both_give_version_and_request_id_and_their_ids_take_feedback(gateway, path, body):
    async with gateway.post(path, body) as response:
        assert response.headers["x-policy-version"] == "v0000"
        assert response.headers["x-request-id"].startswith("req_")
        assert "x-feedback-off" not in response.headers
        completion_id = (await response.json())["id"]
    async with gateway.post(
        "/v1/feedback", {"completion_id": completion_id, "thumb": "up"}
    ) as response:
        assert response.status == 201
    async with gateway.post(path, {**body, "store": False}) as response:
        unlogged = (await response.json())["id"]
    async with gateway.post("/v1/feedback", {"completion_id": unlogged, "thumb": "up"}) as response:
        assert response.status == 422
    assert len(await gateway.logged()) == 1


async def test_one_conversation_has_one_tag_whichever_api_asked(gateway):
    talk = [{"role": "system", "content": "Be brief."}, *ASKED]
    bodies = [
        ("/v1/responses", {**RESPONSE, "instructions": "Be brief."}),
        ("/v1/responses", {**RESPONSE, "input": [{"type": "message", **m} for m in talk]}),
        ("/v1/messages", {**MESSAGE, "system": [{"type": "text", "text": "Be brief."}]}),
        ("/v1/messages", MESSAGE),
    ]
    for path, body in bodies:
        async with gateway.post(path, body) as response:
            assert response.status == 200
    tags = [entry["prompt_tag"] for entry in await gateway.logged_once(4)]
    assert tags[0] == tags[1] == tags[2] != tags[3]


@pytest.mark.parametrize(("path", "body"), PATHS)
async def test_a_swap_that_crosses_a_stream_is_told_and_recorded(gateway, double, path, body):
    double.crosses_after = 5
    async with gateway.post(path, {**body, "stream": True}) as response:
        assert response.headers["x-policy-version"] == "v0000"
        assert b"\n\n: policy-version v0001\n\n" in await response.read()
    (entry,) = await gateway.logged_once()
    assert entry["policy_versions"] == ["v0000", "v0001"]


async def test_the_version_of_a_response_is_that_of_its_first_token(gateway, double):
    """vLLM announces a response before its engine has made a token."""
    double.crosses_after = 2
    async with gateway.post("/v1/responses", {**RESPONSE, "stream": True}) as response:
        assert response.headers["x-policy-version"] == "v0001"
        await response.read()
    (entry,) = await gateway.logged_once()
    assert entry["policy_versions"] == ["v0000", "v0001"]


async def test_an_error_before_the_first_token_is_a_status_in_the_apis_own_words(
    gateway, client, claude, double
):
    for number in (0, 2):
        double.error_after = number
        with pytest.raises(openai.InternalServerError):
            await client.responses.create(**RESPONSE, stream=True)
    double.error_after = 0
    with pytest.raises(anthropic.InternalServerError) as caught:
        await claude.messages.create(**MESSAGE, stream=True)
    assert caught.value.body["type"] == "error"
    assert await gateway.logged() == []


@pytest.mark.parametrize("how", ["error_after", "cut_after"])
async def test_an_error_inside_a_stream_is_raised_by_the_clients_own_library(
    gateway, client, claude, double, how
):
    setattr(double, how, 6)
    with pytest.raises(openai.APIError):
        async for _ in await client.responses.create(**RESPONSE, stream=True):
            pass
    with pytest.raises(anthropic.APIError):
        async for _ in await claude.messages.create(**MESSAGE, stream=True):
            pass
    for entry in await gateway.logged_once(2):
        assert entry["error"] == "engine"
        assert entry["choices"][0]["text"].startswith("The")
        record = bare_record(Entry.model_validate(entry), user="u", split="train")
        assert refusal(record, 0) == "the answer broke off: engine"


@pytest.mark.parametrize("vllms", [True, False])
async def test_what_the_engine_refuses_is_raised_with_its_words(
    gateway, client, claude, double, vllms
):
    error = {"message": "no such thing", "type": "BadRequestError", "param": "x", "code": 400}
    double.refuses_with = (400, {"error": error} if vllms else {"type": "error", "error": error})
    with pytest.raises(openai.BadRequestError, match="no such thing"):
        await client.responses.create(**RESPONSE)
    with pytest.raises(anthropic.BadRequestError) as caught:
        await claude.messages.create(**MESSAGE)
    assert caught.value.body["type"] == "error"
    assert caught.value.body["error"]["message"] == "no such thing"


async def test_errors_of_the_gateway_are_anthropics_on_its_path(gateway, claude, double, redis):
    with pytest.raises(anthropic.AuthenticationError) as caught:
        await claude.with_options(api_key="il-unknown").messages.create(**MESSAGE)
    assert caught.value.body["error"]["type"] == "authentication_error"
    with pytest.raises(anthropic.NotFoundError):
        await claude.messages.create(**{**MESSAGE, "model": "claude-opus"})
    with pytest.raises(anthropic.BadRequestError, match="no_such_field") as caught:
        await claude.messages.create(**MESSAGE, extra_body={"no_such_field": 1})
    assert set(caught.value.body) == {"type", "error"}
    async with gateway.http.get(gateway.url + "/v1/messages") as response:
        assert (await response.json())["type"] == "error"


@pytest.mark.parametrize(("path", "body"), PATHS)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_hangs_up_stops_the_engine(gateway, double, path, body, stream):
    double.gate = asyncio.Event()

    async def ask() -> None:
        async with gateway.post(path, {**body, "stream": stream}) as response:
            await response.read()

    asking = asyncio.create_task(ask())
    await eventually(lambda: double.answering == 1)
    asking.cancel()
    await eventually(lambda: double.answering == 0)
    (entry,) = await gateway.logged_once()
    assert entry["error"] == "hung_up"


ODD = (
    b": a comment\r\n\r\n",
    b'event: message_start\r\ndata: {"type":"message_start","message":{"id":"x"}}\r\n\r\n',
    as_event({"type": "content_block_start", "index": 0, "content_block": {"type": "text"}}),
    as_event(
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "É🙂"}}
    ),
    b"id: 7\nretry: 3\n\n: another\n\n",
    as_event({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": USAGE}),
    as_event({"type": "message_stop"}),
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
async def test_however_the_network_cuts_a_stream_the_client_gets_its_bytes(gateway, double, size):
    whole = b"".join(ODD)
    double.raw = [whole[at : at + size] for at in range(0, len(whole), size)]
    async with gateway.post("/v1/messages", {**MESSAGE, "stream": True}) as response:
        assert await response.read() == whole
    (entry,) = await gateway.logged_once()
    assert entry["choices"][0]["text"] == "É🙂"
    assert entry["choices"][0]["tokens"] == USAGE["output_tokens"]
