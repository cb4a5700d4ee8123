"""The figures of a gateway, each from one load; and what it adds to the engine asked directly.

All are taken of every target in turn, in every round. Times are in milliseconds. Knows loads and
sums; what is asked is in deploy/bench/targets.py, and deploy/bench/gateway.py says in which order.
"""

import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from deploy.bench.client import Found, closed_loop, open_loop
from deploy.bench.engine import CHUNKS_PER_SECOND, chat_request
from deploy.bench.maths import Spread, over_rounds, quantile
from deploy.bench.targets import DIRECT, Target

CLIENTS = 32
STREAMS = 100
CROWD = 512
PER_SECOND = 100.0
_CROWD_WAIT_MS = 1000
_ALONE_WAIT_MS = 100
Figures = dict[str, float]
Rounds = dict[str, list[Figures]]
"""What each target showed, round by round."""
Load = Callable[[Target, str, float], Coroutine[Any, Any, Figures]]


async def one_after_another(target: Target, secret: str, seconds: float) -> Figures:
    """One client that asks as soon as it has its reply."""
    found = await closed_loop(target.address, chat_request(secret), clients=1, seconds=seconds)
    return _times("alone", found.latencies)


async def by_timetable(target: Target, secret: str, seconds: float) -> Figures:
    """A hundred requests a second, each timed from when it was due."""
    found = await open_loop(
        target.address, chat_request(secret), per_second=PER_SECOND, seconds=seconds
    )
    return _times("steady", found.latencies)


async def many_at_once(target: Target, secret: str, seconds: float) -> Figures:
    """How much one worker does, and what a request costs it."""
    before = target.processor_seconds()
    request = chat_request(secret)
    found = await closed_loop(target.address, request, clients=CLIENTS, seconds=seconds)
    used = target.processor_seconds() - before
    return {
        "requests_per_second": found.per_second,
        "processor_ms": used * 1000 / len(found.latencies),
    }


async def first_chunk(target: Target, secret: str, seconds: float) -> Figures:
    """One stream after another, of one chunk each."""
    request = chat_request(secret, chunks=1)
    found = await closed_loop(target.address, request, clients=1, seconds=seconds)
    return {"first_chunk_p50_ms": _ms(found.first_chunks, 0.5)}


async def many_streams(target: Target, secret: str, seconds: float) -> Figures:
    """A hundred streams of 20 chunks a second, which began at random moments."""
    request = chat_request(secret, chunks=max(2, round(seconds * CHUNKS_PER_SECOND)))
    starts = _starts(STREAMS, 1 / CHUNKS_PER_SECOND)
    found = await closed_loop(
        target.address, request, clients=STREAMS, seconds=0.0, starts=starts, times=1
    )
    return _times("chunk", found.chunk_delays)


async def a_crowd(target: Target, secret: str, seconds: float) -> Figures:
    """How long one client, and 512 of them, wait for an engine that takes its time."""
    alone = await closed_loop(
        target.address, chat_request(secret, wait_ms=_ALONE_WAIT_MS), clients=1, seconds=seconds
    )
    crowd = await _crowd(target, secret, seconds)
    return {
        "crowd_1_p50_ms": _ms(alone.latencies, 0.5) - _ALONE_WAIT_MS,
        f"crowd_{CROWD}_p50_ms": _ms(crowd.latencies, 0.5) - _CROWD_WAIT_MS,
    }


async def _crowd(target: Target, secret: str, seconds: float) -> Found:
    request = chat_request(secret, wait_ms=_CROWD_WAIT_MS)
    starts = _starts(CROWD, _CROWD_WAIT_MS / 1000)
    return await closed_loop(target.address, request, clients=CROWD, seconds=seconds, starts=starts)


LOADS: tuple[Load, ...] = (
    one_after_another,
    by_timetable,
    many_at_once,
    first_chunk,
    many_streams,
    a_crowd,
)


def summary(rounds: Rounds) -> dict[str, dict[str, Spread]]:
    """Each target's figures over the rounds. Pure."""
    return {
        name: {figure: over_rounds([one[figure] for one in of]) for figure in of[0]}
        for name, of in rounds.items()
    }


def added(rounds: Rounds) -> dict[str, dict[str, Spread]]:
    """What each gateway adds to the times of the engine, round by round. Pure."""
    direct = rounds[DIRECT]
    times = [figure for figure in direct[0] if figure.endswith("_ms") and figure != "processor_ms"]
    return {
        name: {
            figure: over_rounds(
                [one[figure] - bare[figure] for one, bare in zip(of, direct, strict=True)]
            )
            for figure in times
        }
        for name, of in rounds.items()
        if name != DIRECT
    }


def ratios(ours: Mapping[str, Spread], theirs: Mapping[str, Spread]) -> dict[str, float]:
    """Our medians over another's, where both are more than nothing. Pure."""
    medians = {name: (ours[name].median, theirs[name].median) for name in ours}
    return {name: a / b for name, (a, b) in medians.items() if min(a, b) > 0.0}


def _times(name: str, seconds: Sequence[float]) -> Figures:
    return {f"{name}_p50_ms": _ms(seconds, 0.5), f"{name}_p99_ms": _ms(seconds, 0.99)}


def _ms(seconds: Sequence[float], share: float) -> float:
    return quantile(seconds, share) * 1000


def _starts(clients: int, within: float) -> list[float]:
    """Moments for clients to begin, the same in every round: they are not in step."""
    draw = random.Random(clients)
    return [draw.uniform(0.0, within) for _ in range(clients)]
