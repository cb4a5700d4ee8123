"""Which engine answers a request. Pure.

Requests with the same beginning of the prompt go to the same engine, because its prefix cache has
that beginning already: among the engines that are not much busier than the least busy one,
rendezvous hashing picks the one whose point goes best with the prompt's. So an engine that leaves
moves only its own prompts, and gateways agree without a word. Without such a point the least busy
engine answers. Which versions may answer is a wish: one that was asked for, or those of a cohort
while a canary is on. Knows no clock and no connection.
"""

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

import orjson

from core.canary import Canary, Cohort, Release
from serving.engines import Engine

PREFIX_CHARS = 512
_SERVES = frozenset({"ready", "swapping"})
_SHUNNED_SECONDS = 600.0  # in which engines swap back; later it would be a version as any other
_SLACK = 2  # requests that a preferred engine may be ahead of the least busy one, and a quarter
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd and without pattern, as in Fibonacci hashing
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Wish:
    """The versions that may answer a request, the best first; None stands for any."""

    versions: tuple[str | None, ...] = (None,)
    pinned: bool = False
    """The request names its version: another is no answer."""
    candidate: str = ""
    """The canary's, if it is what this user should get: another counts as a fallback."""
    shunned: str = ""
    """A version that answers only where no other can."""

    def allows(self, version: str) -> bool:
        """Whether a reply of this version is what was wished for."""
        return None in self.versions or version in self.versions

    def after_a_move(self) -> "Wish":
        """The wish once an engine turned out to have swapped: who knows what is live by now."""
        if self.pinned or None in self.versions:
            return self
        return replace(self, versions=(*self.versions, None))


ANY = Wish()


def wish_for(release: Release, cohort: Cohort | None, *, fresh: bool, now: float) -> Wish:
    """What may answer a user of this cohort, now (seconds of the day's clock).

    The cohort is None where users are not split. What a gateway knows is `fresh` while Redis
    answers it; after that versions may have moved, so that a cohort's come first but any is better
    than no answer. Those who still serve a candidate that was not promoted are the last resort.
    """
    canary = release.canary
    if release.split is not None and canary is not None and cohort is not None:
        others: tuple[str | None, ...] = (canary.parent,) if fresh else (canary.parent, None)
        if cohort == "live":
            return Wish(others)
        return Wish((canary.candidate, *others), candidate=canary.candidate)
    if canary is not None and _is_shunned(canary, release.target, now):
        return Wish(shunned=canary.candidate)
    return ANY


def _is_shunned(canary: Canary, target: str | None, now: float) -> bool:
    """Whether some still serve a candidate that never was live for all."""
    refused = canary.mode == "split" and canary.state in ("rolled_back", "stopped")
    recent = canary.ended_at is not None and now - canary.ended_at < _SHUNNED_SECONDS
    return refused and recent and canary.candidate != target


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
