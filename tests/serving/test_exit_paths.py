"""What a completion gives back however it ends: its place, its engine's count, its record."""

import asyncio

import orjson

from core.auth import create_key
from core.records import KeyLimits
from tests.conftest import eventually
from tests.serving.conftest import CHAT, announce, running_gateway
from tests.serving.engine_double import EngineDouble

ONE_AT_A_TIME = KeyLimits(concurrency=1)
STREAM = {**CHAT, "stream": True}


async def limited_to_one(gateway, redis) -> None:
    """Give the gateway's client a key that may have one completion at a time."""
    _, gateway.secret = await create_key(
        redis, name="one", tenant="acme", scopes=["complete"], limits=ONE_AT_A_TIME
    )


def is_free(gateway) -> bool:
    """Whether nothing is held of engines and limits."""
    services = gateway.app.state.services
    held = sum(meter.open for meter in services.admission._meters.values())
    waiting = [engine for engine in services.replicas if engine.replies]
    return services.replicas.in_flight == 0 and held == 0 and not waiting


async def raw_stream(gateway) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client that asks for a stream and reads no more than its status line."""
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    body = orjson.dumps(STREAM)
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nx-api-key: %b\r\n"
        b"content-length: %d\r\n\r\n%b" % (gateway.secret.encode(), len(body), body)
    )
    assert b"200" in await reader.readline()
    return reader, writer


async def test_a_client_that_reads_no_more_holds_its_place_no_longer_than_a_reply_may_take(
    redis, gateway_settings, state_dir
):
    group = gateway_settings.gateway.model_copy(update={"request_timeout_seconds": 0.5})
    settings = gateway_settings.model_copy(update={"gateway": group})
    double = EngineDouble(words=("x" * 65536,) * 400)
    async with double.listening(state_dir / "engine.sock") as url:
        await announce(redis, url)
        async with running_gateway(settings, redis) as gateway:
            await limited_to_one(gateway, redis)
            _, writer = await raw_stream(gateway)
            await eventually(lambda: not is_free(gateway))
            await eventually(lambda: is_free(gateway))
            (entry,) = await gateway.logged_once()
            assert entry["error"] == "engine"
            writer.close()


async def test_counts_that_are_no_numbers_hold_no_place_and_cost_no_reply(
    gateway, redis, double, monkeypatch
):
    await limited_to_one(gateway, redis)
    monkeypatch.setattr(
        "tests.serving.engine_double._Words.whole",
        lambda words: {
            "id": words.id,
            "object": "chat.completion",
            "model": "instructloop",
            "choices": [{"index": 0, "message": {"content": "Paris"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": "seven", "completion_tokens": -3},
        },
    )
    for _ in range(2):
        async with gateway.post("/v1/chat/completions", CHAT) as response:
            assert response.status == 200
        await eventually(lambda: is_free(gateway))
    for entry in await gateway.logged_once(2):
        assert entry["choices"][0]["text"] == "Paris"
        assert entry["sampling"]["prompt_tokens"] is None


async def test_a_reply_that_breaks_off_while_a_probe_gives_its_engine_up_ends_as_others_do(
    gateway, double
):
    """The probe's verdict comes while the error event waits for the log."""
    (engine,) = gateway.app.state.services.replicas
    inbox = gateway.app.state.services.inbox
    append, waits = inbox.append, asyncio.Event()

    def slow(entry):
        async def later() -> None:
            await append(entry)
            await waits.wait()

        return asyncio.ensure_future(later())

    inbox.append = slow
    double.cut_after = 3
    async with gateway.post("/v1/chat/completions", STREAM) as response:
        await eventually(lambda: gateway.logged())
        engine.abandon()
        waits.set()
        assert b"broke off" in await response.read()
    await eventually(lambda: is_free(gateway))


async def test_requests_whose_bodies_come_at_once_are_not_let_in_beyond_the_bound(
    redis, gateway_settings, state_dir
):
    group = gateway_settings.gateway.model_copy(update={"max_concurrent_requests": 2})
    settings = gateway_settings.model_copy(update={"gateway": group})
    double = EngineDouble(gate=asyncio.Event())
    async with double.listening(state_dir / "engine.sock") as url:
        await announce(redis, url)
        async with running_gateway(settings, redis) as gateway:
            go, begun = asyncio.Event(), []

            async def late_body():
                yield b" "
                begun.append(True)
                await go.wait()
                yield orjson.dumps(CHAT)

            async def ask() -> int:
                headers = {"Authorization": f"Bearer {gateway.secret}"}
                async with gateway.http.post(
                    gateway.url + "/v1/chat/completions", data=late_body(), headers=headers
                ) as response:
                    return response.status

            asked = [asyncio.create_task(ask()) for _ in range(6)]
            await eventually(lambda: len(begun) == 6)
            go.set()
            await eventually(lambda: sum(task.done() for task in asked) == 4)
            await eventually(lambda: double.answering == 2)
            double.gate.set()
            assert sorted(await asyncio.gather(*asked)) == [200, 200, 503, 503, 503, 503]
