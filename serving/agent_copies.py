"""A version's folder on an engine's machine: brought here, proven, held while it is used.

Where versions are kept elsewhere too, an agent fetches what it needs, and its copies stay within
`engine.copies` and `engine.copies_gib`. The live version stays, the one before it, a canary's and
whatever some process here uses (core/policy_copies.py); the rest goes, used longest ago first. A
version that cannot be brought is asked for again later: it says nothing of the version.
"""

import asyncio
import logging
import shutil
from collections.abc import Collection
from pathlib import Path

from core import canary, keys, registry
from core.errors import CorruptVersion, EngineError, InstructLoopError, Unavailable
from core.policy_store import PolicyStore
from core.records import Card
from core.redis_client import redis_errors
from core.versions import verify
from serving.agent_state import Agent
from serving.swap import Loadable

log = logging.getLogger(__name__)


class NotFetched(InstructLoopError):
    """A version could not be brought to this machine: no room on the disk, no way to the store."""


async def loadable(agent: Agent, version: str, *, like: Path | None) -> Loadable:
    """A version's folder and expected checksums; verified in a thread of this process.

    Raises CorruptVersion, NotFound, NotFetched, EngineError, Unavailable.
    """
    with redis_errors():
        card = await registry.card(agent.redis, version)
        prefix = await registry.prefix(agent.redis, version)
        expected = await agent.redis.hgetall(keys.policy_checksums(version))
        bad = await agent.redis.hget(keys.quarantined(), version)
        keep = await _wanted_here(agent)
    if bad:  # whoever found that may have died before it pointed everybody back
        raise CorruptVersion(f"{version} is quarantined: {bad.decode()}")
    try:
        folder = await asyncio.to_thread(_brought, agent, card, prefix, keep, like)
    except OSError as error:  # a disk that fails says nothing of the version
        raise EngineError(f"{version} could not be read: {error}") from error
    agent.unfetched.pop(version, None)
    checksums = {name.decode(): value.decode() for name, value in expected.items()}
    return Loadable(version=version, folder=folder, checksums=checksums or None)


async def trim(agent: Agent) -> None:
    """Remove copies that are wanted no more, now or after a later load."""
    try:
        agent.copies.release(but=[agent.serving])
        with redis_errors():
            keep = await _wanted_here(agent)
        await asyncio.to_thread(_trim, agent, keep)
    except (Unavailable, OSError) as error:
        log.warning("old copies of versions stay for now: %s", error)


async def _wanted_here(agent: Agent) -> frozenset[str]:
    """The live version, the one to go back to, and those of a canary."""
    target = await registry.target(agent.redis)
    before = [raw.decode() for raw in await agent.redis.lrange(keys.target_history(), 0, -1)]
    bad = {raw.decode() for raw in await agent.redis.hkeys(keys.quarantined())}
    usable = (of for of in before if of != target and of not in bad)
    wanted = {target, next(usable, None), agent.wanted, *await canary.held_versions(agent.redis)}
    return frozenset(version for version in wanted if version)


def _brought(
    agent: Agent, card: Card, prefix: str, keep: Collection[str], like: Path | None
) -> Path:
    """The version's folder, proven; a copy that went bad on this disk is fetched once more."""
    folder = _fetched(agent, card, prefix, keep)
    public_key = agent.keyring.public_key()
    try:
        verify(folder, card, like=like, public_key=public_key)
    except CorruptVersion as error:
        if not agent.copies.is_copy(card.version):
            raise
        log.error("this machine's copy is bad and is fetched again: %s", error.message)
        agent.copies.release(but=[agent.serving])
        if not agent.copies.drop(card.version):
            raise NotFetched(f"{error.message} Another engine here holds the copy.") from error
        verify(_fetched(agent, card, prefix, keep), card, like=like, public_key=public_key)
    return folder


def _fetched(agent: Agent, card: Card, prefix: str, keep: Collection[str]) -> Path:
    """The version's folder, held. Raises CorruptVersion, NotFound, NotFetched, OSError."""
    settings = agent.settings
    store = PolicyStore(agent.copies.local, settings.policies_url)
    if not (settings.policies_url and prefix):
        return store.fetch(card, prefix)
    agent.copies.release(but=[agent.serving])
    agent.copies.hold(card.version)
    try:
        if not (store.local / card.version).is_dir():
            _make_room(agent, card.version, keep, needed=store.size(prefix))
        return store.fetch(card, prefix)
    except Unavailable as error:
        raise NotFetched(f"{card.version} could not be fetched: {error.message}") from error


def _make_room(agent: Agent, version: str, keep: Collection[str], *, needed: int) -> None:
    """Remove what has to go for so many bytes more. Raises NotFetched where that is not enough."""
    _trim(agent, keep, needed=needed)
    local, limit = agent.copies.local, _limit(agent)
    if limit is not None and agent.copies.size() + needed > limit:
        raise NotFetched(
            f"{version} needs {needed >> 20} MiB, and with the copies that must stay it is over "
            "engine.copies_gib: raise that"
        )
    if shutil.disk_usage(local).free < needed:
        agent.copies.trim(keep, most=0, most_bytes=None)
    free = shutil.disk_usage(local).free
    if free < needed:
        raise NotFetched(
            f"{version} needs {needed >> 20} MiB, and {free >> 20} MiB are free under {local}: "
            "make room there"
        )


def _trim(agent: Agent, keep: Collection[str], *, needed: int = 0) -> None:
    limit = _limit(agent)
    most_bytes = None if limit is None else limit - needed
    agent.copies.trim(keep, most=agent.settings.engine.copies, most_bytes=most_bytes)


def _limit(agent: Agent) -> int | None:
    """Bytes that all copies may have together."""
    gib = agent.settings.engine.copies_gib
    return int(gib * (1 << 30)) if gib else None
