"""What the page of the loop needs beside cards and runs: who serves now, and a run's curves.

Curves are the figures of each iteration, which the learner leaves in the state folder when a stage
is done; where the gateway does not share that folder there are none, and the page says so. All of
it needs the scope `admin`. Reads; changes nothing.
"""

import asyncio
import json
import math
import re
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel

from core import canary, keys, loop, registry
from core.auth import require
from core.canary import Canary
from core.redis_client import Redis, redis_errors
from feedback.edge import OurErrors
from serving.edge import errors
from serving.relay import Services
from serving.replicas import heartbeats

CURVES = ("reward", "kl_to_anchor", "kl_per_token", "entropy", "clip_fraction", "ptx_loss")
_LOOK_BACK = 1000
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")


def _admin(request: Request) -> None:
    require(request.state.key, "admin")


router = APIRouter(
    prefix="/v1/loop",
    tags=["loop"],
    route_class=OurErrors,
    responses=errors(400, 401, 403, 413, 422, 429, 503),
    dependencies=[Depends(_admin)],
)


class ReplicaState(BaseModel):
    """An engine, as its agent describes it, or one that somebody else runs."""

    name: str
    version: str
    state: str
    detail: str


class Serving(BaseModel):
    """What is live, since when, by which engines, and what was collected so far."""

    target: str | None
    since: str | None
    """When the target became that, ISO 8601."""
    previous: str | None
    """The version that a roll back would make live."""
    barred: dict[str, str]
    """Why a version cannot be made live, by version."""
    replicas: list[ReplicaState]
    canary: Canary | None
    """The canary that is on, without the salt, which says who gets what."""
    counts: dict[str, int]


class Curves(BaseModel):
    """Figures of each iteration of a run's policy stage, by name."""

    curves: dict[str, list[float | None]]


@router.get("/serving")
async def get_serving(request: Request) -> Serving:
    """What is serving now."""
    redis: Redis = request.app.state.redis
    with redis_errors():
        target = await registry.target(redis)
        since = await _since(redis, target)
        barred = await _barred(redis)
        release = await canary.read(redis)
        before = [raw.decode() for raw in await redis.lrange(keys.target_history(), 0, -1)]
        counts = await redis.hgetall(keys.counts())
    _, heard = await heartbeats(redis)
    services: Services = request.app.state.services
    own = [
        ReplicaState(name=r.name, version=r.version, state=r.state, detail=r.detail) for r in heard
    ]
    others = [
        ReplicaState(name="external", version=e.version, state=e.shown_state, detail="")
        for e in services.replicas
        if e.fixed
    ]
    return Serving(
        target=target,
        since=since,
        # as core/lua/set_target.lua chooses it
        previous=next((v for v in before if v != target and v not in barred), None),
        barred=barred,
        replicas=sorted(own, key=lambda replica: replica.name) + others,
        canary=release.running and release.running.model_copy(update={"salt": ""}),
        counts={name.decode(): int(value) for name, value in counts.items()},
    )


@router.get("/runs/{run_id}/curves", responses=errors(404))
async def get_curves(request: Request, run_id: str) -> Curves:
    """How reward, KL and the rest went, iteration by iteration; empty until the stage is done."""
    with redis_errors():
        run = await loop.get_run(request.app.state.redis, run_id)
    if not _RUN_ID.fullmatch(run.id):
        return Curves(curves={})
    folder: Path = request.app.state.settings.state_dir / "runs" / run.id / "policy" / "out"
    return Curves(curves=await asyncio.to_thread(read_curves, folder / "figures.json"))


def read_curves(path: Path) -> dict[str, list[float | None]]:
    """The curves in a figures file; none when it is not there or says nothing of iterations."""
    try:
        said: Any = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    found = said.get("iterations") if isinstance(said, dict) else None
    rows = [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
    curves = {name: [_number(row.get(name)) for row in rows] for name in CURVES}
    return {name: values for name, values in curves.items() if any(v is not None for v in values)}


async def _since(redis: Redis, target: str | None) -> str | None:
    """When the target became that, if it is not too many entries of the audit log ago."""
    for _, fields in await redis.xrevrange(keys.audit(), count=_LOOK_BACK):
        if target is not None and fields.get(b"to") == target.encode():
            at: str | None = json.loads(fields[b"entry"]).get("at")
            return at
    return None


async def _barred(redis: Redis) -> dict[str, str]:
    removed = dict.fromkeys(await registry.collected(redis), "its weights were removed")
    broken = await redis.hgetall(keys.quarantined())
    return removed | {version.decode(): why.decode() for version, why in broken.items()}


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
