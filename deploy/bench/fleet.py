"""A rolling swap over a fleet nobody has at hand, by simulation: `python -m deploy.bench.fleet`.

Replicas look for a new version as agents do and take turns as agents do (serving/agent_records.py);
a replica loads beside its traffic, holds for the pause, and is done, or fails and tries again
later. Requests arrive at random and go to the least busy replica that does not hold. What loading
and pausing take is given, from a measurement of one engine (`instructloop bench swap`); the
network, the store that weights come from and Redis are taken to be wide enough. Pure, but for
`main`.
"""

import heapq
import json
import random
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Literal

from serving.agent import FIRST_RETRY_SECONDS, TICK_SECONDS
from serving.agent_records import turns_at_once

Event = Literal["look", "loaded", "resumed", "asked", "answered"]
_COMMANDS_PER_LOOK = 2
"""What an agent asks Redis at each look for a turn: how many replicas there are, and a turn."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """What is rolled over. Seconds, and requests per second of the whole fleet."""

    replicas: int = 500
    swap_share: float = 0.1
    load_seconds: float = 4.0
    pause_seconds: float = 0.16
    failures: float = 0.02
    """Share of attempts that fail and are made again."""
    requests_per_second: float = 1000.0
    answer_seconds: float = 8.0
    seats: int = 32
    """Completions that a replica generates at one time."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Roll:
    """What came of it."""

    seconds: float
    """From the promotion until the last replica serves the new version."""
    attempts: int
    most_swapping: int
    most_holding: int
    """Replicas within their pause at one time."""
    requests: int
    stalled_share: float
    """Requests whose reply was in flight on a replica in its pause."""
    waited_share: float
    """Requests that found no replica with a free seat that did not hold."""
    redis_commands_per_second: float


@dataclass(slots=True)
class _State:
    fleet: Fleet
    random: random.Random
    now: float = 0.0
    events: list[tuple[float, int, Event, int]] = field(default_factory=list)
    order: int = 0
    in_flight: list[int] = field(default_factory=list)
    least_busy: list[tuple[int, float, int]] = field(default_factory=list)
    todo: set[int] = field(default_factory=set)
    swapping: set[int] = field(default_factory=set)
    holding: set[int] = field(default_factory=set)
    attempts: int = 0
    most_swapping: int = 0
    most_holding: int = 0
    requests: int = 0
    stalled: int = 0
    waited: int = 0
    looks: int = 0

    def later(self, seconds: float, event: Event, replica: int = -1) -> None:
        self.order += 1
        heapq.heappush(self.events, (self.now + seconds, self.order, event, replica))

    def offer(self, replica: int) -> None:
        """Note how busy a replica is now; older notes are told by their number."""
        note = (self.in_flight[replica], self.random.random(), replica)
        heapq.heappush(self.least_busy, note)


def roll(fleet: Fleet) -> Roll:
    """Promote a version at second 0 and go on until every replica serves it."""
    state = _State(fleet, random.Random(fleet.seed))
    busy = fleet.requests_per_second * fleet.answer_seconds / fleet.replicas
    state.in_flight = [0] * fleet.replicas
    for replica in range(fleet.replicas):
        state.todo.add(replica)
        for _ in range(int(busy + state.random.random())):
            state.in_flight[replica] += 1
            state.later(state.random.expovariate(1 / fleet.answer_seconds), "answered", replica)
        state.offer(replica)
        state.later(state.random.uniform(0, TICK_SECONDS), "look", replica)
    state.later(state.random.expovariate(fleet.requests_per_second), "asked")
    for event, replica in _happening(state):
        _STEPS[event](state, replica)
    return Roll(
        seconds=state.now,
        attempts=state.attempts,
        most_swapping=state.most_swapping,
        most_holding=state.most_holding,
        requests=state.requests,
        stalled_share=state.stalled / max(state.requests, 1),
        waited_share=state.waited / max(state.requests, 1),
        redis_commands_per_second=_COMMANDS_PER_LOOK * state.looks / state.now,
    )


def _happening(state: _State) -> Iterator[tuple[Event, int]]:
    while state.todo:
        state.now, _, event, replica = heapq.heappop(state.events)
        yield event, replica


def _look(state: _State, replica: int) -> None:
    """One turn at random is tried; who has none looks again."""
    state.looks += 1
    turns = turns_at_once(state.fleet.replicas, state.fleet.swap_share)
    if state.random.randrange(turns) < len(state.swapping):
        state.later(TICK_SECONDS, "look", replica)
        return
    state.swapping.add(replica)
    state.attempts += 1
    state.most_swapping = max(state.most_swapping, len(state.swapping))
    state.later(state.fleet.load_seconds * state.random.uniform(0.8, 1.2), "loaded", replica)


def _loaded(state: _State, replica: int) -> None:
    if state.random.random() < state.fleet.failures:
        state.swapping.remove(replica)
        state.later(FIRST_RETRY_SECONDS, "look", replica)
        return
    state.holding.add(replica)
    state.most_holding = max(state.most_holding, len(state.holding))
    state.stalled += state.in_flight[replica]
    state.later(state.fleet.pause_seconds, "resumed", replica)


def _resumed(state: _State, replica: int) -> None:
    state.holding.remove(replica)
    state.swapping.remove(replica)
    state.todo.remove(replica)
    state.offer(replica)


def _asked(state: _State, _: int) -> None:
    state.requests += 1
    state.later(state.random.expovariate(state.fleet.requests_per_second), "asked")
    replica = _least_busy(state)
    if replica is None:
        state.waited += 1
        return
    state.in_flight[replica] += 1
    state.offer(replica)
    state.later(state.random.expovariate(1 / state.fleet.answer_seconds), "answered", replica)


def _answered(state: _State, replica: int) -> None:
    state.in_flight[replica] -= 1
    state.offer(replica)


def _least_busy(state: _State) -> int | None:
    while state.least_busy:
        number, _, replica = state.least_busy[0]
        if number != state.in_flight[replica] or replica in state.holding:
            heapq.heappop(state.least_busy)  # it changed since, or will offer itself again
        else:
            return replica if number < state.fleet.seats else None
    return None


_STEPS = {
    "look": _look,
    "loaded": _loaded,
    "resumed": _resumed,
    "asked": _asked,
    "answered": _answered,
}


def main() -> None:
    """Print what came of it as JSON."""
    parser = ArgumentParser(prog="python -m deploy.bench.fleet", description=main.__doc__)
    for one in fields(Fleet):
        kind = type(one.default)
        parser.add_argument(f"--{one.name.replace('_', '-')}", type=kind, default=one.default)
    fleet = Fleet(**vars(parser.parse_args()))
    print(json.dumps({"fleet": asdict(fleet), "roll": asdict(roll(fleet))}, indent=1))


if __name__ == "__main__":
    main()
