"""The feedback routes: what a person thinks of an answer, an order of answers, a better answer.

HTTP only: schemas.py says what a body may be, intake.py what it means, store.py makes it last.
Raw text is sealed before it leaves this file; ingest opens it, filters it and throws it away.
"""

import time
from typing import Any

from fastapi import APIRouter, Request, Response

from core import metrics
from core.errors import NotFound
from core.records import Feedback
from feedback import intake, store
from feedback.edge import (
    ERRORS,
    DirectRoute,
    Door,
    IdempotencyKey,
    OurErrors,
    created,
    enter,
    once,
    receipt,
)
from feedback.preferences import fate_of
from feedback.schemas import (
    DemonstrationRequest,
    FeedbackRequest,
    FeedbackState,
    RankingRequest,
    Recorded,
)
from feedback.sealing import seal_texts

router = APIRouter(prefix="/v1", tags=["feedback"], route_class=OurErrors, responses=ERRORS)
said = APIRouter(route_class=DirectRoute)


@said.post("/feedback", status_code=201, response_model=Recorded)
async def post_feedback(
    request: Request, body: FeedbackRequest, idempotency_key: IdempotencyKey = None
) -> Response:
    """A thumb, a rating, flags, a comment or a signal; the rater's next word on it replaces it."""
    door = enter(request, "feedback", "label")
    sealed = seal_texts({"comment": body.comment}, door.keyring) if body.comment else None
    feedback = intake.rating(
        body,
        _speaker(door, body.rater, request),
        keyring=door.keyring,
        sealed=sealed,
        now=time.time(),
    )
    return await _record(door, feedback, once(door, request, idempotency_key, body))


@said.post("/rankings", status_code=201, response_model=Recorded)
async def post_ranking(
    request: Request, body: RankingRequest, idempotency_key: IdempotencyKey = None
) -> Response:
    """An order of 2 to 9 answers to one prompt, best first; an inner list is a tie."""
    door = enter(request, "feedback", "label")
    feedback = intake.ranking(
        body, _speaker(door, body.rater, request), keyring=door.keyring, now=time.time()
    )
    return await _record(door, feedback, once(door, request, idempotency_key, body))


@said.post("/demonstrations", status_code=201, response_model=Recorded)
async def post_demonstration(
    request: Request, body: DemonstrationRequest, idempotency_key: IdempotencyKey = None
) -> Response:
    """What the answer should have been, to a completion of ours or to a prompt."""
    door = enter(request, "feedback", "label")
    text: dict[str, Any] = {"text": body.text}
    if body.completion_id is None:
        text["messages"] = intake.prompt_of(body)
    feedback = intake.demonstration(
        body,
        _speaker(door, body.rater, request),
        keyring=door.keyring,
        sealed=seal_texts(text, door.keyring),
        now=time.time(),
    )
    return await _record(door, feedback, once(door, request, idempotency_key, body))


@router.get("/feedback/{feedback_id}", response_model=FeedbackState)
async def get_feedback(request: Request, feedback_id: str) -> FeedbackState:
    """What became of it: pending, joined, used, unjoinable or held and why, withdrawn."""
    door = enter(request, "feedback", "label")
    feedback = await _own(door, feedback_id)
    about = await store.completions(door.redis, [o.token for o in feedback.outputs])
    signals_train = door.settings.feedback.signals_train
    fate = fate_of(feedback, about, now=time.time(), signals_train=signals_train)
    return FeedbackState(
        id=feedback.id,
        kind=feedback.kind,
        status="used" if fate.status == "joined" and feedback.used_in else fate.status,
        reason=fate.reason or None,
        used_in=list(feedback.used_in),
        created_at=feedback.created_at,
        updated_at=feedback.updated_at,
    )


@router.delete("/feedback/{feedback_id}", response_model=Recorded)
async def delete_feedback(request: Request, feedback_id: str) -> Recorded:
    """Take it back; doing so twice is the same as once."""
    door = enter(request, "feedback", "label")
    await _own(door, feedback_id)
    await store.withdraw(door.redis, feedback_id, now=time.time())
    return Recorded(id=feedback_id, status="withdrawn")


def _speaker(door: Door, rater: str | None, request: Request) -> intake.Speaker:
    """A request without a key of its own came from a signed-in page."""
    sent = {name for name, _ in request.scope["headers"]}
    return intake.speaker(
        door.key,
        rater,
        keyring=door.keyring,
        settings=door.settings.feedback,
        signed_in=not {b"authorization", b"x-api-key"} & sent,
    )


async def _record(door: Door, feedback: Feedback, idempotency: store.Once | None) -> Response:
    done = await store.record(door.writes, feedback, reply=receipt(feedback.id), once=idempotency)
    if done.version is not None:
        metrics.FEEDBACK.labels(feedback.signal or feedback.kind, done.version).inc()
    return created(done.reply)


async def _own(door: Door, feedback_id: str) -> Feedback:
    """A record of this tenant; a key that may only label sees what it said itself."""
    feedback = await store.get(door.redis, feedback_id)
    only_rater = not {"feedback", "admin"} & set(door.key.scopes)
    if feedback.tenant != door.key.tenant or (only_rater and feedback.key_id != door.key.id):
        raise NotFound("no such feedback")
    return feedback


router.include_router(said)
