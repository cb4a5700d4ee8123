"""`instructloop status`: what serves, what was said, what was learned, what comes next."""

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from core import keys, loop, registry
from core.records import Replica
from core.redis_client import Redis
from core.settings import Settings
from deploy.cli_loop import with_redis

COUNTS = ("prompts", "ratings", "rankings", "demonstrations", "comparisons")


def show_status(settings: Settings, *, as_json: bool) -> None:
    """Print it for a person, or as one JSON object."""
    status = with_redis(settings, read_status)
    if as_json:
        print(json.dumps(status))
    else:
        _print(status)


async def read_status(redis: Redis) -> dict[str, Any]:
    """Everything that `status` says."""
    counted = await redis.hgetall(keys.counts())
    return {
        "serving": await registry.target(redis),
        "replicas": [replica.model_dump() for replica in await _replicas(redis)],
        **{name: int(counted.get(name.encode(), 0)) for name in COUNTS},
        "loop": await loop.loop_state(redis),
        "warnings": await _warnings(redis),
    }


async def _replicas(redis: Redis) -> list[Replica]:
    names = sorted(name.decode() for name in await redis.smembers(keys.replicas()))
    raw = await redis.mget([keys.replica(name) for name in names]) if names else []
    return [Replica.model_validate_json(text) for text in raw if text]


async def _warnings(redis: Redis) -> list[str]:
    """What ops should know before they wonder."""
    warnings = []
    users = await redis.scard(keys.users())
    if 0 < users < 3 and await redis.zcard(keys.prompts()) > 50:
        warnings.append(
            "nearly all prompts come from one user: send `user` with each request, because the "
            "cap of prompts and the split into train and test go by user"
        )
    if await redis.hlen(keys.quarantine()):
        warnings.append("the PII filter could not clear some texts: they wait in quarantine")
    return warnings


def _print(status: dict[str, Any]) -> None:
    console = Console()
    console.print(f"serving: {status['serving'] or 'nothing yet'}")
    table = Table("replica", "version", "state", "detail")
    for replica in status["replicas"]:
        table.add_row(replica["name"], replica["version"], replica["state"], replica["detail"])
    console.print(table)
    console.print("  ".join(f"{name}: {status[name]}" for name in COUNTS))
    for name, value in status["loop"].items():
        console.print(f"{name}: {value}")
    for warning in status["warnings"]:
        console.print(f"warning: {warning}", style="yellow")
