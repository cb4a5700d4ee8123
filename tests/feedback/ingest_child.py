"""A process that ingests, and may be told to kill itself at any line of the feedback package."""

import asyncio
import time
from pathlib import Path

import feedback
from core.keyring import Keyring
from core.redis_client import connect
from core.settings import Settings
from feedback.ingest import ingest_batch, retry_quarantine
from tests.die_at import die_at
from tests.feedback.factory import EmailFilter

ROOT = str(Path(feedback.__file__).parent)


def ingest_and_die(url: str, secrets: str, settings: Settings, at_line: int, lines) -> None:
    """One batch, then the quarantine, and die at a line."""
    act = _ingest(url, secrets, settings, once=True)
    die_at(at_line, lines, lambda: asyncio.run(act), within=(ROOT,))


def ingest_forever(url: str, secrets: str, settings: Settings) -> None:
    """Until somebody kills this process."""
    asyncio.run(_ingest(url, secrets, settings, once=False))


async def _ingest(url: str, secrets: str, settings: Settings, *, once: bool) -> None:
    keyring = Keyring(Path(secrets))
    async with connect(url) as redis:
        while True:
            await ingest_batch(
                redis, keyring, settings, EmailFilter(), limit=7, retry_after_seconds=0.05
            )
            if once:
                await retry_quarantine(
                    redis, keyring, settings, EmailFilter(), limit=7, now=time.time() + 1e6
                )
                return
