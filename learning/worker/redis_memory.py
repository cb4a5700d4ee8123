"""How full the Redis of the records is, as metrics that an alert watches.

It evicts nothing, so a full one refuses every write: people's words first of all. Knows what
`INFO memory` says, nothing of records. learning/worker/ticking.py looks with each tick.
"""

from collections.abc import Mapping
from typing import Any

from core import metrics
from core.redis_check import info_of
from core.redis_client import Redis


async def look(redis: Redis) -> None:
    """Set the two gauges; they stay as they are where our user may not ask."""
    said = fullest(await info_of(redis, "memory"))
    if "used_memory" in said:
        metrics.REDIS_MEMORY.set(int(said["used_memory"]))
        metrics.REDIS_MEMORY_LIMIT.set(allowed(said))


def allowed(said: Mapping[str, Any]) -> int:
    """Bytes that a Redis may use: its `maxmemory`, or the memory of its machine; 0 if unknown."""
    return int(said.get("maxmemory") or said.get("total_system_memory") or 0)


def fullest(said: Mapping[str, Any]) -> Mapping[str, Any]:
    """What one server said; of several, by their names, the one with the least room."""
    servers = [one for one in said.values() if isinstance(one, Mapping)]
    if not servers:
        return said
    return max(servers, key=lambda one: int(one.get("used_memory", 0)) / max(allowed(one), 1))
