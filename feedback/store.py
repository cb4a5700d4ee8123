"""Feedback records in Redis: each write is one atomic script, so that nothing is half said.

A write is the record, its indexes, the counts and the reply to an Idempotency-Key together; Redis
has it on disk, and as many replicas as are wanted, before it answers. Knows nothing of HTTP.
intake.py makes the records; ingest and snapshot.py read them.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from core import keys
from core.errors import Conflict, NotFound, Unprocessable
from core.records import Completion, Feedback, FeedbackKind
from core.redis_client import Batches, Redis, promise, redis_errors, script
from feedback.archive import archived, known_tokens, tokens_of

COUNTS: dict[FeedbackKind, str] = {
    "rating": "ratings",
    "ranking": "rankings",
    "demonstration": "demonstrations",
    "signal": "signals",
}
_READ_BATCH = 500
_ATTEMPTS = 20


@dataclass(frozen=True, slots=True)
class Once:
    """An Idempotency-Key: where its reply is kept, what was asked, for how long."""

    key: str
    digest: str
    seconds: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a write."""

    reply: str
    version: str | None
    """Policy version of the answer where it is known yet; None for a repeated request."""


async def record(
    redis: Redis | Batches, feedback: Feedback, *, reply: str, once: Once | None = None
) -> Receipt:
    """Write what a rater says; a second word about the same thing replaces the first.

    With `Batches` it goes to Redis together with what others say at the time.
    A repeated Idempotency-Key gives the first reply and writes nothing. Raises Conflict when that
    key came with another request, Unprocessable when the answer had broken off, Unavailable.
    """
    run = redis.script if isinstance(redis, Batches) else partial(promise, redis)
    with redis_errors():
        status, text = await run("record_feedback", *script_call(feedback, reply=reply, once=once))
    match status:
        case b"recorded":
            return Receipt(reply, text.decode() or "unknown")
        case b"replayed":
            return Receipt(text.decode(), None)
        case b"conflict":
            raise Conflict("this Idempotency-Key was used for another request")
        case _:
            raise Unprocessable(
                f"this answer broke off ({text.decode()}): it takes no feedback",
                param="completion_id",
            )


def script_call(
    feedback: Feedback, *, reply: str, once: Once | None
) -> tuple[list[str], list[str | bytes | int | float]]:
    """Keys and arguments of core/lua/record_feedback.lua."""
    head, rest = _head_and_rest(feedback)
    tokens = sorted({output.token for output in feedback.outputs})
    names = [
        keys.feedback(feedback.id),
        keys.feedback_index(),
        keys.feedback_text(),
        keys.quarantine(),
        keys.counts(),
        once.key if once else keys.idempotency(""),
        keys.archive_broken(),
        *(keys.feedback_of(token) for token in tokens),
        *(keys.completion(token) for token in tokens),
    ]
    return names, [
        feedback.id,
        head,
        rest,
        int(feedback.updated_at * 1000),
        COUNTS[feedback.kind],
        "1" if feedback.sealed else "0",
        once.digest if once else "",
        once.seconds if once else 0,
        reply,
        *tokens,
    ]


async def get(redis: Redis, feedback_id: str) -> Feedback:
    """One record. Raises NotFound, Unavailable."""
    with redis_errors():
        raw = await redis.get(keys.feedback(feedback_id))
    if raw is None:
        raise NotFound("no such feedback")
    return Feedback.model_validate_json(raw)


async def get_many(redis: Redis, ids: Iterable[str]) -> list[Feedback]:
    """Those of the records that exist."""
    raw = await _read(redis, [keys.feedback(i) for i in ids])
    return [Feedback.model_validate_json(text) for text in raw if text]


async def get_all(redis: Redis) -> list[Feedback]:
    """Every record, in the order of the last word."""
    with redis_errors():
        ids = await redis.zrange(keys.feedback_index(), 0, -1)
    return await get_many(redis, [i.decode() for i in ids])


async def completions(redis: Redis, tokens: Iterable[str]) -> dict[str, Completion]:
    """Those of the logged completions that exist, in Redis or in the archive, by token.

    Raises ArchiveBroken, Unavailable.
    """
    wanted = list(tokens)
    raw = await _read(redis, [keys.completion(token) for token in wanted])
    here = [Completion.model_validate_json(text) for text in raw if text]
    found = {completion.token: completion for completion in here}
    missing = [token for token in wanted if token not in found]
    return found | await archived(redis, missing) if missing else found


