"""Routes of lineage: which feedback made a version, and the proof that one word did.

The list of ids is for admins; the proof of a word also for whoever may see that word. Both are read
from the list beside the version and proven by its card (core/lineage.py). Where the gateway cannot
read that list there is none, and it says so.
"""

import asyncio
from bisect import bisect_right
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel

from core import lineage, registry
from core.auth import require
from core.errors import NotFound
from core.lineage import Inclusion
from core.policy_store import PolicyStore
from core.records import ApiKey, Card
from core.redis_client import Redis, redis_errors
from core.settings import Settings
from feedback import labeling, store
from feedback.edge import OurErrors
from serving.edge import errors

router = APIRouter(
    prefix="/v1/policies/{version}/feedback",
    tags=["loop"],
    route_class=OurErrors,
    responses=errors(400, 401, 403, 404, 408, 413, 422, 429, 503),
)


class LearnedFrom(BaseModel):
    """What a version learned from: a page of ids, in the order of the tree."""

    version: str
    count: int
    root: str
    """The Merkle root in the card, hex."""
    kinds: dict[str, int]
    feedback: list[str]
    next: str | None
    """What `after` is for the next page; null on the last."""


def _admin(request: Request) -> None:
    require(request.state.key, "admin")


@router.get("", dependencies=[Depends(_admin)])
async def list_feedback(
    request: Request,
    version: str,
    after: str = "",
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> LearnedFrom:
    """The feedback that a version learned from, by id."""
    card, ids = await _read(request, version)
    start = bisect_right(ids, after)
    page = ids[start : start + limit]
    return LearnedFrom(
        version=version,
        count=len(ids),
        root=card.data["feedback_root"],
        kinds=card.data["feedback_kinds"],
        feedback=page,
        next=page[-1] if start + limit < len(ids) else None,
    )


@router.get("/{feedback_id}")
async def prove_feedback(request: Request, version: str, feedback_id: str) -> Inclusion:
    """The proof that a version learned from this feedback: its place below the card's root.

    404 when it did not. An answer to a labeling task goes by the task's id.
    """
    await _may_see(request, feedback_id)
    card, ids = await _read(request, version)
    return lineage.inclusion(card, ids, feedback_id)


async def _may_see(request: Request, feedback_id: str) -> None:
    """As `GET /v1/feedback/{id}` has it: a tenant's own, and a labeler's own. Raises NotFound.

    A task is its whole tenant's: whoever labels there knows its name.
    """
    key: ApiKey = request.state.key
    if "admin" in key.scopes:
        return
    try:
        said = await store.get(request.app.state.redis, feedback_id)
    except NotFound:
        if {"feedback", "label"}.isdisjoint(key.scopes):
            raise
        await labeling.get_task(request.app.state.redis, feedback_id, tenant=key.tenant)
        return
    if said.tenant != key.tenant or ("feedback" not in key.scopes and said.key_id != key.id):
        raise NotFound("no such feedback")


async def _read(request: Request, version: str) -> tuple[Card, list[str]]:
    redis: Redis = request.app.state.redis
    with redis_errors():
        card = await registry.card(redis, version)
        prefix = await registry.prefix(redis, version)
    settings: Settings = request.app.state.settings
    store = PolicyStore(settings.state_dir / "policies", settings.policies_url)
    return card, await asyncio.to_thread(store.lineage, card, prefix)
