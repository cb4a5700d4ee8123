"""Feedback that waits for a decision: held back before a snapshot, released or rejected by people.

What firewall.py suspects gets `held`, with the reason, and trains nothing until somebody decides;
nothing is deleted. A decision is about one word (its id) or about a rater (their keyed hash), holds
for what comes later too, and is an entry of the audit log. Answers to labeling tasks are found by
held_answers.py and shown and decided here with the rest. Knows no HTTP.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from pydantic import BaseModel

from core import keys, registry
from core.errors import NotFound
from core.records import Completion, Feedback
from core.redis_client import Redis, redis_errors
from core.setting_groups import FeedbackSettings
from feedback import store
from feedback.firewall import suspects
from feedback.held_answers import HeldAnswer, decide_answers, held_answers
from feedback.labeling_rules import REJECTED
from feedback.speakers import end_user, with_speakers

Decision = Literal["released", "rejected"]


class HeldRater(BaseModel):
    """What is held back of one rater."""

    rater: str
    """A keyed hash."""
    reasons: dict[str, int]
    feedback: list[str]
    """Ids, the latest word first; an answer to a labeling task is `TASK:RATER`."""


async def hold_back(
    redis: Redis,
    feedback: Sequence[Feedback],
    completions: Mapping[str, Completion],
    settings: FeedbackSettings,
) -> list[Feedback]:
    """Mark what is suspect, on the records and in what is returned. Raises Unavailable."""
    if not settings.hold_back:
        return list(feedback)
    spoken = _known_speakers(feedback, completions, settings)
    reasons = await _reasons(redis, spoken, settings)
    new = {said.id: reasons[said.id] for said in spoken if said.id in reasons and not said.held}
    for feedback_id, reason in new.items():
        await _hold(redis, feedback_id, reason)
    if new:
        raters = sorted({said.rater for said in spoken if said.id in new})
        with redis_errors():
            await registry.record(
                redis, "feedback held back", raters=json.dumps(raters), words=str(len(new))
            )
    return [
        said.model_copy(update={"held": new[said.id]}) if said.id in new else said
        for said in feedback
    ]


async def held(redis: Redis, tenant: str, settings: FeedbackSettings) -> list[HeldRater]:
    """What is held back of a tenant, by rater, most words first. Raises Unavailable."""
    feedback = await _held(redis, tenant, settings)
    answers = await held_answers(redis, tenant)
    waiting = [(f.rater, f.updated_at, f.id, f.held or "") for f in feedback]
    waiting += [
        (a.answer.rater, a.answer.answered_at, a.name, a.answer.held or "") for a in answers
    ]
    by_rater: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for rater, _, name, reason in sorted(waiting, key=lambda word: (-word[1], word[2])):
        by_rater[rater].append((name, reason))
    found = [
        HeldRater(
            rater=rater,
            reasons=_counted(reason for _, reason in words),
            feedback=[name for name, _ in words],
        )
        for rater, words in by_rater.items()
    ]
    return sorted(found, key=lambda one: (-len(one.feedback), one.rater))


async def decide(
    redis: Redis,
    subject: str,
    decision: Decision,
    *,
    tenant: str,
    who: str,
    why: str,
    settings: FeedbackSettings,
) -> int:
    """Release or reject one word or all of a rater's, labeling included; how many. Audited.

    Raises NotFound when nothing of that name is held back in this tenant, Unavailable.
    """
    waiting = await _held(redis, tenant, settings)
    chosen = [said.id for said in waiting if subject in (said.id, said.rater)]
    answers = [
        one for one in await held_answers(redis, tenant) if subject in (one.name, one.answer.rater)
    ]
    words = len(chosen) + len(answers)
    if not words:
        raise NotFound("nothing of that name is held back")
    with redis_errors():
        if not _is_one_answer(subject, answers):
            await redis.hset(keys.held_decisions(), subject, decision)
        await registry.record(
            redis, f"feedback {decision}", subject=subject, words=str(words), who=who, why=why
        )
    reason = None if decision == "released" else REJECTED
    for feedback_id in chosen:
        await store.change(redis, feedback_id, lambda old: _with_reason(old, reason))
    await decide_answers(redis, answers, release=decision == "released")
    return words


def _is_one_answer(subject: str, answers: Sequence[HeldAnswer]) -> bool:
    """Such a decision is kept on the answer."""
    return any(one.name == subject for one in answers)


async def _held(redis: Redis, tenant: str, settings: FeedbackSettings) -> list[Feedback]:
    found = [f for f in await store.get_all(redis) if f.held and f.tenant == tenant]
    about = {output.token for said in found for output in said.outputs}
    completions = await store.completions(redis, sorted(about))
    spoken = with_speakers(found, completions, settings=settings)
    return sorted(spoken, key=lambda f: (-f.updated_at, f.id))


def _known_speakers(
    feedback: Sequence[Feedback],
    completions: Mapping[str, Completion],
    settings: FeedbackSettings,
) -> list[Feedback]:
    """Feedback whose rater is a person: a key that stands in for end users is many."""
    known = [
        said for said in feedback if not said.by_end_user or end_user(said, completions) is not None
    ]
    return with_speakers(known, completions, settings=settings)


async def _reasons(
    redis: Redis, spoken: list[Feedback], settings: FeedbackSettings
) -> dict[str, str]:
    """Why to hold what back; decisions of people go first."""
    with redis_errors():
        raw = await redis.hgetall(keys.held_decisions())
    decided = {name.decode(): decision.decode() for name, decision in raw.items()}
    by_tenant: dict[str, list[Feedback]] = defaultdict(list)
    for said in spoken:
        by_tenant[said.tenant].append(said)
    found: dict[str, str] = {}
    for words in by_tenant.values():
        found |= suspects(words, settings)
    for said in spoken:
        decision = decided.get(said.id) or decided.get(said.rater)
        if decision == "released":
            found.pop(said.id, None)
        elif decision == "rejected":
            found[said.id] = REJECTED
    return found


async def _hold(redis: Redis, feedback_id: str, reason: str) -> None:
    """Unless it is held already; what was erased meanwhile is gone."""
    try:
        await store.change(redis, feedback_id, lambda old: _with_reason(old, old.held or reason))
    except NotFound:
        return


def _with_reason(old: Feedback, reason: str | None) -> Feedback:
    return old.model_copy(update={"held": reason})


def _counted(reasons: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for reason in reasons:
        counts[reason] += 1
    return dict(sorted(counts.items()))
