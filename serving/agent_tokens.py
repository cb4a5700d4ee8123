"""Which tokens open an engine to gateways: told to it again whenever they change.

An engine runs for months and its token is exchanged while it does: the agent reads the keyring, and
core/engine/guard.py reads what is written here. Knows nothing of versions.
"""

import asyncio
import logging

from core.engine.guard import tokens_file, write_tokens
from core.errors import StartError
from core.keyring import ENGINE_DATA
from serving.agent_state import Agent

log = logging.getLogger(__name__)
EVERY_SECONDS = 1.0


def present(agent: Agent) -> str:
    """What gateways send now."""
    return agent.keyring.present(ENGINE_DATA).decode()


def accepted(agent: Agent) -> tuple[str, ...]:
    """All that they may send."""
    return tuple(token.decode() for token in agent.keyring.accepted(ENGINE_DATA))


async def renew(agent: Agent) -> None:
    """Tell the engine whenever they change, while it loads as well as while it runs."""
    told: tuple[str, ...] = ()
    while True:
        try:
            told = tell(agent, told)
        except (OSError, StartError) as error:  # a folder that is away for a while
            log.warning("the engine keeps the tokens that it has: %s", error)
        await asyncio.sleep(EVERY_SECONDS)


def tell(agent: Agent, told: tuple[str, ...]) -> tuple[str, ...]:
    """Once; `told` is what the engine knew. Returns what it knows. Raises OSError, StartError."""
    if agent.client is not None:
        agent.client.data_token = present(agent)
    known = accepted(agent)
    if known != told:
        write_tokens(tokens_file(agent.socket), data=known, control=agent.control_token)
    return known
