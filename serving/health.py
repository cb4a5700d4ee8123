"""Whether engines are well: each is asked for one token now and then, unless traffic says it all.

`/health` of vLLM is 200 for an engine that is paused, hangs or computes NaN, so only a generated
token counts. An engine that fails a probe is asked no more (its breaker opens) until a later probe
succeeds; one that hangs loses the requests that wait for it, and they are asked elsewhere. Probes
of our own engines have the lowest priority, so that they delay nobody, and an engine that is only
too busy to answer one shows it by its token counters; one that has none is believed for as long as
it has requests, which have bounds of their own. Knows nothing of clients.
"""

import asyncio
import logging
import secrets
import time

import aiohttp
import orjson

from core.engine.progress import tokens
from core.ids import TOKEN_CHARS
from serving.background import cancel_all
from serving.engines import Engine
from serving.replicas import Replicas
from serving.upstream import NotAnswered, Upstream, check_id

log = logging.getLogger(__name__)

PROBE_PRIORITY = 100
"""Of vLLM's scheduling, where lower numbers come first and requests of clients have 0."""
_TICK_SECONDS = 0.1
_PROGRESS_SECONDS = 5.0
_FAILURES = (aiohttp.ClientError, NotAnswered, OSError, ValueError, LookupError, TypeError)


async def watch(upstream: Upstream, replicas: Replicas, *, every: float, patience: float) -> None:
    """Keep what is known of the engines' health true until cancelled.

    A quiet engine is probed about `every` seconds; a probe may take `patience` seconds.
    """
    under_way: dict[Engine, asyncio.Task[None]] = {}
    try:
        while True:
            now = time.monotonic()
            under_way = {e: task for e, task in under_way.items() if not task.done()}
            for engine in replicas:
                if engine not in under_way and is_due(engine, now=now, every=every):
                    task = asyncio.create_task(check(upstream, engine, patience=patience))
                    under_way[engine] = task
            replicas.show()
            await asyncio.sleep(_TICK_SECONDS)
    finally:
        await cancel_all(under_way.values())


def is_due(engine: Engine, *, now: float, every: float) -> bool:
    """Whether to probe an engine now. Pure."""
    if engine.state != "ready" and not engine.fixed:
        return False  # its agent is at work on it
    if not engine.breaker.closed:
        return engine.breaker.state(now) == "half-open"
    return now >= engine.well_at + every * engine.jitter


async def check(upstream: Upstream, engine: Engine, *, patience: float) -> None:
    """Probe an engine and take note."""
    began = time.monotonic()
    try:
        await _probe_again_if_stale(upstream, engine, patience)
    except _FAILURES as error:
        if engine.state != "ready" and not engine.fixed:
            return  # a swap began meanwhile, and holds the probe
        hangs = isinstance(error, TimeoutError) or isinstance(error.__cause__, TimeoutError)
        if hangs and (engine.well_at > began or await _makes_progress(upstream, engine, patience)):
            engine.proved()
            return
        if hangs and engine.in_flight and not engine.is_vllm:
            return  # it may be at work, and has no counters that say so
        engine.disproved(str(error) or "it answers nothing")
        if hangs:
            engine.abandon()
    else:
        if engine.fixed:
            engine.state = "ready"
        engine.proved()


async def _probe_again_if_stale(upstream: Upstream, engine: Engine, patience: float) -> None:
    async with asyncio.timeout(patience):
        try:
            await probe(upstream, engine)
        except NotAnswered as silence:
            if not silence.stale:
                raise
            await probe(upstream, engine)


async def probe(upstream: Upstream, engine: Engine) -> None:
    """Have one token generated; of a fixed engine also learn what it is.

    Raises aiohttp.ClientError, NotAnswered, OSError, ValueError, LookupError or TypeError when the
    engine is not well. One that is full, or refuses this one request, is.
    """
    if engine.fixed:
        await _learn(upstream, engine)
    token = f"probe-{secrets.token_urlsafe(TOKEN_CHARS)}"
    asked = {"model": engine.model, "prompt": "Hello", "max_tokens": 1, "temperature": 0}
    if not engine.fixed:
        asked["priority"] = PROBE_PRIORITY  # a foreign engine may not schedule by priority
    body = orjson.dumps(asked)
    async with upstream.post(engine, "/v1/completions", body, request_id=token) as response:
        reply = await response.read()
    if response.status == 200:
        said = orjson.loads(reply)
        if said["choices"][0]["finish_reason"] in ("error", "abort"):
            raise ValueError("it ended its answer with an error")
        if engine.fixed:
            check_id(engine, said.get("id"), f"cmpl-{token}")
    elif response.status >= 500 and not (response.status == 503 and engine.in_flight):
        raise NotAnswered(f"it answered a probe with status {response.status}")


async def _learn(upstream: Upstream, engine: Engine) -> None:
    """The name of its model, and whether it is vLLM."""
    model = orjson.loads(await upstream.get(engine, "/v1/models"))["data"][0]
    engine.model = model["id"]
    engine.is_vllm = model.get("owned_by") == "vllm"


async def _makes_progress(upstream: Upstream, engine: Engine, patience: float) -> bool:
    """Whether its counters of tokens move: it is busy with long answers, and does not hang."""
    if not engine.is_vllm:
        return False
    seconds = min(patience, _PROGRESS_SECONDS)
    try:
        before = await _tokens(upstream, engine, seconds)
        await asyncio.sleep(seconds)
        return await _tokens(upstream, engine, seconds) > before
    except _FAILURES:
        return False


async def _tokens(upstream: Upstream, engine: Engine, seconds: float) -> float:
    async with asyncio.timeout(seconds):
        return tokens(await upstream.get(engine, "/metrics"))
