"""Attestation at intervals: whether an engine still holds the weights it was proved to hold.

Checksums of all live parameters, in short slices with rests between them, so that answers go on,
and one generated token. Each must be what it was right after loading, which then was what the
version's card and other engines say. Runs beside the agent's looks; a swap ends it. What becomes of
an engine that fails is the agent's to decide.
"""

import asyncio
import logging
import time
from contextlib import suppress

from core.engine.client import EngineClient
from core.errors import EngineError, NotFinite
from core.metrics import ATTESTATIONS
from serving.agent_records import disproved, proved
from serving.agent_state import Agent
from serving.swap import differing_parameters

log = logging.getLogger(__name__)
REST_SECONDS = 0.05
"""Between two slices, each about one step of decoding."""


async def fault(agent: Agent) -> str:
    """Why this engine must not answer any more; empty while all is well.

    Begins an attestation when one is due, and tells what the last one found.
    """
    task = agent.attestation
    if task is not None and task.done():
        agent.attestation = None
        return await task
    every = agent.settings.engine.attest_seconds
    if task is None and every and agent.client is not None and time.monotonic() >= agent.attest_at:
        if agent.attest_at:  # not right after a load, which is a proof itself
            agent.attestation = asyncio.create_task(_prove(agent, agent.client, agent.serving))
        agent.attest_at = time.monotonic() + every
    return ""


async def end(agent: Agent) -> None:
    """Stop an attestation that is under way; the next is due after a whole interval."""
    task, agent.attestation, agent.attest_at = agent.attestation, None, 0.0
    if task is not None:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _prove(agent: Agent, client: EngineClient, version: str) -> str:
    try:
        why = await difference(client, version, agent.checksums)
    except NotFinite as error:
        why = error.message
    except EngineError as error:  # whether it lives is asked elsewhere
        log.warning("no attestation of %s: %s", version, error.message)
        ATTESTATIONS.labels(outcome="unanswered").inc()
        return ""
    ATTESTATIONS.labels(outcome="mismatch" if why else "ok").inc()
    if why:
        log.error("%s failed its attestation: %s", version, why)
        await disproved(agent, version, why)
    else:
        await proved(agent, version)
    return why


async def difference(client: EngineClient, version: str, loaded: dict[str, str]) -> str:
    """How the engine differs from what was loaded. Raises EngineError, NotFinite."""
    live = await client.attest(REST_SECONDS)
    await client.probe()
    if live.keys() != loaded.keys():
        return f"it holds other parameters than those of {version}"
    if wrong := differing_parameters(live, loaded):
        return f"{wrong} parameters are not those of {version} any more"
    named = (await client.state()).version
    return "" if named == version else f"it serves {version} and calls it {named}"
