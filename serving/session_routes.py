"""Signing in and out, and asking as whom: `/v1/session`.

HTTP only; what a session is, is in serving/sessions.py.
"""

from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from core.errors import InstructLoopError, Unavailable
from core.records import ApiKey
from feedback.edge import OurErrors
from serving.edge import errors, identify
from serving.sessions import COOKIE, Sessions, check_origin, cookie_of


class SignIn(BaseModel):
    """An API key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: Annotated[str, Field(min_length=1, max_length=500)]


class WhoAmI(BaseModel):
    """Whom a request acts for; all but `signed_in` is missing when that is nobody."""

    signed_in: bool
    id: str | None = None
    name: str | None = None
    tenant: str | None = None
    scopes: list[str] = []


router = APIRouter(
    prefix="/v1/session",
    tags=["session"],
    route_class=OurErrors,
    responses=errors(400, 401, 403, 413, 422, 503),
)


@router.post("")
async def sign_in(request: Request, body: SignIn, response: Response) -> WhoAmI:
    """Check an API key and set a cookie that stands for it."""
    check_origin("POST", request.headers, signed_in=False)
    sessions: Sessions = request.app.state.sessions
    key, cookie = await sessions.begin(body.key.strip())
    if (old := cookie_of(request.headers)) is not None:
        await sessions.end(old)
    _set_cookie(request, response, cookie, seconds=sessions.longest)
    return _who(key)


@router.get("")
async def who_am_i(request: Request, response: Response) -> WhoAmI:
    """Whose key a request carries, by cookie or by header; nobody is an answer too."""
    try:
        return _who(await identify(request.scope))
    except Unavailable:
        raise
    except InstructLoopError:
        if cookie_of(request.headers) is not None:
            _set_cookie(request, response, "", seconds=0)
        return WhoAmI(signed_in=False)


@router.delete("", status_code=204)
async def sign_out(request: Request) -> Response:
    """End the session; the cookie means nothing from now on."""
    check_origin("DELETE", request.headers, signed_in=False)
    if (cookie := cookie_of(request.headers)) is not None:
        await request.app.state.sessions.end(cookie)
    response = Response(status_code=204)
    _set_cookie(request, response, "", seconds=0)
    return response


def _who(key: ApiKey) -> WhoAmI:
    return WhoAmI(
        signed_in=True, id=key.id, name=key.name, tenant=key.tenant, scopes=list(key.scopes)
    )


def _set_cookie(request: Request, response: Response, value: str, *, seconds: int) -> None:
    forwarded = request.headers.get("x-forwarded-proto", "").split(",")[0].strip()
    response.set_cookie(
        COOKIE,
        value,
        max_age=seconds,
        path="/",
        secure="https" in (request.url.scheme, forwarded),
        httponly=True,
        samesite="strict",
    )
