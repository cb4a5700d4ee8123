"""One step of the current run: take the lease, do the next stage, write down how it went.

Each step can be cut short anywhere and taken up by another worker: what a stage made appears by a
rename, records are fenced, and nothing else is relied on. What a stage does is in
learning/rounds/stages.py; what a failure means is decided in learning/rounds/decisions.py.
"""

import asyncio
import logging
import shutil
import signal
import threading
import time
from collections.abc import Callable
from typing import Literal

from core import logs, loop, registry, traces
from core.keyring import Keyring
from core.records import Outcome, Run, StageState
from core.redis_client import connect, redis_errors, redis_url
from core.room import room_of
from core.settings import Settings
from feedback.labeling import close_tasks
from feedback.pii.record import Plan
from feedback.pii.worker import PiiWorker
from learning.rounds.child import log_line
from learning.rounds.collect import collect
from learning.rounds.decisions import after_failure, next_stage
from learning.rounds.folders import Folders
from learning.rounds.ingesting import drain_inbox
from learning.rounds.lease_keeper import Lease, leased
from learning.rounds.observe import observe_end
from learning.rounds.stages import perform
from learning.rounds.work import Result, Work

Step = Literal["idle", "busy", "waiting", "moved", "over"]
"""Nothing to do; another worker has the lease; not yet; the next stage; the run is over."""
log = logging.getLogger(__name__)
_WAIT_SECONDS = 1.0
_INLINE_POLL_SECONDS = 0.3
_INLINE_INGEST_SECONDS = 120.0
_VERDICTS = ("promoted", "passed", "refused", "not_enough_data")


async def advance(work: Work) -> Step:
    """Do one stage of the current run, if there is one and nobody else is at it.

    Raises LeaseLost when another worker took over meanwhile, Unavailable when Redis went away:
    both leave everything to the next step.
    """
    with redis_errors():
        if await loop.current_run(work.redis) is None:
            return "idle"
        async with leased(work.redis, work.redis_url) as lease:
            if lease is None:
                return "busy"
            run = await loop.current_run(work.redis)  # only now does nobody else change it
            return "idle" if run is None else await _advance(work, run, lease)


async def _advance(work: Work, run: Run, lease: Lease) -> Step:
    notes = await loop.read_notes(work.redis)
    if notes.cancel == run.id:
        return await _end(work, run, lease, "cancelled", "cancelled by hand")
    if time.time() < notes.retry_at or work.stopping():
        return "waiting"
    if no_room := room_of(work.settings.state_dir, work.settings.room).lacking("learning"):
        state = run.states.get(run.stage, StageState(started_at=time.time()))
        if state.message != no_room:  # else nobody has written or removed anything since
            await _make_room(work, lease)
        return await _wait(work, with_state(run, state), lease, no_room)
    run = await _begin(work, run, lease)
    began = time.monotonic()
    with logs.bound(run=run.id, stage=run.stage):
        result = await perform(work, run, lease)
    _trace(run, result, time.monotonic() - began)
    return await _conclude(work, result.run or run, lease, result)


def _trace(run: Run, result: Result, seconds: float) -> None:
    """A look at something that is waited for is no span."""
    if result.kind != "waiting":
        said = {"run": run.id, "stage": run.stage, "outcome": result.kind}
        traces.part(f"stage {run.stage}", seconds, trace_of=run.id, **said)


async def _begin(work: Work, run: Run, lease: Lease) -> Run:
    """Write down that an attempt begins; voting is one attempt, however often it is looked at."""
    state = run.states.get(run.stage, StageState(started_at=time.time()))
    if run.stage != "vote" or state.attempts == 0:
        state = state.model_copy(update={"attempts": state.attempts + 1, "finished_at": None})
        log_line(work.folders.stage(run.id, run.stage), f"attempt {state.attempts} begins")
    run = with_state(run, state)
    await loop.save_run(work.redis, run, fencing_token=lease.token)
    return run


# --- how a stage ended ----------------------------------------------------------------------


async def _conclude(work: Work, run: Run, lease: Lease, result: Result) -> Step:
    state = run.states[run.stage]
    if result.kind not in ("waiting", "again"):
        seconds = time.time() - (state.started_at or time.time())
        observe_end(run.stage, result.kind, seconds, result.figures)
    match result.kind:
        case "done":
            return await _finish_stage(work, run, lease, result)
        case "waiting" | "again":
            return await _wait(work, run, lease, result.reason)
        case "failed":
            return await _fail(work, run, lease, result.reason)
        case "impossible":
            return await _end(work, run, lease, "failed", result.reason)
        case "not_enough_data":
            return await _end(work, run, lease, "not_enough_data", result.reason)
        case "cancelled":
            return await _end(work, run, lease, "cancelled", "cancelled by hand")


