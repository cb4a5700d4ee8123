"""API keys: made, listed, revoked, and looked up for every request without asking Redis.

A key is kept as the SHA-256 of its secret (256 random bits, so a plain hash is enough); the secret
is shown once, to whoever makes it. `KeyCache` holds all keys in memory and reads them again every
second, so a revoked key is refused everywhere within two. With Redis away it keeps what it knew.
Knows keys and scopes; knows nothing of HTTP.
"""

import asyncio
import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from core import keys, registry
from core.errors import Conflict, Forbidden, NotFound, Unauthenticated, Unavailable, Unprocessable
from core.records import ApiKey, KeyLimits, Scope
from core.redis_client import Redis, held, promise, redis_errors, script

REFRESH_SECONDS = 1.0
_FRESH_SECONDS = 3 * REFRESH_SECONDS
_MISS_SECONDS = 0.1  # unknown secrets may cause one early refresh in this time
_PATIENCE_SECONDS = 0.5  # how long a request waits for that
_NOT_READ = "the API keys are not read yet, because Redis does not answer"
_ID_BYTES = 4  # what a completion id has room for


async def create_key(
    redis: Redis,
    *,
    name: str,
    tenant: str,
    scopes: Sequence[Scope],
    expires_at: float | None = None,
    trains: bool = True,
    limits: KeyLimits | None = None,
    who: str = "",
) -> tuple[ApiKey, str]:
    """Make a key; returns it with its secret, which is kept nowhere.

    `expires_at` is in seconds since the epoch; `limits` take the place of those of the settings;
    `who` makes it, for the audit log.
    Raises Unprocessable without a scope.
    """
    if not scopes:
        raise Unprocessable("a key needs at least one scope: complete, feedback, label or admin")
    secret = _new_secret()
    while True:
        key = ApiKey(
            id=secrets.token_hex(_ID_BYTES),
            name=name,
            tenant=tenant,
            scopes=tuple(dict.fromkeys(scopes)),
            digest=digest_of(secret),
            created_at=time.time(),
            expires_at=expires_at,
            trains=trains,
            limits=limits,
        )
        if await _save(redis, key, "key created", before=b"", scopes=" ".join(scopes), who=who):
            return key, secret


async def list_keys(redis: Redis) -> list[ApiKey]:
    """All keys, revoked and expired ones too, oldest first."""
    raw = await redis.hgetall(keys.api_keys())
    return sorted(map(ApiKey.model_validate_json, raw.values()), key=lambda key: key.created_at)


async def revoke_key(redis: Redis, key_id: str, *, who: str = "") -> ApiKey:
    """Refuse this key from now on, everywhere within two seconds. Raises NotFound, Unavailable."""
    while True:
        raw = await redis.hget(keys.api_keys(), key_id)
        if raw is None:
            raise NotFound(f"no key {key_id}: `instructloop keys list` shows them")
        key = ApiKey.model_validate_json(raw)
        if key.revoked_at is not None:
            with redis_errors():
                await held(redis)  # the first time it may have failed to reach the replicas
            return key
        key = key.model_copy(update={"revoked_at": time.time()})
        with redis_errors():
            if await _save(redis, key, "key revoked", before=raw, run=promise, who=who):
                return key


async def rotate_key(
    redis: Redis, key_id: str, *, grace_seconds: float, again: bool = False, who: str = ""
) -> tuple[ApiKey, str]:
    """Give a key a new secret, which is returned; the old one is good for the grace.

    What it may do, its limits and whose word it is stay. Within the grace of a rotation the next
    one has to be `again`: it replaces the secret of that one, which nobody may have seen, and the
    one before stays good. Raises NotFound, Conflict, Unavailable.
    """
    secret = _new_secret()
    while True:
        raw = await redis.hget(keys.api_keys(), key_id)
        if raw is None:
            raise NotFound(f"no key {key_id}: `instructloop keys list` shows them")
        key = ApiKey.model_validate_json(raw)
        if key.revoked_at is not None:
            raise Conflict(f"key {key_id} was revoked: make another with `keys create`")
        within = _previous_is_good(key)
        if within and not again:
            raise Conflict(
                f"key {key_id} was rotated, and its secret before that is still good: wait until "
                "that is over, or replace the new secret alone with --again"
            )
        update = {
            "digest": digest_of(secret),
            "previous_digest": key.previous_digest if within else key.digest,
            "previous_until": time.time() + grace_seconds,
        }
        key = key.model_copy(update=update)
        with redis_errors():
            if await _save(redis, key, "key rotated", before=raw, run=promise, who=who):
                return key, secret


