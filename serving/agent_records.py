"""What an engine agent writes to Redis: heartbeats, probes, bad versions, and whose turn it is.

All of it may fail, because an engine serves on without Redis; what must not be lost is written at
a later look. Decides nothing.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Literal

from core import keys, registry
from core.errors import Conflict, StartError, Unavailable
from core.records import Replica
from core.redis_client import redis_errors, script
from serving.agent_state import Agent

log = logging.getLogger(__name__)
HEARTBEAT_SECONDS = 1.0
HEARTBEAT_EXPIRES_SECONDS = 5
CLAIM_SECONDS = 8.0
"""How long a new agent waits for the heartbeat of another of its name to expire."""
BEATS_BETWEEN_LOOKS = 60
"""A replica that is silent at two looks in a row, a minute apart, is forgotten."""
SWAP_LEASE_SECONDS = 10.0
"""A replica that dies while it swaps holds up the others this long."""


async def claim(agent: Agent) -> None:
    """Take the replica's name, as soon as nobody else alive has it. Raises StartError."""
    deadline: float | None = None
    while not agent.stopping.is_set():
        try:
            holder = await _say(agent, "claim")
        except Unavailable as error:
            log.warning("no heartbeat: %s", error.message)
        else:
            if not holder:
                return
            deadline = deadline or time.monotonic() + CLAIM_SECONDS
            if time.monotonic() > deadline:
                raise StartError(
                    f"an engine called {agent.name} is alive at {_place(holder)}: give this one a "
                    "name of its own with INSTRUCTLOOP_ENGINE__NAME"
                )
        await asyncio.sleep(HEARTBEAT_SECONDS / 2)


async def heartbeats(agent: Agent) -> None:
    """Say every second how it is, until cancelled."""
    for beat in count(1):
        await say_state(agent)
        if beat % BEATS_BETWEEN_LOOKS == 0:
            await forget_silent(agent)
        await asyncio.sleep(HEARTBEAT_SECONDS)


async def say_state(agent: Agent) -> None:
    """Say now how it is; if another agent has the name by now, this one is to stop.

    Another has it who says something after this one heard of them. A Redis that failed over may
    know the last word of a predecessor again, who is gone: that word expires, and is no reason.
    """
    try:
        holder = await _say(agent, "say")
        rival = await _rival(agent, holder) if holder else None
    except Unavailable as error:
        log.warning("no heartbeat: %s", error.message)
        return
    if rival and agent.rival and rival != agent.rival and not agent.stopping.is_set():
        agent.superseded = holder
        log.error("%s is at %s now: this one stops", agent.name, _place(holder))
        agent.stopping.set()
    agent.rival = rival


async def _rival(agent: Agent, holder: str) -> tuple[str, bytes] | None:
    """Who has the name, and their heartbeat as it stands; None once it has expired."""
    with redis_errors():
        said = await agent.redis.get(keys.replica(agent.name))
    return (holder, bytes(said)) if said else None


async def _say(agent: Agent, action: Literal["claim", "say", "leave"]) -> str:
    """Heartbeat and holder in one step; who holds the name, "" if it is this agent's."""
    replica = Replica(
        name=agent.name,
        url=agent.url,
        version=agent.serving,
        state=agent.state,
        detail=agent.detail,
        seen_at=time.time(),
        probed_at=agent.probed_at,
    )
    names = [keys.replicas(), keys.replica(agent.name), keys.replica_holder(agent.name)]
    said: list[str | bytes | int | float] = [action, agent.name, agent.holder, agent.place]
    said += [replica.model_dump_json(), HEARTBEAT_EXPIRES_SECONDS]
    with redis_errors():
        holder: bytes = await script(agent.redis, "replica", names, said)
    return holder.decode()


def _place(holder: str) -> str:
    return holder.rpartition(" ")[0].rpartition(" ")[2]


async def forget(agent: Agent) -> None:
    """Say that there is no such replica any more."""
    with suppress(Unavailable):  # the heartbeat expires by itself
        await _say(agent, "leave")


