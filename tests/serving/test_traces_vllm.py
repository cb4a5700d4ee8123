"""vLLM itself: it continues the gateway's trace, and its figures are among ours."""

import asyncio
import dataclasses
import tempfile
from functools import partial
from pathlib import Path

import pytest

from core import metrics, traces
from core.engine import figures
from tests.conftest import eventually
from tests.serving.conftest import CHAT, announce, running_gateway
from tests.serving.otlp_collector import attributes, collecting
from tests.serving.real_engine import control, engine_spec, running_engine, share_data_token
from tests.tiny_model import make_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
MARKER = "zebra-marker"


async def test_a_trace_goes_on_in_vllm_without_the_prompt_and_its_figures_are_shown(
    gateway_settings, redis
):
    with tempfile.TemporaryDirectory(prefix="il-") as name:
        folder = Path(name)
        async with collecting() as collector:
            settings = gateway_settings.model_copy(update={"otel_endpoint": collector.url})
            spec = engine_spec(folder, make_tiny_model(folder / "tiny"), version="v0000")
            spec = dataclasses.replace(spec, traces_url=traces.traces_url(settings))
            share_data_token(spec, settings.state_dir)
            engine = running_engine(spec)
            await asyncio.to_thread(engine.__enter__)
            try:
                await announce(redis, f"unix:{spec.socket}")
                traces.set_up("gateway", settings)
                async with running_gateway(settings, redis) as gateway:
                    said = [{"role": "user", "content": MARKER}]
                    asked = {**CHAT, "messages": said, "max_tokens": 7, "ignore_eos": True}
                    async with gateway.post("/v1/chat/completions", asked) as reply:
                        assert reply.status == 200, await reply.text()
                await _look_at_figures(spec)
            finally:
                await asyncio.to_thread(traces.close)
                await asyncio.to_thread(engine.__exit__, None, None, None)
            await eventually(lambda: _spans_of_vllm(collector), seconds=10)
        ours = collector.one("engine")
        (theirs,) = (s for s in _spans_of_vllm(collector) if s.parent_span_id == ours.span_id)
        assert theirs.trace_id == ours.trace_id
        assert attributes(theirs)["gen_ai.usage.completion_tokens"] == 7
        assert MARKER.encode() not in collector.raw
        assert MARKER not in spec.log.read_text()


def _spans_of_vllm(collector):
    return [span for service, span in collector.spans if service == "instructloop-vllm"]


async def _look_at_figures(spec) -> None:
    async with control(spec) as client:
        client.on_metrics = partial(figures.show, replica="of-traces")
        assert await client.tokens() > 7
    text = metrics.render().decode()
    assert 'instructloop_engine_tokens_total{kind="completion",replica="of-traces"} 7.0' in text
    for name in ("requests_running", "requests_waiting", "kv_cache_usage", "preemptions_total"):
        assert f'instructloop_engine_{name}{{replica="of-traces"}}' in text
    assert 'instructloop_engine_prefix_tokens_total{kind="asked",replica="of-traces"}' in text
    figures.forget("of-traces")
