"""What the gateway costs: measured on this machine against the same engine asked directly.

    python -m deploy.bench_gateway [--seconds 3] [--rounds 3] [--json]

Keys, logging and a Redis that syncs every write are on; the engine answers at once. Direct, a bare
Starlette pass-through and the gateway take turns in every round, so that a busy machine is busy for
all of them. The figures are medians over the rounds.
"""

import argparse
import asyncio
import json
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import aiohttp
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from core import keys
from core.auth import create_key
from core.errors import StartError, Unavailable
from core.process import wrapped
from core.records import Replica
from core.redis_client import connect, local_redis_url, redis_errors
from core.settings import GatewaySettings, Settings
from deploy.bench_wire import Load, chat_request, load, run_instant_engine
from deploy.redis_server import start_redis
from serving.server import serve

PASS_THROUGH = "pass-through"
_START_SECONDS = 120.0
_CLIENTS = 32
_STREAMS = 100
_STREAM_SECONDS = 2.0
Figures = dict[str, dict[str, float]]


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seconds", type=float, default=3.0, help="of each load")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--json", action="store_true")
    chosen = options.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing of ours is left
    with tempfile.TemporaryDirectory(prefix="il-") as folder, ExitStack() as stack:
        targets, request, stream = _start(Path(folder), stack)
        figures = uvloop.run(_measure(targets, request, stream, chosen.seconds, chosen.rounds))
    if chosen.json:
        sys.stdout.write(json.dumps(figures) + "\n")
    else:
        _print(figures)


async def _measure(
    targets: dict[str, str], request: bytes, stream: bytes, seconds: float, rounds: int
) -> Figures:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in targets}
    for _ in range(rounds):
        for name, target in targets.items():
            alone = await load(target, request, clients=1, seconds=seconds)
            many = await load(target, request, clients=_CLIENTS, seconds=seconds)
            figures = _figures(alone, many)
            if name != PASS_THROUGH:  # it reads replies whole
                streams = await load(target, stream, clients=_STREAMS, seconds=_STREAM_SECONDS)
                figures |= _stream_figures(streams)
            found[name].append(figures)
    return {
        name: {key: statistics.median(r[key] for r in of) for key in of[0]}
        for name, of in found.items()
    }


def _figures(alone: Load, many: Load) -> dict[str, float]:
    return {
        "p50_ms": _quantile(alone.latencies, 0.5),
        "p99_ms": _quantile(alone.latencies, 0.99),
        "requests_per_second": many.per_second,
    }


def _stream_figures(streams: Load) -> dict[str, float]:
    return {
        "first_chunk_p50_ms": _quantile(streams.first_delays, 0.5),
        "chunk_p50_ms": _quantile(streams.delays, 0.5),
        "chunk_p99_ms": _quantile(streams.delays, 0.99),
    }


def _quantile(seconds: list[float], share: float) -> float:
    return sorted(seconds)[int(share * (len(seconds) - 1))] * 1000


def _print(figures: Figures) -> None:
    for name, of in figures.items():
        line = "  ".join(f"{key} {value:.2f}" for key, value in of.items())
        sys.stdout.write(f"{name:13s} {line}\n")
    added = {k: figures["gateway"][k] - figures["direct"][k] for k in ("p50_ms", "p99_ms")}
    sys.stdout.write(f"added by us   p50 {added['p50_ms']:.2f} ms  p99 {added['p99_ms']:.2f} ms\n")


# --- what is measured -----------------------------------------------------------------------


def _start(folder: Path, stack: ExitStack) -> tuple[dict[str, str], bytes, bytes]:
    """Start everything; returns the targets by name, a request and a stream's request."""
    engine = folder / "engine.sock"
    stack.enter_context(_child(_run_engine, str(engine)))
    redis = start_redis(folder, "bench", log=folder / "redis.log")
    stack.callback(redis.kill)
    url = local_redis_url(folder, "bench")
    secret = asyncio.run(_prepare(url, engine))
    bare, gateway = _free_port(), _free_port()
    stack.enter_context(_child(_run_bare, str(engine), str(bare)))
    stack.enter_context(_child(_run_gateway, str(folder), url, str(gateway)))
    _wait_for(engine.exists, "the engine")
    for name, port in (("the pass-through", bare), ("the gateway", gateway)):
        _wait_for(partial(_listens, port), name)
    targets = {
        "direct": str(engine),
        PASS_THROUGH: f"127.0.0.1:{bare}",
        "gateway": f"127.0.0.1:{gateway}",
    }
    return (
        targets,
        chat_request(secret),
        chat_request(secret, stream_seconds=_STREAM_SECONDS),
    )


async def _prepare(url: str, engine: Path) -> str:
    """Announce the engine and make a key, once Redis answers."""
    async with connect(url) as redis:
        until = time.monotonic() + _START_SECONDS
        while True:
            try:
                with redis_errors():
                    await redis.ping()
                break
            except Unavailable:
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(0.05)
        replica = Replica(
            name="bench", url=f"unix:{engine}", version="v0000", state="ready", seen_at=time.time()
        )
        await redis.sadd(keys.replicas(), replica.name)
        await redis.set(keys.replica(replica.name), replica.model_dump_json())
        _, secret = await create_key(redis, name="bench", tenant="bench", scopes=["complete"])
    return secret


@contextmanager
def _child(work: Callable[..., None], *arguments: str) -> Iterator[None]:
    command = [sys.executable, "-m", "deploy.bench_gateway", f"child:{work.__name__}", *arguments]
    process = subprocess.Popen(wrapped(command))
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _run_engine(path: str) -> None:
    uvloop.run(run_instant_engine(Path(path)))


def _run_gateway(folder: str, url: str, port: str) -> None:
    gateway = GatewaySettings(port=int(port))
    serve(Settings(state_dir=Path(folder), redis_url=url, gateway=gateway))


def _run_bare(engine: str, port: str) -> None:
    """A pass-through with neither keys nor log nor streams: what Starlette and aiohttp cost."""
    sessions: list[aiohttp.ClientSession] = []

    async def forward(request: Request) -> Response:
        if not sessions:
            connector = aiohttp.UnixConnector(engine, limit=0)
            sessions.append(aiohttp.ClientSession("http://engine", connector=connector))
        headers = {"content-type": "application/json", "x-request-id": "bench"}
        body = await request.body()
        async with sessions[0].post(request.url.path, data=body, headers=headers) as reply:
            return Response(await reply.read(), media_type=reply.content_type)

    app = Starlette(routes=[Route("/v1/chat/completions", forward, methods=["POST"])])
    uvicorn.run(app, port=int(port), loop="uvloop", http="httptools", log_level="error")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0


def _wait_for(is_there: Callable[[], bool], name: str) -> None:
    until = time.monotonic() + _START_SECONDS
    while not is_there():
        if time.monotonic() > until:
            raise StartError(f"{name} did not start: the lines above say why")
        time.sleep(0.05)


def _run_child(name: str, arguments: Sequence[str]) -> None:
    """What a child process of ours is for."""
    match name:
        case "_run_engine":
            _run_engine(*arguments)
        case "_run_bare":
            _run_bare(*arguments)
        case _:
            _run_gateway(*arguments)


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1].startswith("child:"):
        _run_child(sys.argv[1].removeprefix("child:"), sys.argv[2:])
    else:
        main()
