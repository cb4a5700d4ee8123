"""A patient HTTP client of the service: asks again when it is told to, and says why it gave up.

Retries 429, 502, 503, 504 and broken connections, with growing pauses and as `Retry-After` says;
what is sent twice carries the same Idempotency-Key, so it counts once. Any other refusal is an
error of one line. Knows no route; deploy/simulate/run.py does.
"""

import asyncio
import contextlib
import email.utils
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx

from core.errors import InstructLoopError

AGAIN = frozenset({429, 502, 503, 504})
_FIRST_PAUSE = 0.25
_LONGEST_PAUSE = 10.0
_LONGEST_ASKED_PAUSE = 60.0
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_TIMEOUT = httpx.Timeout(300.0, connect=10.0)


class Refused(InstructLoopError):
    """The service refused a request, or did not answer for as long as we would wait."""

    def __init__(self, message: str, *, status_code: int | None = None) -> None:
        super().__init__(message)
        self.status_code = status_code


@dataclass(slots=True)
class ServiceClient:
    """Requests with one API key to one service."""

    http: httpx.AsyncClient
    patience_seconds: float
    """How long one request may be tried again before it fails."""
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    retries: int = 0

    async def get(self, path: str, **params: str) -> httpx.Response:
        """GET; raises Refused."""
        return await self._send("GET", path, params=params)

    async def post(
        self,
        path: str,
        body: dict[str, Any],
        *,
        idempotency_key: str | None = None,
        params: dict[str, str] | None = None,
    ) -> httpx.Response:
        """POST JSON; raises Refused."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return await self._send("POST", path, json=body, headers=headers, params=params or {})

    async def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        deadline = time.monotonic() + self.patience_seconds
        attempt = 0
        while True:
            try:
                reply = await self.http.request(method, path, **request)
                if reply.is_success:
                    return reply
                failure = Refused(
                    f"{method} {path}: {_reason(reply)}", status_code=reply.status_code
                )
                pause = _asked_pause(reply)
                if reply.status_code not in AGAIN:
                    raise failure
            except httpx.TransportError as error:
                said = f"{type(error).__name__} {error}".strip()
                failure = Refused(f"{method} {path} at {self.http.base_url}: {said}")
                pause = None
            wait = pause if pause is not None else _pause(attempt)
            if time.monotonic() + wait > deadline:
                raise failure
            attempt += 1
            self.retries += 1
            await self.sleep(wait)


@contextlib.asynccontextmanager
async def service_client(
    base_url: str, api_key: str, *, connections: int = 32, patience_seconds: float = 300.0
) -> AsyncIterator[ServiceClient]:
    """A client for the length of a `with` block."""
    async with httpx.AsyncClient(
        base_url=base_url,
        headers={"Authorization": f"Bearer {api_key}"},
        timeout=_TIMEOUT,
        limits=httpx.Limits(max_connections=connections),
        # a proxy for the world outside must not stand between this machine and itself
        trust_env=httpx.URL(base_url).host not in _LOOPBACK,
    ) as http:
        yield ServiceClient(http, patience_seconds)


def _pause(attempt: int) -> float:
    """Seconds before the next attempt: doubling, a little random so that clients spread out."""
    longest = min(_FIRST_PAUSE * 2.0**attempt, _LONGEST_PAUSE)
    return longest * random.uniform(0.5, 1.0)


def _asked_pause(reply: httpx.Response) -> float | None:
    """What `Retry-After` says, in seconds or as a date; None without one that can be read."""
    said = reply.headers.get("retry-after", "").strip()
    if said.isdecimal():
        return min(float(said), _LONGEST_ASKED_PAUSE)
    try:
        when = email.utils.parsedate_to_datetime(said).timestamp()
    except ValueError:
        return None
    return min(max(when - time.time(), 0.0), _LONGEST_ASKED_PAUSE)


def _reason(reply: httpx.Response) -> str:
    """The status and the message of OpenAI's error object, in one line."""
    try:
        message = str(reply.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = reply.text
    return f"{reply.status_code} {' '.join(message.split())[:300]}".strip()
