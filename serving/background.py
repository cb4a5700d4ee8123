"""Work beside the requests: kept alive while the gateway runs, and surely ended when it stops.

Knows tasks; knows nothing of what they do.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine
from typing import Any

log = logging.getLogger(__name__)
_AGAIN_SECONDS = 1.0


async def kept(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run work until it is done; begin again whatever it raises, because requests rely on it."""
    while True:
        try:
            return await work()
        except Exception:
            log.exception("background work failed; beginning again")
        await asyncio.sleep(_AGAIN_SECONDS)


async def cancel_all(tasks: Collection["asyncio.Task[Any]"]) -> None:
    """Cancel tasks, and wait until every one of them has ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
