"""A client that keeps asking, to see what a swap does to people: failures, stalls, versions.

Streams through the public API with `store: false`, so that it adds nothing to the log. Used by the
demonstration and by tests of the swap.
"""

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import httpx


@dataclass(slots=True)
class TrafficReport:
    """What the client saw."""

    requests: int = 0
    failures: list[str] = field(default_factory=list)
    versions: Counter[str] = field(default_factory=Counter)
    gaps: list[tuple[float, float]] = field(default_factory=list)
    """(seconds since the start of the traffic, seconds between two chunks of a stream)."""
    first_chunks: list[tuple[float, float]] = field(default_factory=list)
    """(seconds since the start of the traffic, seconds until the first chunk)."""
    crossed: int = 0
    """Streams that said that a swap crossed them."""

    def longest_gap(self, since: float = 0.0) -> float:
        """The longest wait between two chunks of any stream after `since`, in seconds."""
        return max((gap for at, gap in self.gaps if at >= since), default=0.0)


@dataclass(slots=True)
class Traffic:
    """A number of clients, changed while they run."""

    base_url: str
    api_key: str
    prompts: Sequence[str]
    max_tokens: int = 48
    clients: int = 1
    pause_seconds: float = 5.0
    report: TrafficReport = field(default_factory=TrafficReport)
    started_at: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        """Seconds since the traffic began."""
        return time.monotonic() - self.started_at


@contextlib.asynccontextmanager
async def flowing(traffic: Traffic, *, most_clients: int = 8) -> AsyncIterator[TrafficReport]:
    """Traffic for the length of a `with` block; requests under way at its end may finish."""
    stop = asyncio.Event()
    headers = {"Authorization": f"Bearer {traffic.api_key}"}
    async with httpx.AsyncClient(base_url=traffic.base_url, headers=headers, timeout=120) as client:
        tasks = [
            asyncio.create_task(_one_client(client, traffic, number, stop))
            for number in range(most_clients)
        ]
        try:
            yield traffic.report
        finally:
            stop.set()
            await asyncio.gather(*tasks)


async def _one_client(
    client: httpx.AsyncClient, traffic: Traffic, number: int, stop: asyncio.Event
) -> None:
    turn = number
    while not stop.is_set():
        if number < traffic.clients:
            await _one_stream(client, traffic, traffic.prompts[turn % len(traffic.prompts)])
            turn += traffic.clients
        await _rest(traffic, stop)


async def _rest(traffic: Traffic, stop: asyncio.Event) -> None:
    """Wait for the pause between two requests; a pause that gets shorter counts at once."""
    began = time.monotonic()
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), timeout=0.02)
        if time.monotonic() - began >= traffic.pause_seconds:
            return


async def _one_stream(client: httpx.AsyncClient, traffic: Traffic, prompt: str) -> None:
    """One streamed reply: count it, time its chunks, note its version."""
    report = traffic.report
    report.requests += 1
    body = {
        "model": "instructloop",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": traffic.max_tokens,
        "stream": True,
        "store": False,
        "user": "traffic",
    }
    asked = last = time.monotonic()
    finished = False
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
            if reply.status_code != 200:
                text = (await reply.aread())[:200].decode(errors="replace")
                report.failures.append(f"status {reply.status_code}: {text}")
                return
            report.versions[reply.headers.get("x-policy-version", "none")] += 1
            async for line in reply.aiter_lines():
                finished = finished or line == "data: [DONE]"
                now = time.monotonic()
                if line.startswith(": policy-version"):
                    report.crossed += 1
                elif line.startswith("data: {"):
                    _note_event(traffic, line, first=last == asked, gap=now - last)
                    last = now
        if not finished:
            report.failures.append("the stream broke off")
    except httpx.HTTPError as error:
        report.failures.append(f"{type(error).__name__}: {error}")


def _note_event(traffic: Traffic, line: str, *, first: bool, gap: float) -> None:
    event = json.loads(line.removeprefix("data: "))
    if "error" in event:
        traffic.report.failures.append(f"error in the stream: {event['error']['message']}")
    elif first:
        traffic.report.first_chunks.append((traffic.elapsed, gap))
    else:
        traffic.report.gaps.append((traffic.elapsed, gap))
