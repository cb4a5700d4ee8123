"""`instructloop labeling` and `feedback`: raters measured, and what of theirs is held back."""

import getpass
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from core.errors import InstructLoopError
from core.keyring import Keyring
from core.redis_client import Redis
from core.settings import Settings
from deploy.cli_loop import with_redis
from deploy.options import RedisUrl, StateDir, settings_from
from deploy.terminal import listing
from deploy.terminal import show as show_table

if TYPE_CHECKING:
    from feedback.holding import Decision

app = typer.Typer(help="Raters: known tasks, agreement.", no_args_is_help=True)
feedback_app = typer.Typer(help="Feedback that waits for a decision.", no_args_is_help=True)
Tenant = Annotated[str, typer.Option(help="Whose raters.")]
Why = Annotated[str, typer.Option(help="Goes into the audit log.")]
Subject = Annotated[str, typer.Argument(help="A feedback id, or a rater as `held` shows them.")]


@app.command()
def gold(
    source: Annotated[Path, typer.Option("--in", help="JSONL: prompt, outputs, ranking.")],
    tenant: Tenant = "default",
    evaluation: Annotated[bool, typer.Option(help="For held-out raters.")] = False,
    state_dir: StateDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Offer tasks whose right order is known, to measure raters by.

    Example: instructloop labeling gold --in gold.jsonl
    """
    from feedback.gold import gold_tasks
    from feedback.labeling import open_tasks

    settings = settings_from(state_dir, redis_url)
    keyring = Keyring(settings.secrets)
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InstructLoopError(f"{source} cannot be read: {error}") from error
    tasks = gold_tasks(
        lines,
        tenant=tenant,
        mode="evaluation" if evaluation else "training",
        name=lambda what: keyring.hashed(tenant, "labeling", what),
        now=time.time(),
    )
    with_redis(settings, lambda redis: open_tasks(redis, tasks))
    print(f"{len(tasks)} gold tasks are offered")


@app.command()
def agreement(
    tenant: Tenant = "default", state_dir: StateDir = None, redis_url: RedisUrl = None
) -> None:
    """Say how far raters agree, in all, by week and by rater.

    Example: instructloop labeling agreement
    """
    from feedback.raters import raters_of

    settings = settings_from(state_dir, redis_url)
    keyring = Keyring(settings.secrets)
    found = with_redis(
        settings,
        lambda redis: raters_of(redis, tenant, keyring=keyring, settings=settings.feedback),
    )
    print(f"agreement {_percent(found.agreement)} of {found.pairs} pairs", end="; ")
    print(f"alpha of the ratings {_alpha(found.alpha)}")
    weeks = listing("week", "agreement", "pairs", "alpha")
    for week in found.weeks:
        weeks.add_row(week.week, _percent(week.agreement), str(week.pairs), _alpha(week.alpha))
    show_table(weeks)
    table = listing(
        "rater", "name", "tasks", "skipped", "agreement", "pairs", "alpha", "gold", "held out"
    )
    for one in found.raters:
        table.add_row(
            one.rater,
            one.name or "",
            str(one.tasks),
            str(one.skipped),
            _percent(one.agreement),
            str(one.pairs),
            _alpha(one.alpha),
            _percent(one.gold_accuracy),
            "yes" if one.heldout else "",
        )
    show_table(table)


@feedback_app.command()
def held(
    tenant: Tenant = "default", state_dir: StateDir = None, redis_url: RedisUrl = None
) -> None:
    """List what is held back from training, by rater, and why.

    Example: instructloop feedback held
    """
    from feedback import holding

    settings = settings_from(state_dir, redis_url)
    found = with_redis(settings, lambda redis: holding.held(redis, tenant, settings.feedback))
    table = listing("rater", "latest word", "words", "why", whole=2)
    for one in found:
        why = ", ".join(f"{reason} ({number})" for reason, number in one.reasons.items())
        table.add_row(one.rater, one.feedback[0], str(len(one.feedback)), why)
    show_table(table)


@feedback_app.command()
def release(
    subject: Subject,
    why: Why = "by hand",
    tenant: Tenant = "default",
    state_dir: StateDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Let what is held back train after all.

    Example: instructloop feedback release fb-0a1b --why "an import, not a burst"
    """
    words = _decide(settings_from(state_dir, redis_url), subject, "released", tenant, why)
    print(f"released: {words}")


@feedback_app.command()
def reject(
    subject: Subject,
    why: Why = "by hand",
    tenant: Tenant = "default",
    state_dir: StateDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Keep it out of training for good; nothing is deleted.

    Example: instructloop feedback reject fb-0a1b --why "a script"
    """
    words = _decide(settings_from(state_dir, redis_url), subject, "rejected", tenant, why)
    print(f"rejected: {words}")


def _decide(settings: Settings, subject: str, decision: "Decision", tenant: str, why: str) -> int:
    from feedback import holding

    async def act(redis: Redis) -> int:
        return await holding.decide(
            redis,
            subject,
            decision,
            tenant=tenant,
            who=f"{getpass.getuser()} (command line)",
            why=why,
            settings=settings.feedback,
        )

    return with_redis(settings, act)


def _alpha(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
