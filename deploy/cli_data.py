"""`instructloop erase`, `export`, `import`: a person's data gone, everybody's data out and in."""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from core import keys, loop
from core.errors import InstructLoopError
from core.keyring import Keyring
from core.redis_client import Redis
from core.settings import Settings
from core.start import records
from feedback import erasure
from feedback.erasure import Receipt
from feedback.export import read_rows
from feedback.export_columns import What
from feedback.export_files import write_export
from feedback.export_shapes import Format
from feedback.import_data import Import, Summary, import_lines
from feedback.import_files import Origin, read_lines
from feedback.pii.record import Plan
from feedback.pii.worker import PiiWorker
from learning.rounds.ingesting import drain_inbox, erase_here

_POLL_SECONDS = 0.2
_WAITING = 2000
"""Entries that an import lets wait for a worker's ingest before it goes on."""
_INGEST_SECONDS = 60.0
_SHOWN = 20


def erase(settings: Settings, *, user: str, tenant: str, wait_seconds: float) -> None:
    """Erase an end user and print the receipt. Without a live worker it is done here.

    Raises InstructLoopError when it is not finished in time; a worker goes on with it.
    """
    said = asyncio.run(_erase(settings, user, tenant, wait_seconds))
    print(json.dumps(said.model_dump(), indent=1))
    if said.state != "erased":
        raise InstructLoopError(
            f"{said.id} waits after the step {said.step or 'none'} (a round of learning may have "
            "to end first): the same command, or a worker, goes on with it"
        )


async def _erase(settings: Settings, user: str, tenant: str, wait_seconds: float) -> Receipt:
    keyring = Keyring(settings.secrets)
    console = Console(stderr=True)
    async with records(settings) as redis:
        erasure_id = await erasure.begin(redis, keyring, tenant=tenant, user=user, now=time.time())
        until = time.monotonic() + wait_seconds
        with console.status("erasing") if console.is_terminal else nullcontext():
            return await _until_erased(redis, keyring, settings, erasure_id, until)


async def _until_erased(
    redis: Redis, keyring: Keyring, settings: Settings, erasure_id: str, until: float
) -> Receipt:
    while True:
        if not await loop.worker_alive(redis):
            await erase_here(redis, keyring, settings)
        said = await erasure.receipt(redis, erasure_id)
        if said.state == "erased" or time.monotonic() > until:
            return said
        await asyncio.sleep(_POLL_SECONDS)


def export(
    settings: Settings, *, what: What, form: Format, out: Path, tenant: str | None, force: bool
) -> None:
    """Write live records to a file. Raises InstructLoopError."""

    async def write(redis: Redis) -> int:
        rows = await read_rows(
            redis,
            Keyring(settings.secrets),
            settings,
            what=what,
            tenant=tenant,
            now=time.time(),
        )
        with _bar(f"exporting {what}") as progress:
            return write_export(rows, out, what=what, form=form, force=force, progress=progress)

    if out.exists() and not force:
        raise InstructLoopError(f"{out} is there already: choose another, or give --force")
    print(f"{asyncio.run(_with_redis(settings, write))} {what} in {out}")


def import_(
    settings: Settings, *, what: What, path: Path, tenant: str, origin: Origin = "trl"
) -> None:
    """Take data in, in the form of its origin; each bad line is told.

    With a live worker its ingest filters what came; without one it is done here. Raises
    InstructLoopError when a line was bad.
    """
    lines = read_lines(path, origin)
    summary = asyncio.run(_import(settings, what, path, tenant, lines, origin))
    counts = summary.counts
    for number, why in summary.bad[:_SHOWN]:
        print(f"line {number}: {why}", file=sys.stderr)
    print(
        f"{counts['imported']} imported, {counts['known']} known before, "
        f"{counts['erased']} of erased people, {counts['bad']} bad"
    )
    if counts["bad"]:
        raise InstructLoopError(
            f"{counts['bad']} lines of {path} were not understood; the others are in: correct "
            "these and import again, nothing comes in twice"
        )


async def _import(
    settings: Settings,
    what: What,
    path: Path,
    tenant: str,
    lines: Iterator[tuple[int, object]],
    origin: Origin,
) -> Summary:
    keyring = Keyring(settings.secrets)
    pii = PiiWorker(Plan(recognizers=settings.log.pii_recognizers))
    try:
        async with records(settings) as redis:
            with _bar(f"importing {what}") as progress:
                return await import_lines(
                    Import(redis, keyring, settings, tenant, path.name),
                    lines,
                    what,
                    make_room=lambda: _make_room(redis, keyring, settings, pii),
                    progress=progress,
                    origin=origin,
                )
    finally:
        pii.close()


async def _make_room(redis: Redis, keyring: Keyring, settings: Settings, pii: PiiWorker) -> None:
    """Let ingest catch up: a worker's, or our own."""
    while await redis.xlen(keys.inbox()) or await redis.scard(keys.feedback_text()):
        if not await loop.worker_alive(redis):
            done = await drain_inbox(redis, keyring, settings, pii, seconds=_INGEST_SECONDS)
            if not done:
                return  # what is left waits for another attempt, or another process is at it
        elif await redis.xlen(keys.inbox()) < _WAITING:
            return
        else:
            await asyncio.sleep(_POLL_SECONDS)


async def _with_redis(settings: Settings, act: Callable[[Redis], Awaitable[int]]) -> int:
    async with records(settings) as redis:
        return await act(redis)


@contextmanager
def _bar(says: str) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal; the function is told how many rows are done."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(says, total=None)
        yield lambda done: bar.update(task, completed=done)
