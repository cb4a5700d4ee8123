"""Routes of the registry and the loop: which versions there are, which is live, what runs.

HTTP only; the rules are in core/registry.py and core/loop.py. All of it needs the scope `admin`,
because a card speaks of everybody's data.
"""

from collections.abc import Set
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from core import canary, loop, registry
from core.auth import require
from core.records import ALL_STAGES, STAGES, Card, Run
from core.redis_client import Redis, redis_errors
from feedback.edge import OurErrors
from serving.edge import errors

_COMMON = errors(400, 401, 403, 408, 413, 422, 429, 503)
_MISSING = errors(404)
_CONFLICT = errors(409)
Stage = Literal["snapshot", "sft", "reward_model", "policy", "evaluate", "vote", "gate"]
Why = Annotated[str, Field(max_length=2000, pattern=r"\S")]
"""Something, not only white space."""


def _admin(request: Request) -> None:
    require(request.state.key, "admin")


router = APIRouter(
    prefix="/v1",
    tags=["loop"],
    route_class=OurErrors,
    responses=_COMMON,
    dependencies=[Depends(_admin)],
)


class Body(BaseModel):
    """A request body; an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Change(Body):
    """Why the live version changes, and from which it should."""

    why: Why
    expected: str | None = None
    """The live version as the caller saw it; when it is another by now: 409."""


class Promotion(Change):
    """The same, for all users or for a share of them first."""

    canary: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Of users who get the version until what they say decides; unset: all get it."""


class RunRequest(Body):
    """Which stages to run; all of them unless said."""

    stages: Annotated[list[Stage], Field(min_length=1, max_length=len(ALL_STAGES))] | None = None


class Policy(Card):
    """A card, and whether it is the live one."""

    live: bool
    weights: bool
    """Whether they are still there: without them it cannot be promoted any more."""


class Probe(BaseModel):
    """When a replica last proved that what it serves is this version."""

    replica: str
    at: str
    """ISO 8601."""


class PolicyHistory(Policy):
    """A card with everything that happened to its version since, oldest first."""

    history: list[dict[str, Any]]
    probes: list[Probe]
    """By replica, of replicas that are gone, too."""


class Policies(BaseModel):
    """All registered versions, oldest first."""

    policies: list[Policy]
    target: str | None


class Target(BaseModel):
    """The version that every replica is taking up now."""

    version: str
    status: Literal["accepted", "canary"] = "accepted"
    """`canary`: a share of users gets it, or all do and it may go back by itself."""


class RunStarted(BaseModel):
    """A run that a worker takes up."""

    run_id: str


class RunState(Run):
    """A run and how far its stage is, 0 to 1."""

    progress: float


class Runs(BaseModel):
    """The newest runs, newest first."""

    runs: list[RunState]


@router.get("/policies")
async def list_policies(request: Request) -> Policies:
    """Every version that exists, and which is live."""
    redis: Redis = request.app.state.redis
    with redis_errors():
        cards, target = await registry.cards(redis), await registry.target(redis)
        gone = await registry.collected(redis)
    return Policies(policies=[_policy(card, target, gone) for card in cards], target=target)


@router.get("/policies/{version}", responses=_MISSING)
async def get_policy(request: Request, version: str) -> PolicyHistory:
    """A version's card, and its history."""
    redis: Redis = request.app.state.redis
    with redis_errors():
        card, target = await registry.card(redis, version), await registry.target(redis)
        gone, history = await registry.collected(redis), await registry.history(redis, version)
        probed = await registry.probes(redis, version, history)
    return PolicyHistory(
        **_policy(card, target, gone).model_dump(),
        history=history,
        probes=[Probe(replica=replica, at=at) for replica, at in probed.items()],
    )


@router.post("/policies/rollback", status_code=202, responses=_CONFLICT)
async def rollback(request: Request, change: Change) -> Target:
    """Make the last good version before the live one live again."""
    redis: Redis = request.app.state.redis
    with redis_errors():
        version = await registry.rollback(
            redis, who=_who(request), why=change.why, expected=change.expected or ""
        )
    return Target(version=version)


@router.post("/policies/{version}/promote", status_code=202, responses=_MISSING | _CONFLICT)
async def promote(request: Request, version: str, change: Promotion) -> Target:
    """Make a version live; one that the gate refused can still be promoted by hand."""
    redis: Redis = request.app.state.redis
    who, why, expected = _who(request), change.why, change.expected or ""
    with redis_errors():
        if change.canary is not None:
            await canary.start(
                redis, version, share=change.canary, who=who, why=why, expected=expected
            )
            return Target(version=version, status="canary")
        version = await registry.promote(redis, version, who=who, why=why, expected=expected)
    return Target(version=version)


@router.get("/loop")
async def get_loop(request: Request) -> dict[str, Any]:
    """Paused or not, what is new to learn from, the current run, the last of each stage."""
    with redis_errors():
        return await loop.loop_state(request.app.state.redis)


@router.post("/loop/runs", status_code=202, responses=_CONFLICT)
async def start_run(request: Request, wanted: RunRequest) -> RunStarted:
    """Start learning now."""
    stages = [stage for stage in ALL_STAGES if stage in (wanted.stages or STAGES)]
    with redis_errors():
        run = await loop.request_run(
            request.app.state.redis, stages=stages, wanted_by=_who(request)
        )
    return RunStarted(run_id=run.id)


@router.get("/loop/runs")
async def list_runs(request: Request, limit: Annotated[int, Query(ge=1, le=200)] = 20) -> Runs:
    """The newest runs."""
    with redis_errors():
        runs = await loop.list_runs(request.app.state.redis, limit)
    return Runs(runs=[_run(run) for run in runs])


@router.get("/loop/runs/{run_id}", responses=_MISSING)
async def get_run(request: Request, run_id: str) -> RunState:
    """One run: its stage, how far it is, its figures."""
    with redis_errors():
        return _run(await loop.get_run(request.app.state.redis, run_id))


def _who(request: Request) -> str:
    return f"key {request.state.key.id}"


def _policy(card: Card, target: str | None, gone: Set[str]) -> Policy:
    live, weights = card.version == target, card.version not in gone
    return Policy(**card.model_dump(), live=live, weights=weights)


def _run(run: Run) -> RunState:
    state = run.states.get(run.stage)
    done = 1.0 if run.finished_at is not None else 0.0
    return RunState(**run.model_dump(), progress=state.fraction if state else done)
