"""Hot swaps of a real engine under streams: pause, longest gap, and whose token each one was.

Two versions of the default model take turns, and a token tells of which it is. The second has a
last norm of zeros, so that all its logits are zero and a tiny bias makes every token MARKED; in the
first a repetition penalty keeps MARKED, which is in each prompt, from ever being chosen. So each
token's version by the marks of the reply is compared with the version that computed it. Streams
talk to the engine itself: what a gateway adds is in deploy/bench/gateway.py.
"""

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import numpy as np

from core.engine.checkpoint import read_layout
from core.engine.client import EngineClient
from core.engine.launch import EngineSpec, start_engine, stop_engine, wait_until_ready
from core.keyring import Keyring
from core.settings import Settings
from deploy.base_model import base_model_folder
from deploy.bench.swap_report import Figures, Seen, Span, SwapReport, figures
from deploy.bench.targets import folder_in
from serving.swap import Loadable, swap

STREAMS = (8, 32)
DRAINS = {"keep": 0.0, "drain": 2.0}
MARKED = 77
_LAST_NORM = "model.norm.weight"
_PROMPT_TOKENS = 32
_SHORTEST_TOKENS = 96  # replies differ in length, so that streams do not keep in step
_LONGER_TOKENS = 9
_START_SECONDS = 300.0
_STOP_SECONDS = 5.0
_BETWEEN_SECONDS = 0.7
_COPIED_BYTES = 256 << 20


def bench_swap(
    settings: Settings, *, swaps: int, streams: tuple[int, ...], say: Callable[[str], None]
) -> SwapReport:
    """Measure `swaps` swaps for each number of streams and each way. Raises InstructLoopError."""
    model = base_model_folder(settings, say=say, alive=lambda: True)
    with folder_in(settings.state_dir) as folder:
        versions = [Loadable("v0000", model, None), _second_version(model, folder / "v0001")]
        secrets = Keyring(folder / "secrets")
        spec = EngineSpec(
            model=model,
            socket=folder / "engine.sock",
            served_name="instructloop",
            policy_version="v0000",
            data_token=secrets.token("engine-data.token"),
            control_token=secrets.token("engine-control.token"),
            log=folder / "engine.log",
            max_num_seqs=max(streams),
        )
        say("starting vLLM (half a minute)")
        return asyncio.run(_measured(spec, versions, swaps=swaps, streams=streams, say=say))


async def _measured(
    spec: EngineSpec,
    versions: list[Loadable],
    *,
    swaps: int,
    streams: tuple[int, ...],
    say: Callable[[str], None],
) -> SwapReport:
    found: list[Figures] = []
    async with _engine(spec) as (client, restart_seconds):
        for count in streams:
            for way, drain_seconds in DRAINS.items():
                say(f"{swaps} swaps under {count} streams ({way})")
                seen, spans = Seen(), []
                async with _streams(spec, versions, count, seen):
                    for _ in range(swaps):
                        await asyncio.sleep(_BETWEEN_SECONDS)
                        spans.append(await _one_swap(client, versions, drain_seconds))
                    await asyncio.sleep(_BETWEEN_SECONDS)
                found.append(figures(count, way, seen, spans))
    size = sum(tensor.end - tensor.begin for tensor in read_layout(spec.model).values())
    return SwapReport(found, restart_seconds, size, _bytes_per_second())


async def _one_swap(client: EngineClient, versions: list[Loadable], drain_seconds: float) -> Span:
    """Take in the version that is not served; the list is turned round."""
    old, new = versions
    began = time.monotonic()
    result = await swap(client, new=new, old=old, drain_seconds=drain_seconds)
    ended = time.monotonic()
    versions[:] = [new, old]
    held_from = result.held_at
    return Span(began, held_from, held_from + result.held_seconds, ended, result.pause_seconds)


