"""The gateway as a process: a socket, uvicorn, and an orderly end.

`serve` is what `instructloop gateway` runs. SIGTERM or Ctrl-C stops accepting, lets what is in
flight finish for `shutdown_seconds`, makes the log durable, and returns.
"""

import asyncio
import gc
import logging
import signal
import socket

import uvicorn

from core import metrics
from core.errors import StartError, Unavailable
from core.redis_client import check_redis, connect, redis_errors, redis_url
from core.settings import Settings
from serving.app import create_app, is_loopback

log = logging.getLogger(__name__)
_BACKLOG = 2048
_KEEP_ALIVE_SECONDS = 30
_REDIS_PATIENCE_SECONDS = 1.0


def serve(settings: Settings) -> None:
    """Run the gateway until it is told to stop. Raises StartError."""
    asyncio.run(_refuse_foreign_redis(settings))
    gateway = settings.gateway
    listener = _listen(gateway.host, gateway.port)
    if gateway.metrics_port is not None and not is_loopback(gateway.host):
        metrics.serve(gateway.metrics_port, host=gateway.host)
    server = http_server(settings)
    gc.collect()
    gc.freeze()  # what is here stays: collections that look through it would hold requests up
    # uvicorn raises the signal again when it is done; for us a stop on demand is no failure
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, lambda *_: None)
    server.run(sockets=[listener])
    if not server.started:
        raise StartError("the gateway could not start: the lines above say why")


def http_server(settings: Settings) -> uvicorn.Server:
    """The gateway's app behind uvicorn, not yet running."""
    return uvicorn.Server(
        uvicorn.Config(
            create_app(settings),
            loop="uvloop",
            http="httptools",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=settings.gateway.shutdown_seconds,
        )
    )


async def _refuse_foreign_redis(settings: Settings) -> None:
    """A Redis with another schema stops the start; one that is away does not."""
    async with connect(redis_url(settings), timeout=_REDIS_PATIENCE_SECONDS) as redis:
        try:
            with redis_errors():
                await redis.ping()
        except Unavailable:
            log.warning("Redis does not answer yet: completions need keys, so they wait for it")
            return
        await check_redis(redis)


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises StartError with what to do."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise StartError(
            f"cannot listen on {host}:{port} ({error.strerror}): choose another with --port"
        ) from None
    listener.listen(_BACKLOG)
    return listener
