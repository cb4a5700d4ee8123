"""Messages to servers of others when something happened that people want to hear of.

What is told is read off the audit log: promotions, roll backs, verdicts on canaries, runs that
failed, engines that failed their attestation. Signed as Standard Webhooks asks for it; with names
of versions, runs and replicas, never who or why, which people write. Each address has a place in
the log of its own, so each gets everything at least once, in order, under ids that stay; one that
does not answer is tried again for hours, holds up nobody else, and then what it missed is skipped.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from pydantic import BaseModel, ConfigDict

from core import keys, registry
from core.errors import StartError
from core.keyring import Keyring, read_or_make
from core.redis_client import Redis, redis_errors
from core.settings import Settings

SECRET_FILE = "webhook.secret"
PAUSES_SECONDS = (5.0, 30.0, 120.0, 600.0, 1800.0, 7200.0)
"""Between the attempts to deliver one message; after the last one it is skipped."""
_TOLD = ("action", "version", "from", "to", "run", "outcome", "replica", "canary")
_LONGEST = 200
_PAGE = 100
_LOOK_SECONDS = 10.0
"""How long one call goes on with an address; the next tick goes on from there."""
_LEASE_SECONDS = 60
_PREFIX = "whsec_"

_log = logging.getLogger(__name__)


class Place(BaseModel):
    """How far an address has heard."""

    model_config = ConfigDict(frozen=True)

    heard: str
    """The last entry of the audit log that was delivered or skipped; `0` before the first."""
    attempts: int = 0
    next_at: float = 0.0


def events_of(entry: Mapping[str, Any]) -> list[str]:
    """What an entry of the audit log is called outside; most are not told (pure)."""
    action = entry.get("action", "")
    names = {
        "promoted": "policy.promoted",
        "rolled back": "policy.rolled_back",
        "attestation failed": "attestation.failed",
    }
    found = [names[action]] if action in names else []
    if action == "run ended" and entry.get("outcome") == "failed":
        found.append("run.failed")
    if entry.get("canary") == "ended":
        found.append("canary.verdict")
    return found


def message(event: str, entry: Mapping[str, Any]) -> bytes:
    """The body: bounded, without free text and without names of people (pure)."""
    data = {name: str(entry[name])[:_LONGEST] for name in _TOLD if name in entry}
    said = {"type": event, "timestamp": str(entry.get("at", ""))[:_LONGEST], "data": data}
    return json.dumps(said, sort_keys=True).encode()


def signature(secret: bytes, name: str, timestamp: int, body: bytes) -> str:
    """`v1,` and the HMAC-SHA256 of `id.timestamp.body`, base64 (Standard Webhooks, version 1)."""
    signed = f"{name}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()


def read_secrets(keyring: Keyring) -> list[bytes]:
    """What signs, one a line of `secrets/webhook.secret`; one is made at its first use.

    Each signs every message, so that receivers can change from one to the other when it suits
    them. Raises StartError.
    """
    path = keyring.folder / SECRET_FILE
    made = read_or_make(path, lambda: _PREFIX.encode() + base64.b64encode(os.urandom(32)))
    try:
        lines = made.decode().split()
        found = [base64.b64decode(line.removeprefix(_PREFIX), validate=True) for line in lines]
    except (binascii.Error, ValueError):
        found = []
    if not (found and all(found)):
        raise StartError(f"{path} has to hold {_PREFIX} and base64: nothing is sent without it")
    return found


async def webhooks_due(redis: Redis, settings: Settings, *, now: float) -> bool:
    """Whether somebody has to be told something now, or is new."""
    if not settings.webhooks.urls or await redis.exists(keys.webhooks_lease()):
        return False
    newest = await _newest(redis)
    places = [await _place(redis, url) for url in settings.webhooks.urls]
    return any(p is None or (p.heard != newest and p.next_at <= now) for p in places)


async def send_what_is_due(redis: Redis, keyring: Keyring, settings: Settings) -> int:
    """Tell every address what it has not heard yet; how many messages were taken.

    Nothing is done while another worker is at it. Raises Unavailable, StartError.
    """
    secrets, lease = read_secrets(keyring), keys.webhooks_lease()
    with redis_errors():
        if not await redis.set(lease, 1, nx=True, ex=_LEASE_SECONDS):
            return 0
        try:
            limit = aiohttp.ClientTimeout(total=settings.webhooks.timeout_seconds)
            async with aiohttp.ClientSession(
                timeout=limit, cookie_jar=aiohttp.DummyCookieJar(), trust_env=True
            ) as session:
                telling = [_tell(redis, session, secrets, url) for url in settings.webhooks.urls]
                return sum(await asyncio.gather(*telling))
        finally:
            await redis.delete(lease)


async def _tell(
    redis: Redis, session: aiohttp.ClientSession, secrets: Sequence[bytes], url: str
) -> int:
    """Go on where this address is, until it has heard all, or one message is not taken."""
    place = await _place(redis, url)
    if place is None:  # it hears of what happens from now on
        await _save(redis, url, Place(heard=await _newest(redis)))
        return 0
    if place.next_at > time.time():
        return 0
    sent, until = 0, time.monotonic() + _LOOK_SECONDS
    while entries := await redis.xrange(keys.audit(), f"({place.heard}", count=_PAGE):
        for raw_name, fields in entries:
            name, entry = raw_name.decode(), registry.stream_entry(fields)
            for number, event in enumerate(events_of(entry)):
                why = await _post(session, secrets, url, f"{name}.{number}", message(event, entry))
                if why and (await _failed(redis, url, place, name, why)):
                    return sent
                sent += not why
            place = Place(heard=name)
            await _save(redis, url, place)
            if time.monotonic() > until:
                return sent
    return sent


async def _failed(redis: Redis, url: str, place: Place, name: str, why: str) -> bool:
    """Note that a message was not taken; False when it has been tried often enough."""
    host = urlsplit(url).hostname
    if place.attempts >= len(PAUSES_SECONDS):
        _log.error("webhook %s at %s is skipped after %d attempts", name, host, place.attempts + 1)
        return False
    pause = PAUSES_SECONDS[place.attempts]
    _log.warning("webhook %s at %s failed (%s), again in %.0f s", name, host, why, pause)
    again = Place(heard=place.heard, attempts=place.attempts + 1, next_at=time.time() + pause)
    await _save(redis, url, again)
    return True


async def _post(
    session: aiohttp.ClientSession, secrets: Sequence[bytes], url: str, name: str, body: bytes
) -> str:
    """Why it was not taken; empty when it was. The answer is not read, a redirect not followed."""
    now = int(time.time())
    headers = {
        "content-type": "application/json",
        "webhook-id": name,
        "webhook-timestamp": str(now),
        "webhook-signature": " ".join(signature(one, name, now, body) for one in secrets),
    }
    try:
        async with session.post(url, data=body, headers=headers, allow_redirects=False) as reply:
            status = reply.status
            reply.close()
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        return type(error).__name__
    return "" if 200 <= status < 300 else f"status {status}"


async def _newest(redis: Redis) -> str:
    newest = await redis.xrevrange(keys.audit(), count=1)
    return newest[0][0].decode() if newest else "0"


async def _place(redis: Redis, url: str) -> Place | None:
    raw = await redis.hget(keys.webhooks(), _digest(url))
    return Place.model_validate_json(raw) if raw else None


async def _save(redis: Redis, url: str, place: Place) -> None:
    await redis.hset(keys.webhooks(), _digest(url), place.model_dump_json())


def _digest(url: str) -> str:
    """An address may hold a password: it is kept nowhere."""
    return hashlib.sha256(url.encode()).hexdigest()[:16]
