"""The loads of the feedback route, each with its figures.

`saturated` is a closed loop of many clients; `steady` keeps a timetable and charges each wait from
when the piece was due; `killed` insists on every word while processes die. What is said is in
deploy/bench/feedback_pieces.py. A piece right after a reply asks the gateway for an answer first:
the completion takes time of the same worker, its own wait is not counted as feedback's.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field

import orjson

from core.errors import InstructLoopError
from deploy.bench.client import pace
from deploy.bench.engine import chat_request
from deploy.bench.feedback_client import Answer, Insisting, checked, open_line
from deploy.bench.feedback_pieces import Piece, Said, pieces
from deploy.bench.feedback_service import FeedbackService
from deploy.bench.maths import quantile, timetable

CLIENTS = 64
PER_SECOND = 500.0
_READY_LINES = 16
_STEADY_VOICES = 16
Figures = dict[str, float]


@dataclass(slots=True)
class Heard:
    """What clients saw of feedback: seconds from due, or from asking, to the acknowledgement."""

    waits: list[float] = field(default_factory=list)
    after_reply: list[float] = field(default_factory=list)
    """Those of them that were about a reply of this moment."""


async def first_word(service: FeedbackService) -> None:
    """Wait until feedback is taken: a new gateway asks first whether its Redis keeps its word."""
    client = Insisting(service.gateway.address)
    piece = next(pieces(0, run="first", mint=service.mint, logged=()))
    await client.insist(piece.request(piece.completion_id, service.secret))
    client.close()


async def saturated(
    service: FeedbackService,
    logged: Sequence[str],
    *,
    run: str,
    seconds: float,
    replies: bool,
) -> Figures:
    """Acknowledged feedback/s of clients that ask again at once, and what it costs whom.

    Without `replies` no completion is asked for in between: answers of that kind are minted.
    """
    heard, request = Heard(), chat_request(service.secret)
    shares = _Shares(service)
    lines = [await open_line(service.gateway.address) for _ in range(CLIENTS)]
    began = time.perf_counter()

    async def ask(client: int) -> None:
        last = ""
        for piece in pieces(client, run=run, mint=service.mint, logged=logged):
            last = await _about(
                lines[client].ask, piece, last, request if replies else None, service
            )
            asked_at = time.perf_counter()
            checked(await lines[client].ask(piece.request(last, service.secret)))
            heard.waits.append(time.perf_counter() - asked_at)
            if time.perf_counter() - began >= seconds:
                return

    await _all(ask(client) for client in range(CLIENTS))
    took = time.perf_counter() - began
    for line in lines:
        line.close()
    used = shares.of(took)
    return {
        "per_second": len(heard.waits) / took,
        "processor_ms": used["gateway_share"] * took * 1000 / len(heard.waits),
        **used,
    }


async def steady(
    service: FeedbackService, logged: Sequence[str], *, run: str, seconds: float
) -> Figures:
    """How long a piece waits for its acknowledgement when 500 come in a second, come what may."""
    heard, request = Heard(), chat_request(service.secret)
    voices = [
        (pieces(voice, run=run, mint=service.mint, logged=logged), _Last())
        for voice in range(_STEADY_VOICES)
    ]
    free = [await open_line(service.gateway.address) for _ in range(_READY_LINES)]

    async def say(number: int, due: float) -> None:
        sequence, last = voices[number % _STEADY_VOICES]
        piece = next(sequence)
        line = free.pop() if free else await open_line(service.gateway.address)
        last.id = completion_id = await _about(line.ask, piece, last.id, request, service)
        if piece.about == "reply":
            due = time.perf_counter()
        checked(await line.ask(piece.request(completion_id, service.secret)))
        heard.waits.append(time.perf_counter() - due)
        if piece.about == "reply":
            heard.after_reply.append(heard.waits[-1])
        free.append(line)

    shares = _Shares(service)
    took = await _by_timetable(say, seconds=seconds)
    for line in free:
        line.close()
    return {
        "p50_ms": quantile(heard.waits, 0.5) * 1000,
        "p99_ms": quantile(heard.waits, 0.99) * 1000,
        "longest_ms": max(heard.waits) * 1000,
        "after_reply_p99_ms": quantile(heard.after_reply, 0.99) * 1000,
        **shares.of(took),
    }


@dataclass(slots=True)
class Outcome:
    """What clients know after processes were killed."""

    acknowledged: dict[str, Said] = field(default_factory=dict)
    """The last acknowledged word, by feedback id."""
    num_acknowledged: int = 0
    refused: int = 0
    """Replies with 503, each asked again."""
    broken: int = 0
    """Connections that broke or were not taken, each asked again."""
    seconds: float = 0.0
    killed: list[str] = field(default_factory=list)
    silences: list[float] = field(default_factory=list)
    """After each kill, the longest time in seconds in which nobody was acknowledged."""


async def killed(
    service: FeedbackService,
    logged: Sequence[str],
    *,
    count: int,
    kills: Sequence[str],
    tick: Callable[[], None],
) -> Outcome:
    """`count` acknowledged pieces while `kills` happen evenly among them; `tick` after each.

    Clients insist on every word with its Idempotency-Key. `kills` are `redis` and `gateway`.
    """
    outcome, left = Outcome(), count
    plan = [(count * (at + 1) // (len(kills) + 1), what) for at, what in enumerate(kills)]
    request, heard_at = chat_request(service.secret), time.perf_counter()
    began = heard_at

    def acknowledge(feedback_id: str, said: Said) -> None:
        nonlocal heard_at
        now = time.perf_counter()
        if outcome.silences:
            outcome.silences[-1] = max(outcome.silences[-1], now - heard_at)
        heard_at = now
        outcome.acknowledged[feedback_id] = said
        outcome.num_acknowledged += 1
        tick()
        if plan and outcome.num_acknowledged >= plan[0][0]:
            _, what = plan.pop(0)
            outcome.killed.append(what)
            outcome.silences.append(0.0)
            (service.kill_redis if what == "redis" else service.kill_gateway)()

    async def talk(number: int) -> None:
        nonlocal left
        client, last = Insisting(service.gateway.address), ""
        for piece in pieces(number, run="killed", mint=service.mint, logged=logged):
            if left == 0:
                break
            left -= 1
            last = await _about(client.insist, piece, last, request, service)
            answer = await client.insist(piece.request(last, service.secret))
            acknowledge(orjson.loads(answer.body)["id"], piece.said)
        client.close()
        outcome.refused += client.refused
        outcome.broken += client.broken

    await _all(talk(number) for number in range(CLIENTS))
    outcome.seconds = time.perf_counter() - began
    return outcome


@dataclass(slots=True)
class _Last:
    """What a voice spoke about last."""

    id: str = ""


class _Shares:
    """Which part of a processor the gateway, Redis and this process took."""

    def __init__(self, service: FeedbackService) -> None:
        self._targets = {"gateway": service.gateway, "redis": service.redis}
        self._before = self._now()

    def of(self, seconds: float) -> Figures:
        """Shares of one processor over so many seconds."""
        now = self._now()
        return {f"{name}_share": (now[name] - self._before[name]) / seconds for name in now}

    def _now(self) -> Figures:
        used = {name: target.processor_seconds() for name, target in self._targets.items()}
        return {**used, "clients": time.process_time()}


async def _about(
    ask: Callable[[bytes], Awaitable[Answer]],
    piece: Piece,
    before: str,
    request: bytes | None,
    service: FeedbackService,
) -> str:
    """The completion id that the piece is about; `request` asks for a completion."""
    if piece.about == "again":
        return before
    if piece.about != "reply":
        return piece.completion_id
    if request is None:
        return service.mint()
    return str(orjson.loads(checked(await ask(request)).body)["id"])


async def _by_timetable(
    say: Callable[[int, float], Coroutine[None, None, None]], *, seconds: float
) -> float:
    """Say piece after piece when it is due; returns how long it took. Raises InstructLoopError."""
    moments: asyncio.Queue[float | None] = asyncio.Queue()
    table = timetable(PER_SECOND, seconds)
    loop, number, began = asyncio.get_running_loop(), 0, time.perf_counter()
    threading.Thread(target=pace, args=(loop, moments, table), daemon=True).start()
    try:
        async with asyncio.TaskGroup() as speaking:
            while (due := await moments.get()) is not None:
                speaking.create_task(say(number, due))
                number += 1
    except* InstructLoopError as errors:
        raise errors.exceptions[0] from None
    return time.perf_counter() - began


async def _all(coroutines: Iterable[Coroutine[None, None, None]]) -> None:
    """Run them together. Raises InstructLoopError."""
    try:
        async with asyncio.TaskGroup() as group:
            for coroutine in coroutines:
                group.create_task(coroutine)
    except* InstructLoopError as errors:
        raise errors.exceptions[0] from None
