"""A stage in a child process, from its inputs to its result: started, relayed, stopped.

What the child says in its progress file is copied to the run's record and to the metrics; what
others want (cancel, the worker's end, a disk that fills, a lost lease) is passed on to it. A lost
lease kills it at once, because another worker may be about to start the same stage.
"""

import asyncio
import dataclasses
import os
import time
from contextlib import suppress
from dataclasses import dataclass

from core import keys, loop
from core.errors import Unavailable
from core.records import Run
from core.redis_client import redis_errors
from core.room import room_of
from learning.gate.gate import attempt_number
from learning.rounds.child import (
    Child,
    Progress,
    last_line,
    num_processes,
    numbers,
    read_figures,
    read_progress,
    read_refusal,
    scrubbed_environment,
    start_child,
)
from learning.rounds.decisions import describe_exit, meaning_of_exit
from learning.rounds.fetching import fetch_versions
from learning.rounds.lease_keeper import Lease
from learning.rounds.observe import observe_progress
from learning.rounds.stage_inputs import CHILD_STAGES, FIRST, Sources, stage_inputs
from learning.rounds.work import Result, Work
from learning.training.stage import write_json

_LOOK_SECONDS = 0.1
_RELAY_SECONDS = 0.5
_STOP_SECONDS = 30.0
"""How long a stage may take to checkpoint and leave before it is killed."""
_CANCEL_SECONDS = 5.0
"""The same for one that was cancelled: nobody will go on with it."""


@dataclass(slots=True)
class _Watch:
    """What the watching of one child remembers."""

    relayed: Progress
    relay_at: float = 0.0
    cancelled: bool = False
    kill_at: float | None = None
    no_room: str | None = None
    """Why it was stopped, where the disk became too full under it."""


async def run_child(work: Work, run: Run, sources: Sources, lease: Lease) -> Result:
    """Run the current stage of a run in a child process, or find that it is done.

    Raises LeaseLost when another worker took over; the child is dead then.
    """
    folder = work.folders.stage(run.id, run.stage)
    if not (folder / "out").is_dir():
        await fetch_versions(work, [FIRST, run.parent])
        attempt = attempt_number(await loop.list_runs(work.redis, 0), run)
        child = _start(work, run, sources, attempt=attempt)
        if child is None:
            return Result("waiting", reason="an earlier attempt is still ending")
        try:
            watch = await _watch(work, run, lease, child)
        finally:
            child.close()
        run = with_progress(run, watch.relayed)
        if watch.cancelled:
            return Result("cancelled", run=run)
        if not (folder / "out").is_dir():
            return dataclasses.replace(_without_result(child, watch), run=run)
    return Result("done", figures=numbers(read_figures(folder)), run=run)


def _start(work: Work, run: Run, sources: Sources, *, attempt: int) -> Child | None:
    learning = work.settings.learning
    folder = work.folders.stage(run.id, run.stage)
    folder.mkdir(parents=True, exist_ok=True)
    work.folders.engine_socket.parent.mkdir(mode=0o700, exist_ok=True)
    inputs = stage_inputs(run.stage, run, sources, work.folders, work.settings, attempt=attempt)
    how = {"log_level": work.settings.log_level, "log_format": work.settings.log_format}
    write_json(folder / "stage.json", inputs | how)
    return start_child(
        CHILD_STAGES[run.stage],
        folder,
        launcher=learning.launcher,
        environment=scrubbed_environment(os.environ, threads=learning.threads),
        idle_priority=learning.idle_priority,
        processes=num_processes(learning.processes, device=learning.device, environment=os.environ),
    )


async def _watch(work: Work, run: Run, lease: Lease, child: Child) -> _Watch:
    """Until the child has ended, by itself or because it had to."""
    watch = _Watch(relayed=read_progress(child.folder))
    while child.exit_code is None:
        if lease.lost:
            child.kill()
            lease.check()
        if work.stopping():
            _stop(child, watch, _STOP_SECONDS)
        if no_room := room_of(work.settings.state_dir, work.settings.room).lacking("learning"):
            watch.no_room = no_room
            _stop(child, watch, _STOP_SECONDS)
        if watch.kill_at is not None and time.monotonic() > watch.kill_at:
            child.kill()
        if time.monotonic() >= watch.relay_at:
            with suppress(Unavailable), redis_errors():
                await _relay(work, run, lease, child, watch)
            watch.relay_at = time.monotonic() + _RELAY_SECONDS
        await asyncio.sleep(_LOOK_SECONDS)
    with suppress(Unavailable), redis_errors():
        await _relay(work, run, lease, child, watch)
    return watch


async def _relay(work: Work, run: Run, lease: Lease, child: Child, watch: _Watch) -> None:
    """Copy the child's progress to the run's record, and tell the child what others want.

    Raises LeaseLost when the record is not this worker's any more.
    """
    if (await work.redis.hget(keys.loop(), "cancel") or b"").decode() == run.id:
        watch.cancelled = True
        _stop(child, watch, _CANCEL_SECONDS)
    progress = read_progress(child.folder)
    if progress == watch.relayed:
        return
    figures = dict(progress.figures)
    observe_progress(run.stage, progress.fraction, figures)
    await loop.save_run(work.redis, with_progress(run, progress), fencing_token=lease.token)
    watch.relayed = progress


def with_progress(run: Run, progress: Progress) -> Run:
    """The run with what its current stage said last."""
    state = run.states[run.stage].model_copy(
        update={
            "fraction": progress.fraction,
            "message": progress.message,
            "figures": dict(progress.figures),
        }
    )
    return run.model_copy(update={"states": {**run.states, run.stage: state}})


def _stop(child: Child, watch: _Watch, patience: float) -> None:
    """Ask once; a deadline that is set already stays."""
    if watch.kill_at is None:
        child.ask_to_stop()
        watch.kill_at = time.monotonic() + patience


def _without_result(child: Child, watch: _Watch) -> Result:
    """What it means that the child is gone and left nothing."""
    code = child.exit_code
    assert code is not None, "it was watched until it ended"
    if watch.kill_at is not None:
        why = watch.no_room or "stopped with its worker"
        return Result("again", reason=f"{why}: it goes on from its checkpoint")
    match meaning_of_exit(code):
        case "again":
            return Result("again", reason="it checkpointed and goes on")
        case "not_enough_data":
            return Result("not_enough_data", reason=read_refusal(child.folder))
        case _:
            return Result("failed", reason=describe_exit(code, last_line=last_line(child.folder)))
