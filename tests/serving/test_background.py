"""Background work outlives its own failures and nothing outlives the gateway."""

import asyncio

from serving import background
from serving.background import cancel_all, kept


async def test_work_that_fails_begins_again_until_it_is_done(monkeypatch):
    monkeypatch.setattr(background, "_AGAIN_SECONDS", 0)
    attempts = []

    async def work() -> None:
        attempts.append(1)
        if len(attempts) < 4:
            raise RuntimeError("not yet")

    await kept(work)
    assert len(attempts) == 4


async def test_a_task_that_forgets_a_cancellation_is_ended_all_the_same():
    forgotten = []

    async def stubborn() -> None:
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if len(forgotten) == 2:
                    raise
                forgotten.append(1)

    tasks = [asyncio.create_task(stubborn()), asyncio.create_task(asyncio.sleep(60))]
    await asyncio.sleep(0)
    await cancel_all(tasks)
    assert [task.cancelled() for task in tasks] == [True, True]
    assert len(forgotten) == 2


async def test_work_is_ended_by_a_cancellation_and_not_begun_again():
    task = asyncio.create_task(kept(lambda: asyncio.sleep(60)))
    await asyncio.sleep(0)
    await cancel_all([task])
    assert task.cancelled()


async def test_ending_nothing_ends():
    await cancel_all([])
