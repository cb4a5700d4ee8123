"""The outermost layer of every HTTP request: its id, its key, its bounds, its error, its figures.

An ASGI middleware, so that nothing is buffered. It lets a request in whose API key is known, gives
it an id of ours (a client's own is ignored), adds headers that keep browsers careful, turns what is
raised into OpenAI's error object, and counts. Scopes are for the routes (`core.auth.require`).
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core import logs, metrics, traces
from core.auth import KeyCache
from core.errors import (
    BadRequest,
    InstructLoopError,
    NotFound,
    TooLarge,
    TooSlow,
    Unauthenticated,
    Unprocessable,
)
from core.records import ApiKey
from feedback.edge import ERRORS
from serving.error_bodies import body_for
from serving.feedback_tokens import PREFIX as FEEDBACK_TOKEN
from serving.feedback_tokens import checked_body, key_of_token
from serving.page_routes import is_page
from serving.sessions import key_of_session

log = logging.getLogger(__name__)
OPEN_PATHS = frozenset({"/healthz", "/readyz"})
SESSION_PATH = "/v1/session"
_SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
]


class Edge:
    """The middleware."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body_bytes: int,
        body_seconds: float,
        direct: Mapping[str, Route] | None = None,
        access_log: bool = False,
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._body_seconds = body_seconds
        self._direct = {} if direct is None else direct
        """Routes by path whose POST goes past the framework."""
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        outgoing = _Outgoing(send)
        with (
            logs.bound(request_id=outgoing.request_id),
            traces.span("request", kind="server", headers=scope["headers"]) as span,
        ):
            await self._serve(scope, receive, outgoing)
            route = _route(scope)
            span.call(f"{scope['method']} {route}")
            span.note(route=route, status=outgoing.status, request_id=outgoing.request_id)

    async def _serve(self, scope: Scope, receive: Receive, outgoing: "_Outgoing") -> None:
        began = time.monotonic()
        try:
            await self._enter(scope, receive, outgoing)
            if outgoing.overruled is not None:
                raise outgoing.overruled
        except InstructLoopError as error:
            await outgoing.fail(error_response(error, scope["path"]), scope, receive)
        except ClientDisconnect:
            pass  # it left before it had said all: nobody waits for a reply
        except Exception:  # the edge: whatever it is, the client gets an error object
            log.exception("the request failed")
            ours = InstructLoopError(f"something went wrong; quote {outgoing.request_id}")
            await outgoing.fail(error_response(ours, scope["path"]), scope, receive)
        finally:
            route, seconds = _route(scope), time.monotonic() - began
            metrics.REQUESTS.labels(route, outgoing.status).inc()
            metrics.REQUEST_SECONDS.labels(route).observe(seconds)
            if self._access_log:
                _log_access(scope, outgoing.status, seconds)

    async def _enter(self, scope: Scope, receive: Receive, outgoing: "_Outgoing") -> None:
        path = scope["path"]
        if path not in OPEN_PATHS and path != SESSION_PATH and not is_page(path):
            scope.setdefault("state", {})["key"] = await identify(scope)
        app, receive = self._app, self._bounded(scope, receive, outgoing)
        receive = await checked_body(scope, receive)
        if scope["method"] == "POST" and (route := self._direct.get(path)) is not None:
            scope["route"], app = route, route.app
        await app(scope, receive, outgoing)

    def _bounded(self, scope: Scope, receive: Receive, outgoing: "_Outgoing") -> Receive:
        """`receive` that raises TooLarge and TooSlow, however the routes take that.

        A declared length is refused before a byte is read.
        """
        length = next((v for n, v in scope["headers"] if n == b"content-length"), b"0")
        if not length.isdigit() or int(length) > self._max_body_bytes:
            raise self._too_large()
        until = asyncio.get_running_loop().time() + self._body_seconds
        read, whole = 0, False

        async def bounded() -> Message:
            nonlocal read, whole
            if whole:  # what is left to hear is that the client hangs up
                return await receive()
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                outgoing.overruled = TooSlow(f"the body took over {self._body_seconds:g} seconds")
                raise outgoing.overruled from None
            whole = not message.get("more_body", False)
            read += len(message.get("body", b""))
            if read > self._max_body_bytes:
                outgoing.overruled = self._too_large()
                raise outgoing.overruled
            return message

        return bounded

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body is larger than {self._max_body_bytes} bytes")


