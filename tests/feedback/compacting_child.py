"""A process that compacts, and may be told to kill itself at any line of the archive's files."""

import asyncio
from pathlib import Path

import feedback
from core.redis_client import connect
from core.settings import Settings
from feedback.compaction import compact
from tests.die_at import die_at

ROOTS = tuple(str(Path(feedback.__file__).parent / name) for name in ("archive", "compaction"))


def compact_and_die(url: str, settings: Settings, now: float, at_line: int, lines) -> None:
    """Move what is due, and die at a line."""
    die_at(at_line, lines, lambda: asyncio.run(_compact(url, settings, now)), within=ROOTS)


async def _compact(url: str, settings: Settings, now: float) -> None:
    async with connect(url) as redis:
        await compact(redis, settings, now=now, least=2, most=4)
