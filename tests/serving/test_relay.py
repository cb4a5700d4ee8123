"""Bytes on their way through, and what happens to them when engines or Redis die."""

import asyncio
import json
import signal
from contextlib import asynccontextmanager

import openai
import pytest

from core import keys
from core.redis_client import connect
from tests.conftest import eventually
from tests.serving.conftest import CHAT, TEXT, announce, running_gateway
from tests.serving.engine_double import WORDS, EngineDouble
from tests.serving.tap import Tap

SAID = "".join(WORDS)
PATHS = [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)]


@pytest.fixture
async def tapped(redis, gateway_settings, state_dir):
    """A gateway, the tap between it and its engine, and the engine."""
    double, tap = EngineDouble(), Tap()
    async with (
        double.listening(state_dir / "engine.sock"),
        tap.on(state_dir / "engine.sock", state_dir / "tap.sock") as url,
    ):
        await announce(redis, url)
        async with running_gateway(gateway_settings, redis) as gateway:
            yield gateway, tap, double


@pytest.mark.parametrize(("path", "body"), PATHS)
async def test_unary_bytes_are_the_engines(tapped, path, body):
    gateway, tap, _ = tapped
    async with gateway.post(path, {**body, "n": 2}) as response:
        assert await response.read() == tap.bodies[-1]
        assert response.headers["content-length"] == str(len(tap.bodies[-1]))


@pytest.mark.parametrize(("path", "body"), PATHS)
@pytest.mark.parametrize("wants_usage", [True, False])
async def test_stream_bytes_are_the_engines_less_the_usage_nobody_asked_for(
    tapped, path, body, wants_usage
):
    gateway, tap, double = tapped
    double.crosses_to = "v0001"
    options = {"stream_options": {"include_usage": True}} if wants_usage else {}
    async with gateway.post(path, {**body, "n": 2, "stream": True, **options}) as response:
        got = await response.read()
    events = tap.bodies[-1].split(b"\n\n")
    if not wants_usage:
        (usage,) = [e for e in events if b'"usage"' in e]
        events.remove(usage)
    assert got == b"\n\n".join(events)
    assert b": policy-version v0001" in got


async def test_a_stream_arrives_while_the_engine_still_writes(gateway, double):
    double.gate = asyncio.Event()
    async with gateway.post("/v1/chat/completions", {**CHAT, "stream": True}) as response:
        await response.content.readuntil(b" is")
        assert double.answering == 1
        double.gate.set()
        assert (await response.content.read()).endswith(b"data: [DONE]\n\n")


@asynccontextmanager
async def with_own_redis(settings, redis_server, state_dir):
    """A gateway in front of a double, on a Redis that the test may kill or freeze."""
    settings = settings.model_copy(update={"redis_url": redis_server.url})
    async with (
        connect(redis_server.url) as redis,
        EngineDouble().listening(state_dir / "engine.sock") as url,
    ):
        await announce(redis, url)
        async with running_gateway(settings, redis) as gateway:
            await eventually(gateway.app.state.services.replicas.can_serve)
            yield gateway


async def test_only_the_end_of_a_stream_waits_for_the_log(
    redis_server, state_dir, gateway_settings
):
    async with with_own_redis(gateway_settings, redis_server, state_dir) as gateway:
        inbox = gateway.app.state.services.inbox
        redis_server.process.send_signal(signal.SIGSTOP)
        async with gateway.post("/v1/chat/completions", {**CHAT, "stream": True}) as response:
            await response.content.readuntil(b"data: x")
            assert inbox.direct  # the entry is neither in Redis nor in the spool yet
            await response.content.readuntil(b"[DONE]")
            assert not inbox.direct
            assert inbox.spooled_bytes > 0
        redis_server.process.send_signal(signal.SIGCONT)
        await gateway.logged_once()


