"""`instructloop init`: what an installation needs before its processes start one by one.

The first policy, registered and kept where engines fetch it, and a key for the admin. `up` does the
same before it starts anything; where processes run on machines of their own, this comes first, once
and as often as anybody likes: what is there already stays.
"""

import asyncio
from collections.abc import Callable

from core.redis_check import check_redis
from core.redis_client import connect, redis_url
from core.settings import Settings
from deploy.base_model import base_model_folder
from deploy.migrate import until_redis_answers
from deploy.preflight import check_model
from deploy.up import ensure_admin_key, publish_first_policy

REDIS_TIMEOUT_SECONDS = 60.0


def init(settings: Settings, *, say: Callable[[str], None]) -> None:
    """Make the first policy and the admin key. Raises StartError."""
    settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_model(settings.model)
    asyncio.run(_look_at_redis(settings, say))
    say(f"admin key: {asyncio.run(ensure_admin_key(settings))}")
    if settings.engine.urls:
        folder = None
    else:
        folder = base_model_folder(settings, say=say, alive=lambda: True)
    version = asyncio.run(publish_first_policy(settings, folder))
    say(f"{version} is registered")


async def _look_at_redis(settings: Settings, say: Callable[[str], None]) -> None:
    async with connect(redis_url(settings)) as redis:
        await until_redis_answers(redis, seconds=REDIS_TIMEOUT_SECONDS)
        for warning in await check_redis(redis):
            say(f"warning: {warning}")
