"""Engines that hang, fail, are too busy or come back, over real sockets."""

import asyncio
from contextlib import asynccontextmanager

import openai
import pytest

from core import metrics
from serving.engines import Engine
from serving.health import PROBE_PRIORITY, check, is_due
from tests.conftest import eventually
from tests.serving.conftest import CHAT, announce, running_gateway
from tests.serving.engine_double import WORDS, EngineDouble

pytestmark = pytest.mark.thorough

SAID = "".join(WORDS)


def probing(settings, **more):
    """Settings with probes that do not keep a test waiting."""
    often = {"probe_interval_seconds": 0.1, "probe_timeout_seconds": 0.6} | more
    return settings.model_copy(update={"gateway": settings.gateway.model_copy(update=often)})


@pytest.fixture
async def pair(gateway_settings, redis, state_dir):
    """A gateway that probes often, and two engines."""
    a, b = EngineDouble(version="v000a"), EngineDouble(version="v000b")
    async with (
        a.listening(state_dir / "a.sock") as url_a,
        b.listening(state_dir / "b.sock") as url_b,
    ):
        await announce(redis, url_a, name="a", version="v000a")
        await announce(redis, url_b, name="b", version="v000b")
        async with running_gateway(probing(gateway_settings), redis) as gateway:
            yield gateway, a, b


@asynccontextmanager
async def client_of(gateway):
    async with openai.AsyncOpenAI(
        base_url=gateway.url + "/v1", api_key=gateway.secret, max_retries=0
    ) as client:
        yield client


def known(gateway, name: str) -> Engine:
    return next(e for e in gateway.app.state.services.replicas if e.name == name)


def opens(reason: str) -> float:
    return metrics.BREAKER_OPENS.labels(reason)._value.get()


async def is_shown(gateway, figure: str) -> bool:
    async with gateway.get("/metrics") as response:
        return f"instructloop_{figure}" in await response.text()


async def ask(gateway, **more) -> tuple[int, bytes]:
    async with gateway.post("/v1/chat/completions", {**CHAT, **more}) as response:
        return response.status, await response.read()


def test_an_engine_is_probed_when_it_has_been_quiet_and_its_agent_is_not_at_work():
    engine = Engine("a", "unix:/a", "v0000", "ready", well_at=100.0, jitter=1.1)
    assert not is_due(engine, now=105.4, every=5.0)
    assert is_due(engine, now=105.5, every=5.0)
    engine.state = "swapping"
    assert not is_due(engine, now=200.0, every=5.0)
    engine.state = "ready"
    engine.breaker.open(200.0)
    assert not is_due(engine, now=200.05, every=5.0)
    assert is_due(engine, now=200.1, every=5.0)
    foreign = Engine("u", "http://u", "v0000", "starting", fixed=True)
    assert is_due(foreign, now=0.0, every=5.0)  # so it is learnt at once


async def test_a_quiet_engine_generates_one_token_behind_everybody(pair):
    _, a, b = pair
    await eventually(lambda: len(a.probes) > 1 and len(b.probes) > 1)
    for asked in (*a.probes, *b.probes):
        assert asked["max_tokens"] == 1
        assert asked["priority"] == PROBE_PRIORITY > 0
    assert a.requests == b.requests == []


async def test_an_engine_that_hangs_is_left_and_what_waited_for_it_is_answered_elsewhere(pair):
    gateway, a, b = pair
    before = opens("probe")
    known(gateway, "b").in_flight += 10  # a is asked first
    a.hangs = True
    waiting = [
        asyncio.create_task(ask(gateway, stream=number % 2 == 0, user=str(number)))
        for number in range(6)
    ]
    for status, body in await asyncio.gather(*waiting):
        assert status == 200
        assert b"Paris" in body
        assert b"error" not in body
    assert len(a.requests) == 6
    assert opens("probe") > before
    assert known(gateway, "a").shown_state == "unhealthy"
    for _ in range(4):  # nobody has to find out again
        assert (await ask(gateway))[0] == 200
    assert len(a.requests) == 6
    await eventually(lambda: is_shown(gateway, 'replicas{state="unhealthy",version="v000a"} 1.0'))
    a.hangs = False
    await eventually(lambda: known(gateway, "a").breaker.closed)
    assert (await ask(gateway))[0] == 200
    assert len(a.requests) == 7


