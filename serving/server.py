"""The gateway as a process: a socket, uvicorn, and an orderly end.

`serve` is what `instructloop gateway` runs. SIGTERM or Ctrl-C makes `/readyz` say 503, after
`leave_seconds` stops accepting, lets what is in flight finish for `shutdown_seconds`, makes the log
durable, and returns.
"""

import gc
import signal
import socket

import uvicorn

from core import logs, metrics, traces
from core.errors import StartError
from core.settings import Settings
from core.start import refuse_foreign_data
from serving.app import create_app, is_loopback
from serving.leaving import LeavingServer

_BACKLOG = 2048
_KEEP_ALIVE_SECONDS = 30


def serve(settings: Settings) -> None:
    """Run the gateway until it is told to stop. Raises StartError."""
    logs.set_up("gateway", level=settings.log_level, form=settings.log_format)
    traces.set_up("gateway", settings)
    refuse_foreign_data(settings)
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
    traces.close()
    if not server.started:
        raise StartError("the gateway could not start: the lines above say why")


def http_server(settings: Settings) -> uvicorn.Server:
    """The gateway's app behind uvicorn, not yet running."""
    app = create_app(settings)
    config = uvicorn.Config(
        app,
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
    return LeavingServer(config, state=app.state, leave_seconds=settings.gateway.leave_seconds)


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
