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

from core import keys, registry
from core.errors import Conflict, Unavailable
from core.records import Replica
from core.redis_client import redis_errors, script
from serving.agent_state import Agent

log = logging.getLogger(__name__)
HEARTBEAT_SECONDS = 1.0
HEARTBEAT_EXPIRES_SECONDS = 5
SWAP_LEASE_SECONDS = 10.0
"""A replica that dies while it swaps holds up the others this long."""


async def heartbeats(agent: Agent) -> None:
    """Say every second how it is, until cancelled."""
    while True:
        await say_state(agent)
        await asyncio.sleep(HEARTBEAT_SECONDS)


async def say_state(agent: Agent) -> None:
    """Say now how it is."""
    replica = Replica(
        name=agent.name,
        url=f"unix:{agent.socket}",
        version=agent.serving,
        state=agent.state,
        detail=agent.detail,
        seen_at=time.time(),
        probed_at=agent.probed_at,
    )
    try:
        with redis_errors():
            pipeline = agent.redis.pipeline()
            pipeline.sadd(keys.replicas(), agent.name)
            pipeline.set(
                keys.replica(agent.name), replica.model_dump_json(), ex=HEARTBEAT_EXPIRES_SECONDS
            )
            await pipeline.execute()
    except Unavailable as error:
        log.warning("no heartbeat: %s", error.message)


async def forget(agent: Agent) -> None:
    """Say that there is no such replica any more."""
    with suppress(Unavailable), redis_errors():  # the heartbeat expires by itself
        await agent.redis.srem(keys.replicas(), agent.name)
        await agent.redis.delete(keys.replica(agent.name))


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


@asynccontextmanager
async def turn_to_swap(agent: Agent) -> AsyncIterator[bool]:
    """Whether it is this replica's turn, which it then keeps until the block ends.

    One at a time keeps the others answering; that two swap at once, after a Redis that was away,
    costs time and harms nothing. Raises Unavailable.
    """
    holder = f"{agent.name}:{secrets.token_hex(8)}"
    milliseconds = int(SWAP_LEASE_SECONDS * 1000)
    with redis_errors():
        mine = await agent.redis.set(keys.swap_lease(), holder, nx=True, px=milliseconds)
    if not mine:
        yield False
        return
    keeper = asyncio.create_task(_keep_turn(agent, holder))
    try:
        yield True
    finally:
        keeper.cancel()
        with suppress(Unavailable):  # then it expires by itself
            await _lease(agent, "drop", holder)


async def _keep_turn(agent: Agent, holder: str) -> None:
    while True:
        await asyncio.sleep(SWAP_LEASE_SECONDS / 3)
        with suppress(Unavailable):
            await _lease(agent, "keep", holder)


async def _lease(agent: Agent, action: str, holder: str) -> None:
    names = [keys.swap_lease(), keys.fence()]
    with redis_errors():
        await script(agent.redis, "lease", names, [action, int(SWAP_LEASE_SECONDS * 1000), holder])
