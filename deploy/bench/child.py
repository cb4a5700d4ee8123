"""The processes of a measurement: `python -m deploy.bench.child engine|bare|gateway ARGUMENT ...`.

Started by deploy/bench/targets.py, which says with which arguments.
"""

import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from core.setting_groups import GatewaySettings, LimitSettings
from core.settings import Settings
from deploy.bench.engine import run_instant_engine
from serving.server import serve

_MANY = 1_000_000_000


def run_engine(port: str) -> None:
    """The engine that answers at once."""
    uvloop.run(run_instant_engine(int(port)))


def run_gateway(state_dir: str, redis_url: str, port: str) -> None:
    """One worker of the gateway, with every limit on and none reached."""
    gateway = GatewaySettings(port=int(port), max_concurrent_requests=2048)
    limits = LimitSettings(
        requests_per_minute=_MANY,
        tokens_per_minute=_MANY,
        concurrency=_MANY,
        user_requests_per_minute=_MANY,
        user_tokens_per_minute=_MANY,
        user_concurrency=_MANY,
    )
    serve(Settings(state_dir=Path(state_dir), redis_url=redis_url, gateway=gateway, limits=limits))


def run_bare(engine: str, port: str) -> None:
    """A pass-through with neither keys nor log."""
    uvicorn.run(
        Starlette(routes=[Route("/v1/chat/completions", _forward_to(engine), methods=["POST"])]),
        port=int(port),
        loop="uvloop",
        http="httptools",
        log_level="error",
        backlog=2048,
    )


def _forward_to(engine: str) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    sessions: list[aiohttp.ClientSession] = []

    async def forward(request: Request) -> Response:
        if not sessions:
            connector = aiohttp.TCPConnector(limit=0)
            sessions.append(aiohttp.ClientSession(f"http://{engine}", connector=connector))
        headers = {"content-type": "application/json", "x-request-id": "bench"}
        body = await request.body()
        reply = await sessions[0].post(request.url.path, data=body, headers=headers)
        if reply.content_type == "text/event-stream":
            return StreamingResponse(_chunks(reply), media_type=reply.content_type)
        async with reply:
            return Response(await reply.read(), media_type=reply.content_type)

    return forward


async def _chunks(reply: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    async with reply:
        async for chunk in reply.content.iter_any():
            yield chunk


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["engine", port]:
            run_engine(port)
        case ["bare", engine, port]:
            run_bare(engine, port)
        case ["gateway", state_dir, redis_url, port]:
            run_gateway(state_dir, redis_url, port)
