"""A hot swap: new weights into a running engine, in the order in which nothing can go wrong.

stage the new weights beside the old ones while the engine answers, and compare all their checksums;
hold new requests, drain for a bounded time, pause, exchange the two sets and prove each layer,
clear the cache, name the version, resume, probe, admit; then compare all checksums of what is live,
again while the engine answers. An engine that cannot hold two sets loads and is compared within the
pause. A failure puts the old weights back over new connections; where that cannot be, and after
NaN, which outlives its weights, the caller restarts the engine. Verification of the files comes
before all of this (core/versions.py).

Knows the engine only as the protocol below; knows no Redis.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from core import traces
from core.errors import CorruptVersion, EngineError, InstructLoopError, NotFinite

log = logging.getLogger(__name__)
EXCHANGE_SECONDS = 9.0
"""From hold to admit, and for each try to put the old weights back: the guard waits for 30."""
_RESTORE_TRIES = 2


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

    async def reset_prefix_cache(self, *, keep: bool = False) -> None:
        """Forget every cached prefix.

        With `keep` replies in flight may go on with their own caches, which no other request can
        then meet; otherwise they are computed again.
        """

    async def set_weight_version(self, version: str) -> None:
        """From now on tokens are this version's: marks replies that cross."""

    async def resume(self) -> None:
        """Go on generating."""

    async def probe(self) -> object:
        """Generate one finite token on a prompt that must not come from the cache."""

    async def admit(self, version: str) -> None:
        """Let the waiting requests in."""


class SwapFailed(InstructLoopError):
    """The new version did not go in.

    `restored` says whether the old one serves again; `blames_version` whether what failed speaks of
    the version (its files, its checksums, NaN) and not only of the engine.
    """

    def __init__(self, message: str, *, restored: bool, blames_version: bool) -> None:
        super().__init__(message)
        self.restored = restored
        self.blames_version = blames_version


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
        with traces.span("stage weights", version=new.version):
            staged = await _stage(engine, new)
    except (EngineError, CorruptVersion) as failure:  # nothing live was touched
        raise _failed(new, failure, restored=True) from failure
    held_at = time.monotonic()
    bound = None if staged is None else EXCHANGE_SECONDS
    try:
        async with _within(None if bound is None else bound + drain_seconds):
            with traces.span("drain"):
                await engine.hold()
                await engine.drain(drain_seconds)
            with traces.span("exchange", version=new.version):
                pause_seconds, checksums = await _exchange(engine, new, staged)
            await engine.admit(new.version)
        held_seconds = time.monotonic() - held_at
        with traces.span("compare weights"):
            if staged is not None and await engine.attest() != staged:
                raise EngineError("the live parameters are not those that were staged")
    except (EngineError, CorruptVersion) as failure:
        spoilt = isinstance(failure, NotFinite)
        with traces.span("restore weights", version=old.version):
            restored = not spoilt and await _restore(engine, old, bound)
        raise _failed(new, failure, restored=restored) from failure
    return SwapResult(pause_seconds, held_seconds, checksums, held_at)


async def _stage(engine: SwapEngine, new: Loadable) -> dict[str, str] | None:
    """Stage, and compare; once more if it is another version, which may be the engine's fault."""
    staged = await engine.stage(new.folder)
    if staged is not None and differing_parameters(staged, new.checksums):
        log.warning("%s was staged with wrong parameters: once more", new.version)
        staged = await engine.stage(new.folder)
    if staged is not None:
        _check(staged, new)
    return staged


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
    # after a fault, or where the engine cannot exchange weights, nothing computed before is kept
    await engine.reset_prefix_cache(keep=staged is not None)
    await engine.set_weight_version(new.version)
    await engine.resume()
    pause_seconds = time.monotonic() - paused_at
    traces.part("pause", pause_seconds)
    with traces.span("probe"):
        await engine.probe()
    return pause_seconds, checksums


def _check(checksums: Mapping[str, str], of: Loadable) -> None:
    """Raise CorruptVersion unless these can be the version's."""
    if differing := differing_parameters(checksums, of.checksums):
        raise CorruptVersion(
            f"{differing} parameters are not those of {of.version} after loading it"
        )


def _failed(new: Loadable, failure: InstructLoopError, *, restored: bool) -> SwapFailed:
    return SwapFailed(
        f"{new.version} did not go in: {failure}",
        restored=restored,
        blames_version=isinstance(failure, (CorruptVersion, NotFinite)),
    )


def differing_parameters(live: Mapping[str, str], expected: Mapping[str, str] | None) -> int:
    """How many parameters are not what another engine computed for this version.

    0 where nothing is known, and where an engine of another build or cut names them otherwise.
    """
    if expected is None or live.keys() != expected.keys():
        return 0
    return sum(live[name] != value for name, value in expected.items())


async def _restore(engine: SwapEngine, old: Loadable, bound: float | None) -> bool:
    """Put the old weights back and serve with them. False when that failed too, twice."""
    for _ in range(_RESTORE_TRIES):
        try:
            async with _within(bound):
                await engine.hold()
                await _exchange(engine, old, None)
                await engine.admit(old.version)
        except (EngineError, CorruptVersion) as failure:
            log.error("the old weights could not be put back: %s", failure.message)
        else:
            return True
    return False


@asynccontextmanager
async def _within(seconds: float | None) -> AsyncIterator[None]:
    """Raise EngineError when the block takes longer: who waits at the guard waits no longer."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise EngineError(f"the engine took over {seconds} s to exchange its weights") from None
