"""`instructloop policies`: the registry, and what is live."""

import json
import sys
from typing import Annotated

import typer

from core import registry
from core.keyring import Keyring
from core.provenance import prove
from core.records import Card
from core.redis_client import Redis
from deploy import cli_canary
from deploy.cli_loop import with_redis
from deploy.options import RedisUrl, StateDir, caller, settings_from
from deploy.terminal import listing
from deploy.terminal import show as show_table

app = typer.Typer(help="The registry of policies.", no_args_is_help=True)
app.add_typer(cli_canary.app, name="canary")
IS_TARGET = " is the target now"
Why = Annotated[str | None, typer.Option(help="Goes into the audit log; asked for if not given.")]


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
    """Print a version's card with its figures, its data and the gate's reasons, and its history.

    Example: instructloop policies show v0001
    """

    async def read(redis: Redis) -> dict[str, object]:
        card = await registry.card(redis, version)
        history = await registry.history(redis, version)
        probes = await registry.probes(redis, version, history)
        live = await registry.target(redis) == version
        return card.model_dump() | {"live": live, "history": history, "probes": probes}

    print(json.dumps(with_redis(settings_from(state_dir, redis_url), read), indent=1))


@app.command()
def verify(version: str, state_dir: StateDir = None, redis_url: RedisUrl = None) -> None:
    """Prove that a version is what its signed card says, down to what it learned from.

    Example: instructloop policies verify v0001
    """
    settings = settings_from(state_dir, redis_url)

    async def read(redis: Redis) -> tuple[list[Card], frozenset[str]]:
        return await registry.cards(redis), await registry.collected(redis)

    cards, gone = with_redis(settings, read)
    proven = prove(
        version,
        cards={card.version: card for card in cards},
        policies=settings.state_dir / "policies",
        gone=gone,
        public_key=Keyring(settings.secrets).public_key(),
    )
    for line in proven:
        print(f"{version}: {line}")


@app.command()
def promote(
    version: str,
    why: Why = None,
    canary: cli_canary.Share = None,
    state_dir: StateDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Make a version live, at once or for a share of users first; also one that the gate refused.

    Example: instructloop policies promote v0002 --why "read the samples, they are better"
    """
    reason = _reason(why)

    async def act(redis: Redis) -> str:
        if canary is not None:
            return await cli_canary.begin(redis, version, share=canary, who=caller(), why=reason)
        return await registry.promote(redis, version, who=caller(), why=reason) + IS_TARGET

    print(with_redis(settings_from(state_dir, redis_url), act))


@app.command()
def rollback(why: Why = None, state_dir: StateDir = None, redis_url: RedisUrl = None) -> None:
    """Go back to the version that was live before.

    Example: instructloop policies rollback --why "users complain"
    """
    reason = _reason(why)

    async def act(redis: Redis) -> str:
        return await registry.rollback(redis, who=caller(), why=reason)

    print(with_redis(settings_from(state_dir, redis_url), act) + IS_TARGET)


async def _cards_and_target(redis: Redis) -> tuple[list[Card], str | None]:
    return await registry.cards(redis), await registry.target(redis)


def _win_rate(card: Card) -> str:
    figure = card.figures.get("win_rate_vs_parent")
    if not isinstance(figure, dict):
        return ""
    low, high = figure["interval"]
    return f"{figure['value']:.2f} [{low:.2f}, {high:.2f}]"


def _reason(given: str | None) -> str:
    """What was said, or is said now; a script that says nothing is known by that."""
    if given is None and not sys.stdin.isatty():
        return "by hand"
    reason = (typer.prompt("Why") if given is None else given).strip()
    if not reason:
        raise typer.BadParameter("say why: it goes into the audit log", param_hint="--why")
    return reason
