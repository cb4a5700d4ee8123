"""A process that erases, and may be told to kill itself at any line of the erasure's files."""

import asyncio
from pathlib import Path

import feedback
from core.keyring import Keyring
from core.redis_client import connect
from core.settings import Settings
from feedback.erasing import erase_what_is_due
from tests.die_at import die_at

ROOT = str(Path(feedback.__file__).parent / "eras")


def erase_and_die(url: str, settings: Settings, at_line: int, lines) -> None:
    """Do what is due, and die at a line."""
    die_at(at_line, lines, lambda: asyncio.run(_erase(url, settings)), within=(ROOT,))


async def _erase(url: str, settings: Settings) -> None:
    async with connect(url) as redis:
        await erase_what_is_due(redis, Keyring(settings.state_dir / "secrets"), settings)
