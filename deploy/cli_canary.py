"""`instructloop policies canary`: the canary that is on, and its end by hand."""

import getpass
from typing import Annotated

import typer

from core import canary
from core.canary import Canary
from core.redis_client import Redis
from deploy.cli_loop import with_redis
from deploy.options import RedisUrl, StateDir, settings_from
from deploy.terminal import listing, show

app = typer.Typer(help="The canary that is on, or the last.", invoke_without_command=True)
Why = Annotated[str, typer.Option(help="Goes into the audit log.")]
Share = Annotated[
    float | None, typer.Option(help="Share of users who get it first; what they say decides.")
]


@app.callback()
def report(context: typer.Context, state_dir: StateDir = None, redis_url: RedisUrl = None) -> None:
    """Show the canary that is on, or the last, and the evidence.

    Example: instructloop policies canary
    """
    if context.invoked_subcommand is not None:
        return
    last = with_redis(settings_from(state_dir, redis_url), canary.with_evidence)
    if last is None:
        print("there was no canary yet: `instructloop policies promote V --canary 0.1` begins one")
        return
    print(summary(last))
    table = listing("figure", "value")
    for name, value in sorted(last.evidence.items()):
        table.add_row(name, f"{value:.4g}")
    show(table)


@app.command()
def stop(why: Why = "by hand", state_dir: StateDir = None, redis_url: RedisUrl = None) -> None:
    """End the canary; the live version stays.

    Example: instructloop policies canary stop --why "not before the holidays"
    """

    async def act(redis: Redis) -> str:
        return await canary.stop(redis, who=f"{getpass.getuser()} (command line)", why=why)

    print(f"the canary is over: {with_redis(settings_from(state_dir, redis_url), act)} is live")


async def begin(redis: Redis, version: str, *, share: float, who: str, why: str) -> str:
    """Begin a canary; says what it is."""
    return summary(await canary.start(redis, version, share=share, who=who, why=why))


def summary(last: Canary) -> str:
    """One line: what, for whom, and how it stands."""
    whom = "watched, all users" if last.mode == "watch" else f"{last.share:.0%} of users"
    whom += " by a second engine" if last.second_engine else ""
    return f"{last.candidate} in place of {last.parent}: {whom}; {last.state} ({last.why})"
