"""Versions that a stage reads, on the machine where it runs: fetched where they are missing.

One machine has them all; of several, each has those that it made itself (core/policy_store.py).
"""

import asyncio
from collections.abc import Iterable

from core import registry
from core.policy_copies import Copies
from core.policy_store import PolicyStore
from core.records import Card
from core.redis_client import redis_errors
from learning.rounds.work import Work


async def fetch_versions(work: Work, versions: Iterable[str]) -> None:
    """Have the folders of these versions here.

    Raises NotFound (no such version), CorruptVersion (what is kept is not what its card names) and
    Unavailable.
    """
    settings = work.settings
    if not settings.policies_url:
        return
    store = PolicyStore(work.folders.policies, settings.policies_url)
    for version in dict.fromkeys(filter(None, versions)):
        with redis_errors():
            card = await registry.card(work.redis, version)
            prefix = await registry.prefix(work.redis, version)
        await asyncio.to_thread(_fetch, store, card, prefix)


def _fetch(store: PolicyStore, card: Card, prefix: str) -> None:
    """Fetch it, and take it from the copies that an engine of this machine may remove."""
    copies = Copies(store.local)
    copies.hold(card.version)
    try:
        store.fetch(card, prefix)
    finally:
        copies.own(card.version)
