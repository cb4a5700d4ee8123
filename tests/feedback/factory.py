"""Things that tests of feedback need: ids, inbox entries, a filter, an app without a gateway."""

import re
import time
from collections.abc import Sequence

import httpx
import orjson
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from core import keys
from core.errors import InstructLoopError
from core.ids import new_token, prompt_tag, token_of
from core.keyring import Keyring
from core.records import ApiKey, Choice, Completion
from core.redis_client import Redis
from core.settings import Settings
from feedback import labeling_routes, routes
from feedback.pii.record import Filtered
from feedback.pii.worker import PiiFailed

PROMPT = [{"role": "user", "content": "Name a river."}]


def api_key(name="app", *, scopes=("feedback",), tenant="acme", key_id="0a0b0c0d", trains=True):
    return ApiKey(
        id=key_id,
        name=name,
        tenant=tenant,
        scopes=scopes,
        digest="",
        created_at=0.0,
        trains=trains,
    )


def completion_id(
    keyring: Keyring, *, prompt="Name a river.", choices=1, stored=True, tenant="acme"
) -> str:
    secret = keyring.key("mac")
    token = new_token(
        secret,
        tenant=tenant,
        key_id="0a0b0c0d",
        choices=choices,
        stored=stored,
        tag=prompt_tag(secret, tenant, prompt.encode()),
    )
    return f"chatcmpl-{token}"


def entry(keyring: Keyring, *, prompt="Name a river.", answers=("The Elbe.",), **other) -> dict:
    """What the gateway seals of one request."""
    cid = other.pop("id", None) or completion_id(keyring, prompt=prompt, choices=len(answers))
    return {
        "token": token_of(cid),
        "id": cid,
        "tenant": "acme",
        "key_id": "0a0b0c0d",
        "user": "ann",
        "prompt_tag": "00" * 8,
        "messages": [{"role": "user", "content": prompt}],
        "choices": [
            {"text": text, "finish_reason": "stop", "tokens": 3, "tool_calls": None}
            for text in answers
        ],
        "policy_versions": ["v0000"],
        "created_at": time.time(),
        "error": None,
        "sampling": {"temperature": 1.0, "stop": ["secret word"]},
        "metadata": {},
        "trains": True,
        **other,
    }


async def put(redis: Redis, keyring: Keyring, *entries: dict) -> None:
    """Into the inbox, as the gateway does it."""
    for one in entries:
        await redis.xadd(keys.inbox(), {"sealed": keyring.seal(orjson.dumps(one))})


def completion(
    token="t" * 52, *, answers=("one", "two"), user="u" * 32, messages=PROMPT, **other
) -> Completion:
    """A record as ingest leaves it."""
    fields = {
        "id": f"chatcmpl-{token}",
        "tenant": "acme",
        "key_id": "0a0b0c0d",
        "prompt_tag": "00" * 8,
        "choices": tuple(Choice(text=text, finish_reason="stop") for text in answers),
        "policy_versions": ("v0000",),
        "created_at": 1.0,
        "split": "train",
        "counted": True,
        **other,
    }
    return Completion(token=token, user=user, messages=messages, **fields)


class EmailFilter:
    """A filter that knows e-mail addresses; `fail` names what it cannot clear."""

    def __init__(self, fail: str | None = None):
        self.fail = fail
        self.records = 0

    def filter_record(self, texts: Sequence[str], *, deadline_seconds: float) -> Filtered:
        self.records += 1
        if self.fail is not None and any(self.fail in text for text in texts):
            raise PiiFailed("deadline")
        seen: dict[str, str] = {}

        def placeholder(match: re.Match) -> str:
            return seen.setdefault(match.group(), f"<EMAIL_{len(seen) + 1}>")

        clear = tuple(re.sub(r"[\w.]+@[\w.]+\w", placeholder, text) for text in texts)
        return Filtered(clear, {"EMAIL": len(seen)} if seen else {}, "emails-1")


def make_app(
    redis: Redis,
    keyring: Keyring,
    settings: Settings,
    *api_keys: ApiKey,
    warnings: Sequence[str] = (),
) -> FastAPI:
    """The feedback and labeling routes; the bearer token is the id of a key."""
    app = FastAPI()
    app.state.redis, app.state.keyring, app.state.settings = redis, keyring, settings
    app.state.durability_warnings = list(warnings)
    known = {key.id: key for key in api_keys}

    @app.middleware("http")
    async def authenticate(request: Request, call_next):
        request.state.key = known[request.headers["authorization"].removeprefix("Bearer ")]
        return await call_next(request)

    @app.exception_handler(InstructLoopError)
    async def explain(_: Request, error: InstructLoopError) -> JSONResponse:
        after = getattr(error, "retry_after", None)
        headers = {"Retry-After": str(after)} if after else {}
        return JSONResponse(error.body(), error.status, headers=headers)

    app.include_router(routes.router)
    app.include_router(labeling_routes.router)
    return app


def client_of(app: FastAPI, key: ApiKey) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://instructloop",
        headers={"Authorization": f"Bearer {key.id}"},
    )
