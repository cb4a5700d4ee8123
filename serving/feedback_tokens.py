"""Tokens for browsers: good for `POST /v1/feedback` on one completion, and for nothing else.

An application gives one to the page that shows an answer, so that no key of it leaves its server. A
token keeps no state: it says tenant, key, completion and when it ends, under a MAC of the keyring.
The key is looked up at every use, so a token dies with it. What is said with it is the word of the
completion's end user: a browser that could name raters could vote as anybody. Which completion a
body is about, and that it names no rater, is checked here, before the routes see it.
"""

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import Message, Receive, Scope

from core import ids
from core.auth import KeyCache, require
from core.errors import BadRequest, Forbidden, Unauthenticated, Unprocessable
from core.keyring import IDS, Keyring
from core.records import ApiKey
from feedback.edge import ERRORS, OurErrors

PREFIX = "ilf-"
FEEDBACK_PATH = "/v1/feedback"
_MAC_BYTES = 32
_MOST_BYTES = 2048


@dataclass(frozen=True, slots=True)
class Claim:
    """What a token says."""

    tenant: str
    key_id: str
    completion: str
    """The token part of the completion's id (core/ids.py)."""
    expires_at: int


def write(secret: bytes, claim: Claim) -> str:
    """The token of a claim."""
    said = [claim.tenant, claim.key_id, claim.completion, claim.expires_at]
    body = orjson.dumps(said)
    return PREFIX + base64.urlsafe_b64encode(_mac(secret, body) + body).decode().rstrip("=")


def read(secrets: Iterable[bytes], token: str, *, now: float) -> Claim:
    """Check a token that any of these made.

    Raises Unauthenticated when it is not ours, was altered or has expired.
    """
    raw = b""
    if token.startswith(PREFIX) and len(token) <= _MOST_BYTES:
        text = token.removeprefix(PREFIX)
        try:
            padded = text + "=" * (-len(text) % 4)
            raw = base64.b64decode(padded, altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raw = b""
    mac, body = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
    if not any(hmac.compare_digest(mac, _mac(secret, body)) for secret in secrets):
        raise Unauthenticated("this feedback token is not known", code="invalid_feedback_token")
    claim = Claim(*orjson.loads(body))
    if claim.expires_at <= now:
        raise Unauthenticated("this feedback token has expired", code="invalid_feedback_token")
    return claim


def _mac(secret: bytes, body: bytes) -> bytes:
    return hmac.new(secret, b"feedback-token\x00" + body, hashlib.sha256).digest()


async def key_of_token(token: str, scope: Scope) -> ApiKey:
    """The key that a token speaks for, good for feedback only.

    Notes in the scope's state which completion it is for. Raises Unauthenticated, Forbidden,
    Unavailable.
    """
    state = scope["app"].state
    claim = read(state.keyring.accepted(IDS), token, now=time.time())
    if scope["method"] != "POST" or scope["path"] != FEEDBACK_PATH:
        raise Forbidden(f"a feedback token is good for POST {FEEDBACK_PATH} only")
    known: KeyCache = state.keys
    key = await known.find_id(claim.key_id)
    if key.tenant != claim.tenant:
        raise Unauthenticated("this feedback token is not known", code="invalid_feedback_token")
    scope.setdefault("state", {})["only_completion"] = claim.completion
    return key.model_copy(update={"scopes": ("feedback",)})


async def checked_body(scope: Scope, receive: Receive) -> Receive:
    """`receive` whose body is about the token's completion, if the request came with a token.

    It names no rater: the word is the end user's.

    What names no completion is left to the route to refuse. Raises Forbidden, BadRequest.
    """
    only = scope.get("state", {}).get("only_completion")
    if only is None:
        return receive
    messages: list[Message] = []
    while not messages or messages[-1].get("more_body"):
        messages.append(await receive())
    body = b"".join(message.get("body", b"") for message in messages)
    said = _object(body)
    about = said.get("completion_id")
    if isinstance(about, str) and ids.token_of(about) != only:
        raise Forbidden("this feedback token is for another completion", param="completion_id")
    if said.get("rater") is not None:
        raise Forbidden("a feedback token speaks for the end user: leave it out", param="rater")
    messages.reverse()

    async def again() -> Message:
        return messages.pop() if messages else await receive()

    return again


def _object(body: bytes) -> dict[str, Any]:
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:  # a reader with laxer rules may follow, so nothing passes
        raise BadRequest("the body must be a JSON object") from None
    return said if isinstance(said, dict) else {}


class TokenRequest(BaseModel):
    """Which completion a browser may give feedback on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    completion_id: Annotated[str, Field(min_length=1, max_length=200)]


class FeedbackToken(BaseModel):
    """A bearer token for `POST /v1/feedback` on one completion."""

    token: str
    completion_id: str
    expires_at: int
    """Seconds since 1970."""


router = APIRouter(prefix="/v1", tags=["feedback"], route_class=OurErrors, responses=ERRORS)


@router.post("/feedback-tokens", status_code=201)
async def post_feedback_token(request: Request, body: TokenRequest) -> FeedbackToken:
    """A token for browsers, short-lived, good for feedback on this completion only."""
    key: ApiKey = request.state.key
    require(key, "feedback")
    keyring: Keyring = request.app.state.keyring
    if not ids.read_id(keyring.accepted(IDS), key.tenant, body.completion_id).stored:
        raise Unprocessable(
            "this completion was made with store=false: it takes no feedback",
            param="completion_id",
        )
    seconds: int = request.app.state.settings.gateway.feedback_token_seconds
    expires_at = int(time.time()) + seconds
    completion = ids.token_of(body.completion_id)
    token = write(keyring.present(IDS), Claim(key.tenant, key.id, completion, expires_at))
    return FeedbackToken(token=token, completion_id=body.completion_id, expires_at=expires_at)