async def test_redis_killed_during_traffic_costs_no_completion_and_no_entry(
    redis_server, state_dir, gateway_settings
):
    async with with_own_redis(gateway_settings, redis_server, state_dir) as gateway:
        inbox = gateway.app.state.services.inbox
        for number in range(60):
            if number == 20:
                redis_server.kill()
            if number == 40:
                redis_server.start()
            body = {**CHAT, "stream": number % 2 == 0, "user": str(number)}
            assert b"Paris" in await read_all(gateway, body)
        await eventually(lambda: inbox.direct, seconds=20)
        assert [entry["user"] for entry in await gateway.logged()] == list(map(str, range(60)))


async def test_without_redis_feedback_is_refused_and_never_promised(
    redis_server, state_dir, gateway_settings
):
    async with with_own_redis(gateway_settings, redis_server, state_dir) as gateway:
        await eventually(lambda: not gateway.app.state.durability_warnings)
        completion_id = json.loads(await read_all(gateway, CHAT))["id"]
        said = {"completion_id": completion_id, "thumb": "up"}
        redis_server.kill()
        async with gateway.post("/v1/feedback", said) as response:
            assert response.status == 503
            assert int(response.headers["Retry-After"]) >= 1
        redis_server.start()
        async with gateway.post("/v1/feedback", said) as response:
            assert response.status == 201


async def test_another_replica_answers_when_one_is_dead_refuses_or_is_silent(
    gateway, redis, state_dir, double
):
    await announce(redis, f"unix:{state_dir}/nobody.sock", name="dead")
    await eventually(lambda: len(list(gateway.app.state.services.replicas)) == 2)
    (well,) = [e for e in gateway.app.state.services.replicas if e.name == "r0"]
    well.in_flight += 10  # so that the other one is asked first
    for _ in range(4):
        async with gateway.post("/v1/chat/completions", CHAT) as response:
            assert response.status == 200
    other = EngineDouble(status=500)
    async with other.listening(state_dir / "other.sock") as url:
        await announce(redis, url, name="dead")
        await eventually(lambda: any(e.url == url for e in gateway.app.state.services.replicas))
        for stream in (False, True, False, True):
            async with gateway.post("/v1/chat/completions", {**CHAT, "stream": stream}) as response:
                assert response.status == 200
        assert other.requests
        other.status = None
        other.first_error = {"message": "full", "code": 503}
        for _ in range(4):
            async with gateway.post("/v1/chat/completions", {**CHAT, "stream": True}) as response:
                assert response.status == 200
                assert b"full" not in await response.read()
    assert len(await gateway.logged()) == 12


async def test_an_engine_that_dies_costs_its_own_streams_and_no_others(
    gateway, redis, state_dir, double
):
    other = EngineDouble(gate=asyncio.Event())
    double.gate = asyncio.Event()
    async with other.listening(state_dir / "other.sock") as url:
        await announce(redis, url, name="r1")
        await eventually(lambda: len(list(gateway.app.state.services.replicas)) == 2)
        asked = [
            asyncio.create_task(read_all(gateway, {**CHAT, "stream": True, "user": str(n)}))
            for n in range(6)
        ]
        await eventually(lambda: double.answering + other.answering == 6)
        lost, kept = other.answering, double.answering
        assert lost in (2, 3, 4)  # they are alike, so one engine is preferred, within bounds
        other.cut_after = len(WORDS) - 1
        other.gate.set()
        double.gate.set()
        bodies = await asyncio.gather(*asked)
    broken = [body for body in bodies if b"broke off" in body]
    whole = [body for body in bodies if body.endswith(b"[DONE]\n\n")]
    assert (len(broken), len(whole)) == (lost, kept)
    errors = [entry["error"] for entry in await gateway.logged_once(6)]
    assert sorted(errors, key=str) == [None] * kept + ["engine"] * lost


async def read_all(gateway, body) -> bytes:
    async with gateway.post("/v1/chat/completions", body) as response:
        return await response.read()


