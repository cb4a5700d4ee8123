"""What every process of the service asks at its start: is this our data, and can we read it?

A Redis that does not answer yet stops nobody: gateways and engines serve without it, workers wait.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from core.errors import Unavailable
from core.redis_check import check_redis, spare_replicas
from core.redis_client import Redis, connect, redis_errors, redis_url
from core.schema import check_folder, refuse_other
from core.settings import Settings

_PATIENCE_SECONDS = 1.0
log = logging.getLogger(__name__)


def refuse_foreign_data(settings: Settings) -> None:
    """Raises StartError for a folder or a Redis with another schema than this release's."""
    check_folder(settings.state_dir)
    asyncio.run(_refuse_foreign_redis(settings))


@asynccontextmanager
async def records(settings: Settings) -> AsyncIterator[Redis]:
    """The records, for a command. Raises StartError for another schema, Unavailable."""
    async with connect(redis_url(settings)) as redis:
        with redis_errors():
            await refuse_other(redis)
            yield redis


async def _refuse_foreign_redis(settings: Settings) -> None:
    async with connect(redis_url(settings), timeout=_PATIENCE_SECONDS) as redis:
        try:
            with redis_errors():
                await redis.ping()
        except Unavailable as error:
            log.warning("Redis does not answer yet: %s", error.__cause__)
            return
        for warning in [*await check_redis(redis), await spare_replicas(redis)]:
            if warning:
                log.warning("%s", warning)
