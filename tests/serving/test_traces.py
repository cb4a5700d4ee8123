"""Traces of real requests through a gateway, as a collector gets them, and none without one."""

import asyncio
import os
import subprocess
import sys
import textwrap
from contextlib import suppress

import pytest

from core import traces
from core.errors import StartError
from core.settings import Settings
from serving.swap import SwapFailed, swap
from tests.serving.conftest import CHAT
from tests.serving.otlp_collector import attributes, collecting
from tests.serving.test_swap import NEW, OLD, EngineDouble

MARKER = "Where is the Seine?"
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"


@pytest.fixture
async def collector(gateway_settings):
    async with collecting() as running:
        settings = gateway_settings.model_copy(update={"otel_endpoint": running.url})
        traces.set_up("gateway", settings)
        yield running
        traces.close()


async def sent() -> None:
    """Everything that was traced is with the collector; nothing is traced any more."""
    await asyncio.to_thread(traces.close)


async def test_a_stream_is_one_trace_from_the_client_to_the_engine(gateway, double, collector):
    headers = {"traceparent": TRACEPARENT, "tracestate": "vendor=1", "baggage": "user=ann"}
    async with gateway.post(
        "/v1/chat/completions", {**CHAT, "stream": True}, headers=headers
    ) as reply:
        assert reply.status == 200
        await reply.read()
        request_id = reply.headers["x-request-id"]
    await sent()
    request = collector.one("POST /v1/chat/completions")
    engine = collector.one("engine")
    assert request.trace_id.hex() == TRACE_ID
    assert request.parent_span_id.hex() == "00f067aa0ba902b7"
    assert {span.trace_id for _, span in collector.spans} == {request.trace_id}
    assert {span.name: span.parent_span_id for _, span in collector.spans} == {
        "POST /v1/chat/completions": request.parent_span_id,
        "admission": request.span_id,
        "engine": request.span_id,
        "first token": engine.span_id,
    }
    assert {service for service, _ in collector.spans} == {"instructloop-gateway"}
    said = attributes(request)
    assert said["http.route"] == "/v1/chat/completions"
    assert said["http.response.status_code"] == 200
    assert said["instructloop.request_id"] == request_id
    assert attributes(engine)["instructloop.policy_version"] == "v0000"
    assert attributes(engine)["gen_ai.response.id"].startswith("chatcmpl-")
    first = collector.one("first token")
    assert request.start_time_unix_nano <= engine.start_time_unix_nano
    assert first.start_time_unix_nano <= first.end_time_unix_nano <= engine.end_time_unix_nano
    (given,) = double.headers
    assert given["traceparent"] == f"00-{TRACE_ID}-{engine.span_id.hex()}-01"
    assert given["tracestate"] == "vendor=1"
    assert "baggage" not in given


async def test_a_request_without_a_trace_begins_one_and_a_broken_traceparent_is_as_none(
    gateway, double, collector
):
    for headers in ({}, {"traceparent": "00-xyz-1-01"}):
        async with gateway.post("/v1/chat/completions", CHAT, headers=headers) as reply:
            assert reply.status == 200
    await sent()
    first, second = collector.named("POST /v1/chat/completions")
    assert first.parent_span_id == second.parent_span_id == b""
    assert first.trace_id != second.trace_id
    assert len({given["traceparent"] for given in double.headers}) == 2


async def test_nothing_that_people_wrote_is_in_a_trace(gateway, double, collector):
    asked = {**CHAT, "user": "ann@example.org", "metadata": {"tag": "private-tag"}}
    async with gateway.post("/v1/chat/completions", asked) as reply:
        completion = (await reply.json())["id"]
    said = {"completion_id": completion, "comment": "private-comment", "rater": "private-rater"}
    async with gateway.post("/v1/feedback", said) as reply:
        assert reply.status == 201
    async with gateway.post("/v1/chat/completions", {"private-field": 1}) as reply:
        assert reply.status == 400
    async with gateway.get("/v1/users/private-user/data?private=query") as reply:
        assert reply.status in (403, 404)
    double.status = 500
    async with gateway.post("/v1/chat/completions", CHAT) as reply:
        assert reply.status >= 500
    await sent()
    assert len(collector.named("POST /v1/chat/completions")) == 3
    failed = [span for span in collector.named("engine") if span.status.code == 2]
    assert failed[0].status.message == "Refusal"
    assert not any(span.events for _, span in collector.spans)
    for private in (MARKER, "private", "ann@", gateway.secret, " Paris"):
        assert private.encode() not in collector.raw, private
    names = {name for _, span in collector.spans for name in attributes(span)}
    assert names <= set(traces.NAMES.values())


