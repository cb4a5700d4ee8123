"""`instructloop bench gateway`: what the gateway costs on this machine, with others beside it.

The engine asked directly, a bare Starlette pass-through, LiteLLM's proxy where it is installed and
the gateway take turns in every round, so that a busy machine is busy for all of them. A figure is
the median over the rounds, with the lowest and the highest; what is added to the engine is taken
round by round. The loads are in deploy/bench/figures.py, the words in deploy/bench/report.py.
"""

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import uvloop

from core.settings import Settings
from deploy.bench import targets as bench_targets
from deploy.bench.client import closed_loop
from deploy.bench.engine import chat_request
from deploy.bench.figures import CLIENTS, LOADS, Figures, Rounds
from deploy.bench.maths import over_rounds, quantile
from deploy.bench.memory import memory_slope, slices
from deploy.bench.progress import Tick, progress
from deploy.bench.report import Report
from deploy.bench.targets import Service, Target
from deploy.bench.tokens import tokens_per_second

_WARM_UP_SECONDS = 0.5
_SYNCS = 200
_RECORD_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to measure."""

    seconds: float = 3.0
    """Of each load."""
    rounds: int = 3
    memory_requests: int = 0
    engine: bool = False
    """Whether to start vLLM and count its tokens, too."""
    peers: bool = True
    """Whether to measure LiteLLM, where it is installed."""


def bench_gateway(
    wanted: Wanted, *, settings: Settings, redis_url: str | None, say: Callable[[str], None]
) -> Report:
    """Measure. `redis_url` is an empty Redis to use instead of a new one.

    Raises StartError, and InstructLoopError when something answers with an error.
    """
    slope = None
    with ExitStack() as stack:
        folder = stack.enter_context(bench_targets.folder_in(settings.state_dir))
        engine = stack.enter_context(bench_targets.instant_engine())
        service = stack.enter_context(
            bench_targets.service(folder, f"http://{engine.address}", redis_url=redis_url)
        )
        targets = [engine, stack.enter_context(bench_targets.pass_through(engine))]
        missing = bench_targets.litellm_missing()
        if wanted.peers and missing:
            say(missing)
        elif wanted.peers:
            say("starting LiteLLM")
            targets.append(
                stack.enter_context(bench_targets.litellm(engine, service.secret, folder))
            )
        targets.append(service.gateway)
        with progress(wanted.rounds * len(targets) * len(LOADS)) as tick:
            rounds, syncs = uvloop.run(_measure(targets, service, wanted, folder, tick))
        if wanted.memory_requests:
            with progress(sum(slices(wanted.memory_requests))) as tick:
                slope = uvloop.run(memory_slope(service, wanted.memory_requests, tick))
    tokens = tokens_per_second(settings, rounds=wanted.rounds, say=say) if wanted.engine else None
    return Report(
        seconds=wanted.seconds,
        rounds=rounds,
        disk_sync_ms={name: over_rounds([one[name] for one in syncs]) for name in syncs[0]},
        memory_mib_per_100k=slope,
        tokens=tokens,
    )


async def _measure(
    targets: Sequence[Target], service: Service, wanted: Wanted, folder: Path, tick: Tick
) -> tuple[Rounds, list[Figures]]:
    """Every load on every target in turn, round by round; and the disk, in every round."""
    syncs: list[Figures] = []
    found: Rounds = {target.name: [] for target in targets}
    request = chat_request(service.secret)
    async with bench_targets.taking_from_inbox(service.redis_url):
        for target in targets:
            await closed_loop(target.address, request, clients=CLIENTS, seconds=_WARM_UP_SECONDS)
        for _ in range(wanted.rounds):
            syncs.append(await asyncio.to_thread(disk_sync_ms, folder))
            round_of: dict[str, Figures] = {target.name: {} for target in targets}
            for load in LOADS:
                for target in targets:
                    tick(f"{target.name}: {load.__name__.replace('_', ' ')}")
                    round_of[target.name] |= await load(target, service.secret, wanted.seconds)
            for name, figures in round_of.items():
                found[name].append(figures)
    return found, syncs


def disk_sync_ms(folder: Path) -> Figures:
    """How long a small write takes until it is on the disk: what a durable reply has to wait."""
    times = []
    descriptor = os.open(folder / "sync", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        for _ in range(_SYNCS):
            began = time.perf_counter()
            os.write(descriptor, bytes(_RECORD_BYTES))
            os.fdatasync(descriptor)
            times.append((time.perf_counter() - began) * 1000)
    finally:
        os.close(descriptor)
    return {"p50": quantile(times, 0.5), "p99": quantile(times, 0.99)}
