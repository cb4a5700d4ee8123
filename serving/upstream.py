"""Connections to engines: a request goes out with our token and our id, and bytes come back.

The only module that opens a connection to an engine for completions. A Unix socket has a session of
its own, all URLs share one, and connections are kept for the next request. One that turns out
closed costs a client nothing: until the status line has come nothing has been sent to it, and the
request goes out again. On TCP the kernel asks whether a machine that is silent is still there. What
a client sent reaches the engine only as the body that serving/requests.py built; none of its
headers do. Knows nothing of what is in a reply.
"""

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from core import traces
from serving.engines import Engine

UNIX = "unix:"
_CONNECT_SECONDS = 2.0
_KEEP_ALIVE_SECONDS = 2.0  # below vLLM's 5, so that a reused connection is not about to be closed
_SILENT_SECONDS, _ASK_SECONDS, _ASK_TIMES = 10, 5, 2
"""A machine that vanished closes no connection: after so long it is asked, so often."""


class NotAnswered(Exception):
    """The engine gave no reply, and nothing has been sent to the client yet."""

    def __init__(self, why: str, *, stale: bool = False, is_fault: bool = True) -> None:
        super().__init__(why)
        self.stale = stale
        """A kept connection turned out closed: the engine may be well."""
        self.is_fault = is_fault
        """Whether it says that something is wrong with the engine."""


class Upstream:
    """Sessions to engines, opened when they are first needed."""

    def __init__(self, data_token: Callable[[], bytes]) -> None:
        """`data_token` gives what opens our engines now."""
        self._data_token = data_token
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    @asynccontextmanager
    async def post(
        self, engine: Engine, path: str, body: bytes, *, request_id: str
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The engine's reply, its body unread; leaving the block early aborts the generation.

        Raises NotAnswered when there is no status line.
        """
        response = await self._open(engine, path, body, request_id)
        try:
            yield response
        finally:
            response.release() if response.content.at_eof() else response.close()

    async def get(self, engine: Engine, path: str) -> bytes:
        """A document of the engine. Raises aiohttp.ClientError. The caller says how long."""
        session, base = self._session(engine)
        async with session.get(base + path, headers=self._headers(engine)) as response:
            response.raise_for_status()
            return await response.read()

    async def close(self) -> None:
        """Close every connection."""
        while self._sessions:
            await self._sessions.popitem()[1].close()

    async def _open(
        self, engine: Engine, path: str, body: bytes, request_id: str
    ) -> aiohttp.ClientResponse:
        session, base = self._session(engine)
        headers = {**self._headers(engine), **traces.outgoing(), "X-Request-Id": request_id}
        try:
            return await session.post(base + path, data=body, headers=headers)
        except aiohttp.ServerDisconnectedError as error:
            raise NotAnswered(str(error), stale=True) from error
        except (aiohttp.ClientError, OSError) as error:
            stale = isinstance(error, aiohttp.ClientOSError) and not isinstance(
                error, aiohttp.ClientConnectorError
            )
            raise NotAnswered(str(error), stale=stale) from error

    def _headers(self, engine: Engine) -> dict[str, str]:
        """Our token is for our own engines: a fixed one belongs to somebody else."""
        ours = {} if engine.fixed else {"Authorization": f"Bearer {self._data_token().decode()}"}
        return {"Content-Type": "application/json", **ours}

    def _session(self, engine: Engine) -> tuple[aiohttp.ClientSession, str]:
        key = _session_key(engine)
        if key not in self._sessions:
            self._sessions[key] = _new_session(key)
        base = "http://engine" if key else engine.url.rstrip("/")
        return self._sessions[key], base.removesuffix("/v1")


def _session_key(engine: Engine) -> str:
    """The socket's path; empty for a URL."""
    return engine.url.removeprefix(UNIX) if engine.url.startswith(UNIX) else ""


def _new_session(path: str) -> aiohttp.ClientSession:
    options: dict[str, Any] = {"limit": 0, "keepalive_timeout": _KEEP_ALIVE_SECONDS}
    connector = (
        aiohttp.UnixConnector(path, **options)
        if path
        else aiohttp.TCPConnector(socket_factory=_watchful_socket, **options)
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
        auto_decompress=False,
        skip_auto_headers=("Accept-Encoding", "User-Agent", "Accept"),
        trust_env=False,
        read_bufsize=1 << 16,
    )


def _watchful_socket(place: Any) -> socket.socket:
    """A TCP socket that notices within some 20 s that the other machine is gone."""
    family, kind, protocol = place[:3]
    made = socket.socket(family, kind, protocol)
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _SILENT_SECONDS)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _ASK_SECONDS)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _ASK_TIMES)
    patience = _SILENT_SECONDS + _ASK_SECONDS * _ASK_TIMES
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, patience * 1000)
    return made


def check_id(engine: Engine, given: str | None, expected: str) -> bool:
    """Whether a reply carries the id that we asked for; if not, the engine takes no feedback."""
    if given == expected:
        engine.feedback_off = None
        return True
    engine.feedback_off = "the engine gives its replies ids of its own"
    return False