async def forget_silent(agent: Agent) -> None:
    """Forget replicas that ended without a word and never came back, as pods do.

    One that is forgotten and lives is known again within a second.
    """
    with suppress(Unavailable), redis_errors():
        names = sorted(raw.decode() for raw in await agent.redis.smembers(keys.replicas()))
        said = await agent.redis.mget([keys.replica(name) for name in names]) if names else []
        silent = frozenset(name for name, word in zip(names, said, strict=True) if not word)
        if gone := agent.silent & silent:
            await agent.redis.srem(keys.replicas(), *gone)
            log.warning("replicas that are silent were forgotten: %s", ", ".join(sorted(gone)))
        agent.silent = silent - gone


async def loaded(agent: Agent, version: str, checksums: Mapping[str, str]) -> None:
    """Keep what the first engine computed for a version, and say that this one was probed."""
    await proved(agent, version)
    try:
        with redis_errors():
            if not await agent.redis.exists(keys.policy_checksums(version)):
                await agent.redis.hset(keys.policy_checksums(version), mapping=dict(checksums))
            await registry.record(agent.redis, "probed", version=version, replica=agent.name)
    except Unavailable as error:
        log.warning("the probe of %s was not recorded: %s", version, error.message)


async def proved(agent: Agent, version: str) -> None:
    """Note that this replica proved to hold a version just now."""
    agent.probed_at = time.time()
    with suppress(Unavailable), redis_errors():
        await agent.redis.hset(keys.probes(version), agent.name, registry.timestamp())


async def disproved(agent: Agent, version: str, why: str) -> None:
    """Note in the audit log that this replica does not hold what it should."""
    try:
        with redis_errors():
            await registry.record(
                agent.redis, "attestation failed", version=version, replica=agent.name, why=why
            )
    except Unavailable as error:
        log.error("that %s failed its attestation was not recorded: %s", version, error.message)


async def condemn(agent: Agent, version: str, why: str) -> None:
    """Never load a version again, and tell everybody, now or as soon as Redis answers."""
    log.error("refused %s: %s", version, why)
    agent.refused.add(version)
    agent.condemned[version] = agent.detail = why
    try:
        await tell_condemned(agent)
    except Unavailable as error:
        log.error("could not record that: %s", error.message)


async def tell_condemned(agent: Agent) -> None:
    """Quarantine bad versions, and point everybody back from them. Raises Unavailable."""
    for version, why in list(agent.condemned.items()):
        with redis_errors():
            if not await agent.redis.hexists(keys.quarantined(), version):
                await registry.quarantine(agent.redis, version, why=why)
            if await registry.target(agent.redis) == version:
                with suppress(Conflict):  # it was moved meanwhile, or there is none before it
                    await registry.rollback(agent.redis, who=agent.name, why=why, expected=version)
        del agent.condemned[version]


def turns_at_once(replicas: int, share: float) -> int:
    """How many replicas may swap at one time: a share, rounded down, but one."""
    return max(1, int(replicas * share))


@asynccontextmanager
async def turn_to_swap(agent: Agent) -> AsyncIterator[bool]:
    """Whether it is this replica's turn, which it then keeps until the block ends.

    Few at a time keep the others answering; that more swap at once, after a Redis that was away,
    costs time and harms nothing. Of several turns it tries one at random: the next look tries
    another. Raises Unavailable.
    """
    holder = f"{agent.name}:{secrets.token_hex(8)}"
    milliseconds = int(SWAP_LEASE_SECONDS * 1000)
    with redis_errors():
        replicas = await agent.redis.scard(keys.replicas())
        turns = turns_at_once(replicas, agent.settings.engine.swap_share)
        lease = keys.swap_lease(secrets.randbelow(turns))
        mine = await agent.redis.set(lease, holder, nx=True, px=milliseconds)
    if not mine:
        yield False
        return
    keeper = asyncio.create_task(_keep_turn(agent, lease, holder))
    try:
        yield True
    finally:
        keeper.cancel()
        with suppress(Unavailable):  # then it expires by itself
            await _change_turn(agent, lease, "drop", holder)


async def _keep_turn(agent: Agent, lease: str, holder: str) -> None:
    while True:
        await asyncio.sleep(SWAP_LEASE_SECONDS / 3)
        with suppress(Unavailable):
            await _change_turn(agent, lease, "keep", holder)


async def _change_turn(agent: Agent, lease: str, action: str, holder: str) -> None:
    milliseconds = int(SWAP_LEASE_SECONDS * 1000)
    with redis_errors():
        await script(agent.redis, "lease", [lease, keys.fence()], [action, milliseconds, holder])
