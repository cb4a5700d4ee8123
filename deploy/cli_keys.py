"""`instructloop keys`: API keys, made, listed, revoked."""

import asyncio
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from core.auth import create_key, list_keys, revoke_key
from core.records import ApiKey, Scope
from core.redis_client import connect, redis_errors, redis_url
from core.settings import Settings
from deploy.options import RedisUrl, StateDir, settings_from

app = typer.Typer(help="API keys.", no_args_is_help=True)
SCOPES: tuple[Scope, ...] = ("complete", "feedback", "label", "admin")


@app.command()
def create(
    name: Annotated[str, typer.Option(help="Whose key this is.")],
    scope: Annotated[list[str], typer.Option(help="complete, feedback, label, admin; repeatable.")],
    tenant: Annotated[str, typer.Option(help="Nothing of one tenant is visible to another.")] = (
        "default"
    ),
    state_dir: StateDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Make a key and print it, once: only its hash is kept.

    Example: instructloop keys create --name shop --scope complete --scope feedback
    """
    scopes: list[Scope] = [known for known in SCOPES if known in scope]
    if unknown := sorted(set(scope) - set(SCOPES)):
        raise typer.BadParameter(f"unknown scope {unknown[0]}: one of {', '.join(SCOPES)}")
    key, secret = asyncio.run(_create(settings_from(state_dir, redis_url), name, scopes, tenant))
    Console(stderr=True).print(f"key {key.id} for {name}; keep it now, it is not shown again:")
    print(secret)


@app.command("list")
def list_all(state_dir: StateDir = None, redis_url: RedisUrl = None) -> None:
    """List keys without their secrets.

    Example: instructloop keys list
    """
    table = Table("id", "name", "tenant", "scopes", "state")
    for key in asyncio.run(_list(settings_from(state_dir, redis_url))):
        state = "revoked" if key.revoked_at else "valid"
        table.add_row(key.id, key.name, key.tenant, ", ".join(key.scopes), state)
    Console().print(table)


@app.command()
def revoke(key_id: str, state_dir: StateDir = None, redis_url: RedisUrl = None) -> None:
    """Refuse a key from now on, everywhere within two seconds.

    Example: instructloop keys revoke 1a2b3c4d
    """
    asyncio.run(_revoke(settings_from(state_dir, redis_url), key_id))
    print(f"revoked {key_id}")


async def _create(
    settings: Settings, name: str, scopes: Sequence[Scope], tenant: str
) -> tuple[ApiKey, str]:
    async with connect(redis_url(settings)) as redis:
        with redis_errors():
            return await create_key(redis, name=name, tenant=tenant, scopes=tuple(scopes))


async def _list(settings: Settings) -> list[ApiKey]:
    async with connect(redis_url(settings)) as redis:
        with redis_errors():
            return await list_keys(redis)


async def _revoke(settings: Settings, key_id: str) -> None:
    async with connect(redis_url(settings)) as redis:
        with redis_errors():
            await revoke_key(redis, key_id)
