"""The door of vLLM's server: an ASGI middleware that denies by default.

vLLM loads it by name (`--middleware core.engine.guard.EngineGuard`), so it runs inside vLLM's
process, before every route of vLLM. vLLM's own `--api-key` leaves many routes open, among them
one that answers completions and one that calls any method of the worker; here nothing is open:

* the data token, which the gateway holds, opens the routes of `DATA_ROUTES` and no other; while it
  is being exchanged there are several, and the agent changes the file of tokens under us;
* the control token, which only the agent (or the learner that owns the engine) holds, opens
  everything, and the routes of this file.

On a port (`tcp`) two things differ: the control token counts only on connections from the engine's
own machine, where its agent is; and `OPEN_ROUTES` need no token, because who probes health and who
collects metrics should hold none that opens completions. Neither route shows anything of a request.

It also is where a hot swap meets traffic. Routes of its own, all for the control token:

    POST /instructloop/hold                        new data requests wait
    POST /instructloop/version {"version": "v2"}   what the weights are from now on
    POST /instructloop/admit   {"version": "v2"}   the same, and those that wait go on
    GET  /instructloop/state                       {"version", "held", "in_flight", "waiting"}

A swap is: hold; wait until `in_flight` is 0 or patience ends; pause vLLM (`keep`); exchange the
weights; reset the prefix cache; `version` while still paused, because the first token after resume
is already the new policy's; resume; probe (control requests are never held); admit. What a crossing
does to a reply is in core/engine/attribution.py. It refuses to know what is in a request.

One instance serves one vLLM server process: `--api-server-count` has to stay 1.
"""

import asyncio
import hmac
import json
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.engine.address import is_of_this_machine
from core.engine.attribution import Message, ReplyMarks, Send, VersionHistory
from core.errors import (
    BadRequest,
    Forbidden,
    InstructLoopError,
    NotFound,
    StartError,
    Unavailable,
)

Scope = Message
Receive = Callable[[], Awaitable[Message]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

TOKENS_FILE = "INSTRUCTLOOP_ENGINE_TOKENS"  # the environment variables the guard reads
POLICY_VERSION = "INSTRUCTLOOP_POLICY_VERSION"
ON_TCP = "INSTRUCTLOOP_ENGINE_TCP"
HOLD_WAITING = "INSTRUCTLOOP_HOLD_WAITING"
HOLD_SECONDS = "INSTRUCTLOOP_HOLD_SECONDS"

GENERATION_ROUTES = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"}
)
READING_ROUTES = frozenset({"/health", "/metrics", "/v1/models"})
DATA_ROUTES = frozenset({("POST", path) for path in GENERATION_ROUTES}) | frozenset(
    {("GET", path) for path in READING_ROUTES}
)

OPEN_ROUTES = frozenset({("GET", "/health"), ("GET", "/metrics")})

_VERSION = re.compile(r"[A-Za-z0-9._-]{1,64}")  # it becomes a header
_MAX_CONTROL_BODY = 4096
_MAX_WAITING = 256
_MAX_WAIT_SECONDS = 30.0
_LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class GuardSettings:
    """What the guard is told by the process that starts the engine."""

    data_token: str
    control_token: str
    policy_version: str
    max_waiting: int = _MAX_WAITING
    max_wait_seconds: float = _MAX_WAIT_SECONDS
    tcp: bool = False
    """Whether other machines may reach the engine."""
    more_data_tokens: tuple[str, ...] = ()
    """They open the same."""
    tokens_file: Path | None = None
    """Where data tokens are read again; None if they never change."""


def tokens_file(socket: Path) -> Path:
    """Of the engine whose files lie beside this socket."""
    return socket.with_name(f"{socket.name}.tokens")


def write_tokens(path: Path, *, data: Sequence[str], control: str) -> None:
    """The file from which a guard reads its tokens, whole or not at all; only its owner reads it.

    A guard that runs takes up other data tokens; its control token stays.
    """
    beside = path.with_name(f"{path.name}.new")
    beside.unlink(missing_ok=True)
    with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump({"data": list(data), "control": control}, file)
    beside.replace(path)


def _data_of(tokens: Mapping[str, Any]) -> tuple[str, ...]:
    """The data tokens of a file; agents of earlier releases write one, which is no list."""
    data = tokens["data"]
    return (data,) if isinstance(data, str) else tuple(map(str, data))


def settings_from(environment: Mapping[str, str]) -> GuardSettings:
    """Read the tokens from a file that only its owner may read, and the rest from variables."""
    try:
        path = Path(environment[TOKENS_FILE])
        tokens = json.loads(path.read_text())
        first, *more = _data_of(tokens)
        return GuardSettings(
            data_token=first,
            more_data_tokens=tuple(more),
            tokens_file=path,
            control_token=tokens["control"],
            policy_version=environment[POLICY_VERSION],
            max_waiting=int(environment.get(HOLD_WAITING, _MAX_WAITING)),
            max_wait_seconds=float(environment.get(HOLD_SECONDS, _MAX_WAIT_SECONDS)),
            tcp=environment.get(ON_TCP) == "1",
        )
    except (KeyError, OSError, ValueError) as error:
        raise StartError(
            f"The engine's guard cannot start: {error!r}. Start vLLM through core.engine.launch, "
            f"which writes the token file and sets {TOKENS_FILE} and {POLICY_VERSION}."
        ) from error


