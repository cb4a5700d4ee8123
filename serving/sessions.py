"""Signing in with a browser: an API key once, then a cookie that means that key.

The cookie is opaque: a random name with our mark on it, so that a made-up one never reaches Redis.
Redis keeps which key it stands for, under a keyed digest, until the session ends: when nobody has
used it for a while, and at the latest at an end that is fixed when it begins. The key itself is
checked anew at every request, so that a session dies with its key. What Redis said is kept in
memory for a moment. Knows no routes; serving/edge.py asks who is there, serving/session_routes.py
signs in and out.
"""

import asyncio
import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from core import keys
from core.auth import KeyCache
from core.errors import Forbidden, Unauthenticated, Unavailable
from core.keyring import Keyring
from core.records import ApiKey
from core.redis_client import Redis, redis_errors

COOKIE = "instructloop_session"
REMEMBERED = 4096
FRESH_SECONDS = 1.0
"""How long a gateway trusts what Redis said: signed out elsewhere is signed out here after this."""
_EXTEND_PART = 60
"""A session that is used is extended once this part of its idle time has gone by."""
_SAFE = frozenset({"GET", "HEAD"})


class Sessions:
    """Who is signed in, as Redis has it, with the recent ones in memory."""

    def __init__(
        self, redis: Redis, keyring: Keyring, known: KeyCache, *, seconds: int, longest: int
    ) -> None:
        self._redis = redis
        self._mark_key = keyring.key("session")
        self._known = known
        self._seconds = seconds
        self._longest = longest
        self._recent: OrderedDict[str, tuple[float, str]] = OrderedDict()
        self._asking: dict[str, asyncio.Task[str | None]] = {}

    @property
    def longest(self) -> int:
        """How many seconds a session lasts at most, and the cookie with it."""
        return self._longest

    async def begin(self, secret: str) -> tuple[ApiKey, str]:
        """Sign in with an API key; returns it and the cookie.

        Raises Unauthenticated, Unavailable.
        """
        key = await self._known.find(secret)
        name = secrets.token_urlsafe(32)
        place = self._place(name)
        with redis_errors():
            end = int(time.time()) + self._longest
            seconds = min(self._seconds, self._longest)
            await self._redis.set(keys.session(place), f"{key.digest} {end}", ex=seconds)
        self._remember(place, key.digest)
        return key, f"{name}.{self._mark(name)}"

    async def key_of(self, cookie: str) -> ApiKey:
        """The key that a cookie stands for. Raises Unauthenticated, Unavailable (no Redis)."""
        place = self._place(self._named(cookie))
        seen_at, digest = self._recent.get(place, (float("-inf"), ""))
        if time.monotonic() - seen_at > FRESH_SECONDS:
            digest = await self._ask(place, digest)
        return await self._known.find_digest(digest)

    async def end(self, cookie: str) -> None:
        """Sign out; a cookie that means nothing is no error. Raises Unavailable."""
        try:
            place = self._place(self._named(cookie))
        except Unauthenticated:
            return
        with redis_errors():
            await self._redis.delete(keys.session(place))
        self._recent.pop(place, None)

    async def _ask(self, place: str, before: str) -> str:
        """What Redis says of it; all who wait share a question. `before` is good without it."""
        asking = self._asking.get(place)
        if asking is None:
            asking = self._asking[place] = asyncio.create_task(self._read(place))
            asking.add_done_callback(lambda _: self._asking.pop(place, None))
        try:
            digest = await asyncio.shield(asking)
        except Unavailable:
            if not before:
                raise
            return before
        if digest is None:
            self._recent.pop(place, None)
            raise Unauthenticated("this session has ended: sign in again", code="session_ended")
        return digest

    async def _read(self, place: str) -> str | None:
        with redis_errors():
            async with self._redis.pipeline(transaction=False) as ask:
                raw, left = await ask.get(keys.session(place)).ttl(keys.session(place)).execute()
            if raw is None:
                return None
            digest, _, end = str(raw.decode()).partition(" ")
            due = self._due(int(end), left) if end else 0
            if due:
                await self._redis.expire(keys.session(place), due)
        self._remember(place, digest)
        return digest

    def _due(self, end: int, left: int) -> int:
        """For how many seconds a session that was used now is extended; 0 when it need not be."""
        seconds = min(self._seconds, end - int(time.time()))
        return seconds if seconds - left > self._seconds // _EXTEND_PART else 0

    def _remember(self, place: str, digest: str) -> None:
        self._recent[place] = (time.monotonic(), digest)
        self._recent.move_to_end(place)
        while len(self._recent) > REMEMBERED:
            self._recent.popitem(last=False)

    def _named(self, cookie: str) -> str:
        name, _, mark = cookie.partition(".")
        if not hmac.compare_digest(mark.encode(), self._mark(name).encode()):
            raise Unauthenticated("this session is not known: sign in again", code="session_ended")
        return name

    def _mark(self, name: str) -> str:
        return self._keyed(f"mark\x00{name}")[:32]

    def _place(self, name: str) -> str:
        return self._keyed(f"place\x00{name}")

    def _keyed(self, text: str) -> str:
        return hmac.new(self._mark_key, text.encode(), hashlib.sha256).hexdigest()


def cookie_of(headers: Headers) -> str | None:
    """The session cookie of a request."""
    try:
        jar = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return None
    return jar[COOKIE].value if COOKIE in jar else None


def check_origin(method: str, headers: Headers, *, signed_in: bool) -> None:
    """Refuse what another site makes a browser send. Raises Forbidden.

    Browsers say where a request comes from and let no page change that. With a session something
    has to be said; without one (a program that signs in) silence is allowed.
    """
    if method in _SAFE:
        return
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        ours = site == "same-origin"
    elif origin is not None:
        ours = urlsplit(origin).netloc == headers.get("host") != ""
    else:
        ours = not signed_in
    if not ours:
        raise Forbidden("a page of another site may not act for you here", code="cross_origin")


async def key_of_session(sessions: Sessions, method: str, headers: Headers) -> ApiKey | None:
    """The key of a signed-in browser; None without a cookie.

    Raises Unauthenticated, Unavailable, and Forbidden when another site makes the browser ask.
    """
    cookie = cookie_of(headers)
    if cookie is None:
        return None
    key = await sessions.key_of(cookie)
    check_origin(method, headers, signed_in=True)
    return key
