"""Noticing that a client went away, so that nobody generates for nobody.

Knows ASGI's `receive` and the running task; knows nothing of replies.
"""

import asyncio
from types import TracebackType
from typing import Self

from starlette.types import Receive

WATCH_AFTER_SECONDS = 0.05  # most replies of a fast engine never need the watch


class HangUp:
    """Cancels the task inside the `with` block when the client goes away, and takes note."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._watch: asyncio.Task[None] | None = None
        self.happened = False

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._later = asyncio.get_running_loop().call_later(WATCH_AFTER_SECONDS, self._start)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self._later.cancel()
        if self._watch is not None:
            self._watch.cancel()
        if self.happened and kind is asyncio.CancelledError:
            self._task.uncancel()
            return True
        return False

    def _start(self) -> None:
        self._watch = asyncio.create_task(self._wait())

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.happened = True
        self._task.cancel()