class _Outgoing:
    """`send` that adds our headers and remembers the status."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.request_id = f"req_{secrets.token_hex(12)}"
        self.status = 0
        self.overruled: InstructLoopError | None = None
        """An error that counts more than whatever the routes make of it."""

    async def __call__(self, message: Message) -> None:
        if self.overruled is not None and self.status == 0:
            return  # `fail` sends it, once the routes are through
        if message["type"] == "http.response.start":
            self.status = message["status"]
            given = list(message["headers"])
            names = {name for name, _ in given}
            ours = [(b"x-request-id", self.request_id.encode()), *_SECURITY_HEADERS]
            added = [(name, value) for name, value in ours if name not in names]
            message = {**message, "headers": given + added}
        await self._send(message)

    async def fail(self, response: Response, scope: Scope, receive: Receive) -> None:
        """Send an error, if nothing was sent yet; a reply that began can only break off."""
        if self.status == 0:
            self.overruled = None
            await response(scope, receive, self)


def _route(scope: Scope) -> str:
    """The path of the route, as a template: what a client wrote into it may name a person."""
    return str(getattr(scope.get("route"), "path", "none"))


def _log_access(scope: Scope, status: int, seconds: float) -> None:
    key = scope.get("state", {}).get("key")
    said = {"route": _route(scope), "status": status, "seconds": round(seconds, 4)}
    log.info("request", extra={**said, **({"key_id": key.id} if key is not None else {})})


async def identify(scope: Scope) -> ApiKey:
    """The key that a request acts as: the one it carries, else the one its browser signed in with.

    Raises Unauthenticated, Forbidden (another site makes the browser ask), Unavailable.
    """
    state, names = scope["app"].state, {name for name, _ in scope["headers"]}
    if b"cookie" in names and not {b"authorization", b"x-api-key"} & names:
        headers = Headers(scope=scope)
        signed_in = await key_of_session(state.sessions, scope["method"], headers)
        if signed_in is not None:
            return signed_in
    secret = _secret(scope)
    if secret.startswith(FEEDBACK_TOKEN):
        return await key_of_token(secret, scope)
    known: KeyCache = state.keys
    return await known.find(secret)


def _secret(scope: Scope) -> str:
    """The API key of a request: a bearer token, or `x-api-key`. Raises Unauthenticated."""
    found = {n: v for n, v in scope["headers"] if n in (b"authorization", b"x-api-key")}
    scheme, _, token = found.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and token.strip():
        return str(token.strip().decode("latin-1"))
    if key := found.get(b"x-api-key"):
        return str(key.decode("latin-1"))
    raise Unauthenticated("send an API key: Authorization: Bearer KEY", code="missing_api_key")


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for the OpenAPI document."""
    return {status: ERRORS[status] for status in statuses}


def error_response(error: InstructLoopError, path: str) -> Response:
    """An error as HTTP has it, in the words of the API that the path belongs to."""
    headers = {}
    if (wait := getattr(error, "retry_after", None)) is not None:
        headers["Retry-After"] = str(wait)
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    content = orjson.dumps(body_for(path, error))
    response = Response(content, error.status, headers, "application/json")
    response.raw_headers += getattr(error, "headers", ())
    return response


async def on_our_error(request: Request, error: Exception) -> Response:
    """Handler of InstructLoopError raised in a route."""
    assert isinstance(error, InstructLoopError)
    return error_response(error, request.url.path)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Handler of what the framework raises: no such route, wrong method, unreadable body."""
    assert isinstance(error, HTTPException)
    response = error_response(_WrongTurn(str(error.detail), error.status_code), request.url.path)
    response.headers.update(error.headers or {})
    return response


async def on_invalid(request: Request, error: Exception) -> Response:
    """Handler of bodies and parameters that fit no schema: 400 malformed, 422 wrong."""
    first: dict[str, Any] = error.errors()[0]  # type: ignore[attr-defined]
    _, *path = first["loc"]
    param = ".".join(map(str, path)) or None
    malformed = first["type"] == "json_invalid" or not path
    message = f"{param}: {first['msg']}" if param else str(first["msg"])
    wrong = (BadRequest if malformed else Unprocessable)(message, param=param)
    return error_response(wrong, request.url.path)


class _WrongTurn(NotFound):
    """The framework's own refusal, with its status."""

    kind = "invalid_request_error"

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
