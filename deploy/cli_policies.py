"""`instructloop policies`: the registry, and what is live."""

import getpass
import json
from typing import Annotated

import typer

from core import registry
from core.records import Card
from core.redis_client import Redis
from deploy.cli_loop import with_redis
from deploy.options import RedisUrl, StateDir, settings_from
from deploy.terminal import listing
from deploy.terminal import show as show_table

app = typer.Typer(help="The registry of policies.", no_args_is_help=True)
Why = Annotated[str, typer.Option(help="Goes into the audit log.")]


@app.command("list")
def list_all(state_dir: StateDir = None, redis_url: RedisUrl = None) -> None:
    """List the versions; the live one is marked.

    Example: instructloop policies list
    """
    cards, live = with_redis(settings_from(state_dir, redis_url), _cards_and_target)
    table = listing("version", "kind", "parent", "created", "win rate over parent", "gate")
    for card in cards:
        mark = " (live)" if card.version == live else ""
        table.add_row(
            card.version + mark,
            card.kind,
            card.parent or "",
            card.created_at,
            _win_rate(card),
            {True: "passed", False: "refused", None: ""}[card.gate.get("passed")],
        )
    show_table(table)


@app.command()
def show(version: str, state_dir: StateDir = None, redis_url: RedisUrl = None) -> None:
    """Print a version's card and its history.

    Example: instructloop policies show v0001
    """

    async def read(redis: Redis) -> dict[str, object]:
        card = await registry.card(redis, version)
        return card.model_dump() | {"history": await registry.history(redis, version)}

    print(json.dumps(with_redis(settings_from(state_dir, redis_url), read), indent=1))


@app.command()
def promote(
    version: str, why: Why = "by hand", state_dir: StateDir = None, redis_url: RedisUrl = None
) -> None:
    """Make a version live; also one that the gate refused.

    Example: instructloop policies promote v0002 --why "read the samples, they are better"
    """

    async def act(redis: Redis) -> str:
        return await registry.promote(redis, version, who=_who(), why=why)

    print(f"{with_redis(settings_from(state_dir, redis_url), act)} is the target now")


@app.command()
def rollback(why: Why = "by hand", state_dir: StateDir = None, redis_url: RedisUrl = None) -> None:
    """Go back to the version that was live before.

    Example: instructloop policies rollback --why "users complain"
    """

    async def act(redis: Redis) -> str:
        return await registry.rollback(redis, who=_who(), why=why)

    print(f"{with_redis(settings_from(state_dir, redis_url), act)} is the target now")


async def _cards_and_target(redis: Redis) -> tuple[list[Card], str | None]:
    return await registry.cards(redis), await registry.target(redis)


def _win_rate(card: Card) -> str:
    figure = card.figures.get("win_rate_vs_parent")
    if not isinstance(figure, dict):
        return ""
    low, high = figure["interval"]
    return f"{figure['value']:.2f} [{low:.2f}, {high:.2f}]"


def _who() -> str:
    return f"{getpass.getuser()} (command line)"