class EngineGuard:
    """The middleware; state is what holds, who waits and which versions were served."""

    def __init__(self, app: App, settings: GuardSettings | None = None) -> None:
        self._app = app
        self._settings = settings or settings_from(os.environ)
        self._data = (self._settings.data_token, *self._settings.more_data_tokens)
        if not self._are_good(self._data):
            raise StartError("The engine's guard needs two different tokens that are not empty.")
        self._looked_at = time.monotonic()
        self._history = VersionHistory(self._settings.policy_version)
        self._open = asyncio.Event()
        self._open.set()
        self._waiting = 0
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "lifespan":
                await self._app(scope, receive, send)
            case "http":
                try:
                    await self._http(scope, receive, send)
                except InstructLoopError as error:
                    await _send_error(send, error)
            case _:  # no client of ours speaks WebSocket
                await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        token = _bearer_token(scope)
        is_control = hmac.compare_digest(token, self._settings.control_token.encode())
        is_control = is_control and self._may_control(scope)
        is_data = any(hmac.compare_digest(token, good.encode()) for good in self._data_now())
        route = (scope["method"], scope["path"])
        if is_control and scope["path"].startswith("/instructloop/"):
            await _send_json(send, 200, await self._control(route, receive))
        elif is_control or (self._settings.tcp and route in OPEN_ROUTES):
            await self._app(scope, receive, send)
        elif not is_data:
            raise Forbidden("The engine takes requests from its own gateway and agent only.")
        elif route not in DATA_ROUTES:
            raise NotFound(f"The gateway's token does not open {route[0]} {route[1]}.")
        elif scope["path"] in GENERATION_ROUTES:
            await self._generate(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _data_now(self) -> tuple[str, ...]:
        """The data tokens, as of at most a second ago. What cannot be read changes nothing."""
        path, now = self._settings.tokens_file, time.monotonic()
        if path is not None and now - self._looked_at >= _LOOK_SECONDS:
            self._looked_at = now
            with suppress(OSError, ValueError, KeyError, TypeError):
                found = _data_of(json.loads(path.read_text()))
                self._data = found if self._are_good(found) else self._data
        return self._data

    def _are_good(self, data: tuple[str, ...]) -> bool:
        """The control token would open everything to who has a data token."""
        return bool(data) and not {"", self._settings.control_token}.intersection(data)

    def _may_control(self, scope: Scope) -> bool:
        """On a port, only the engine's own machine: its agent is there."""
        near = is_of_this_machine(scope.get("client"), scope.get("server"))
        return near or not self._settings.tcp

    async def _generate(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._wait_until_open()
        self._in_flight += 1
        marks = ReplyMarks(send, self._history)
        try:
            await self._app(scope, receive, marks)
            await marks.flush()
        finally:
            self._in_flight -= 1

    async def _wait_until_open(self) -> None:
        """Return when nothing holds; raise Unavailable when too many wait, or it takes too long."""
        if self._open.is_set():
            return
        if self._waiting >= self._settings.max_waiting:
            raise Unavailable("The engine is changing its weights and enough requests wait.")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._settings.max_wait_seconds):
                while not self._open.is_set():  # it may have closed again before we ran
                    await self._open.wait()
        except TimeoutError:
            raise Unavailable("The engine took too long to change its weights.") from None
        finally:
            self._waiting -= 1

    async def _control(self, route: tuple[str, str], receive: Receive) -> dict[str, object]:
        match route:
            case ("GET", "/instructloop/state"):
                pass
            case ("POST", "/instructloop/hold"):
                self._open.clear()
            case ("POST", "/instructloop/version"):
                self._history.switch(await _read_version(receive))
            case ("POST", "/instructloop/admit"):
                self._history.switch(await _read_version(receive))
                self._open.set()
            case _:
                raise NotFound(f"The guard has no {route[0]} {route[1]}.")
        return self._state()

    def _state(self) -> dict[str, object]:
        return {
            "version": self._history.current,
            "held": not self._open.is_set(),
            "in_flight": self._in_flight,
            "waiting": self._waiting,
        }


def _bearer_token(scope: Scope) -> bytes:
    """The token of the only Authorization header; empty for none or several."""
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(values) != 1 or not values[0].startswith(b"Bearer "):
        return b""
    token: bytes = values[0].removeprefix(b"Bearer ")
    return token


async def _read_version(receive: Receive) -> str:
    body, more = b"", True
    while more and len(body) <= _MAX_CONTROL_BODY:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    try:
        version = json.loads(body)["version"]
    except (ValueError, KeyError, TypeError):
        version = None
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise BadRequest('Send {"version": NAME}: letters, digits, dot, dash, underscore.')
    return version


async def _send_json(send: Send, status: int, content: object, retry_after: int = 0) -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if retry_after:
        headers.append((b"retry-after", b"%d" % retry_after))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _send_error(send: Send, error: InstructLoopError) -> None:
    retry_after = error.retry_after if isinstance(error, Unavailable) else 0
    await _send_json(send, error.status, error.body(), retry_after)