async def is_logged(redis: Redis, token: str) -> bool:
    """Whether a completion is kept, in Redis or the archive. Raises ArchiveBroken, Unavailable."""
    with redis_errors():
        here = bool(await redis.exists(keys.completion(token)))
    return here or bool(await known_tokens(redis, [token]))


async def tokens_of_users(redis: Redis, users: Collection[str]) -> set[str]:
    """What is kept of some users, in Redis or in the archive. Raises ArchiveBroken, Unavailable."""
    if not users:
        return set()
    with redis_errors():
        raw = await redis.sunion([keys.user_completions(user) for user in users])
    return {token.decode() for token in raw} | (await tokens_of(redis, users)).keys()


async def withdraw(redis: Redis, feedback_id: str, *, now: float) -> None:
    """Take feedback back: what it said is gone, that it was said remains. Idempotent."""
    await change(redis, feedback_id, lambda old: withdrawn(old, now=now), promised=True)


async def mark_used(redis: Redis, ids: Iterable[str], version: str) -> None:
    """Note on each record that this version was trained on it."""
    for feedback_id in ids:
        await change(redis, feedback_id, lambda old: _used(old, version))


def withdrawn(old: Feedback, *, now: float) -> Feedback:
    """The record without anything that was said."""
    if old.withdrawn:
        return old
    return Feedback(**old.model_dump(include=_KEPT_WHEN_WITHDRAWN), updated_at=now, withdrawn=True)


_KEPT_WHEN_WITHDRAWN = {
    "id",
    "kind",
    "tenant",
    "key_id",
    "rater",
    "heldout_rater",
    "by_end_user",
    "created_at",
    "outputs",
    "trains",
    "held",
    "used_in",
}


def _used(old: Feedback, version: str) -> Feedback:
    return old.model_copy(update={"used_in": tuple(sorted({*old.used_in, version}))})


async def change(
    redis: Redis,
    feedback_id: str,
    rewrite: Callable[[Feedback], Feedback],
    *,
    promised: bool = False,
) -> None:
    """Read, rewrite, and write unless it changed meanwhile; then again. Counts follow.

    What is promised is written though it is there, so that replicas are waited for in any case.
    Raises NotFound, Conflict (it kept changing), Unavailable.
    """
    for _ in range(_ATTEMPTS):
        with redis_errors():
            raw = await redis.get(keys.feedback(feedback_id))
        if raw is None:
            raise NotFound("no such feedback")
        old = Feedback.model_validate_json(raw)
        new = rewrite(old)
        if new == old and not promised:
            return
        if await replace(redis, raw, old, new, promised=promised):
            return
    raise Conflict("this feedback is being changed by somebody else: try again")


async def replace(
    redis: Redis, raw: bytes, old: Feedback, new: Feedback, *, promised: bool = False
) -> bool:
    """Put `new` in the place of `old`, whose bytes are `raw`; False when it has changed."""
    run = promise if promised else script
    with redis_errors():
        done = await run(
            redis,
            "replace_feedback",
            [keys.feedback(old.id), keys.feedback_text(), keys.quarantine(), keys.counts()],
            [
                old.id,
                raw,
                b"".join(_head_and_rest(new)),
                COUNTS[old.kind],
                int(old.withdrawn) - int(new.withdrawn),
                num_comparisons(new) - num_comparisons(old),
                "0" if new.sealed else "1",
            ],
        )
    return bool(done)


def num_comparisons(feedback: Feedback) -> int:
    """Untied pairs that count; what was taken back says nothing."""
    return 0 if feedback.withdrawn else feedback.comparisons


def stored(feedback: Feedback) -> bytes:
    """The record as it is kept."""
    return b"".join(_head_and_rest(feedback))


def _head_and_rest(feedback: Feedback) -> tuple[bytes, bytes]:
    """The record as JSON in two parts; core/lua/record_feedback.lua keeps the head of the old."""
    head = feedback.model_dump_json(include={"created_at"})[:-1]
    held = feedback.model_dump_json(include={"held"})[1:-1]
    assert "\\" not in held, "a reason to hold feedback back is a plain word of ours"
    rest = feedback.model_dump_json(exclude={"created_at", "held"}, exclude_defaults=True)[1:]
    return f"{head},{held},".encode(), rest.encode()


async def _read(redis: Redis, names: Sequence[str]) -> list[bytes | None]:
    found: list[bytes | None] = []
    with redis_errors():
        for start in range(0, len(names), _READ_BATCH):
            found += await redis.mget(names[start : start + _READ_BATCH])
    return found
