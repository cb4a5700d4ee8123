"""Which logged prompts raters should see next, and the task that is made of one.

Disagreement of the reward model times traffic, the newer the better: a prompt that many ask and on
which scores differ teaches most. Pure: completions in, candidates and tasks out; the answers are
sampled and filtered by learning/worker/sampling_tasks.py, and raters get tasks from labeling.py.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from core.records import ApiKey, Completion, LabelingOutput, LabelingTask
from core.setting_groups import FeedbackSettings
from feedback.intake import is_named_heldout
from feedback.split import share_of
from feedback.texts import Messages, plain_messages

RUN = "sampling"
"""Stands for a run in tasks that no round of learning opened."""
_HALF_LIFE_SECONDS = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A prompt that could become a task, and how much it is worth asking."""

    completion: Completion
    worth: float


@dataclass(frozen=True, slots=True)
class Sampled:
    """One answer to show, without personal data."""

    text: str
    policy: str
    finish_reason: str


def labels_for_training(key: ApiKey, settings: FeedbackSettings, *, now: float) -> bool:
    """Whether somebody rates with this key whose word may train."""
    lives = key.revoked_at is None and (key.expires_at is None or key.expires_at > now)
    heldout = is_named_heldout(key.name, settings)
    return "label" in key.scopes and lives and key.trains and not heldout


def worth(*, traffic: int, age_seconds: float, disagreement: float = 1.0) -> float:
    """How much a prompt is worth labeling: disagreement x traffic, halved every week.

    `disagreement` is that of the reward model's heads about the prompt's answers.
    """
    return disagreement * traffic * math.pow(0.5, max(age_seconds, 0.0) / _HALF_LIFE_SECONDS)


def usual_disagreement(known: Collection[float]) -> float:
    """What a prompt counts for on which none was measured: the median of those that are known.

    1 where nothing is known, or nobody disagrees about anything: then traffic and age decide.
    """
    return median(known) if any(known) else 1.0


def candidates(
    counted: Iterable[Completion],
    traffic: Counter[str],
    *,
    opening: Callable[[Completion], str],
    known: Collection[str],
    tenants: Collection[str],
    now: float,
    disagreement: Mapping[str, float] | None = None,
) -> list[Candidate]:
    """The prompts that may become tasks, most worth first, one for each opening.

    `known` are tokens that somebody has ranked or that are a task; `traffic` counts completions by
    opening; `tenants` have raters; `disagreement` is known of some tokens.
    """
    measured = disagreement or {}
    usual = usual_disagreement(measured.values())
    best: dict[str, Candidate] = {}
    for completion in counted:
        if completion.token in known or completion.tenant not in tenants or not fits(completion):
            continue
        name = opening(completion)
        age = now - completion.created_at
        value = worth(
            traffic=max(traffic[name], 1),
            age_seconds=age,
            disagreement=measured.get(completion.token, usual),
        )
        one = Candidate(completion, value)
        if name not in best or one.worth > best[name].worth:
            best[name] = one
    return sorted(best.values(), key=lambda c: (-c.worth, c.completion.token))


def fits(completion: Completion) -> bool:
    """Counted, of the train split, plain text, and nothing went wrong with it."""
    return (
        completion.counted
        and completion.trains
        and completion.split == "train"
        and completion.outcome == "logged"
        and completion.error is None
        and plain_messages(completion.messages) is not None
    )


def logged_answers(about: Completion, others: Iterable[Completion]) -> list[Sampled]:
    """What was answered to the very same prompt of the same user, by any version, no mixes."""
    same = [
        c
        for c in (about, *others)
        if (c.tenant, c.user, c.messages) == (about.tenant, about.user, about.messages)
        and c.trains
        and not c.mixed
        and c.error is None
    ]
    found = [
        Sampled(choice.text, c.policy_versions[0], str(choice.finish_reason))
        for c in sorted(same, key=lambda c: (c.created_at, c.token))
        for choice in c.choices
        if not choice.tool_calls
    ]
    return distinct(found)


def distinct(answers: Iterable[Sampled]) -> list[Sampled]:
    """Whole, non-empty answers, each text once whatever its white space; the first one stays."""
    kept: dict[str, Sampled] = {}
    for answer in answers:
        name = " ".join(answer.text.split())
        if name and answer.finish_reason in ("stop", "length"):
            kept.setdefault(name, answer)
    return list(kept.values())


def pick(answers: Sequence[Sampled], count: int) -> list[Sampled]:
    """`count` answers, from as many versions as there are, in turns."""
    by_version: dict[str, list[Sampled]] = {}
    for answer in answers:
        by_version.setdefault(answer.policy, []).append(answer)
    picked: list[Sampled] = []
    while len(picked) < count and any(by_version.values()):
        for waiting in by_version.values():
            if waiting and len(picked) < count:
                picked.append(waiting.pop(0))
    return picked


def make_task(
    about: Completion,
    answers: Sequence[Sampled],
    *,
    name: Callable[[str], str],
    settings: FeedbackSettings,
    now: float,
) -> LabelingTask:
    """A training task. `name` is a keyed hash within the tenant, so that ids say nothing."""
    task_id = task_name(about.token, name)
    shared = share_of(name(f"overlap\x00{about.token}")) < settings.overlap_share
    outputs = [
        LabelingOutput(
            output_id=name(f"{task_id}\x00{place}")[:20],
            text=answer.text,
            policy=answer.policy,
            finish_reason=answer.finish_reason,
        )
        for place, answer in enumerate(answers)
    ]
    return LabelingTask(
        id=task_id,
        tenant=about.tenant,
        mode="training",
        run_id=RUN,
        user=about.user,
        messages=about.messages,
        outputs=tuple(sorted(outputs, key=lambda output: output.output_id)),
        created_at=now,
        wanted=settings.overlap_raters if shared else 1,
    )


def task_name(token: str, name: Callable[[str], str]) -> str:
    """The id of the task about a completion: the same each time, so none is made twice."""
    return name(f"task\x00{token}")[:20]


def question(messages: Messages) -> dict[str, Any]:
    """A prompt as a field of a request: `messages` of a chat, `prompt` of a text completion."""
    plain = plain_messages(messages)
    return dict(plain) if isinstance(plain, dict) else {"messages": plain}