async def test_requests_go_on_and_the_end_comes_soon_when_the_collector_is_away(
    gateway, gateway_settings, collector
):
    settings = gateway_settings.model_copy(update={"otel_endpoint": "http://127.0.0.1:9"})
    await sent()
    traces.set_up("gateway", settings)
    async with gateway.post("/v1/chat/completions", CHAT) as reply:
        assert reply.status == 200
    await sent()
    assert collector.spans == []


async def test_without_an_endpoint_nothing_is_handed_on(gateway, double):
    async with gateway.post(
        "/v1/chat/completions", CHAT, headers={"traceparent": TRACEPARENT}
    ) as reply:
        assert reply.status == 200
    assert "traceparent" not in double.headers[0]
    assert traces.outgoing() == {}
    assert traces.span("engine") is traces.span("request")


def test_where_nothing_is_traced_nothing_that_traces_is_imported():
    program = textwrap.dedent("""
        import sys
        from core import traces
        from core.settings import Settings
        import serving.app
        traces.set_up("gateway", Settings())
        with traces.span("request", kind="server", headers=[]) as span:
            span.note(status=200)
        found = [name for name in sys.modules if name.startswith("opentelemetry")]
        for part in ("opentelemetry.sdk.trace", "opentelemetry.exporter", "opentelemetry.proto"):
            assert not [name for name in found if name.startswith(part)], part
        assert "core.telemetry" not in sys.modules
    """)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    subprocess.run([sys.executable, "-c", program], check=True, env=clean)


@pytest.mark.parametrize(
    ("setting", "environment", "url"),
    [
        (None, {}, None),
        ("http://c:4318", {}, "http://c:4318/v1/traces"),
        ("http://c:4318/v1/traces", {}, "http://c:4318/v1/traces"),
        ("http://c:4318", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://d"}, "http://c:4318/v1/traces"),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://d/base/"}, "http://d/base/v1/traces"),
        (None, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://d/x"}, "http://d/x"),
        (
            None,
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://d", "OTEL_SDK_DISABLED": "true"},
            None,
        ),
    ],
)
def test_the_endpoint_is_the_setting_or_what_the_usual_variables_say(setting, environment, url):
    assert traces.traces_url(Settings(otel_endpoint=setting), environment) == url


def test_an_endpoint_with_a_password_is_refused_because_others_would_see_it():
    with pytest.raises(StartError, match="OTEL_EXPORTER_OTLP_HEADERS"):
        traces.traces_url(Settings(otel_endpoint="https://me:secret@traces.example"), {})


async def test_all_that_is_done_for_a_run_is_one_trace_whoever_does_it(collector):
    traces.part("stage policy", 2.0, trace_of="run-1", run="run-1", stage="policy", outcome="done")
    settings = Settings(otel_endpoint=collector.url)
    await sent()
    traces.set_up("worker", settings)  # another process
    traces.part("run", 3.0, trace_of="run-1", run="run-1", outcome="promoted")
    traces.part("run", 3.0, trace_of="run-2", run="run-2", outcome="failed")
    await sent()
    stage, (first, second) = collector.one("stage policy"), collector.named("run")
    assert stage.trace_id == first.trace_id != second.trace_id
    assert attributes(stage)["instructloop.outcome"] == "done"
    took = stage.end_time_unix_nano - stage.start_time_unix_nano
    assert 1.99e9 < took < 2.01e9
    assert {service for service, _ in collector.spans} == {
        "instructloop-gateway",
        "instructloop-worker",
    }


def test_an_attribute_that_is_not_on_the_list_is_refused(gateway_settings, monkeypatch):
    from core.telemetry import Telemetry

    telemetry = Telemetry("gateway", "http://127.0.0.1:9")
    with pytest.raises(KeyError, match="prompt"):
        telemetry.part("request", 0.0, {"prompt": "hello"}, trace_of="")
    telemetry.close()


async def test_the_steps_of_a_swap_are_spans_and_a_failed_one_says_which_step(collector):
    for engine in (EngineDouble(), EngineDouble(fail_at="install")):
        with suppress(SwapFailed), traces.span("swap", replica="r0", version="v0001"):
            await swap(engine, new=NEW, old=OLD, drain_seconds=0.1)
    await sent()
    good, bad = collector.named("swap")
    steps = [span.name for _, span in collector.spans if span.trace_id == good.trace_id]
    assert {*steps} == {
        *("swap", "stage weights", "drain", "exchange", "pause", "probe", "compare weights"),
    }
    assert good.status.code == 0
    assert (bad.status.code, bad.status.message) == (2, "SwapFailed")
    of_bad = {
        span.name: span.status.message
        for _, span in collector.spans
        if span.trace_id == bad.trace_id and span.status.code == 2
    }
    assert of_bad == {"swap": "SwapFailed", "exchange": "EngineError"}
    assert "restore weights" in {span.name for _, span in collector.spans}
    assert b"install failed" not in collector.raw
