"""`instructloop loop` and `train`: rounds of learning, started, watched, braked."""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from core import loop
from core.errors import InstructLoopError, NotFound
from core.logs import for_people
from core.records import Run
from core.redis_client import Redis
from core.settings import Settings
from core.start import records
from deploy.options import RedisUrl, StateDir, caller, settings_from
from deploy.terminal import listing, show
from learning.rounds.decisions import stages_named
from learning.rounds.runner import run_inline

app = typer.Typer(help="The brakes of the loop, and its runs.", no_args_is_help=True)
T = TypeVar("T")
POLL_SECONDS = 0.5
GOOD = ("promoted", "passed")


def with_redis(settings: Settings, act: Callable[[Redis], Awaitable[T]]) -> T:
    """Do something with the records Redis from a command. Raises InstructLoopError."""

    async def run() -> T:
        async with records(settings) as redis:
            return await act(redis)

    return asyncio.run(run())


@app.command()
def pause(state_dir: StateDir = None, redis_url: RedisUrl = None) -> None:
    """Start no new round until `loop resume`; a round under way goes on.

    Example: instructloop loop pause
    """
    with_redis(settings_from(state_dir, redis_url), partial(loop.pause, who=caller()))
    print("paused: no new round starts")


@app.command()
def resume(state_dir: StateDir = None, redis_url: RedisUrl = None) -> None:
    """Let rounds start again.

    Example: instructloop loop resume
    """
    with_redis(settings_from(state_dir, redis_url), partial(loop.resume, who=caller()))
    print("resumed")


@app.command()
def runs(state_dir: StateDir = None, redis_url: RedisUrl = None) -> None:
    """List the latest runs.

    Example: instructloop loop runs
    """

    async def latest(redis: Redis) -> list[Run]:
        return await loop.list_runs(redis, limit=20)

    table = listing("run", "started", "stage", "outcome", "version", "reason", whole=2)
    for run in with_redis(settings_from(state_dir, redis_url), latest):
        started = datetime.fromtimestamp(run.created_at).isoformat(" ", "seconds")
        table.add_row(run.id, started, run.stage, run.outcome, run.version or "", run.reason)
    show(table)


@app.command()
def cancel(run: str, state_dir: StateDir = None, redis_url: RedisUrl = None) -> None:
    """End a run; what it made so far stays in its folder, nothing is published.

    Example: instructloop loop cancel run-20261122-1
    """

    async def act(redis: Redis) -> None:
        await loop.cancel(redis, run, who=caller())

    with_redis(settings_from(state_dir, redis_url), act)
    print(f"cancelled {run}")


@app.command()
def logs(run: str, state_dir: StateDir = None, redis_url: RedisUrl = None) -> None:
    """Print what the stages of a run wrote.

    Example: instructloop loop logs run-20261122-1
    """
    settings = settings_from(state_dir, redis_url)
    folder = settings.state_dir / "runs" / Path(run).name
    found = sorted(folder.glob("*/log"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise NotFound(f"no logs of {run} here: `instructloop loop runs` lists the runs")
    for path in found:
        print(f"== {path.parent.name}")
        sys.stdout.write(for_people(path.read_text(errors="replace")))


def train(settings: Settings, *, stage: str, wait: bool) -> None:
    """Start a round; with no live worker, run it here under the same lease.

    Without a worker, a run that was interrupted is taken up instead of starting another.
    """
    stages = stages_named(stage)

    async def ask(redis: Redis) -> tuple[Run, bool]:
        alive = await loop.worker_alive(redis)
        left = None if alive else await loop.current_run(redis)
        run = left or await loop.request_run(redis, stages=stages, wanted_by="command line")
        return run, alive

    run, worker_alive = with_redis(settings, ask)
    print(run.id)
    if worker_alive:
        if wait:
            _follow(settings, run.id)
        return
    print("no worker is alive: running the stages here", file=sys.stderr)
    ended = run_inline(settings)
    if ended is None or ended.finished_at is None:
        raise InstructLoopError(f"{run.id} was interrupted: the same command takes it up again")
    _say_outcome(ended)


def _follow(settings: Settings, run_id: str) -> None:
    """Show progress until the run is over. Raises InstructLoopError unless it passed."""

    async def look(redis: Redis) -> Run:
        return await loop.get_run(redis, run_id)

    columns = (TextColumn("{task.description:>14}"), BarColumn(), TextColumn("{task.fields[say]}"))
    console = Console(stderr=True)
    with Progress(
        *columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("starting", total=1.0, say="")
        while (run := with_redis(settings, look)).outcome == "running":
            state = run.states.get(run.stage)
            if state is not None:
                bar.update(task, description=run.stage, completed=state.fraction, say=state.message)
            time.sleep(POLL_SECONDS)
    _say_outcome(run)


def _say_outcome(run: Run) -> None:
    if run.outcome not in GOOD:
        raise InstructLoopError(f"{run.id} ended as {run.outcome}: {run.reason}")
    print(f"{run.outcome}: {run.reason or run.version or ''}")
