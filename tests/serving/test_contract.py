"""What the gateway relies on in an engine: the double and vLLM itself pass the same tests."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import openai
import pytest

from core import ids
from core.engine.launch import EngineSpec
from serving import apis, fields
from tests.conftest import eventually
from tests.serving.conftest import CHAT, TEXT, announce, running_gateway
from tests.serving.engine_double import WORDS, EngineDouble
from tests.serving.real_engine import control, share_data_token
from tests.serving.tap import Tap

ENGINES = ["double", pytest.param("vllm", marks=pytest.mark.slow)]
PATHS = [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)]
ANSWER = {"max_tokens": 9, "ignore_eos": True, "temperature": 1}
TOKENS = 9
assert len(WORDS) == TOKENS


@dataclass
class Rig:
    """A gateway, the tap behind it, and what only the engine can say."""

    gateway: object
    tap: Tap
    in_flight: Callable[[], Awaitable[int]]
    switch: Callable[[str], Awaitable[None]]
    """From now on the engine serves another version."""
    patience: asyncio.Event | None
    """Set it to let the double finish; vLLM is slow by itself."""

    async def raw(self, path: str, body: dict) -> bytes:
        async with self.gateway.post(path, {**body, **ANSWER}) as response:
            assert response.status == 200
            return await response.read()


@pytest.fixture(params=ENGINES)
async def rig(request, redis, gateway_settings, state_dir) -> AsyncIterator[Rig]:
    start = double_rig if request.param == "double" else vllm_rig
    spec = None if request.param == "double" else request.getfixturevalue("vllm")
    async with start(redis, gateway_settings, state_dir, spec) as made:
        yield made


@asynccontextmanager
async def double_rig(redis, settings, folder, _):
    double = EngineDouble()

    async def in_flight() -> int:
        return double.answering

    async def switch(version: str) -> None:
        double.crosses_to = version

    async with (
        double.listening(folder / "engine.sock"),
        tapped_gateway(redis, settings, folder, folder / "engine.sock") as (gateway, tap),
    ):
        double.gate = asyncio.Event()
        double.gate.set()
        yield Rig(gateway, tap, in_flight, switch, double.gate)


@asynccontextmanager
async def vllm_rig(redis, settings, folder, spec: EngineSpec):
    share_data_token(spec, folder)
    async with (
        control(spec) as client,
        tapped_gateway(redis, settings, folder, spec.socket) as (gateway, tap),
    ):
        await client.admit("v0000")
        yield Rig(gateway, tap, client.in_flight, client.set_weight_version, None)


@asynccontextmanager
async def tapped_gateway(redis, settings, folder, engine: Path):
    tap = Tap()
    async with tap.on(engine, folder / "tap.sock") as url:
        await announce(redis, url)
        async with running_gateway(settings, redis) as gateway:
            yield gateway, tap


@pytest.fixture
async def client(rig):
    async with openai.AsyncOpenAI(
        base_url=rig.gateway.url + "/v1", api_key=rig.gateway.secret, max_retries=0
    ) as opened:
        yield opened


async def test_ids_are_ours_for_unary_replies_and_streams_of_both_apis(rig, client):
    extra = {"extra_body": {"ignore_eos": True}, "max_tokens": 9}
    chat = await client.chat.completions.create(**CHAT, **extra)
    text = await client.completions.create(**TEXT, **extra)
    chats = await client.chat.completions.create(**CHAT, **extra, stream=True)
    texts = await client.completions.create(**TEXT, **extra, stream=True)
    chat_ids = {chunk.id async for chunk in chats}
    text_ids = {chunk.id async for chunk in texts}
    entries = await rig.gateway.logged_once(4)
    assert [chat.id, text.id, *chat_ids, *text_ids] == [entry["id"] for entry in entries]
    for entry in entries:
        said = ids.read_id([rig.gateway.keyring.key("mac")], "acme", entry["id"])
        assert said.prompt_tag == entry["prompt_tag"]
    prefixes = [entry["id"].split("-")[0] for entry in entries]
    assert prefixes == ["chatcmpl", "cmpl", "chatcmpl", "cmpl"]


@pytest.mark.parametrize(("path", "body"), PATHS)
async def test_every_byte_is_the_engines(rig, path, body):
    logprobs = {"logprobs": True} if body is CHAT else {"logprobs": 1}
    for asked in ({"n": 2}, logprobs, {}):
        assert await rig.raw(path, {**body, **asked}) == rig.tap.bodies[-1]
        wanted = {"stream": True, "stream_options": {"include_usage": True}}
        assert await rig.raw(path, {**body, **asked, **wanted}) == rig.tap.bodies[-1]
        got = await rig.raw(path, {**body, **asked, "stream": True})
        events = rig.tap.bodies[-1].split(b"\n\n")
        kept = [event for event in events if b'"choices":[]' not in event]
        assert len(kept) == len(events) - 1
        assert got == b"\n\n".join(kept)


async def test_what_is_recorded_is_what_was_sent(rig):
    for n in (1, 2):
        unary = json.loads(await rig.raw("/v1/chat/completions", {**CHAT, "n": n}))
        stream = await rig.raw("/v1/chat/completions", {**CHAT, "n": n, "stream": True})
        said = {choice["index"]: choice["message"]["content"] for choice in unary["choices"]}
        streamed = dict.fromkeys(range(n), "")
        for line in re.findall(rb"data: (\{.*\})", stream):
            (choice,) = json.loads(line)["choices"]
            streamed[choice["index"]] += choice["delta"].get("content") or ""
        first, second = (await rig.gateway.logged())[-2:]
        assert [choice["text"] for choice in first["choices"]] == list(said.values())
        assert [choice["text"] for choice in second["choices"]] == list(streamed.values())
        for entry in (first, second):
            assert {choice["finish_reason"] for choice in entry["choices"]} <= {"length", "stop"}
            assert entry["sampling"]["completion_tokens"] == n * TOKENS
            assert entry["sampling"]["prompt_tokens"] == unary["usage"]["prompt_tokens"]
            assert entry["error"] is None
            assert entry["policy_versions"] == ["v0000"]


async def test_a_request_that_the_engine_refuses_is_the_clients_error(rig, client):
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(**CHAT, max_tokens=10**6, stream=stream)
        assert caught.value.param
    assert await rig.gateway.logged() == []


async def test_a_client_that_hangs_up_stops_the_engine(rig):
    if rig.patience is not None:
        rig.patience.clear()
    long = {**CHAT, "max_tokens": 1900, "ignore_eos": True}
    async with aiohttp.ClientSession() as http:
        headers = {"Authorization": f"Bearer {rig.gateway.secret}"}
        url = rig.gateway.url + "/v1/chat/completions"
        response = await http.post(url, json={**long, "stream": True}, headers=headers)
        await response.content.readuntil(b'"content"')
        unary = asyncio.create_task(http.post(url, json=long, headers=headers).__aenter__())
        await eventually(lambda: _is(rig.in_flight, 2))
        response.close()
        unary.cancel()
        await eventually(lambda: _is(rig.in_flight, 0), seconds=3)
    entries = await rig.gateway.logged_once(2)
    assert [entry["error"] for entry in entries] == ["hung_up", "hung_up"]


async def _is(count: Callable[[], Awaitable[int]], wanted: int) -> bool:
    return await count() == wanted


async def test_a_swap_that_crosses_a_stream_is_told_in_it_and_recorded(rig):
    if rig.patience is not None:
        rig.patience.clear()
    long = {**CHAT, "max_tokens": 400, "ignore_eos": True, "stream": True}
    async with rig.gateway.post("/v1/chat/completions", long) as response:
        assert response.headers["x-policy-version"] == "v0000"
        await response.content.readuntil(b'"content"')
        await rig.switch("v0001")
        if rig.patience is not None:
            rig.patience.set()
        assert b"\n\n: policy-version v0001\n\n" in await response.content.read()
    (entry,) = await rig.gateway.logged_once()
    assert entry["policy_versions"] == ["v0000", "v0001"]
    assert entry["error"] is None


@pytest.mark.slow
async def test_sampling_fields_reach_vllm_and_mean_what_they_say(
    vllm, redis, gateway_settings, state_dir
):
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}},
        "required": ["colour"],
        "additionalProperties": False,
    }
    async with vllm_rig(redis, gateway_settings, state_dir, vllm) as rig:
        ask = rig.gateway.post
        form = {"type": "json_schema", "json_schema": {"name": "c", "schema": schema}}
        async with ask("/v1/chat/completions", {**CHAT, "response_format": form}) as response:
            said = (await response.json())["choices"][0]["message"]["content"]
            assert json.loads(said)["colour"] in ("red", "blue")
        seeded = {**TEXT, "seed": 5, "temperature": 1.5, "max_tokens": 12}
        texts = []
        for seed in (5, 5, 6):
            async with ask("/v1/completions", {**seeded, "seed": seed}) as response:
                texts.append((await response.json())["choices"][0]["text"])
        assert texts[0] == texts[1] != texts[2]
        scored = {**TEXT, "echo": True, "max_tokens": 0, "logprobs": 1}
        async with ask("/v1/completions", scored) as response:
            (choice,) = (await response.json())["choices"]
            assert choice["text"] == TEXT["prompt"]
            assert choice["logprobs"]["token_logprobs"][0] is None
        (_, *entries) = await rig.gateway.logged_once(5)
        assert [entry["trains"] for entry in entries] == [True, True, True, False]


@pytest.mark.slow
async def test_every_field_on_the_allowlist_is_one_that_vllm_knows(vllm):
    connector = aiohttp.UnixConnector(str(vllm.socket))
    async with aiohttp.ClientSession("http://engine", connector=connector) as http:
        headers = {"Authorization": f"Bearer {vllm.control_token}"}
        async with http.get("/openapi.json", headers=headers) as response:
            schemas = (await response.json())["components"]["schemas"]
    for schema, api in (
        ("ChatCompletionRequest", apis.CHAT),
        ("CompletionRequest", apis.TEXT),
        ("ResponsesRequest", apis.RESPONSES),
        ("AnthropicMessagesRequest", apis.MESSAGES),
    ):
        known = schemas[schema]["properties"].keys()
        assert api.engine_fields.keys() | api.steering | {api.prompt_field} <= known
        ours = fields.OURS.keys() | fields.STEERING | fields.STATEFUL.keys() | api.hints.keys()
        assert known - api.engine_fields.keys() - ours <= {api.prompt_field}
