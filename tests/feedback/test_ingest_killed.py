"""Ingest is killed at every kind of moment; what was in the inbox is recorded once, all of it."""

import asyncio
import multiprocessing
import random
import time

import orjson
import pytest

from core import keys
from core.records import Answer, Completion
from core.setting_groups import LogSettings
from core.settings import Settings
from feedback import intake, labeling, quarantine, store
from feedback.ingest import GROUP, ingest_batch, retry_quarantine
from feedback.labeling_routes import with_raw_notes
from feedback.schemas import FeedbackRequest
from feedback.sealing import seal_texts
from tests.conftest import eventually
from tests.feedback.factory import EmailFilter, api_key, completion_id, entry, put
from tests.feedback.ingest_child import ingest_and_die, ingest_forever
from tests.feedback.test_labeling import task

pytestmark = pytest.mark.thorough

CAP = 3
POINTS = 40


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.feedback.ingest_child"])
    return context


@pytest.fixture
def capped(settings) -> Settings:
    return settings.model_copy(update={"log": LogSettings(prompts_per_user=CAP)})


async def fill(redis, keyring) -> list[dict]:
    """Five prompts of ann (cap 3), one copy, one of somebody who opted out, and a comment.

    One prompt and one comment are in quarantine, where they wait for a filter that clears them.
    """
    await redis.flushall()
    await redis.sadd(keys.opted_out(), keyring.hashed("acme", "user", "eve"))
    entries = [entry(keyring, prompt=f"ann@example.org asks {i}?") for i in range(5)]
    entries.append(entry(keyring, prompt="from bob?", user="bob"))
    entries.append(entry(keyring, prompt="from BOB?", user="carl"))
    entries.append(entry(keyring, prompt="from eve?", user="eve"))
    await put(redis, keyring, *entries)
    for rater in ("ann", "zoe"):
        who = intake.speaker(api_key(), rater, keyring=keyring, settings=Settings().feedback)
        sealed = seal_texts({"comment": f"{rater}@example.org"}, keyring)
        body = FeedbackRequest(completion_id=completion_id(keyring), comment="x")
        said = intake.rating(body, who, keyring=keyring, sealed=sealed, now=time.time())
        await store.record(redis, said, reply="{}")
    await give_notes(redis, keyring)
    entries.append(entry(keyring, prompt="from zoe?", user="zoe"))
    async with redis.pipeline(transaction=True) as step:
        late = keyring.seal(orjson.dumps(entries[-1]))
        quarantine.put(step, f"{quarantine.PROMPT}1-0", late, now=time.time())
        quarantine.put(step, said.id, sealed, now=time.time())
        step.srem(keys.feedback_text(), said.id)
        await step.execute()
    return entries


async def recover(redis, keyring, settings) -> None:
    """What the next ingest does."""
    while await ingest_batch(
        redis, keyring, settings, EmailFilter(), limit=50, retry_after_seconds=0.0
    ):
        pass
    later = time.time() + 1e7
    await retry_quarantine(redis, keyring, settings, EmailFilter(), limit=50, now=later)


async def give_notes(redis, keyring) -> None:
    """Two skips with a reason."""
    await labeling.open_tasks(redis, [task()])
    for rater in ("r1", "r2"):
        await labeling.next_task(
            redis, tenant="acme", rater=rater, heldout=False, settings=Settings().feedback
        )
        skip = Answer(rater=rater, heldout_rater=False, ranking=(), answered_at=0.0)
        why = {"skip": f"{rater}@example.org"}
        skip = with_raw_notes(skip, why, tenant="acme", keyring=keyring)
        await labeling.skip_task(redis, task_id="t1", tenant="acme", skip=skip, reply="{}")


