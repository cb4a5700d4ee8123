"""The labeling routes: the next task for a rater, their answer, a skip.

What is shown is blind and shuffled: output ids and their order are keyed hashes of the task (and
the rater), so they say nothing about who wrote what. HTTP only; labeling.py decides.
"""

import time
from collections.abc import Mapping
from dataclasses import replace

import orjson
from fastapi import APIRouter, Request, Response

from core.auth import list_keys
from core.errors import Unprocessable
from core.keyring import Keyring
from core.records import Answer, LabelingTask
from core.redis_client import redis_errors
from feedback import intake, labeling
from feedback.edge import ERRORS, Door, IdempotencyKey, OurErrors, created, enter, once, receipt
from feedback.raters import Progress, progress
from feedback.schemas import LabelingRequest, Recorded, ShownOutput, ShownTask, SkipRequest
from feedback.sealing import seal_texts
from feedback.split import MIN_RATERS_TO_HOLD_OUT

router = APIRouter(prefix="/v1/labeling", tags=["labeling"], route_class=OurErrors)


@router.get(
    "/next",
    response_model=ShownTask,
    responses={**ERRORS, 204: {"description": "There is no task for this rater now."}},
)
async def get_next(request: Request) -> ShownTask | Response:
    """A ranking task, leased to this rater; the one they hold already comes first."""
    door = enter(request, "label")
    who = await _rater(door)
    task = None
    if who.heldout or who.trains:
        task = await labeling.next_task(
            door.redis,
            tenant=who.tenant,
            rater=who.rater,
            heldout=who.heldout,
            settings=door.settings.feedback,
        )
    return show(task, rater=who.rater, keyring=door.keyring) if task else Response(status_code=204)


@router.get("/progress", responses=ERRORS)
async def get_progress(request: Request) -> Progress:
    """What this rater has done today and in all, and skipped."""
    door = enter(request, "label")
    who = await _rater(door)
    return await progress(door.redis, who.rater, gold="admin" in door.key.scopes)


@router.post("/{task_id}", status_code=201, response_model=Recorded, responses=ERRORS)
async def post_answer(
    request: Request, task_id: str, body: LabelingRequest, idempotency_key: IdempotencyKey = None
) -> Response:
    """What this rater says of each output, and their order of all of them."""
    door = enter(request, "label")
    who = await _rater(door)
    task = await labeling.get_task(door.redis, task_id, tenant=who.tenant)
    reply = await labeling.answer_task(
        door.redis,
        task_id=task_id,
        tenant=who.tenant,
        answer=read_answer(body, task, who, keyring=door.keyring, now=time.time()),
        reply=receipt(task_id),
        same=same_answer,
        once=once(door, request, idempotency_key, body),
    )
    return created(reply)


@router.post("/{task_id}/skip", status_code=201, response_model=Recorded, responses=ERRORS)
async def post_skip(
    request: Request,
    task_id: str,
    body: SkipRequest | None = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Give the task back; this rater does not get it again."""
    door = enter(request, "label")
    who = await _rater(door)
    said = body or SkipRequest()
    skip = Answer(
        rater=who.rater,
        heldout_rater=who.heldout,
        ranking=(),
        answered_at=time.time(),
    )
    why = {"skip": said.reason} if said.reason else {}
    reply = await labeling.skip_task(
        door.redis,
        task_id=task_id,
        tenant=who.tenant,
        skip=with_raw_notes(skip, why, tenant=who.tenant, keyring=door.keyring),
        reply=receipt(task_id, "skipped"),
        once=once(door, request, idempotency_key, said),
    )
    return created(reply)


def show(task: LabelingTask, *, rater: str, keyring: Keyring) -> ShownTask:
    """A task as this rater sees it: blind, and in an order of its own."""
    names = blind_names(task, keyring)

    def place(output_id: str) -> str:
        return keyring.hashed(task.tenant, "order", f"{task.id}\x00{rater}\x00{output_id}")

    outputs = sorted(task.outputs, key=lambda output: place(output.output_id))
    messages = task.messages
    if isinstance(messages, dict):
        messages = [{"role": "user", "content": messages["prompt"]}]
    return ShownTask(
        id=task.id,
        mode=task.mode,
        messages=messages,
        outputs=[ShownOutput(output_id=names[o.output_id], text=o.text) for o in outputs],
        leased_until=task.leased_until,
    )


def blind_names(task: LabelingTask, keyring: Keyring) -> dict[str, str]:
    """What each output is called outside, by what it is called inside."""
    return {
        o.output_id: keyring.hashed(task.tenant, "output", f"{task.id}\x00{o.output_id}")[:16]
        for o in task.outputs
    }


def read_answer(
    body: LabelingRequest,
    task: LabelingTask,
    who: intake.Speaker,
    *,
    keyring: Keyring,
    now: float,
) -> Answer:
    """The answer in the task's own names. Raises Unprocessable for an output it does not have."""
    inside = {shown: own for own, shown in blind_names(task, keyring).items()}
    said = {output.output_id: output for output in body.outputs}
    if len(said) < len(body.outputs):
        raise Unprocessable("an output is described twice", param="outputs")
    unknown = (said.keys() | {name for tie in body.ranking for name in tie}) - inside.keys()
    if unknown:
        raise Unprocessable("an output is not of this task", param="outputs")
    notes = {inside[name]: o.notes for name, o in said.items() if o.notes}
    answer = Answer(
        rater=who.rater,
        heldout_rater=who.heldout,
        ranking=tuple(tuple(sorted(inside[name] for name in tie)) for tie in body.ranking),
        ratings={inside[n]: o.rating for n, o in said.items() if o.rating is not None},
        flags={inside[n]: o.flags for n, o in said.items() if o.flags},
        answered_at=now,
    )
    return with_raw_notes(answer, notes, tenant=who.tenant, keyring=keyring)


def same_answer(one: Answer, other: Answer) -> bool:
    """Whether two answers of a rater say the same, whenever they were given."""
    fields = ("rater", "ranking", "ratings", "flags", "notes_digest")
    return all(getattr(one, name) == getattr(other, name) for name in fields)


def with_raw_notes(
    answer: Answer, notes: Mapping[str, str], *, tenant: str, keyring: Keyring
) -> Answer:
    """The answer with notes as they are kept until the filter has cleared them."""
    if not notes:
        return answer
    said = orjson.dumps(notes, option=orjson.OPT_SORT_KEYS).decode()
    digest = keyring.hashed(tenant, "notes", said)
    return answer.model_copy(
        update={"sealed_notes": seal_texts(notes, keyring), "notes_digest": digest}
    )


async def _rater(door: Door) -> intake.Speaker:
    """In labeling the rater is the key; by share, raters are held out only among enough of them."""
    who = intake.speaker(door.key, None, keyring=door.keyring, settings=door.settings.feedback)
    if door.settings.feedback.heldout_raters or not who.heldout:
        return who
    with redis_errors():
        everybody = await list_keys(door.redis)
    raters = [
        key
        for key in everybody
        if "label" in key.scopes and key.tenant == who.tenant and key.revoked_at is None
    ]
    enough = len(raters) >= MIN_RATERS_TO_HOLD_OUT
    return who if enough else replace(who, heldout=False)
