"""A process that migrates, and may be told to kill itself at any line of it."""

import asyncio

import core.schema_steps
import deploy.migrate
from core.redis_client import connect
from deploy.migrate import Patience, redis_forward
from tests.die_at import die_at

ROOTS = (core.schema_steps.__file__, deploy.migrate.__file__)
BATCH = 7


def migrate_and_die(url: str, at_line: int, lines) -> None:
    """Bring a Redis forward, a few keys at a time, and die at a line."""
    core.schema_steps._BATCH = BATCH
    die_at(at_line, lines, lambda: asyncio.run(_migrate(url)), within=ROOTS)


async def _migrate(url: str) -> None:
    async with connect(url) as redis:
        await redis_forward(
            redis, say=lambda _: None, begin=lambda *_: lambda _: None, patience=Patience(0, 30.0)
        )
