"""What the feedback and labeling routes share: who asks, whether we may promise, and errors.

A 2xx here is a promise that survives a power cut, so with a Redis that cannot keep it the routes
refuse. Malformed bodies become the errors of core/errors.py. Knows HTTP, not what is said.
"""

import inspect
import json
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from fastapi import Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from core import keys
from core.errors import (
    BadRequest,
    Forbidden,
    InstructLoopError,
    TooLarge,
    Unavailable,
    Unprocessable,
)
from core.keyring import Keyring
from core.records import ApiKey
from core.records import Scope as KeyScope
from core.redis_client import Batches, Redis
from core.room import Room
from core.settings import Settings
from feedback.schemas import ErrorBody
from feedback.store import Once

_LONGEST_KEY = 255
IdempotencyKey = Annotated[
    str | None, Header(alias="Idempotency-Key", min_length=1, max_length=_LONGEST_KEY)
]
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "Malformed."},
    401: {"model": ErrorBody, "description": "No key, or an unknown one."},
    403: {"model": ErrorBody, "description": "The key lacks the scope."},
    404: {"model": ErrorBody, "description": "Not there, or not yours."},
    408: {"model": ErrorBody, "description": "The body did not come in time."},
    409: {"model": ErrorBody, "description": "Contradicts what is recorded."},
    413: {"model": ErrorBody, "description": "Too large."},
    422: {"model": ErrorBody, "description": "Well-formed but wrong."},
    429: {"model": ErrorBody, "description": "Limited; see Retry-After."},
    503: {"model": ErrorBody, "description": "Not now; see Retry-After."},
}
_RETRY_SECONDS = 30
_ONCE = "Idempotency-Key"
_NO_OBJECT = "the body must be a JSON object"


@dataclass(frozen=True, slots=True)
class Door:
    """What a route needs: the caller and its collaborators."""

    key: ApiKey
    redis: Redis
    writes: Redis | Batches
    """Where what people say goes: with what others say at the time, where the app has `batches`."""
    keyring: Keyring
    settings: Settings


def enter(request: Request, *scopes: KeyScope) -> Door:
    """Let a request in whose key has one of the scopes (admin has all).

    Raises Forbidden, and Unavailable when this Redis cannot keep what a 2xx would promise.
    """
    state = request.app.state
    key: ApiKey = request.state.key
    if not {"admin", *scopes} & set(key.scopes):
        raise Forbidden(f"this needs a key with the scope {' or '.join(scopes)}")
    warnings: list[str] = state.durability_warnings
    if warnings and state.settings.durability == "strict":
        raise Unavailable(
            f"feedback is refused: {'; '.join(warnings)} "
            "(set these in Redis, or INSTRUCTLOOP_DURABILITY=relaxed)",
            retry_after=_RETRY_SECONDS,
        )
    room: Room | None = getattr(state, "room", None)
    no_room = room.lacking("feedback") if room and state.settings.redis_url is None else None
    if no_room:
        raise Unavailable(
            f"feedback is refused: {no_room}: make room on this disk", retry_after=_RETRY_SECONDS
        )
    writes = getattr(state, "batches", state.redis)
    return Door(key, state.redis, writes, state.keyring, state.settings)


def once(door: Door, request: Request, header: str | None, body: BaseModel) -> Once | None:
    """The Idempotency-Key of a request: bound to the API key, and to what was asked."""
    if header is None:
        return None
    asked = f"{request.url.path}\x00{body.model_dump_json()}"
    hashed = door.keyring.hashed
    return Once(
        key=keys.idempotency(hashed(door.key.tenant, "once", f"{door.key.id}\x00{header}")),
        digest=hashed(door.key.tenant, "request", asked),
        seconds=door.settings.feedback.idempotency_hours * 3600,
    )


def receipt(thing_id: str, status: str = "recorded") -> str:
    """The reply to a write, as JSON."""
    return json.dumps({"id": thing_id, "status": status})


def created(reply: str) -> Response:
    """201 with a reply that was made, or kept, as JSON."""
    return Response(reply, status_code=201, media_type="application/json")


class OurErrors(APIRoute):
    """Turns what FastAPI says of a bad body into our errors: 400 malformed, 422 wrong."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's handler, with its errors translated."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            _refuse_large(request)
            try:
                return await handle(request)
            except RequestValidationError as error:
                raise _translated(error) from None
            except HTTPException as error:  # what FastAPI raises for a body it cannot read
                raise BadRequest(str(error.detail)) from None

        return handler


class DirectRoute(OurErrors):
    """A POST that FastAPI documents but does not carry out: it would take half of the time.

    Its endpoint takes the request, the body and the Idempotency-Key, and gives the response; what a
    caller can see is what `OurErrors` would do. `serving/edge.py` comes here past all routing.
    """

    def __init__(
        self, path: str, endpoint: Callable[..., Awaitable[Response]], **options: Any
    ) -> None:
        super().__init__(path, endpoint, **options)
        self._model: type[BaseModel] = inspect.signature(endpoint).parameters["body"].annotation
        self.app = self._answer

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        _refuse_large(request)
        said = _said(request.headers.get("content-type", ""), await request.body())
        once = _once_key(request.headers.get("idempotency-key"))
        try:
            body = self._model.model_validate(said)
        except ValidationError as error:
            wrong = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
            raise _translated(RequestValidationError(wrong)) from None
        response = await self.endpoint(request, body, once)
        await response(scope, receive, send)


def _said(content_type: str, body: bytes) -> Any:
    """The JSON of a body that says it is JSON. Raises BadRequest."""
    kind = content_type.partition(";")[0].strip().lower()
    is_json = kind.startswith("application/") and kind.endswith(("/json", "+json"))
    try:
        return orjson.loads(body) if is_json else None
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(body)  # takes text that is no Unicode: the schema says where it is
    except (ValueError, RecursionError):
        raise BadRequest(_NO_OBJECT) from None


def _once_key(header: str | None) -> str | None:
    """Raises BadRequest, in the words of the framework."""
    if header == "":
        raise BadRequest(f"{_ONCE}: String should have at least 1 character", param=_ONCE)
    if header is not None and len(header) > _LONGEST_KEY:
        message = f"String should have at most {_LONGEST_KEY} characters"
        raise BadRequest(f"{_ONCE}: {message}", param=_ONCE)
    return header


def _refuse_large(request: Request) -> None:
    limit: int = request.app.state.settings.gateway.max_body_bytes
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > limit:
        raise TooLarge(f"the body is larger than {limit} bytes")


def _translated(error: RequestValidationError) -> InstructLoopError:
    first = error.errors()[0]
    where, *path = first["loc"]
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "json_invalid" or (not path and first["type"] != "value_error"):
        return BadRequest(_NO_OBJECT)
    param = ".".join(str(part) for part in path) or None
    if where == "header":
        return BadRequest(f"{param}: {message}", param=param)
    return Unprocessable(f"{param}: {message}" if param else message, param=param)
