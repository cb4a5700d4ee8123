"""`instructloop bench feedback`: how much one gateway worker takes of what people say, and keeps.

Loads on a fresh service, round by round; then a second service whose Redis and gateway are killed
with -9 while clients insist, and what it holds compared with what it acknowledged, after one more
kill. The recall of the PII filter and the bytes of a record beside it. The loads are in
deploy/bench/feedback_loads.py, the words in deploy/bench/feedback_report.py.
"""

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop

from core.errors import Unavailable
from core.redis_client import connect, redis_errors
from core.settings import Settings
from deploy.bench.feedback_held import bytes_per_record, held, reconciled
from deploy.bench.feedback_limits import limits
from deploy.bench.feedback_loads import Figures, Outcome, first_word, killed, saturated, steady
from deploy.bench.feedback_report import FeedbackReport, Killed
from deploy.bench.feedback_service import FeedbackService, feedback_service
from deploy.bench.progress import Tick, progress
from deploy.bench.targets import Target, folder_in, instant_engine, pass_through, taking_from_inbox

COUNT = 100_000
FEWEST_COMPLETIONS = 5000
KILLS = ("redis", "gateway", "redis", "gateway", "redis")
_STEPS = ("saturated", "saturated with completions", "by timetable", "the bounds")
_LOGGED = 1000
_TICKS = 100
_LOG_STEPS = 20
_WARM_UP_SECONDS = 0.5
_LOAD_SECONDS = 120.0
_LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to measure."""

    seconds: float = 3.0
    """Of each load."""
    rounds: int = 3
    count: int = COUNT
    """Pieces to acknowledge while processes are killed; 0 leaves it out."""
    kills: tuple[str, ...] = KILLS
    completions: int = COUNT
    """To log for the bytes of a logged completion, at least FEWEST_COMPLETIONS; 0: not measured."""
    pii: bool = True
    """Whether to measure the PII filter, too."""


def bench_feedback(
    wanted: Wanted, *, settings: Settings, say: Callable[[str], None]
) -> FeedbackReport:
    """Measure. Raises StartError, and InstructLoopError when something answers with an error."""
    came_of = None
    with ExitStack() as stack:
        folder = stack.enter_context(folder_in(settings.state_dir))
        engine = stack.enter_context(instant_engine())
        with (
            feedback_service(folder / "loads", engine) as service,
            pass_through(engine) as bare,
            progress(wanted.rounds * len(_STEPS)) as tick,
        ):
            rounds, sizes = uvloop.run(_measured(service, bare, wanted, folder, tick))
        if wanted.count:
            with feedback_service(folder / "killed", engine) as service:
                came_of = uvloop.run(_survived(service, wanted))
    return FeedbackReport(
        seconds=wanted.seconds,
        rounds=rounds,
        bytes_per_record=sizes,
        killed=came_of,
        log=_log(wanted.completions, say) if wanted.completions else None,
        pii=_pii(say) if wanted.pii else None,
    )


async def _measured(
    service: FeedbackService, bare: Target, wanted: Wanted, folder: Path, tick: Tick
) -> tuple[list[Figures], dict[str, float]]:
    """Every load in every round; and the bytes of a record, after all of them."""
    logged = await service.log_completions(_LOGGED)
    rounds = []
    async with taking_from_inbox(service.redis_url), connect(service.redis_url) as redis:
        await first_word(service)
        await saturated(service, logged, run="warm", seconds=_WARM_UP_SECONDS, replies=True)
        for number in range(wanted.rounds):
            one: Figures = {}
            tick(_STEPS[0])
            found = await saturated(
                service, logged, run=f"s{number}", seconds=wanted.seconds, replies=False
            )
            one |= {f"saturated_{name}": value for name, value in found.items()}
            tick(_STEPS[1])
            found = await saturated(
                service, logged, run=f"m{number}", seconds=wanted.seconds, replies=True
            )
            one["mixed_per_second"] = found["per_second"]
            tick(_STEPS[2])
            found = await steady(service, logged, run=f"t{number}", seconds=wanted.seconds)
            one |= {f"steady_{name}": found[name] for name in found if name.endswith("_ms")}
            tick(_STEPS[3])
            one |= await limits(service, bare, folder, seconds=wanted.seconds, run=f"l{number}")
            rounds.append(one)
        return rounds, await bytes_per_record(redis)


async def _survived(service: FeedbackService, wanted: Wanted) -> Killed:
    """What Redis holds after it all, and after one more kill, against what was acknowledged."""
    logged = await service.log_completions(_LOGGED)
    with progress(_TICKS) as tick:
        every, done = max(1, wanted.count // _TICKS), 0

        def acknowledged() -> None:
            nonlocal done
            done += 1
            if done % every == 0:
                tick("while processes are killed")

        outcome = await killed(
            service, logged, count=wanted.count, kills=wanted.kills, tick=acknowledged
        )
    service.kill_redis()
    return await _compared(service, outcome)


async def _compared(service: FeedbackService, outcome: Outcome) -> Killed:
    async with asyncio.timeout(_LOAD_SECONDS), connect(service.redis_url) as redis:
        while True:
            try:
                with redis_errors():
                    await redis.dbsize()
                break
            except Unavailable:  # it reads its file
                await asyncio.sleep(_LOOK_SECONDS)
        found = await held(redis, service.keyring)
    return Killed(
        reconciled=reconciled(
            outcome.acknowledged, found, num_acknowledged=outcome.num_acknowledged
        ),
        killed=tuple(outcome.killed),
        refused=outcome.refused,
        broken=outcome.broken,
        seconds=outcome.seconds,
        silences=tuple(outcome.silences),
    )


def _log(completions: int, say: Callable[[str], None]) -> dict[str, float]:
    from deploy.bench.log_memory import log_memory  # a gateway has no Parquet to load

    completions = max(completions, FEWEST_COMPLETIONS)
    say(f"measuring the log with {completions:,} completions")
    return asyncio.run(log_memory(completions=completions, step=completions // _LOG_STEPS))


def _pii(say: Callable[[str], None]) -> dict[str, object]:
    from deploy.bench.pii import pii_figures

    say("measuring the PII filter")
    return asdict(pii_figures())
