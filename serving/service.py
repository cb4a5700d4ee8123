"""Routes about the service itself: alive, ready, metrics, and the models it serves.

Also the little that is looked at every second for the figures: the backlog and the target.
"""

import asyncio
import time
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from core import keys, metrics, registry
from core.auth import require
from core.errors import StartError, Unavailable
from core.redis_check import check_redis
from core.redis_client import Redis, redis_errors
from core.room import KINDS as ROOM_KINDS
from serving.edge import errors
from serving.relay import Services
from serving.requests import MODEL, model_not_found

UNCHECKED = "Redis has not answered yet, so its durability is not known"
_LOOK_SECONDS = 1.0
_CHECK_SECONDS = 5.0
_STARTED_AT = int(time.time())
_KEYED = errors(401, 403, 503)

router = APIRouter(tags=["service"])
metrics_router = APIRouter(tags=["service"])


class Health(BaseModel):
    """The process lives."""

    status: str = "ok"


class Readiness(BaseModel):
    """Whether completions can be served, and what is not as it should be."""

    ready: bool
    missing: list[str]
    """What has to be there before completions can be served."""
    degraded: list[str]
    """What does not work meanwhile."""


class Model(BaseModel):
    """A model of OpenAI's list: the current policy, or one version of it."""

    id: str
    object: str = "model"
    created: int = _STARTED_AT
    owned_by: str = "instructloop"


class ModelList(BaseModel):
    """All models that some replica serves."""

    object: str = "list"
    data: list[Model]


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz")
async def healthz() -> Health:
    """The process lives."""
    return Health()


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", responses={503: {"model": Readiness, "description": "Not ready."}})
async def readyz(request: Request, response: Response) -> Readiness:
    """Whether completions can be served; says what is missing."""
    state = request.app.state
    services: Services = state.services
    missing = []
    if not state.keys.loaded:
        missing.append("API keys: Redis has not answered yet")
    if not services.replicas.can_serve():
        missing.append("engine: no replica is ready")
    if state.leaving:
        missing.append("this gateway, which was told to stop")
    if missing:
        response.status_code = 503
        response.headers["Retry-After"] = "1"
    return Readiness(ready=not missing, missing=missing, degraded=_degraded(state, services))


def _degraded(state: Any, services: Services) -> list[str]:
    found = [f"feedback: {reason}" for reason in services.replicas.feedback_off()]
    if not state.keys.fresh:
        found.append("Redis does not answer: feedback, policies and the loop say 503")
    found += [f"durability: {warning}" for warning in state.durability_warnings]
    found += [f"disk: {why}" for why in map(state.room.lacking, ROOM_KINDS) if why]
    if not services.inbox.direct:
        found.append(f"log: {services.inbox.spooled_bytes} bytes wait for Redis")
    return found


@metrics_router.get("/metrics", responses=_KEYED, response_class=Response)
async def show_metrics() -> Response:
    """Prometheus' text format."""
    return Response(metrics.render(), media_type=metrics.CONTENT_TYPE_LATEST)


@router.get("/v1/models", responses=_KEYED)
async def list_models(request: Request) -> ModelList:
    """`instructloop`, and `instructloop@VERSION` for each version that some replica serves."""
    require(request.state.key, "complete")
    services: Services = request.app.state.services
    names = [MODEL, *(f"{MODEL}@{version}" for version in services.replicas.versions())]
    return ModelList(data=[Model(id=name) for name in names])


@router.get("/v1/models/{model}", responses={**_KEYED, **errors(404, 422)})
async def get_model(request: Request, model: str) -> Model:
    """One of them."""
    for known in (await list_models(request)).data:
        if known.id == model:
            return known
    raise model_not_found(model)


async def watch_figures(redis: Redis) -> None:
    """Show backlog and target until cancelled; without Redis they stay as they were."""
    shown: str | None = None
    while True:
        try:
            with redis_errors():
                metrics.LOG_BACKLOG.set(await redis.xlen(keys.inbox()))
                target = await registry.target(redis)
        except Unavailable:
            target = shown
        if shown is not None and shown != target:
            metrics.POLICY_INFO.labels(shown).set(0)
        if target is not None:
            metrics.POLICY_INFO.labels(target).set(1)
        shown = target
        await asyncio.sleep(_LOOK_SECONDS)


async def watch_durability(redis: Redis, state: Any) -> None:
    """Check that this Redis keeps its word, again and again: it may have another master by now.

    `state` is the app's. While Redis does not answer, what was known of it stays.
    """
    while True:
        pause = _CHECK_SECONDS
        try:
            with redis_errors():
                await redis.ping()
                state.durability_warnings = await check_redis(redis)
        except Unavailable:
            pause = _LOOK_SECONDS
        except StartError as error:
            state.durability_warnings = [error.message]
            pause = _LOOK_SECONDS
        await asyncio.sleep(pause)
