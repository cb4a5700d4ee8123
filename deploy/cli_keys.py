"""`instructloop keys`: API keys, made, listed, given new secrets, revoked; keys of the service."""

import asyncio
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console

from core import registry
from core.auth import create_key, list_keys, revoke_key, rotate_key
from core.errors import InstructLoopError
from core.keyring import ENGINE_DATA, IDS, Keyring
from core.records import ApiKey, KeyLimits, Scope
from core.settings import Settings
from core.start import records
from deploy.options import RedisUrl, StateDir, caller, settings_from
from deploy.terminal import listing, show

app = typer.Typer(help="API keys.", no_args_is_help=True)
SCOPES: tuple[Scope, ...] = ("complete", "feedback", "label", "admin")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_SHORT = {
    "requests_per_minute": "requests/min",
    "tokens_per_minute": "tokens/min",
    "concurrency": "at once",
}
Limit = Annotated[int | None, typer.Option(min=0, help="In place of the setting; 0 is no limit.")]
UserLimit = Annotated[int | None, typer.Option(min=0, help="The same for each of its end users.")]


@app.command()
def create(
    name: Annotated[str, typer.Option(help="Whose key this is.")],
    scope: Annotated[list[str], typer.Option(help="complete, feedback, label, admin; repeatable.")],
    tenant: Annotated[str, typer.Option(help="Nothing of one tenant is visible to another.")] = (
        "default"
    ),
    expires_in: Annotated[str | None, typer.Option(help="Such as 12h, 30d or 8w.")] = None,
    requests_per_minute: Limit = None,
    tokens_per_minute: Limit = None,
    concurrency: Limit = None,
    user_requests_per_minute: UserLimit = None,
    user_tokens_per_minute: UserLimit = None,
    user_concurrency: UserLimit = None,
    state_dir: StateDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Make a key and print it, once: only its hash is kept.

    Example: instructloop keys create --name shop --scope complete --expires-in 30d
    """
    scopes: list[Scope] = [known for known in SCOPES if known in scope]
    if unknown := sorted(set(scope) - set(SCOPES)):
        raise typer.BadParameter(f"unknown scope {unknown[0]}: one of {', '.join(SCOPES)}")
    limits = KeyLimits(
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        concurrency=concurrency,
        user_requests_per_minute=user_requests_per_minute,
        user_tokens_per_minute=user_tokens_per_minute,
        user_concurrency=user_concurrency,
    )
    seconds = None if expires_in is None else _seconds(expires_in, option="--expires-in")
    expires_at = None if seconds is None else time.time() + seconds
    settings = settings_from(state_dir, redis_url)
    key, secret = asyncio.run(_create(settings, name, scopes, tenant, expires_at, limits))
    Console(stderr=True).print(f"key {key.id} for {name}; keep it now, it is not shown again:")
    print(secret)


@app.command("list")
def list_all(state_dir: StateDir = None, redis_url: RedisUrl = None) -> None:
    """List keys without their secrets.

    Example: instructloop keys list
    """
    table = listing("id", "name", "tenant", "scopes", "state", "limits")
    for key in asyncio.run(_list(settings_from(state_dir, redis_url))):
        state = state_of(key, now=time.time())
        table.add_row(
            key.id, key.name, key.tenant, ", ".join(key.scopes), state, limits_of(key.limits)
        )
    show(table)


@app.command()
def revoke(key_id: str, state_dir: StateDir = None, redis_url: RedisUrl = None) -> None:
    """Refuse a key from now on, everywhere within two seconds.

    Example: instructloop keys revoke 1a2b3c4d
    """
    asyncio.run(_revoke(settings_from(state_dir, redis_url), key_id))
    print(f"revoked {key_id}")


@app.command()
def rotate(
    key_id: str,
    grace: Annotated[str, typer.Option(help="How long the old secret stays good.")] = "24h",
    again: Annotated[
        bool, typer.Option("--again", help="Replace the secret of a rotation that is not over.")
    ] = False,
    state_dir: StateDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Give a key a new secret and print it, once; the old one stays good for a while.

    Example: instructloop keys rotate 1a2b3c4d --grace 7d
    """
    seconds = _seconds(grace, option="--grace")
    settings = settings_from(state_dir, redis_url)
    key, secret = asyncio.run(_rotate(settings, key_id, seconds, again))
    until = datetime.fromtimestamp(key.previous_until or 0.0, UTC)
    said = f"key {key.id} of {key.name}; the old secret is good until {until:%Y-%m-%d %H:%M} UTC:"
    Console(stderr=True).print(said)
    print(secret)


@app.command("rotate-signing")
def rotate_signing(state_dir: StateDir = None, redis_url: RedisUrl = None) -> None:
    """Sign versions, receipts and the audit log with a new key; old signatures stay good.

    Workers sign with the old one until they start again.

    Example: instructloop keys rotate-signing
    """
    settings = settings_from(state_dir, redis_url)
    asyncio.run(_tell(settings, "signing key rotated"))
    Keyring(settings.secrets).rotate_signing(now=time.time())
    print("a new key signs from now on; start the workers again when it suits you")


@app.command("rotate-ids")
def rotate_ids(state_dir: StateDir = None, redis_url: RedisUrl = None) -> None:
    """Authenticate completion ids with a new key; earlier ids stay good, and nothing starts again.

    In five minutes, when every process knows it. An old key's file checks until you delete it.

    Example: instructloop keys rotate-ids
    """
    _succeed(settings_from(state_dir, redis_url), IDS, "id key rotated")


@app.command("rotate-engine-token")
def rotate_engine_token(state_dir: StateDir = None, redis_url: RedisUrl = None) -> None:
    """Let gateways and workers show engines a new token; nothing starts again.

    In five minutes, when every engine takes it. An old token is taken until you delete its file.

    Example: instructloop keys rotate-engine-token
    """
    _succeed(settings_from(state_dir, redis_url), ENGINE_DATA, "engine token rotated")


def _succeed(settings: Settings, name: str, action: str) -> None:
    asyncio.run(_tell(settings, action))
    keyring = Keyring(settings.secrets)
    old = ", ".join(str(settings.secrets / file) for file in keyring.files(name))
    try:
        begins = datetime.fromtimestamp(keyring.succeed(name, now=time.time()), UTC)
    except OSError as error:
        raise InstructLoopError(f"no new one could be written, nothing changes: {error}") from None
    print(f"the new one is used from {begins:%H:%M:%S} UTC; good until you delete it: {old}")


def state_of(key: ApiKey, *, now: float) -> str:
    """Whether a key is good, and until when."""
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is None:
        return "valid"
    if key.expires_at <= now:
        return "expired"
    return f"valid until {datetime.fromtimestamp(key.expires_at, UTC):%Y-%m-%d %H:%M} UTC"


def limits_of(limits: KeyLimits | None) -> str:
    """The limits of a key, as a line; those of the settings are not repeated."""
    said = []
    for prefix, whose in (("", ""), ("user_", "each user ")):
        for name, short in _SHORT.items():
            value = None if limits is None else getattr(limits, prefix + name)
            if value is not None:
                said.append(f"{whose}{value or 'any'} {short}")
    return ", ".join(said)


def _seconds(text: str, *, option: str) -> int:
    """A time such as `30d`, in seconds. Raises BadParameter."""
    found = re.fullmatch(r"([1-9][0-9]{0,6})([smhdw])", text)
    if found is None:
        raise typer.BadParameter(f"{option} takes a number and one of s, m, h, d, w: 30d")
    return int(found[1]) * _SECONDS[found[2]]


async def _create(
    settings: Settings,
    name: str,
    scopes: Sequence[Scope],
    tenant: str,
    expires_at: float | None,
    limits: KeyLimits,
) -> tuple[ApiKey, str]:
    async with records(settings) as redis:
        return await create_key(
            redis,
            name=name,
            tenant=tenant,
            scopes=tuple(scopes),
            expires_at=expires_at,
            limits=limits if limits != KeyLimits() else None,
            who=caller(),
        )


async def _list(settings: Settings) -> list[ApiKey]:
    async with records(settings) as redis:
        return await list_keys(redis)


async def _revoke(settings: Settings, key_id: str) -> None:
    async with records(settings) as redis:
        await revoke_key(redis, key_id, who=caller())


async def _rotate(
    settings: Settings, key_id: str, seconds: float, again: bool
) -> tuple[ApiKey, str]:
    async with records(settings) as redis:
        return await rotate_key(redis, key_id, grace_seconds=seconds, again=again, who=caller())


async def _tell(settings: Settings, action: str) -> None:
    async with records(settings) as redis:
        await registry.record(redis, action, who=caller())
