"""Errors as the client of each API reads them: OpenAI's object, or Anthropic's. Pure.

The errors themselves are in core/errors.py; who sends them is serving/edge.py before a reply
began, serving/failures.py for an engine's refusal, and serving/relay.py inside a stream.
"""

from typing import Any, Literal

import orjson
from pydantic import BaseModel

from core.errors import InstructLoopError
from serving import sse

ANTHROPIC_PATH = "/v1/messages"
_ANTHROPIC_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class AnthropicErrorDetail(BaseModel):
    """What went wrong."""

    type: str
    message: str


class AnthropicErrorBody(BaseModel):
    """An error of Anthropic's API."""

    type: Literal["error"]
    error: AnthropicErrorDetail


def body_for(path: str, error: InstructLoopError) -> dict[str, Any]:
    """The error object that clients of a path expect."""
    if path.startswith(ANTHROPIC_PATH):
        return _anthropic(error.status, error.message)
    return error.body()


def refusal_for(path: str, status: int, body: bytes) -> bytes:
    """An engine's refusal as clients of a path expect it: unchanged, if it is that already."""
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        said = None
    said = said if isinstance(said, dict) else {}
    is_anthropic = path.startswith(ANTHROPIC_PATH)
    if isinstance(said.get("error"), dict) and is_anthropic == (said.get("type") == "error"):
        return body
    message = _message_in(said) or f"the engine refused the request with status {status}"
    if is_anthropic:
        return orjson.dumps(_anthropic(status, message))
    return orjson.dumps(InstructLoopError(message).body())


def _message_in(said: dict[str, Any]) -> str | None:
    """What went wrong, in an error object, in a response that failed, or in an error event."""
    response = said.get("response")
    failed = response.get("error") if isinstance(response, dict) else None
    for error in (said.get("error"), failed, said):
        message = error.get("message") if isinstance(error, dict) else None
        if isinstance(message, str):
            return message
    return None


def openai_event(error: InstructLoopError) -> bytes:
    """An event that OpenAI's client raises, in a stream of chat or text completions."""
    return sse.event_of(orjson.dumps(error.body()))


def response_event(error: InstructLoopError) -> bytes:
    """The same for a stream of a response: also an error event by that API's own definition."""
    said = {"type": "error", "code": error.code or error.kind, "message": error.message}
    data = orjson.dumps({**said, "param": None, "sequence_number": 0, **error.body()})
    return b"event: error\ndata: " + data + b"\n\n"


def anthropic_event(error: InstructLoopError) -> bytes:
    """An event that Anthropic's client raises."""
    data = orjson.dumps(_anthropic(error.status, error.message))
    return b"event: error\ndata: " + data + b"\n\n"


def _anthropic(status: int, message: str) -> dict[str, Any]:
    fallback = "invalid_request_error" if status < 500 else "api_error"
    kind = _ANTHROPIC_KINDS.get(status, fallback)
    return {"type": "error", "error": {"type": kind, "message": message}}