async def _finish_stage(work: Work, run: Run, lease: Lease, result: Result) -> Step:
    state = run.states[run.stage].model_copy(
        update={
            "finished_at": time.time(),
            "fraction": 1.0,
            "message": "",
            "figures": result.figures,
        }
    )
    log_line(work.folders.stage(run.id, run.stage), "done")
    _remove_checkpoint(work, run)
    run = with_state(run, state)
    following = next_stage(run)
    if following is None:
        outcome = result.outcome or "passed"
        reason = result.reason or "the stages that were asked for are done"
        return await _end(work, run, lease, outcome, reason)
    remember = {"failures": 0, "failed_fraction": 0.0, "retry_at": 0.0}
    run = run.model_copy(update={"stage": following})
    await loop.save_run(work.redis, run, fencing_token=lease.token, remember=remember)
    return "moved"


async def _wait(work: Work, run: Run, lease: Lease, reason: str) -> Step:
    run = with_state(run, run.states[run.stage].model_copy(update={"message": reason}))
    remember = {"retry_at": time.time() + _WAIT_SECONDS}
    await loop.save_run(work.redis, run, fencing_token=lease.token, remember=remember)
    return "waiting"


async def _fail(work: Work, run: Run, lease: Lease, reason: str) -> Step:
    notes = await loop.read_notes(work.redis)
    state = run.states[run.stage]
    log_line(work.folders.stage(run.id, run.stage), f"attempt {state.attempts} failed: {reason}")
    retry = after_failure(
        notes.failures, fraction=state.fraction, failed_fraction=notes.failed_fraction
    )
    if retry.delay is None:
        said = f"{run.stage} failed {retry.failures} times, the last time: {reason}"
        return await _end(work, run, lease, "failed", said)
    run = with_state(run, state.model_copy(update={"message": f"failed, goes on soon: {reason}"}))
    remember = {
        "failures": retry.failures,
        "failed_fraction": state.fraction,
        "retry_at": time.time() + retry.delay,
    }
    await loop.save_run(work.redis, run, fencing_token=lease.token, remember=remember)
    return "waiting"


async def _end(work: Work, run: Run, lease: Lease, outcome: Outcome, reason: str) -> Step:
    """The run is over. A round that came to a verdict has consumed what it began with."""
    learned = outcome in _VERDICTS and loop.learns(run)
    over = loop.ended(run, outcome, reason, now=time.time())
    await loop.save_run(
        work.redis,
        over,
        fencing_token=lease.token,
        remember={"consumed": run.comparisons} if learned else {},
    )
    if "vote" in run.stages:
        await close_tasks(work.redis, run.id)
    await registry.record(work.redis, "run ended", run=run.id, outcome=outcome, reason=reason)
    whole = time.time() - run.created_at
    traces.part("run", whole, trace_of=run.id, run=run.id, outcome=outcome)
    log.info("the run ended: %s", outcome, extra={"run": run.id})
    _remove_checkpoint(work, run)
    await _make_room(work, lease)
    return "over"


async def _make_room(work: Work, lease: Lease) -> None:
    """The run is over whatever becomes of this: what is left now goes after the next one."""
    try:
        await collect(work, lease)
    except OSError as error:
        log.warning("old weights and outputs could not be removed: %s", error)


def with_state(run: Run, state: StageState) -> Run:
    """The run with another state of its current stage."""
    return run.model_copy(update={"states": {**run.states, run.stage: state}})


def _remove_checkpoint(work: Work, run: Run) -> None:
    """A stage that is done or given up goes on from nothing."""
    if not run.stage:
        return
    for path in work.folders.stage(run.id, run.stage).glob("checkpoint*"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


# --- without a worker -----------------------------------------------------------------------


def run_inline(settings: Settings) -> Run | None:
    """Run the current run to its end in this process, ingest first; None when there is none.

    SIGTERM and Ctrl-C make its stage checkpoint; the run then stays current, for the next one who
    asks. To be called from the main thread.
    """
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in _STOP_SIGNALS}
    try:
        return asyncio.run(_run_inline(settings, stop.is_set))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def _ingest_here(work: Work) -> None:
    """What was said until now belongs into the snapshot; with a worker it is ingested already."""
    pii = PiiWorker(Plan(recognizers=work.settings.log.pii_recognizers))
    try:
        await drain_inbox(
            work.redis, work.keyring, work.settings, pii, seconds=_INLINE_INGEST_SECONDS
        )
    finally:
        pii.close()


async def _run_inline(settings: Settings, stopping: Callable[[], bool]) -> Run | None:
    url = redis_url(settings)
    async with connect(url) as redis:
        work = Work(
            redis=redis,
            redis_url=url,
            settings=settings,
            keyring=Keyring(settings.secrets),
            folders=Folders.of(settings.state_dir),
            stopping=stopping,
        )
        run = await loop.current_run(redis)
        if run is not None:
            await _ingest_here(work)
        while run is not None and run.finished_at is None and not stopping():
            if await advance(work) not in ("moved", "over"):
                await asyncio.sleep(_INLINE_POLL_SECONDS)
            run = await loop.get_run(redis, run.id)
        return run