async def test_a_stream_in_an_engine_that_hangs_ends_with_an_error_that_clients_raise(pair):
    gateway, a, _ = pair
    known(gateway, "b").in_flight += 10
    a.pace = 0.02
    async with client_of(gateway) as client:
        stream = await client.chat.completions.create(**CHAT, stream=True)
        assert (await anext(stream)).choices[0].delta.role == "assistant"
        a.hangs = True
        with pytest.raises(openai.APIError, match="broke off"):
            _ = [chunk async for chunk in stream]


async def test_with_every_engine_hanging_there_is_503_at_once_and_they_come_back(pair):
    gateway, a, b = pair
    a.hangs = b.hangs = True
    await eventually(lambda: not gateway.app.state.services.replicas.can_serve())
    asked = len(a.requests) + len(b.requests)
    async with gateway.post("/v1/chat/completions", CHAT) as response:
        assert response.status == 503
        assert int(response.headers["Retry-After"]) >= 1
        assert (await response.json())["error"]["code"] == "no_engine"
    async with gateway.get("/readyz") as response:
        assert response.status == 503
    assert len(a.requests) + len(b.requests) == asked
    a.hangs = b.hangs = False
    await eventually(gateway.app.state.services.replicas.can_serve)
    assert (await ask(gateway))[0] == 200


async def test_an_engine_too_busy_for_a_probe_is_left_alone_while_its_counters_move(pair):
    gateway, a, _ = pair
    a.tokens = 7
    a.hangs = True
    before = opens("probe")
    probes = len(a.probes)
    await eventually(lambda: len(a.probes) > probes + 1)
    assert known(gateway, "a").breaker.closed
    assert opens("probe") == before
    a.hangs = False


async def test_an_engine_that_fails_is_taken_out_after_a_few_requests_and_proved_by_a_probe(
    gateway_settings, redis, state_dir
):
    before = opens("requests")
    double = EngineDouble(status=500)
    async with double.listening(state_dir / "e.sock") as url:
        await announce(redis, url)
        settings = probing(gateway_settings, probe_interval_seconds=60.0)
        async with running_gateway(settings, redis) as gateway:
            for _ in range(3):
                assert (await ask(gateway))[0] == 500
            assert opens("requests") == before + 1
            assert not known(gateway, "r0").breaker.closed
            for _ in range(3):
                assert (await ask(gateway))[0] == 503
            assert len(double.requests) == 3
            double.status = None
            await eventually(lambda: known(gateway, "r0").breaker.closed)
            assert (await ask(gateway))[0] == 200


@pytest.mark.parametrize("status", [400, 404, 422, 429, 503])
async def test_a_refusal_or_a_full_queue_is_no_reason_to_leave_an_engine(
    gateway_settings, redis, state_dir, status
):
    double = EngineDouble(status=status)
    async with double.listening(state_dir / "e.sock") as url:
        await announce(redis, url)
        settings = probing(gateway_settings, probe_interval_seconds=60.0)
        async with running_gateway(settings, redis) as gateway:
            for _ in range(5):
                await ask(gateway)
            assert known(gateway, "r0").breaker.closed
            assert len(double.requests) == 5


@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_queue_of_one_engine_is_another_s_work(pair, stream):
    gateway, a, b = pair
    known(gateway, "b").in_flight += 10
    a.status = 429
    status, body = await ask(gateway, stream=stream)
    assert (status, len(a.requests), len(b.requests)) == (200, 1, 1)
    assert b"Paris" in body
    b.status = 429  # all are full: the client is told so, and when to come back
    async with gateway.post("/v1/chat/completions", CHAT) as response:
        assert response.status == 429
        assert int(response.headers["Retry-After"]) >= 1


async def test_one_request_asks_three_engines_and_no_more(gateway_settings, redis, state_dir):
    doubles = [EngineDouble(status=500) for _ in range(5)]
    sockets = [double.listening(state_dir / f"{n}.sock") for n, double in enumerate(doubles)]
    try:
        for number, listening in enumerate(sockets):
            await announce(redis, await listening.__aenter__(), name=str(number))
        settings = probing(gateway_settings, probe_interval_seconds=60.0)
        async with running_gateway(settings, redis) as gateway:
            assert (await ask(gateway))[0] == 500
        assert sorted(len(double.requests) for double in doubles) == [0, 0, 1, 1, 1]
    finally:
        for listening in sockets:
            await listening.__aexit__(None, None, None)


async def test_a_connection_that_dies_before_the_first_event_costs_nothing(pair):
    gateway, a, b = pair
    known(gateway, "b").in_flight += 10
    a.cut_after = 0
    status, body = await ask(gateway, stream=True)
    assert (status, len(a.requests), len(b.requests)) == (200, 1, 1)
    assert body.endswith(b"[DONE]\n\n")
    assert b"error" not in body
    assert len(await gateway.logged_once()) == 1


