"""The routes of completions: who asks, what is asked, and the reply that serving/relay.py gives.

They bypass FastAPI's reading and checking of bodies, because a request is parsed once, by
serving/requests.py, and a reply is never built here.
"""

import time
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from core import ids, traces
from core.auth import require
from core.errors import RateLimited, Unavailable
from core.keyring import IDS
from core.records import ApiKey
from serving import requests
from serving.admission import Grant
from serving.apis import CHAT, MESSAGES, RESPONSES, TEXT, Api
from serving.edge import errors
from serving.error_bodies import AnthropicErrorBody
from serving.limits import HEADERS as LIMIT_HEADERS
from serving.limits import estimated_tokens
from serving.relay import Reply, Services
from serving.requests import Limits

_ERRORS = errors(400, 401, 403, 404, 408, 413, 429, 503)
_ANTHROPIC_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {**said, "model": AnthropicErrorBody} for status, said in _ERRORS.items()
}


class PlainRoute(APIRoute):
    """A route whose endpoint takes the request and gives the reply, with nothing in between.

    `serving/edge.py` comes here without FastAPI's middleware and routing, which would be a quarter
    of all the work for a request.
    """

    def __init__(
        self, path: str, endpoint: Callable[[Request], Awaitable[ASGIApp]], **options: Any
    ) -> None:
        super().__init__(path, endpoint, **options)
        self.app = self._answer

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = await self.endpoint(Request(scope, receive))
        await reply(scope, receive, send)


router = APIRouter(tags=["completions"], route_class=PlainRoute)


async def complete(request: Request, api: Api) -> Reply:
    """Read a request and give the reply that will answer it."""
    began = time.monotonic()
    key: ApiKey = request.state.key
    require(key, "complete")
    services: Services = request.app.state.services
    settings = services.settings
    body = await request.body()  # from here on nothing waits until an engine is asked
    if services.replicas.in_flight >= settings.max_concurrent_requests:
        raise Unavailable("too many completions are being answered now", code="overloaded")
    asked = requests.parse(api, body, Limits(settings.max_choices, settings.max_prompt_chars))
    tag = ids.prompt_tag(services.keyring.tag_key(), key.tenant, asked.canonical)
    token = ids.new_token(
        services.keyring.present(IDS),
        tenant=key.tenant,
        key_id=key.id,
        choices=asked.choices,
        stored=asked.stored,
        tag=tag,
    )
    grant = _admitted(services, asked, key)
    traces.part("admission", time.monotonic() - began)
    return Reply(
        services=services, asked=asked, key=key, token=token, tag=tag, began=began, grant=grant
    )


def _admitted(services: Services, asked: requests.Asked, key: ApiKey) -> Grant:
    """What the request takes of its limits. Raises RateLimited."""
    admission, most = services.admission, asked.max_tokens
    expected = admission.expected_tokens
    tokens = estimated_tokens(len(asked.canonical), asked.choices, most, expected)
    try:
        return admission.admit(key, asked.end_user(key), tokens, asked_for=most is not None)
    except RateLimited:
        services.usage.refused(key.id)
        raise


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
_LIMIT_HEADERS: dict[str, Any] = {
    f"x-ratelimit-{what}-{kind}": {
        "schema": {"type": "string"},
        "description": f"Of the {kind} a minute, where they are limited.",
    }
    for what in LIMIT_HEADERS
    for kind in ("requests", "tokens")
}
_RETRY_AFTER = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait."}}


def _documented(api: Api) -> dict[str, Any]:
    """The OpenAPI operation: what may be asked, and what comes back."""
    known = {**api.our_fields, **api.engine_fields, **api.hints}
    body = {
        "type": "object",
        "required": [api.prompt_field, *api.required],
        "properties": dict(sorted({api.prompt_field: api.prompt_schema, **known}.items())),
        "additionalProperties": False,
    }
    named = "type" if api is MESSAGES else "object"
    reply = {
        "type": "object",
        "required": ["id", named, "model"],
        "properties": {
            "id": {"type": "string", "description": "The completion id, for feedback."},
            named: {"const": api.reply_kind},
            "model": {"type": "string"},
            "usage": {"type": ["object", "null"]},
        },
    }
    content = {
        "application/json": {"schema": reply},
        "text/event-stream": {"schema": {"type": "string"}},
    }
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {
            "200": {"headers": _HEADERS | _LIMIT_HEADERS, "content": content},
            "429": {"headers": _RETRY_AFTER | _LIMIT_HEADERS},
            "503": {"headers": _RETRY_AFTER},
        },
    }


@router.post(
    CHAT.path,
    response_model=None,
    responses=_ERRORS,
    openapi_extra=_documented(CHAT),
)
async def chat_completions(request: Request) -> Reply:
    """Answer a chat, as OpenAI's API does; streamed with `stream`."""
    return await complete(request, CHAT)


@router.post(
    TEXT.path,
    response_model=None,
    responses=_ERRORS,
    openapi_extra=_documented(TEXT),
)
async def text_completions(request: Request) -> Reply:
    """Continue a text, as OpenAI's API does; streamed with `stream`."""
    return await complete(request, TEXT)


@router.post(
    RESPONSES.path,
    response_model=None,
    responses=_ERRORS,
    openapi_extra=_documented(RESPONSES),
)
async def responses(request: Request) -> Reply:
    """Answer as OpenAI's Responses API does, keeping no state between requests."""
    return await complete(request, RESPONSES)


@router.post(
    MESSAGES.path,
    response_model=None,
    responses=_ANTHROPIC_ERRORS,
    openapi_extra=_documented(MESSAGES),
)
async def messages(request: Request) -> Reply:
    """Answer as Anthropic's Messages API does; errors are in its own shape."""
    return await complete(request, MESSAGES)