async def _save(
    redis: Redis,
    key: ApiKey,
    action: str,
    *,
    before: bytes,
    run: Callable[..., Awaitable[Any]] = script,
    **details: str,
) -> bool:
    """Write a key and its entry of the audit log in one step; False when it has changed."""
    said = {name: text for name, text in details.items() if text}
    entry = registry.audit_entry(action, key=key.id, **said)
    text = key.model_dump_json(exclude_none=True)
    done = await run(
        redis, "save_key", [keys.api_keys(), keys.audit()], [key.id, before, text, entry]
    )
    return bool(done)


def _new_secret() -> str:
    return f"il-{secrets.token_urlsafe(32)}"


def digest_of(secret: str) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def require(key: ApiKey, scope: Scope) -> None:
    """Raises Forbidden unless the key has the scope; `admin` has all."""
    if scope not in key.scopes and "admin" not in key.scopes:
        raise Forbidden(
            f"this needs a key with the scope `{scope}`; key {key.id} has "
            f"{', '.join(key.scopes)}: see `instructloop keys create --scope {scope}`"
        )


def _previous_is_good(key: ApiKey) -> bool:
    return key.previous_until is not None and key.previous_until > time.time()


def _valid(key: ApiKey | None) -> ApiKey:
    if key is None:
        raise Unauthenticated("this API key is not known", code="invalid_api_key")
    if key.revoked_at is not None:
        raise Unauthenticated(f"API key {key.id} was revoked", code="invalid_api_key")
    if key.expires_at is not None and key.expires_at <= time.time():
        raise Unauthenticated(f"API key {key.id} has expired", code="invalid_api_key")
    return key


class KeyCache:
    """All keys, in memory."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._raw: dict[bytes, bytes] = {}
        self._by_digest: dict[str, ApiKey] = {}
        self._by_id: dict[str, ApiKey] = {}
        self._asked_at = float("-inf")
        self._read_at = float("-inf")
        self._again: asyncio.Task[None] | None = None

    @property
    def loaded(self) -> bool:
        """Whether the keys were read at least once."""
        return self._read_at > float("-inf")

    @property
    def fresh(self) -> bool:
        """Whether they were read within the last seconds: Redis answers."""
        return time.monotonic() - self._read_at < _FRESH_SECONDS

    async def run(self) -> None:
        """Read the keys every second until cancelled."""
        while True:
            with suppress(Unavailable):  # what is known stays good
                await self.refresh()
            await asyncio.sleep(REFRESH_SECONDS)

    async def refresh(self) -> None:
        """Read all keys now. Raises Unavailable."""
        self._asked_at = time.monotonic()
        with redis_errors():
            raw: dict[bytes, bytes] = await self._redis.hgetall(keys.api_keys())
        if raw != self._raw or not self.loaded:
            known = list(map(ApiKey.model_validate_json, raw.values()))
            self._by_id = {key.id: key for key in known}
            self._by_digest = {key.previous_digest: key for key in known if key.previous_digest}
            self._by_digest |= {key.digest: key for key in known}
            self._raw = raw
        self._read_at = time.monotonic()

    def lookup(self, secret: str) -> ApiKey:
        """The key of a secret. Raises Unauthenticated, or Unavailable before the first read."""
        return self._lookup(digest_of(secret))

    def _lookup(self, digest: str) -> ApiKey:
        if not self.loaded:
            raise Unavailable(_NOT_READ)
        key = _valid(self._by_digest.get(digest))
        if key.digest != digest and not _previous_is_good(key):
            raise Unauthenticated(
                f"API key {key.id} has a new secret, and the time of this one is over",
                code="invalid_api_key",
            )
        return key

    async def find_id(self, key_id: str) -> ApiKey:
        """`find` by the key's name, for what carries our own proof of it."""
        if not self.loaded or key_id not in self._by_id:
            await self._look_again()
        if not self.loaded:
            raise Unavailable(_NOT_READ)
        return _valid(self._by_id.get(key_id))

    def of_tenant(self, tenant: str) -> list[ApiKey]:
        """All keys of a tenant, revoked and expired ones too, oldest first."""
        found = [key for key in self._by_id.values() if key.tenant == tenant]
        return sorted(found, key=lambda key: key.created_at)

    async def find(self, secret: str) -> ApiKey:
        """Like `lookup`, but a secret that is not known may have been made a moment ago."""
        return await self.find_digest(digest_of(secret))

    async def find_digest(self, digest: str) -> ApiKey:
        """`find` by what is kept of the secret, as a browser's session has it."""
        if not self.loaded or digest not in self._by_digest:
            await self._look_again()
        return self._lookup(digest)

    async def _look_again(self) -> None:
        """Wait for a refresh that begins now or soon; all who wait share it."""
        if self._again is None or self._again.done():
            self._again = asyncio.create_task(self._refresh_soon())
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await asyncio.shield(self._again)

    async def _refresh_soon(self) -> None:
        await asyncio.sleep(self._asked_at + _MISS_SECONDS - time.monotonic())
        with suppress(Unavailable):
            await self.refresh()
