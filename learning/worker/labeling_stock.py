"""How many labeling tasks each tenant's raters lack, and which prompts made none.

The stock is what nobody has had in hands yet: who answered or skipped a task does not get it again,
so what waits for a second rater must not keep new tasks from the first. Each tenant has a stock of
its own: raters who rest hold nobody else up. Runs in workers; sampling_tasks.py fills the stock.
"""

import time
from collections import Counter
from collections.abc import Iterable, Mapping

from core import keys
from core.auth import list_keys
from core.records import LabelingTask
from core.redis_client import Redis, redis_errors
from core.settings import Settings
from feedback.labeling_supply import Candidate, labels_for_training

_SET_ASIDE_SECONDS = 3600


async def missing(redis: Redis, settings: Settings) -> Counter[str]:
    """How many tasks are to be made, by tenant that has somebody whose labels may train.

    Raises Unavailable.
    """
    now = time.time()
    with redis_errors():
        tenants = {
            key.tenant
            for key in await list_keys(redis)
            if labels_for_training(key, settings.feedback, now=now)
        }
        untouched = await redis.zrangebyscore(keys.labeling_open("training"), 0, 0)
        names = [keys.labeling_task(task_id.decode()) for task_id in untouched]
        raw = await redis.mget(names) if names and tenants else []
    here = Counter(LabelingTask.model_validate_json(text).tenant for text in raw if text)
    lacks = {tenant: settings.feedback.tasks_open - here[tenant] for tenant in tenants}
    return Counter({tenant: number for tenant, number in lacks.items() if number > 0})


def next_ones(
    chosen: Iterable[Candidate], lacking: Mapping[str, int], *, most: int
) -> list[Candidate]:
    """The first candidates that fit into the stock, best first."""
    left = Counter(lacking)
    picked: list[Candidate] = []
    for candidate in chosen:
        tenant = candidate.completion.tenant
        if len(picked) < most and left[tenant] > 0:
            left[tenant] -= 1
            picked.append(candidate)
    return picked


async def set_aside(redis: Redis, task_id: str) -> None:
    """A prompt that made no task lets others go first, for an hour. Raises Unavailable."""
    with redis_errors():
        await redis.set(keys.labeling_set_aside(task_id), "1", ex=_SET_ASIDE_SECONDS)
