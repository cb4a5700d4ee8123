"""From a reward model's stage to whoever chooses what to label: disagreement by prompt, in Redis.

The newest reward model's values replace those of the one before and expire, because a model that is
weeks old says little about what it would learn now. Runs in workers: no torch. What the values are
is learning/reward_model/disagreement.py's, what is made of them feedback/labeling_supply.py's.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from core import keys
from core.redis_client import Redis, redis_errors

FILE = "disagreement.jsonl"
"""In the stage's `out`: a line {"prompt_id", "disagreement"} for each prompt. Erasure finds lines
of an erased person in files with this ending."""
_EXPIRES_SECONDS = 30 * 86_400


async def publish_disagreement(redis: Redis, out: Path) -> int:
    """Replace what Redis holds by the values of a stage's folder; how many. Raises Unavailable.

    A stage without the file, whose model had no heads, leaves no values behind.
    """
    path = out / FILE
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    found = {row["prompt_id"]: row["disagreement"] for row in rows}
    with redis_errors():
        async with redis.pipeline(transaction=True) as step:
            step.delete(keys.disagreement())
            if found:
                step.hset(keys.disagreement(), mapping=found)
                step.expire(keys.disagreement(), _EXPIRES_SECONDS)
            await step.execute()
    return len(found)


async def read_disagreement(redis: Redis, tokens: Sequence[str]) -> dict[str, float]:
    """The values there are for these prompts. Raises Unavailable."""
    with redis_errors():
        found = await redis.hmget(keys.disagreement(), tokens) if tokens else []
    return {token: float(raw) for token, raw in zip(tokens, found, strict=True) if raw is not None}
