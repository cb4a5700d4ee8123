"""Asynchronous work in a thread of its own, whose results are taken one by one by the caller.

Knows nothing of what is worked on: learning/training/learner_engine.py asks an engine this way
while the trainer works on the first answers.
"""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

Item = TypeVar("Item")


def beside(
    work: Callable[[], Coroutine[Any, Any, None]], done: SimpleQueue[Item | None]
) -> Generator[Item, None, None]:
    """What work puts into a queue, while it goes on; then the error that ended it, if one did.

    The thread ends with the iterator: closing that cancels the work and waits for it.
    """
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = []

    async def run() -> None:
        task = asyncio.create_task(work())
        running.append((asyncio.get_running_loop(), task))
        await task

    with ThreadPoolExecutor(1, thread_name_prefix="beside") as pool:
        future = pool.submit(lambda: asyncio.run(run()))
        future.add_done_callback(lambda _: done.put(None))
        try:
            while (item := done.get()) is not None:
                yield item
            future.result()
        finally:
            with suppress(RuntimeError):  # the loop is closed where the work is over
                for loop, task in running:
                    loop.call_soon_threadsafe(task.cancel)
