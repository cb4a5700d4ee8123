"""The routes of completions: who asks, what is asked, and the reply that serving/relay.py gives.

They bypass FastAPI's reading and checking of bodies, because a request is parsed once, by
serving/requests.py, and a reply is never built here.
"""

import time
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from core import ids
from core.auth import require
from core.errors import Unavailable
from core.records import ApiKey
from serving import fields, requests
from serving.edge import errors
from serving.relay import Reply, Services
from serving.requests import CHAT, TEXT, Api, Limits

_ERRORS = errors(400, 401, 403, 404, 413, 429, 503)


class PlainRoute(APIRoute):
    """A route whose endpoint takes the request and gives the reply, with nothing in between."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The endpoint itself."""
        return self.endpoint


router = APIRouter(tags=["completions"], route_class=PlainRoute)


async def complete(request: Request, api: Api) -> Reply:
    """Read a request and give the reply that will answer it."""
    began = time.monotonic()
    key: ApiKey = request.state.key
    require(key, "complete")
    services: Services = request.app.state.services
    settings = services.settings
    if services.replicas.in_flight >= settings.max_concurrent_requests:
        raise Unavailable("too many completions are being answered now", code="overloaded")
    limits = Limits(settings.max_choices, settings.max_prompt_chars)
    asked = requests.parse(api, await request.body(), limits)
    secret = services.keyring.key("mac")
    tag = ids.prompt_tag(secret, key.tenant, asked.canonical)
    token = ids.new_token(
        secret,
        tenant=key.tenant,
        key_id=key.id,
        choices=asked.choices,
        stored=asked.stored,
        tag=tag,
    )
    return Reply(services=services, asked=asked, key=key, token=token, tag=tag, began=began)


_HEADERS: dict[str, Any] = {
    "x-request-id": {"schema": {"type": "string"}, "description": "The service's own."},
    "x-policy-version": {
        "schema": {"type": "string"},
        "description": "The policy version of the first token.",
    },
    "x-policy-versions": {
        "schema": {"type": "string"},
        "description": "Only when a swap crossed the reply: all its versions, in order.",
    },
    "x-feedback-off": {
        "schema": {"type": "string"},
        "description": "Why this completion takes no feedback, where it does not.",
    },
}


def _documented(api: Api, engine_fields: dict[str, Any], prompt: Any, kind: str) -> dict[str, Any]:
    """The OpenAPI operation: what may be asked, and what comes back."""
    properties = {api.prompt_field: prompt, **fields.OURS, **engine_fields, **fields.HINTS}
    body = {
        "type": "object",
        "required": [api.prompt_field],
        "properties": dict(sorted(properties.items())),
        "additionalProperties": False,
    }
    reply = {
        "type": "object",
        "required": ["id", "object", "created", "model", "choices"],
        "properties": {
            "id": {"type": "string", "description": "The completion id, for feedback."},
            "object": {"const": kind},
            "created": {"type": "integer"},
            "model": {"type": "string"},
            "choices": {"type": "array", "items": {"type": "object"}},
            "usage": {"type": "object"},
        },
    }
    content = {
        "application/json": {"schema": reply},
        "text/event-stream": {"schema": {"type": "string"}},
    }
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {"200": {"headers": _HEADERS, "content": content}},
    }


@router.post(
    CHAT.path,
    response_model=None,
    responses=_ERRORS,
    openapi_extra=_documented(CHAT, fields.CHAT_ENGINE, fields.MESSAGES, "chat.completion"),
)
async def chat_completions(request: Request) -> Reply:
    """Answer a chat, as OpenAI's API does; streamed with `stream`."""
    return await complete(request, CHAT)


@router.post(
    TEXT.path,
    response_model=None,
    responses=_ERRORS,
    openapi_extra=_documented(TEXT, fields.TEXT_ENGINE, fields.PROMPT, "text_completion"),
)
async def text_completions(request: Request) -> Reply:
    """Continue a text, as OpenAI's API does; streamed with `stream`."""
    return await complete(request, TEXT)
