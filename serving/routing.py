"""Which engine answers a request. Pure.

Requests with the same beginning of the prompt go to the same engine, because its prefix cache has
that beginning already: among the engines that are not much busier than the least busy one,
rendezvous hashing picks the one whose point goes best with the prompt's. So an engine that leaves
moves only its own prompts, and gateways agree without a word. Without such a point the least busy
engine answers. Knows no clock and no connection.
"""

import hashlib
from collections.abc import Collection, Iterable
from typing import Any

import orjson

from serving.engines import Engine

PREFIX_CHARS = 512
_SERVES = frozenset({"ready", "swapping"})
_SLACK = 2  # requests that a preferred engine may be ahead of the least busy one, and a quarter
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd and without pattern, as in Fibonacci hashing
_MASK = (1 << 64) - 1


def choose(
    engines: Iterable[Engine],
    *,
    version: str | None,
    tried: Collection[Engine],
    now: float,
    near: int | None = None,
) -> Engine | None:
    """The engine for a request; None when there is none.

    One that failed a moment ago is asked only when there is no other. One that swaps holds new
    requests for a moment, so it is better than none. `near` is what `nearness` gave.
    """
    fit = [
        engine
        for engine in engines
        if engine.state in _SERVES
        and engine.breaker.delay == 0.0
        and engine not in tried
        and (version is None or engine.version == version)
    ]
    if len(fit) < 2:
        return fit[0] if fit else None
    ranks = [2 * (engine.state != "ready") + (engine.avoid_until > now) for engine in fit]
    best = min(ranks)
    level = [engine for engine, rank in zip(fit, ranks, strict=True) if rank == best]
    if near is None:
        return min(level, key=lambda engine: engine.in_flight)
    most = most_in_flight(min(engine.in_flight for engine in level))
    return max(
        (engine for engine in level if engine.in_flight <= most),
        key=lambda engine: _weight(near, engine.point),
    )


def most_in_flight(least: int) -> int:
    """How busy a preferred engine may be, when the least busy one answers `least` requests."""
    return least + _SLACK + least // 4


def _weight(near: int, point: int) -> int:
    mixed = ((near ^ point) * _MULTIPLIER) & _MASK
    return ((mixed ^ (mixed >> 32)) * _MULTIPLIER) & _MASK


def nearness(secret: bytes, tenant: str, prompt: Any, canonical: bytes) -> int:
    """A point for a prompt, equal for prompts of one tenant that begin alike.

    Of a chat only what comes before the first answer counts, so that a conversation stays where it
    began; `canonical` stands for a prompt that is not one text.
    """
    if isinstance(prompt, dict):
        beginning = str(prompt.get("prompt", ""))[:PREFIX_CHARS].encode("utf-8", "replace")
    elif isinstance(prompt, list):
        beginning = _beginning(prompt).encode("utf-8", "replace")
    else:
        beginning = canonical[:PREFIX_CHARS]
    keyed = hashlib.blake2b(beginning, digest_size=8, key=secret[:64])
    keyed.update(b"\0" + tenant.encode())
    return int.from_bytes(keyed.digest())


def _beginning(messages: list[Any]) -> str:
    """The first characters of the messages up to the first of a user."""
    parts: list[str] = []
    length = 0
    for message in messages:
        role, content = message.get("role"), message.get("content")
        text = content if isinstance(content, str) else orjson.dumps(content).decode()
        parts.append(f"{role}\0{text[:PREFIX_CHARS]}\0")
        length += len(parts[-1])
        if role == "user" or length >= PREFIX_CHARS:
            break
    return "".join(parts)[:PREFIX_CHARS]
