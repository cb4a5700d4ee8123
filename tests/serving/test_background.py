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


async def test_cancelling_waits_for_what_a_task_still_has_to_do():
    tidied = []

    async def tidy(seconds: float) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(seconds)
            tidied.append(seconds)

    async def fails() -> None:
        raise RuntimeError("it failed before")

    tasks = [asyncio.create_task(work) for work in (tidy(0.02), tidy(0.01), fails())]
    await asyncio.sleep(0)
    await cancel_all(tasks)
    assert tidied == [0.01, 0.02]
    assert [task.done() for task in tasks] == [True] * 3


async def test_work_is_ended_by_a_cancellation_and_not_begun_again():
    task = asyncio.create_task(kept(lambda: asyncio.sleep(60)))
    await asyncio.sleep(0)
    await cancel_all([task])
    assert task.cancelled()


async def test_ending_nothing_ends_at_once_and_touches_nobody_else():
    bystander = asyncio.create_task(asyncio.sleep(60))
    await asyncio.sleep(0)
    await cancel_all([])
    assert not bystander.done()
    await cancel_all([bystander])
    assert bystander.cancelled()