async def check(redis, entries) -> None:
    """Everything once, whatever happened before."""
    records = [
        Completion.model_validate_json(await redis.get(keys.completion(e["token"])))
        for e in entries
    ]
    outcomes = sorted(record.outcome for record in records)
    assert outcomes == sorted(
        ["pii_filtered"] * CAP
        + ["over_user_cap"] * 2
        + ["logged", "logged", "duplicate", "opted_out"]
    )
    counted = {r.token.encode() for r in records if r.counted}
    assert len(counted) == CAP + 2
    assert set(await redis.zrange(keys.prompts(), 0, -1)) == counted
    assert int(await redis.hget(keys.counts(), "prompts")) == CAP + 2
    assert await redis.zcard(keys.user_prompts(records[0].user)) == CAP
    assert await redis.scard(keys.user_completions(records[0].user)) == 5
    assert await redis.xlen(keys.inbox()) == 0
    assert (await redis.xpending(keys.inbox(), GROUP))["pending"] == 0
    assert await redis.hlen(keys.quarantine()) == 0
    said = await store.get_all(redis)
    assert [(s.text, s.sealed) for s in said] == [({"comment": "<EMAIL_1>"}, None)] * 2
    noted = await labeling.get_task(redis, "t1", tenant="acme")
    assert [(a.notes, a.sealed_notes) for a in noted.answers] == [({"skip": "<EMAIL_1>"}, None)] * 2
    assert await redis.scard(keys.feedback_text()) == 0


async def test_killed_at_any_line_it_records_everything_once(
    redis, shared_redis, keyring, capped, processes
):
    lines = processes.Value("i", 0)

    async def run(at_line: int) -> int:
        lines.value = 0
        child = processes.Process(
            target=ingest_and_die,
            args=(shared_redis.url, str(keyring.folder), capped, at_line, lines),
        )
        child.start()
        await asyncio.to_thread(child.join, 60)
        return child.exitcode

    entries = await fill(redis, keyring)
    assert await run(at_line=-1) == 0
    total = lines.value
    assert total > 300
    await recover(redis, keyring, capped)
    await check(redis, entries)
    draw = random.Random(7)
    points = sorted({1, total - 1, *draw.sample(range(2, total - 1), POINTS)})
    for at_line in points:
        entries = await fill(redis, keyring)
        assert await run(at_line) == -9, at_line
        await recover(redis, keyring, capped)
        await check(redis, entries)


async def test_killed_at_random_moments_under_load_it_records_everything_once(
    redis, shared_redis, keyring, settings, processes
):
    users, each = 20, 12
    settings = settings.model_copy(
        update={"log": LogSettings(prompts_per_user=10, max_deliveries=50)}
    )
    entries = [
        entry(keyring, prompt=f"{user} asks {i}?", user=f"u{user}")
        for i in range(each)
        for user in range(users)
    ]
    draw = random.Random(11)

    async def feed():
        for one in entries:
            await put(redis, keyring, one)
            await asyncio.sleep(0.001)

    feeding = asyncio.create_task(feed())
    args = (shared_redis.url, str(keyring.folder), settings)
    for _ in range(12):
        child = processes.Process(target=ingest_forever, args=args)
        child.start()
        await asyncio.sleep(draw.uniform(0.02, 0.2))
        child.kill()
        await asyncio.to_thread(child.join, 60)
    await feeding
    last = processes.Process(target=ingest_forever, args=args)
    last.start()

    async def empty():
        return await redis.xlen(keys.inbox()) == 0

    await eventually(empty, seconds=60)
    last.kill()
    last.join()
    stored = await redis.mget([keys.completion(e["token"]) for e in entries])
    records = [Completion.model_validate_json(raw) for raw in stored]
    counted = [record for record in records if record.counted]
    assert len(counted) == users * 10
    assert int(await redis.hget(keys.counts(), "prompts")) == users * 10
    assert await redis.zcard(keys.prompts()) == users * 10
    assert await redis.scard(keys.users()) == users
    for user in {record.user for record in records}:
        assert await redis.zcard(keys.user_prompts(user)) == 10
        assert await redis.scard(keys.user_completions(user)) == each
    assert await redis.hlen(keys.quarantine()) == 0
