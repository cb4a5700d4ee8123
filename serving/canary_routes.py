"""Routes of the canary: what is on, how it stands, and its end by hand.

One begins with `POST /v1/policies/{version}/promote` and a share (serving/policies.py). HTTP only;
the rules are in core/canary.py. All of it needs the scope `admin`.
"""

from typing import Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel

from core import canary
from core.auth import require
from core.canary import Canary
from core.redis_client import Redis, redis_errors
from feedback.edge import OurErrors
from serving.edge import errors
from serving.policies import Body, Target, Why
from serving.relay import Services


def _admin(request: Request) -> None:
    require(request.state.key, "admin")


router = APIRouter(
    prefix="/v1/policies/canary",
    tags=["loop"],
    route_class=OurErrors,
    responses=errors(400, 401, 403, 408, 413, 422, 429, 503),
    dependencies=[Depends(_admin)],
)


class CanaryState(BaseModel):
    """A canary, its evidence, and who serves its candidate."""

    candidate: str
    parent: str
    mode: str
    """`split`: a share of users. `watch`: all, and it goes back by itself."""
    share: float
    state: str
    """`running`, `promoted`, `rolled_back` or `stopped`."""
    why: str
    started_at: float
    ended_at: float | None
    run_id: str
    evidence: dict[str, float]
    """E-values (`worse`, `not_worse`, `ratio_mismatch`), users of each cohort, and by signal."""
    replicas: list[str]
    """That serve the candidate, as this gateway knows them."""


class CanaryReport(BaseModel):
    """The canary that is on or was last; null before the first."""

    canary: CanaryState | None


class Stop(Body):
    """Why it ends."""

    why: Why


@router.get("")
async def get_canary(request: Request) -> CanaryReport:
    """The canary that is on, or the last."""
    redis: Redis = request.app.state.redis
    with redis_errors():
        last = await canary.with_evidence(redis)
    if last is None:
        return CanaryReport(canary=None)
    services: Services = request.app.state.services
    serving = [e.name for e in services.replicas if e.version == last.candidate]
    return CanaryReport(canary=CanaryState(**_shown(last), replicas=sorted(serving)))


@router.post("/stop", status_code=202, responses=errors(409))
async def stop(request: Request, wanted: Stop) -> Target:
    """End the canary; the live version stays."""
    with redis_errors():
        version = await canary.stop(
            request.app.state.redis, who=f"key {request.state.key.id}", why=wanted.why
        )
    return Target(version=version)


def _shown(last: Canary) -> dict[str, Any]:
    """All but the salt, which says who gets what."""
    return last.model_dump(exclude={"salt"})