@asynccontextmanager
async def _engine(spec: EngineSpec) -> AsyncIterator[tuple[EngineClient, float]]:
    """A running engine, and how many seconds it took to start."""
    process = start_engine(spec)
    try:
        async with EngineClient(
            socket=spec.socket, data_token=spec.data_token, control_token=spec.control_token
        ) as client:
            yield (
                client,
                await wait_until_ready(client, process, timeout=_START_SECONDS, log=spec.log),
            )
    finally:
        stop_engine(process, _STOP_SECONDS)


@asynccontextmanager
async def _streams(
    spec: EngineSpec, versions: list[Loadable], count: int, seen: Seen
) -> AsyncIterator[None]:
    """So many clients, each with one stream after the other until the block ends."""
    marked = {of.version for of in versions if of.folder != spec.model}
    stop = asyncio.Event()
    connector = aiohttp.UnixConnector(str(spec.socket), limit=0)
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(
            aiohttp.ClientSession("http://engine", connector=connector)
        )

        async def ask(number: int) -> None:
            while not stop.is_set():
                await _read_stream(session, spec.data_token, number, marked, seen)

        async with asyncio.TaskGroup() as clients:
            for number in range(count):
                clients.create_task(ask(number))
            await asyncio.sleep(2 * _BETWEEN_SECONDS)
            yield
            stop.set()


async def _read_stream(
    session: aiohttp.ClientSession, token: str, number: int, marked: set[str], seen: Seen
) -> None:
    """One reply: its gaps, and each token's version."""
    headers = {"Authorization": f"Bearer {token}"}
    seen.replies += 1
    received, asked = 0, _SHORTEST_TOKENS + _LONGER_TOKENS * (number % 8)
    body = {
        "model": "instructloop",
        "prompt": [MARKED, *(1000 + 7 * number + i for i in range(_PROMPT_TOKENS - 1))],
        "max_tokens": asked,
        "temperature": 0,
        "repetition_penalty": 1000.0,
        "logit_bias": {str(MARKED): 0.01},
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
    }
    since, waits = time.monotonic(), seen.first_waits
    try:
        async with session.post("/v1/completions", json=body, headers=headers) as reply:
            version = reply.headers.get("x-policy-version", "")
            text = b""
            async for chunk in reply.content.iter_any():
                now = time.monotonic()
                waits.append((since, now))
                since, waits = now, seen.gaps
                *events, text = (text + chunk).split(b"\n\n")
                for event in events:
                    if event.startswith(b": policy-version "):
                        version = event.removeprefix(b": policy-version ").decode()
                        continue
                    ids = token_ids(event)
                    received += len(ids)
                    seen.misattributed += sum((i == MARKED) != (version in marked) for i in ids)
    except aiohttp.ClientError:
        received = -1
    seen.tokens += max(received, 0)
    seen.failed += received != asked


def token_ids(event: bytes) -> list[int]:
    """The tokens of one event of a stream; none in its last, or in an error."""
    data = event.removeprefix(b"data: ")
    if data == b"[DONE]":
        return []
    choices = json.loads(data).get("choices", [])
    return [int(i) for choice in choices for i in choice.get("token_ids") or []]


def _second_version(model: Path, folder: Path) -> Loadable:
    """The same model with zeros for its last norm."""
    shutil.copytree(model, folder)
    norm = read_layout(folder)[_LAST_NORM]
    norm.file.chmod(0o600)
    with norm.file.open("r+b") as file:
        file.seek(norm.begin)
        file.write(bytes(norm.end - norm.begin))
    return Loadable("v0001", folder, None)


def _bytes_per_second() -> float:
    """How fast one core reads and writes memory; the best of three."""
    source = np.ones(_COPIED_BYTES, np.uint8)
    target = np.empty_like(source)
    best = 0.0
    for _ in range(3):
        began = time.perf_counter()
        np.copyto(target, source)
        best = max(best, 2 * _COPIED_BYTES / (time.perf_counter() - began))
    return best
