"""How long it took from a word of somebody's to weights that learned from it and serve.

Looked at every second: when a version is live and some replica has proved to serve it, every word
that it learned from and its parent did not is measured, once, by whichever worker is first. A
version that comes back by a roll back measures nothing again. Reads records; next: the
histogram of core/metrics.py, which the objective on freshness is about.
"""

import logging
import time

from core import keys, registry
from core.errors import CorruptVersion, NotFound
from core.metrics import FRESHNESS_SECONDS
from core.policy_store import PolicyStore
from core.records import LabelingTask
from core.redis_client import Redis
from core.settings import Settings
from feedback import store

_log = logging.getLogger(__name__)


async def look(redis: Redis, settings: Settings) -> int:
    """Measure what became live since the last look; how many words that were."""
    version = await registry.target(redis)
    if version is None or await redis.hexists(keys.freshness(), version):
        return 0
    if not await redis.exists(keys.probes(version)):
        return 0  # it is the target, but no replica serves it yet
    if not await redis.hsetnx(keys.freshness(), version, registry.timestamp()):
        return 0
    now, said = time.time(), await _said(redis, settings, version)
    for moment in said:
        FRESHNESS_SECONDS.observe(max(now - moment, 0.0))
    if said:
        _log.info("%d words are live", len(said), extra={"version": version})
    return len(said)


async def _said(redis: Redis, settings: Settings, version: str) -> list[float]:
    """When each word was said that this version brings and its parent did not have."""
    card = await registry.card(redis, version)
    ids = await _ids(redis, settings, version)
    if ids and card.parent:
        ids -= await _ids(redis, settings, card.parent)
    if not ids:
        return []
    words = await store.get_many(redis, ids)
    tasks = await redis.mget([keys.labeling_task(one) for one in ids])
    answered = [LabelingTask.model_validate_json(raw) for raw in tasks if raw]
    said = [word.created_at for word in words]
    return said + [answer.answered_at for task in answered for answer in task.answers]


async def _ids(redis: Redis, settings: Settings, version: str) -> set[str]:
    """Ids of the feedback that a version names; none where it names none, or they are elsewhere."""
    policies = PolicyStore(settings.state_dir / "policies", settings.policies_url)
    try:
        card = await registry.card(redis, version)
        return set(policies.lineage(card, await registry.prefix(redis, version)))
    except (NotFound, CorruptVersion):
        return set()