async def test_with_no_engine_there_is_503_at_once_and_it_comes_back_by_itself(
    redis, gateway_settings, state_dir
):
    async with running_gateway(gateway_settings, redis) as gateway:
        async with gateway.post("/v1/chat/completions", CHAT) as response:
            assert response.status == 503
            assert int(response.headers["Retry-After"]) >= 1
            assert (await response.json())["error"]["code"] == "no_engine"
        async with EngineDouble().listening(state_dir / "engine.sock") as url:
            await announce(redis, url)
            async with openai.AsyncOpenAI(
                base_url=gateway.url + "/v1", api_key=gateway.secret, max_retries=5
            ) as client:
                reply = await client.chat.completions.create(**CHAT)
                assert reply.choices[0].message.content == SAID


async def test_an_engine_restarted_on_the_same_socket_answers_again(
    redis, gateway_settings, state_dir
):
    socket = state_dir / "engine.sock"
    await announce(redis, f"unix:{socket}")
    async with running_gateway(gateway_settings, redis) as gateway:
        for _ in range(3):
            async with EngineDouble().listening(socket):
                for _ in range(2):
                    async with gateway.post("/v1/chat/completions", CHAT) as response:
                        assert response.status == 200
            async with gateway.post("/v1/chat/completions", CHAT) as response:
                assert response.status == 503


async def test_an_engine_that_does_not_know_us_is_our_trouble_and_not_the_clients(gateway, double):
    for status in (401, 403, 404):
        double.status = status
        async with gateway.post("/v1/chat/completions", CHAT) as response:
            assert response.status == 503
            assert "too busy" not in await response.text()


async def test_a_silent_engine_is_given_up_after_the_first_token_timeout(
    redis, gateway_settings, state_dir
):
    gateway_group = gateway_settings.gateway.model_copy(
        update={"first_token_timeout_seconds": 0.3, "request_timeout_seconds": 0.6}
    )
    settings = gateway_settings.model_copy(update={"gateway": gateway_group})
    double = EngineDouble(gate=asyncio.Event())
    async with double.listening(state_dir / "engine.sock") as url:
        await announce(redis, url)
        async with running_gateway(settings, redis) as gateway:
            async with gateway.post("/v1/chat/completions", CHAT) as response:
                assert response.status == 503
            await eventually(lambda: double.aborted == 1)
            # a stream that began and then stalls ends with an error event
            async with gateway.post("/v1/chat/completions", {**CHAT, "stream": True}) as response:
                assert response.status == 200
                assert b"broke off" in await response.read()
            await eventually(lambda: double.aborted == 2)


async def test_too_many_completions_at_once_are_refused(redis, gateway_settings, state_dir):
    group = gateway_settings.gateway.model_copy(update={"max_concurrent_requests": 2})
    settings = gateway_settings.model_copy(update={"gateway": group})
    double = EngineDouble(gate=asyncio.Event())
    async with double.listening(state_dir / "engine.sock") as url:
        await announce(redis, url)
        async with running_gateway(settings, redis) as gateway:
            asked = [asyncio.create_task(read_all(gateway, CHAT)) for _ in range(2)]
            await eventually(lambda: double.answering == 2)
            async with gateway.post("/v1/chat/completions", CHAT) as response:
                assert response.status == 503
                assert (await response.json())["error"]["code"] == "overloaded"
            double.gate.set()
            assert all(json.loads(body)["choices"] for body in await asyncio.gather(*asked))


async def test_nothing_of_an_engine_but_completions_can_be_reached(gateway, double):
    for path in (
        "/v1/embeddings",
        "/v1/load_lora_adapter",
        "/collective_rpc",
        "/pause",
        "/invocations",
        "/inference/v1/generate",
        "/tokenize",
        "/v1/chat/completions/render",
        "/v1/../collective_rpc",
        "/v1/completions/",
        "//v1/completions",
        "/docs",
        "/instructloop/state",
    ):
        async with gateway.post(path, CHAT, allow_redirects=False) as response:
            assert response.status in (404, 405)
    assert double.paths == []


async def test_a_backlog_of_the_inbox_is_shown(gateway, redis):
    await read_all(gateway, CHAT)
    assert await redis.xlen(keys.inbox()) == 1
    async with gateway.get("/metrics") as response:
        assert "instructloop_log_backlog 1.0" in await response.text()