async def test_a_draining_engine_finishes_what_it_has_and_gets_nothing_new(pair, redis, state_dir):
    gateway, a, b = pair
    a.gate = asyncio.Event()
    known(gateway, "b").in_flight += 10
    last = asyncio.create_task(ask(gateway, stream=True))
    await eventually(lambda: a.answering == 1)
    url = f"unix:{state_dir / 'a.sock'}"
    await announce(redis, url, name="a", version="v000a", state="draining")
    await eventually(lambda: known(gateway, "a").state == "draining")
    for _ in range(4):
        assert (await ask(gateway))[0] == 200
    assert (len(a.requests), len(b.requests)) == (1, 4)
    a.gate.set()
    assert (await last)[1].endswith(b"[DONE]\n\n")


async def test_prompts_that_begin_alike_go_to_the_same_engine(pair):
    gateway, a, b = pair
    for topic in range(12):
        first = [{"role": "user", "content": f"Topic {topic}"}]
        again = [*first, {"role": "assistant", "content": "Yes"}, {"role": "user", "content": "?"}]
        for messages in (first, again, first):
            assert (await ask(gateway, messages=messages))[0] == 200
    for double in (a, b):
        topics = [asked["messages"][0]["content"] for asked in double.requests]
        assert all(topics.count(topic) == 3 for topic in topics)
    assert len(a.requests) + len(b.requests) == 36


async def test_a_fixed_engine_that_goes_is_left_and_comes_back_by_itself(gateway_settings, redis):
    first = EngineDouble()
    async with first.listening() as url:
        port = int(url.rsplit(":", 1)[1])
        engine = gateway_settings.engine.model_copy(update={"urls": (url,)})
        settings = probing(gateway_settings).model_copy(update={"engine": engine})
        gateway_running = running_gateway(settings, redis)
        gateway = await gateway_running.__aenter__()
        await eventually(gateway.app.state.services.replicas.can_serve)
        assert (await ask(gateway))[0] == 200
    try:
        assert all("priority" not in asked for asked in (*first.requests, *first.probes))
        await eventually(lambda: not gateway.app.state.services.replicas.can_serve())
        assert (await ask(gateway))[0] == 503
        second = EngineDouble()
        async with second.listening(port=port):
            await eventually(gateway.app.state.services.replicas.can_serve)
            assert (await ask(gateway))[0] == 200
            assert len(second.requests) == 1
    finally:
        await gateway_running.__aexit__(None, None, None)


async def test_a_foreign_engine_that_answers_one_at_a_time_keeps_what_it_is_at_work_on(
    gateway_settings, redis, monkeypatch
):
    """It has no counters to show that it works; only its requests' own bounds end them."""
    probed = []

    async def counted(upstream, engine, *, patience):
        await check(upstream, engine, patience=patience)
        probed.append(engine)

    monkeypatch.setattr("serving.health.check", counted)
    double = EngineDouble(own_ids=True)
    async with double.listening() as url:
        group = gateway_settings.engine.model_copy(update={"urls": (url,)})
        settings = probing(gateway_settings, probe_timeout_seconds=0.2)
        async with running_gateway(settings.model_copy(update={"engine": group}), redis) as gateway:
            await eventually(gateway.app.state.services.replicas.can_serve)
            double.hangs = True
            slow = asyncio.create_task(ask(gateway))
            await eventually(lambda: double.answering == 1)
            seen = len(probed)
            await eventually(lambda: len(probed) > seen + 2)
            assert known(gateway, url).breaker.closed
            double.hangs = False
            status, body = await slow
            assert status == 200
            assert b"Paris" in body


async def test_an_engine_that_takes_its_time_to_say_what_it_serves_is_taken_all_the_same(
    gateway_settings, redis, monkeypatch
):
    models = EngineDouble.models

    async def late(double, request):
        await asyncio.sleep(0.2)
        return await models(double, request)

    monkeypatch.setattr("serving.upstream._CONNECT_SECONDS", 0.05)
    monkeypatch.setattr(EngineDouble, "models", late)
    async with EngineDouble().listening() as url:
        group = gateway_settings.engine.model_copy(update={"urls": (url,)})
        settings = probing(gateway_settings).model_copy(update={"engine": group})
        async with running_gateway(settings, redis) as gateway:
            await eventually(gateway.app.state.services.replicas.can_serve)
            assert (await ask(gateway))[0] == 200
