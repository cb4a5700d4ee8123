"""`instructloop status`: what serves, what was said, what was learned, what comes next."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from rich.console import Console

from core import keys, loop, registry
from core.hyperparameters import LearningSettings
from core.records import Replica
from core.redis_client import Redis
from core.settings import Settings
from deploy.cli_loop import with_redis
from deploy.terminal import listing, show

COUNTS = ("prompts", "ratings", "rankings", "demonstrations", "comparisons")


def show_status(settings: Settings, *, as_json: bool) -> None:
    """Print it for a person, or as one JSON object."""
    status = with_redis(settings, read_status)
    status["next_round"] = next_round(status["loop"], settings.learning)
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
    if 0 < users < 3 and int(await redis.hget(keys.counts(), "prompts") or 0) > 50:
        warnings.append(
            "nearly all prompts come from one user: send `user` with each request, because the "
            "cap of prompts and the split into train and test go by user"
        )
    if await redis.hlen(keys.quarantine()):
        warnings.append("the PII filter could not clear some texts: they wait in quarantine")
    return warnings


def next_round(state: Mapping[str, Any], learning: LearningSettings) -> str:
    """When a round starts by itself, in words. `state` is that of `core.loop.loop_state`."""
    if state["paused"]:
        return "none while paused: `instructloop loop resume`"
    if not state["worker"]:
        return "none without a worker: `instructloop worker`, or `instructloop train`"
    if state["no_room"]:
        return f"when there is room: {state['no_room']}"
    if state["current"]:
        return "after the one that runs"
    new, enough = state["new_comparisons"], learning.min_new_comparisons
    said = f"at {enough} new comparisons (now {new})"
    if state["last_round"] is None:
        return said
    due = _moment(state["last_round"] + learning.interval_seconds)
    return f"{said}, or {due} if anything new was said"


def _print(status: Mapping[str, Any]) -> None:
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"serving: {status['serving'] or 'nothing yet'}")
    replicas = listing("replica", "version", "state", "detail")
    for replica in status["replicas"]:
        replicas.add_row(*(replica[name] for name in ("name", "version", "state", "detail")))
    show(replicas)
    console.print("  ".join(f"{name}: {status[name]}" for name in COUNTS))
    _print_loop(console, status["loop"])
    console.print(f"next round: {status['next_round']}")
    for warning in status["warnings"]:
        console.print(f"warning: {warning}", style="yellow")


def _print_loop(console: Console, state: Mapping[str, Any]) -> None:
    """The round that runs, the last one, and when each stage last ended."""
    if run := state["current"]:
        done = run["states"].get(run["stage"], {})
        share = f"{done.get('fraction', 0.0):.0%}"
        console.print(f"round: {run['id']}, {run['stage']} {share} {done.get('message', '')}")
    if run := state["last"]:
        console.print(
            f"last round: {run['id']}, {run['outcome']}: {run['reason'] or run['version']}"
        )
    if not state["stages"]:
        return
    stages = listing("stage", "last ended", "took", "run", whole=4)
    for name, last in state["stages"].items():
        took = f"{last['seconds']:.0f} s" if "seconds" in last else ""
        stages.add_row(name, _moment(last["finished_at"]), took, last["run_id"])
    show(stages)


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
