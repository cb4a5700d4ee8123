"""`instructloop migrate`: what an earlier release left, brought to the schemas of this one."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from core.redis_client import connect, redis_errors, redis_url
from core.schema_steps import Told
from core.settings import Settings
from deploy.options import RedisUrl, StateDir, settings_from

if TYPE_CHECKING:
    from deploy.migrate import Begin

_REDIS_SECONDS = 60.0


def migrate(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done.")] = False,
    state_dir: StateDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Bring the state folder and Redis of an earlier release to this one's schemas.

    Needed before processes that are started one by one; `up` does it by itself, the chart before
    an upgrade. Again it does no harm, also after it was killed. While processes of the earlier
    release still run and the schema changes, it does nothing and says so.

    Example: instructloop migrate --redis-url redis://redis:6379/0 --dry-run
    """
    from deploy.migrate import folder_forward

    settings = settings_from(state_dir, redis_url)
    if not folder_forward(settings.state_dir, say=print, dry_run=dry_run):
        print(f"the state folder {settings.state_dir}: nothing to do")
    if not asyncio.run(_redis_forward(settings, dry_run=dry_run)):
        print("Redis: nothing to do")


async def _redis_forward(settings: Settings, *, dry_run: bool) -> bool:
    from deploy.migrate import redis_forward, until_redis_answers

    async with connect(redis_url(settings)) as redis:
        await until_redis_answers(redis, seconds=_REDIS_SECONDS if settings.redis_url else 0.0)
        with redis_errors(), _bar() as begin:
            return await redis_forward(redis, say=print, begin=begin, dry_run=dry_run)


@contextmanager
def _bar() -> Iterator["Begin"]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal
    ) as bar:

        def begin(what: str, total: int) -> Told:
            task = bar.add_task(what, total=total)
            return lambda done: bar.update(task, advance=done)

        yield begin
