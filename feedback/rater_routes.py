"""Routes for ops about raters: how far they agree, and what of theirs is held back.

All of it needs the scope `admin` and is about the key's own tenant. HTTP only; raters.py and
holding.py do the work.
"""

from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from feedback import holding, raters
from feedback.edge import ERRORS, OurErrors, enter
from feedback.schemas import Body

router = APIRouter(prefix="/v1", tags=["raters"], route_class=OurErrors, responses=ERRORS)


class HeldList(BaseModel):
    """`GET /v1/held`: feedback that trains nothing until somebody decides."""

    held: list[holding.HeldRater]


class DecisionRequest(Body):
    """`POST /v1/held/{subject}`: for one word, by its id, or for all of a rater's."""

    decision: holding.Decision
    why: Annotated[str, Field(max_length=1000)] = ""


class Decided(BaseModel):
    """How many words the decision was about."""

    subject: str
    decision: holding.Decision
    words: int


@router.get("/raters")
async def get_raters(request: Request) -> raters.Raters:
    """Agreement in all, by week and by rater, and how right raters are where that is known."""
    door = enter(request, "admin")
    return await raters.raters_of(
        door.redis, door.key.tenant, keyring=door.keyring, settings=door.settings.feedback
    )


@router.get("/held")
async def get_held(request: Request) -> HeldList:
    """What is held back, by rater, and why."""
    door = enter(request, "admin")
    found = await holding.held(door.redis, door.key.tenant, door.settings.feedback)
    return HeldList(held=found)


@router.post("/held/{subject}")
async def post_decision(request: Request, subject: str, body: DecisionRequest) -> Decided:
    """Release what is held back, or reject it for good; the audit log says who did."""
    door = enter(request, "admin")
    words = await holding.decide(
        door.redis,
        subject,
        body.decision,
        tenant=door.key.tenant,
        who=door.key.name,
        why=body.why,
        settings=door.settings.feedback,
    )
    return Decided(subject=subject, decision=body.decision, words=words)
