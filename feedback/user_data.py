"""What is held of one end user, page by page: their prompts and answers, and what they said.

First the completions logged of them with the feedback about each, then the feedback that they gave
as a rater themselves. Text that waits for the filter is only counted. Bounded for each page; the
cursor says where the next one begins. Knows no HTTP.
"""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from core import keys
from core.auth import list_keys
from core.errors import Unprocessable
from core.keyring import Keyring
from core.records import Completion, Feedback
from core.redis_client import Redis, redis_errors
from feedback import store
from feedback.erasure import erased_until, rater_hashes

_LOOK_AT = 2000
"""Records of feedback that one page looks through for those that the user gave."""


class HeldFeedback(BaseModel):
    """One piece of feedback, without who gave it."""

    id: str
    kind: str
    created_at: float
    updated_at: float
    outputs: list[dict[str, Any]]
    ranking: list[list[int]] = []
    """Positions into `outputs`, best first."""
    thumb: str | None = None
    rating: int | None = None
    flags: dict[str, bool] = {}
    messages: list[dict[str, Any]] | dict[str, str] | None = None
    text: dict[str, str] | None = None
    waiting: bool = False
    """Whether text of it is sealed, until the filter has cleared it."""
    used_in: list[str] = []
    withdrawn: bool = False


class HeldCompletion(BaseModel):
    """One logged request with its answers, without personal data, and what was said about them."""

    completion_id: str
    created_at: float
    messages: list[dict[str, Any]] | dict[str, str]
    choices: list[dict[str, Any]]
    policy_versions: list[str]
    metadata: dict[str, str]
    split: str
    counted: bool
    """Whether it is a prompt to train on."""
    outcome: str
    feedback: list[HeldFeedback]


class HeldData(BaseModel):
    """`GET /v1/users/{user}/data`: one page."""

    user: str
    """The user's keyed hash, under which all of it is kept."""
    counts: dict[str, int]
    """In all: `completions`, and of these `prompts` that count for training."""
    erased_until: float | None = None
    """When this user was erased before, in seconds."""
    completions: list[HeldCompletion]
    feedback_given: list[HeldFeedback]
    """What this user said as a rater."""
    next: str | None = None
    """`cursor` of the next page; null on the last."""


async def read_page(
    redis: Redis, keyring: Keyring, *, tenant: str, user: str, cursor: str, limit: int
) -> HeldData:
    """One page of what is held. Raises Unprocessable for a cursor that is none, Unavailable."""
    digest = keyring.hashed(tenant, "user", user)
    kind, _, position = cursor.partition(":")
    if cursor and not (kind == "completion" or (kind == "given" and position.isdecimal())):
        raise Unprocessable("cursor: take it from `next` of the page before", param="cursor")
    with redis_errors():
        tokens = sorted(await store.tokens_of_users(redis, [digest]))
        counts = {
            "completions": len(tokens),
            "prompts": int(await redis.zcard(keys.user_prompts(digest))),
        }
        erased = await erased_until(redis, digest)
        page = HeldData(
            user=digest,
            counts=counts,
            erased_until=erased / 1000 if erased else None,
            completions=[],
            feedback_given=[],
        )
        if kind != "given":
            left = [token for token in tokens if token > position]
            shown = await _completions(redis, left[:limit])
            after = f"completion:{left[limit - 1]}" if len(left) > limit else "given:0"
            return page.model_copy(update={"completions": shown, "next": after})
        key_ids = [key.id for key in await list_keys(redis) if key.tenant == tenant]
        raters = rater_hashes(keyring, tenant=tenant, user=user, key_ids=key_ids)
        return await _given(redis, page, raters, start=int(position), limit=limit)


async def _completions(redis: Redis, tokens: Sequence[str]) -> list[HeldCompletion]:
    found = await store.completions(redis, tokens)
    shown = []
    for record in (found[token] for token in tokens if token in found):
        ids = [raw.decode() for raw in await redis.smembers(keys.feedback_of(record.token))]
        about = await store.get_many(redis, sorted(ids))
        shown.append(_held_completion(record, about))
    return shown


async def _given(
    redis: Redis, page: HeldData, raters: frozenset[str], *, start: int, limit: int
) -> HeldData:
    """What the user said, in the order of the last word, from the `start`-th of all feedback."""
    look = min(_LOOK_AT, max(limit * 20, 1))
    raw = await redis.zrange(keys.feedback_index(), start, start + look - 1)
    ids = [feedback_id.decode() for feedback_id in raw]
    given: list[HeldFeedback] = []
    at = start
    for said in await store.get_many(redis, ids):
        at += 1
        if said.rater in raters or said.user == page.user:
            given.append(_held_feedback(said))
            if len(given) == limit:
                break
    more = len(given) == limit or len(ids) == look
    at = at if len(given) == limit else start + len(ids)
    update = {"feedback_given": given, "next": f"given:{at}" if more else None}
    return page.model_copy(update=update)


def _held_completion(record: Completion, about: Sequence[Feedback]) -> HeldCompletion:
    return HeldCompletion(
        completion_id=record.id,
        created_at=record.created_at,
        messages=record.messages,
        choices=[choice.model_dump(exclude_none=True) for choice in record.choices],
        policy_versions=list(record.policy_versions),
        metadata=record.metadata,
        split=record.split,
        counted=record.counted,
        outcome=record.outcome,
        feedback=[_held_feedback(said) for said in about],
    )


def _held_feedback(said: Feedback) -> HeldFeedback:
    return HeldFeedback(
        id=said.id,
        kind=said.kind,
        created_at=said.created_at,
        updated_at=said.updated_at,
        outputs=[output.model_dump() for output in said.outputs],
        ranking=[list(tie) for tie in said.ranking],
        thumb=said.thumb,
        rating=said.rating,
        flags=said.flags,
        messages=said.messages,
        text=said.text,
        waiting=said.sealed is not None,
        used_in=list(said.used_in),
        withdrawn=said.withdrawn,
    )
