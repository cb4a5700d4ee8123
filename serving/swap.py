"""A hot swap: new weights into a running engine, in the order in which nothing can go wrong.

stage the new weights beside the old ones while the engine answers, and compare all their checksums;
hold new requests, drain for a bounded time, pause, exchange the two sets and prove each layer,
clear the cache, name the version, resume, probe, admit; then compare all checksums of what is live,
again while the engine answers. An engine that cannot hold two sets loads and is compared within the
pause. A failure puts the old weights back over new connections; where that cannot be, the caller
restarts the engine. Verification of the files comes before all of this (core/versions.py).

Knows the engine only as the protocol below; knows no Redis.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from core.errors import CorruptVersion, EngineError, InstructLoopError

log = logging.getLogger(__name__)


class SwapEngine(Protocol):
    """What a swap needs of an engine; core/engine/client.py has it for vLLM."""

    async def stage(self, folder: Path) -> dict[str, str] | None:
        """Load weights beside the live ones; their checksums, None if it can only reload."""

    async def install(self) -> None:
        """Exchange the live weights for the staged ones, and prove that each layer has them."""

    async def attest(self) -> dict[str, str]:
        """`checksums`, while the engine answers."""

    async def hold(self) -> None:
        """Let new requests wait."""

    async def drain(self, seconds: float) -> int:
        """Wait until nothing is in flight, but no longer than that; returns what is left."""

    async def pause(self) -> None:
        """Freeze generation; replies in flight go on after `resume`."""

    async def reload(self, folder: Path) -> None:
        """Load weights; all tensors or none."""

    async def checksums(self) -> dict[str, str]:
        """Checksum of every parameter as it is in memory."""

    async def reset_prefix_cache(self) -> None:
        """Forget every cached prefix, also those of replies in flight."""

    async def set_weight_version(self, version: str) -> None:
        """From now on tokens are this version's: marks replies that cross."""

    async def resume(self) -> None:
        """Go on generating."""

    async def probe(self) -> object:
        """Generate one finite token on a prompt that must not come from the cache."""

    async def admit(self, version: str) -> None:
        """Let the waiting requests in."""


class SwapFailed(InstructLoopError):
    """The new version did not go in. `restored` says whether the old one serves again."""

    def __init__(self, message: str, *, restored: bool) -> None:
        super().__init__(message)
        self.restored = restored


@dataclass(frozen=True, slots=True)
class Loadable:
    """A version as an engine can load it."""

    version: str
    folder: Path
    checksums: Mapping[str, str] | None
    """What an engine computed when it loaded this version; None if none ever did."""


@dataclass(frozen=True, slots=True)
class SwapResult:
    """How a swap went."""

    pause_seconds: float
    """From pause to resume: what a reply in flight saw."""
    held_seconds: float
    """From hold to admit: what a new request saw at most."""
    checksums: dict[str, str]
    held_at: float
    """When hold was asked for, on the monotonic clock."""


async def swap(
    engine: SwapEngine, *, new: Loadable, old: Loadable, drain_seconds: float
) -> SwapResult:
    """Take `new` into the engine. Raises SwapFailed, with the old weights back if possible."""
    try:
        staged = await engine.stage(new.folder)
        if staged is not None:
            _check(staged, new)
    except (EngineError, CorruptVersion) as failure:  # nothing live was touched
        raise SwapFailed(_said(new, failure), restored=True) from failure
    held_at = time.monotonic()
    try:
        await engine.hold()
        await engine.drain(drain_seconds)
        pause_seconds, checksums = await _exchange(engine, new, staged)
        await engine.admit(new.version)
        held_seconds = time.monotonic() - held_at
        if staged is not None and await engine.attest() != staged:
            raise EngineError("the live parameters are not those that were staged")
    except (EngineError, CorruptVersion) as failure:
        restored = await _restore(engine, old)
        raise SwapFailed(_said(new, failure), restored=restored) from failure
    return SwapResult(pause_seconds, held_seconds, checksums, held_at)


async def _exchange(
    engine: SwapEngine, new: Loadable, staged: dict[str, str] | None
) -> tuple[float, dict[str, str]]:
    """Pause, load, prove, resume, probe. Returns the length of the pause and the checksums."""
    paused_at = time.monotonic()
    await engine.pause()
    if staged is not None:
        await engine.install()
        checksums = staged
    else:
        await engine.reload(new.folder)
        checksums = await engine.checksums()
        _check(checksums, new)
    await engine.reset_prefix_cache()
    await engine.set_weight_version(new.version)
    await engine.resume()
    pause_seconds = time.monotonic() - paused_at
    await engine.probe()
    return pause_seconds, checksums


def _check(checksums: Mapping[str, str], of: Loadable) -> None:
    """Raise EngineError unless these can be the version's."""
    if differing := differing_parameters(checksums, of.checksums):
        raise EngineError(f"{differing} parameters are not those of {of.version} after loading it")


def _said(new: Loadable, failure: InstructLoopError) -> str:
    return f"{new.version} did not go in: {failure}"


def differing_parameters(live: Mapping[str, str], expected: Mapping[str, str] | None) -> int:
    """How many parameters are not what another engine computed for this version.

    0 where nothing is known, and where an engine of another build or cut names them otherwise.
    """
    if expected is None or live.keys() != expected.keys():
        return 0
    return sum(live[name] != value for name, value in expected.items())


async def _restore(engine: SwapEngine, old: Loadable) -> bool:
    """Put the old weights back and serve with them. False when that failed too."""
    try:
        await engine.hold()
        await _exchange(engine, old, None)
        await engine.admit(old.version)
    except (EngineError, CorruptVersion) as failure:
        log.error("the old weights could not be put back: %s", failure.message)
        return False
    return True
