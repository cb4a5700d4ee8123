"""A process that backs up or restores, and kills itself at a line of the code that does it."""

import asyncio
from pathlib import Path

import deploy
from core.redis_client import connect
from deploy.backup import make_backup, restore
from tests.die_at import die_at

ROOT = str(Path(deploy.__file__).parent / "backup")


def quiet(_what, _total):
    """A bar that nobody sees."""
    return lambda _done: None


def back_up_and_die(url, settings, out, at_line, lines) -> None:
    async def run():
        async with connect(url) as redis:
            await make_backup(redis, settings, out, quiet)

    die_at(at_line, lines, lambda: asyncio.run(run()), within=(ROOT,))


def restore_and_die(source, target, at_line, lines) -> None:
    die_at(
        at_line,
        lines,
        lambda: restore(source, target, [], quiet, without_erasures=True),
        within=(ROOT,),
    )
