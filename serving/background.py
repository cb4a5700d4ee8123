"""Work beside the requests: kept alive while the gateway runs, and surely ended when it stops.

Knows tasks; knows nothing of what they do.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine
from typing import Any

log = logging.getLogger(__name__)
_AGAIN_SECONDS = 1.0
_INSIST_SECONDS = 0.2


async def kept(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run work until it is done; begin again whatever it raises, because requests rely on it."""
    while True:
        try:
            return await work()
        except Exception:
            log.exception("background work failed; beginning again")
        await asyncio.sleep(_AGAIN_SECONDS)


async def cancel_all(tasks: Collection["asyncio.Task[Any]"]) -> None:
    """Cancel until every task has ended.

    Once is not enough: `asyncio.wait_for` of Python 3.11, in which redis-py sends its commands,
    forgets a cancellation that comes in the moment in which what it waits for is done.
    """
    while running := [task for task in tasks if not task.done()]:
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=_INSIST_SECONDS)
