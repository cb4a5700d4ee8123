"""The learning loop as Redis has it: runs, the one that is current, and the brakes.

One run is current at a time, and one worker holds the lease for it (core/lease.py); every record of
a run is written together with the worker's fencing token, so that a worker that lost its lease
changes nothing. Knows nothing of how a stage is run (learning/) or asked for (serving/, deploy/).
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from core import keys, lease, registry
from core.errors import Conflict, LeaseLost, NotFound
from core.records import Outcome, Run, StageState
from core.redis_client import Redis, script
from core.stages import complete_stages

WORKER_SILENCE_SECONDS = 6.0
"""Beat ticks every second; after this long without a tick nobody is there to learn."""


@dataclass(frozen=True, slots=True)
class Notes:
    """What the loop remembers between runs: the fields of `keys.loop()`."""

    paused: bool = False
    consumed: int = 0
    """Comparisons there were when the last round that came to a verdict began."""
    tried: int = 0
    """The same of the last round, whatever became of it."""
    last_round: float | None = None
    """When the last round began; before the first, when the loop was first alive. Seconds."""
    cancel: str = ""
    """The run that somebody wants cancelled."""
    failures: int = 0
    """Failed attempts at the current stage that came no further than the one before."""
    failed_fraction: float = 0.0
    retry_at: float = 0.0
    """Nothing is done for the current run before this moment."""
    ticked_at: float = 0.0


_KINDS: dict[str, Callable[[str], Any]] = {"paused": "1".__eq__, "cancel": str}
_KINDS |= dict.fromkeys(("consumed", "tried", "failures"), int)
_KINDS |= dict.fromkeys(("last_round", "failed_fraction", "retry_at", "ticked_at"), float)


# --- runs -----------------------------------------------------------------------------------


async def request_run(redis: Redis, *, stages: Sequence[str], wanted_by: str) -> Run:
    """Make a run the current one; a worker takes it up at its next tick.

    `stages` as core/stages.py takes them. Raises Unprocessable for stages that make no run,
    Conflict while another run is current or the loop is paused.
    """
    chosen = complete_stages(stages)
    now = time.time()
    comparisons = await comparison_count(redis)
    run = Run(
        id=_new_run_id(now),
        stages=chosen,
        created_at=now,
        stage=chosen[0],
        wanted_by=wanted_by,
        comparisons=comparisons,
    )
    remembered = {"last_round": now, "tried": comparisons} if learns(run) else {}
    status, current = await script(
        redis,
        "request_run",
        [keys.loop(), keys.run_current(), keys.run(run.id), keys.runs()],
        [run.id, run.model_dump_json(), int(now * 1000), *_flat(remembered)],
    )
    match status.decode():
        case "ok":
            return run
        case "paused":
            raise Conflict("the loop is paused: `instructloop loop resume` ends that")
        case _:
            raise Conflict(
                f"{current.decode()} is running: wait for it, or `instructloop loop cancel` it"
            )


def learns(run: Run) -> bool:
    """Whether a run takes in what was said, so that it counts as a round."""
    return "reward_model" in run.stages


async def current_run(redis: Redis) -> Run | None:
    """The one run that is not over."""
    run_id = await redis.get(keys.run_current())
    return None if run_id is None else await get_run(redis, run_id.decode())


async def get_run(redis: Redis, run_id: str) -> Run:
    """One run. Raises NotFound."""
    raw = await redis.get(keys.run(run_id))
    if raw is None:
        raise NotFound(f"no run {run_id}: `instructloop loop runs` shows them")
    return Run.model_validate_json(raw)


async def list_runs(redis: Redis, limit: int = 20) -> list[Run]:
    """The newest runs, newest first; all of them for a limit of 0."""
    ids = await redis.zrange(keys.runs(), 0, limit - 1, desc=True)
    raw = await redis.mget([keys.run(run_id.decode()) for run_id in ids]) if ids else []
    return [Run.model_validate_json(text) for text in raw if text]


async def save_run(
    redis: Redis,
    run: Run,
    *,
    fencing_token: int,
    remember: Mapping[str, str | int | float] | None = None,
) -> None:
    """Write a run's record, and fields of Notes with it in one step.

    A run with `finished_at` stops being the current one. Raises LeaseLost when another worker has
    taken over since, or the run was over before: then nothing is written.
    """
    saved = await script(
        redis,
        "save_run",
        [keys.fence(), keys.run(run.id), keys.run_current(), keys.loop()],
        [
            str(fencing_token),
            run.id,
            run.model_dump_json(),
            "0" if run.finished_at is None else "1",
            *_flat(remember or {}),
        ],
    )
    if saved != 1:
        raise LeaseLost(f"{run.id} is not this worker's any more: nothing was written")


def ended(run: Run, outcome: Outcome, reason: str, *, now: float) -> Run:
    """The run as it is when it is over."""
    return run.model_copy(
        update={"outcome": outcome, "reason": reason, "stage": "", "finished_at": now}
    )


# --- the brakes -----------------------------------------------------------------------------


async def cancel(redis: Redis, run_id: str, *, who: str = "") -> Run:
    """Stop a run. The worker that holds it obeys within seconds; without one it ends here.

    Raises NotFound, and Conflict when the run is over.
    """
    run = await get_run(redis, run_id)
    if run.finished_at is not None:
        raise Conflict(f"{run_id} is over already: {run.outcome}")
    await _brake(redis, "cancel", run_id, "run cancelled", run=run_id, who=who)
    if not await worker_alive(redis):
        await _cancel_here(redis, run_id)
    return await get_run(redis, run_id)


async def _cancel_here(redis: Redis, run_id: str) -> None:
    token = await lease.take(redis)
    if token is None:
        return
    try:
        run = await current_run(redis)
        if run is not None and run.id == run_id:
            over = ended(run, "cancelled", "cancelled by hand", now=time.time())
            await save_run(redis, over, fencing_token=token)
    finally:
        await lease.drop(redis, token)


async def pause(redis: Redis, *, who: str = "") -> None:
    """No new run from now on; the current one goes on."""
    await _brake(redis, "paused", "1", "loop paused", who=who)


async def resume(redis: Redis, *, who: str = "") -> None:
    """Allow new runs again."""
    await _brake(redis, "paused", "0", "loop resumed", who=who)


async def _brake(redis: Redis, name: str, value: str, action: str, **details: str) -> None:
    """Write a field of the loop and who did it, in one step."""
    said = {field: text for field, text in details.items() if text}
    async with redis.pipeline(transaction=True) as step:
        step.hset(keys.loop(), name, value)
        step.xadd(keys.audit(), {"entry": registry.audit_entry(action, **said)})
        await step.execute()


async def is_paused(redis: Redis) -> bool:
    """Whether new runs are held back."""
    return bool(await redis.hget(keys.loop(), "paused") == b"1")


async def read_notes(redis: Redis) -> Notes:
    """What the loop remembers."""
    raw = await redis.hgetall(keys.loop())
    read = {name.decode(): _KINDS[name.decode()](value.decode()) for name, value in raw.items()}
    return Notes(**read)


async def comparison_count(redis: Redis) -> int:
    """Untied pairs that people have given so far."""
    return int(await redis.hget(keys.counts(), "comparisons") or 0)


# --- the worker's sign of life --------------------------------------------------------------


async def heartbeat(redis: Redis) -> None:
    """A tick was done: a worker and a beat are there. By the clock of Redis."""
    await redis.hset(keys.loop(), "ticked_at", await _clock(redis))
    await redis.hsetnx(keys.loop(), "last_round", time.time())


async def worker_alive(redis: Redis) -> bool:
    """Whether a worker would take up a run now."""
    ticked_at = float(await redis.hget(keys.loop(), "ticked_at") or 0)
    return await _clock(redis) - ticked_at < WORKER_SILENCE_SECONDS


async def _clock(redis: Redis) -> float:
    seconds, micros = await redis.time()
    return float(seconds) + float(micros) / 1e6


async def note_room(redis: Redis, why: str | None) -> None:
    """Say for a few ticks why learning waits for room on its disk; None when it does not."""
    if why is not None:
        await redis.set(keys.no_room(), why, ex=int(WORKER_SILENCE_SECONDS))


async def _no_room(redis: Redis) -> str | None:
    why = await redis.get(keys.no_room())
    return why.decode() if why else None


# --- what people are shown ------------------------------------------------------------------


async def loop_state(redis: Redis) -> dict[str, Any]:
    """The loop for `GET /v1/loop`, `status` and pages, ready for JSON."""
    notes = await read_notes(redis)
    comparisons = await comparison_count(redis)
    current = await current_run(redis)
    runs = await list_runs(redis, 50)
    return {
        "paused": notes.paused,
        "no_room": await _no_room(redis),
        "worker": await worker_alive(redis),
        "comparisons": comparisons,
        "new_comparisons": max(comparisons - notes.consumed, 0),
        "last_round": notes.last_round,
        "current": current.model_dump(mode="json") if current else None,
        "last": next((r.model_dump(mode="json") for r in runs if r.finished_at), None),
        "stages": _last_of_each_stage(runs),
    }


def _last_of_each_stage(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Of each stage the newest run that finished it; `runs` newest first."""
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        for stage, state in run.states.items():
            if state.finished_at is not None and stage not in found:
                found[stage] = {"run_id": run.id, **_shown(state)}
    return found


def _shown(state: StageState) -> dict[str, Any]:
    shown = state.model_dump(mode="json", include={"started_at", "finished_at", "figures"})
    if state.started_at is not None and state.finished_at is not None:
        shown["seconds"] = round(state.finished_at - state.started_at, 1)
    return shown


def _new_run_id(now: float) -> str:
    """`r20260131-175500-3f9a`: sorts by time, and two in one second differ."""
    moment = datetime.fromtimestamp(now, UTC)
    return f"r{moment:%Y%m%d-%H%M%S}-{os.urandom(2).hex()}"


def _flat(fields: Mapping[str, str | int | float]) -> list[str | int | float]:
    return [part for pair in fields.items() for part in pair]
