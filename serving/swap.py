"""A hot swap: new weights into a running engine, in the order in which nothing can go wrong.

hold new requests, drain for a bounded time, pause, load, compare checksums, clear the cache, name
the version, resume, probe, admit. A failure puts the old weights back over new connections; where
that cannot be, the caller restarts the engine. Verification of the files comes before all of this
(core/versions.py), because a failed load leaves an engine without weights.

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


async def swap(
    engine: SwapEngine, *, new: Loadable, old: Loadable, drain_seconds: float
) -> SwapResult:
    """Take `new` into the engine. Raises SwapFailed, with the old weights back if possible."""
    held_at = time.monotonic()
    await engine.hold()
    try:
        await engine.drain(drain_seconds)
        pause_seconds, checksums = await _exchange(engine, new)
        await engine.admit(new.version)
    except (EngineError, CorruptVersion) as failure:
        restored = await _restore(engine, old)
        raise SwapFailed(f"{new.version} did not go in: {failure}", restored=restored) from failure
    return SwapResult(
        pause_seconds=pause_seconds,
        held_seconds=time.monotonic() - held_at,
        checksums=checksums,
    )


async def _exchange(engine: SwapEngine, new: Loadable) -> tuple[float, dict[str, str]]:
    """Pause, load, prove, resume, probe. Returns the length of the pause and the checksums."""
    paused_at = time.monotonic()
    await engine.pause()
    await engine.reload(new.folder)
    checksums = await engine.checksums()
    if differing := differing_parameters(checksums, new.checksums):
        raise EngineError(f"{differing} parameters are not those of {new.version} after loading it")
    await engine.reset_prefix_cache()
    await engine.set_weight_version(new.version)
    await engine.resume()
    pause_seconds = time.monotonic() - paused_at
    await engine.probe()
    return pause_seconds, checksums


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
        await _exchange(engine, old)
        await engine.admit(old.version)
    except (EngineError, CorruptVersion) as failure:
        log.error("the old weights could not be put back: %s", failure.message)
        return False
    return True
