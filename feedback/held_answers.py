"""Answers to labeling tasks that wait for a decision, as holding.py has it for feedback.

What firewall.py suspects gets `held`, with the reason, on the answer within its task: it trains
nothing, counts as no vote and in no agreement until somebody decides. A decision about one answer
is kept on the answer, one about a rater with those about feedback. A task whose answer is rejected
is offered to others again. Knows no HTTP.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from core import keys, loop, registry
from core.errors import Conflict, NotFound
from core.records import Answer, LabelingTask
from core.redis_client import Redis, redis_errors
from core.registry import milliseconds
from core.setting_groups import FeedbackSettings
from feedback import labeling
from feedback.firewall import suspect_answers
from feedback.labeling_rules import REJECTED, index_of, is_done, score_of

_INDEXES = ("training", "evaluation")
_ATTEMPTS = 20


@dataclass(frozen=True, slots=True)
class HeldAnswer:
    """One answer that waits for a decision."""

    task_id: str
    answer: Answer

    @property
    def name(self) -> str:
        """What a decision calls it: a rater answers a task once."""
        return f"{self.task_id}:{self.answer.rater}"


async def hold_back_answers(
    redis: Redis, tasks: Sequence[LabelingTask], settings: FeedbackSettings
) -> list[LabelingTask]:
    """Mark what is suspect, on the records and in what is returned. Raises Unavailable."""
    if not settings.hold_back or not any(task.answers for task in tasks):
        return list(tasks)
    with redis_errors():
        raw = await redis.hgetall(keys.held_decisions())
    decided = {name.decode(): decision.decode() for name, decision in raw.items()}
    found = _reasons(tasks, decided, settings)
    new: dict[str, dict[str, str]] = {}
    for task in tasks:
        marks = {
            a.rater: found[task.id, a.rater]
            for a in task.answers
            if (task.id, a.rater) in found and not a.held
        }
        if marks and await _change(redis, task.id, _holding(marks)):
            new[task.id] = marks
    if new:
        await _tell(redis, new)
    return [_marked(task, _holding(new[task.id])) if task.id in new else task for task in tasks]


async def hold_back_votes(redis: Redis, run_id: str, settings: FeedbackSettings) -> None:
    """Mark what is suspect of the votes in a run's tasks. Raises Unavailable."""
    await hold_back_answers(redis, await labeling.tasks_of(redis, run_id), settings)


async def held_answers(redis: Redis, tenant: str) -> list[HeldAnswer]:
    """What is held back of a tenant's labeling, latest first. Raises Unavailable."""
    found = [
        HeldAnswer(task.id, answer)
        for task in await labeling.tasks_in(redis, *_INDEXES)
        if task.tenant == tenant
        for answer in task.answers
        if answer.held
    ]
    return sorted(found, key=lambda one: (-one.answer.answered_at, one.name))


async def decide_answers(redis: Redis, chosen: Sequence[HeldAnswer], *, release: bool) -> None:
    """Let these count, or keep them out for good. Raises Conflict, Unavailable."""
    update = {"held": None if release else REJECTED, "released": release}
    raters_of: dict[str, set[str]] = defaultdict(set)
    for one in chosen:
        raters_of[one.task_id].add(one.answer.rater)
    for task_id, raters in raters_of.items():
        await _change(redis, task_id, dict.fromkeys(raters, update))


def _reasons(
    tasks: Sequence[LabelingTask], decided: Mapping[str, str], settings: FeedbackSettings
) -> dict[tuple[str, str], str]:
    """Why to hold what back; decisions of people go first."""
    by_tenant: dict[str, list[LabelingTask]] = defaultdict(list)
    for task in tasks:
        by_tenant[task.tenant].append(task)
    found: dict[tuple[str, str], str] = {}
    for theirs in by_tenant.values():
        found |= suspect_answers(theirs, settings)
    for task in tasks:
        for answer in task.answers:
            decision = decided.get(answer.rater)
            if answer.released or decision == "released":
                found.pop((task.id, answer.rater), None)
            elif decision == "rejected" and answer.ranking:
                found[task.id, answer.rater] = REJECTED
    return found


def _holding(marks: Mapping[str, str]) -> dict[str, dict[str, str]]:
    return {rater: {"held": reason} for rater, reason in marks.items()}


def _marked(task: LabelingTask, updates: Mapping[str, Mapping[str, object]]) -> LabelingTask:
    """The task with the rankings of these raters changed; their skips stay as they are."""
    answers = tuple(
        a.model_copy(update=dict(updates[a.rater])) if a.ranking and a.rater in updates else a
        for a in task.answers
    )
    return task.model_copy(update={"answers": answers})


async def _change(redis: Redis, task_id: str, updates: Mapping[str, Mapping[str, object]]) -> bool:
    """Write unless somebody was faster; then again. False when the task was erased meanwhile."""
    for _ in range(_ATTEMPTS):
        with redis_errors():
            raw = await redis.get(keys.labeling_task(task_id))
        if raw is None:
            return False
        old = LabelingTask.model_validate_json(raw)
        new = _marked(old, updates)
        await _offer(redis, old, new)
        waits = bool(labeling.sealed_notes(new))
        if new == old or await labeling.replace_notes(redis, raw, new, done=not waits):
            return True
    raise Conflict("this task is being changed by somebody else: try again")


async def _offer(redis: Redis, old: LabelingTask, new: LabelingTask) -> None:
    """Open a task again, or close it, where that follows from a decision.

    Before the task is written: who is killed in between has changed nothing, because whether a task
    is free is read from the task itself. What a round closed stays closed.
    """
    if is_done(new) and is_done(old):
        return
    with redis_errors():
        if is_done(new) or await _is_wanted(redis, new):
            score = score_of(new, now=milliseconds())
            await redis.zadd(keys.labeling_open(index_of(new)), {new.id: score}, xx=True)


async def _is_wanted(redis: Redis, task: LabelingTask) -> bool:
    """Whether answers still count: votes do until their round is over."""
    if task.mode == "training" or task.gold:
        return True
    try:
        return (await loop.get_run(redis, task.run_id)).finished_at is None
    except NotFound:
        return False


async def _tell(redis: Redis, new: Mapping[str, Mapping[str, str]]) -> None:
    raters = sorted({rater for marks in new.values() for rater in marks})
    words = sum(len(marks) for marks in new.values())
    with redis_errors():
        await registry.record(
            redis, "labeling held back", raters=json.dumps(raters), words=str(words)
        )
