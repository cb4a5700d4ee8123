"""The stock of labeling tasks, on a real Redis, with an engine's HTTP spoken by a small server."""

import time
from dataclasses import dataclass, field, replace

import pytest
from aiohttp import web

from core import keys
from core.auth import create_key
from core.records import Answer, Feedback, Output, Replica
from core.settings import Settings
from feedback import labeling, store
from feedback.labeling_supply import RUN
from learning.rounds.folders import Folders
from learning.rounds.work import Work
from learning.worker.labeling_stock import missing
from learning.worker.sampling_tasks import PRIORITY, fill_stock, sampling_due
from tests.feedback.factory import EmailFilter, completion
from tests.feedback.test_labeling import task as ranking_task


@dataclass
class Engine:
    """Answers each request with texts of its own, and remembers what it was asked."""

    asked: list = field(default_factory=list)
    same: bool = False
    status: int = 200

    async def answer(self, request):
        body = await request.json()
        self.asked.append((request.path, request.headers["authorization"], body))
        texts = [
            "same" if self.same else f"{len(self.asked)}/{n} write to ann@example.org"
            for n in range(body["n"])
        ]
        choices = [{"message": {"content": t}, "finish_reason": "stop"} for t in texts]
        headers = {"x-policy-version": "v0003"}
        return web.json_response({"choices": choices}, status=self.status, headers=headers)


@pytest.fixture
async def engine(tmp_path, redis):
    spoken = Engine()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", spoken.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "e.sock")).start()
    replica = Replica(
        name="e0", url=f"unix:{tmp_path / 'e.sock'}", version="v0003", state="ready", seen_at=0.0
    )
    await redis.sadd(keys.replicas(), "e0")
    await redis.set(keys.replica("e0"), replica.model_dump_json())
    yield spoken
    await runner.cleanup()


@pytest.fixture
def work(redis, keyring, state_dir):
    return Work(
        redis=redis,
        redis_url="",
        settings=Settings(state_dir=state_dir, feedback={"tasks_open": 2, "task_answers": 5}),
        keyring=keyring,
        folders=Folders.of(state_dir),
        stopping=lambda: False,
    )


async def log(redis, token, said, **fields):
    one = completion(token, messages=[{"role": "user", "content": said}], tenant="t", **fields)
    await redis.set(keys.completion(token), one.model_dump_json())
    await redis.zadd(keys.prompts(), {token: 1})
    await redis.sadd(keys.user_completions(one.user), token)


async def test_tasks_are_due_only_while_somebody_labels_and_the_stock_is_low(redis, work):
    assert not await sampling_due(redis, work.settings)
    await create_key(redis, name="rater", tenant="t", scopes=("label",))
    assert await sampling_due(redis, work.settings)
    off = work.settings.model_copy(
        update={"feedback": work.settings.feedback.model_copy(update={"tasks_open": 0})}
    )
    assert not await sampling_due(redis, off)
    await redis.set(keys.learning_lease(), "1", px=5000)
    assert not await sampling_due(redis, work.settings)  # a stage computes
    await redis.delete(keys.learning_lease())
    await labeling.open_tasks(redis, [ranking_task("a", tenant="t"), ranking_task("b", tenant="t")])
    assert not await sampling_due(redis, work.settings)


async def test_what_one_rater_is_done_with_and_others_leave_does_not_end_the_supply(redis, work):
    await create_key(redis, name="rater", tenant="t", scopes=("label",))
    waits = [ranking_task(name, tenant="t") for name in "ab"]
    await labeling.open_tasks(redis, waits)
    assert not await sampling_due(redis, work.settings)
    for one in waits:
        leased = await labeling.next_task(
            redis, tenant="t", rater="r1", heldout=False, settings=work.settings.feedback
        )
        skip = Answer(rater="r1", heldout_rater=False, ranking=(), answered_at=1.0)
        await labeling.skip_task(redis, task_id=leased.id, tenant="t", skip=skip, reply="{}")
        assert await missing(redis, work.settings) == {"t": 1 + (one is waits[1])}
    assert await sampling_due(redis, work.settings)  # they wait for another rater, nobody for them
    await labeling.open_tasks(redis, [ranking_task(name, tenant="t") for name in "cd"])
    assert not await sampling_due(redis, work.settings)
    await create_key(redis, name="rater", tenant="other", scopes=("label",))
    assert await missing(redis, work.settings) == {"other": 2}


async def test_the_best_unranked_prompts_become_tasks_of_filtered_different_answers(
    redis, work, engine, keyring
):
    await create_key(redis, name="rater", tenant="t", scopes=("label",))
    await log(redis, "a" * 52, "Name a river.", answers=("Elbe", "Elbe"))
    await log(redis, "b" * 52, "Name a lake.", answers=("Como",))
    await log(redis, "c" * 52, "Name a sea.", answers=("North Sea",))
    ranked = Feedback(
        id="fb-1",
        kind="ranking",
        tenant="t",
        key_id="0",
        rater="r",
        created_at=1.0,
        updated_at=1.0,
        outputs=(Output(token="c" * 52, choice=0),),
    )
    await store.record(redis, ranked, reply="{}")
    assert await fill_stock(work, EmailFilter()) == 2
    tasks = await labeling.tasks_of(redis, RUN)
    assert {t.messages[0]["content"] for t in tasks} == {"Name a river.", "Name a lake."}
    for task in tasks:
        texts = [output.text for output in task.outputs]
        assert len(set(texts)) == len(texts) == 5
        assert {output.policy for output in task.outputs} == {"v0000", "v0003"}
        assert not any("example.org" in text for text in texts)
        assert sum("<EMAIL_1>" in text for text in texts) == 4
    path, token, body = engine.asked[0]
    assert (path, body["priority"], body["n"]) == ("/v1/chat/completions", PRIORITY, 3)
    assert token == f"Bearer {keyring.token('engine-data.token')}"
    assert len({asked["temperature"] for *_, asked in engine.asked}) == 3
    assert not await sampling_due(redis, work.settings)  # a moment's rest
    await redis.delete(keys.labeling_sampling())
    assert await fill_stock(work, EmailFilter()) == 0  # nothing left that nobody ranked


async def test_of_prompts_asked_alike_the_one_heads_disagree_about_comes_first(redis, work, engine):
    await create_key(redis, name="rater", tenant="t", scopes=("label",))
    for token, said in (("a", "Name a river."), ("b", "Name a lake."), ("c", "Name a sea.")):
        await log(redis, token * 52, said, answers=("one", "two"), created_at=time.time())
    await redis.hset(
        keys.disagreement(), mapping={"a" * 52: 0.01, "b" * 52: 0.1, "c" * 52: 0.4, "gone": 9.0}
    )
    assert await fill_stock(work, EmailFilter()) == 2
    tasks = await labeling.tasks_of(redis, RUN)
    assert {t.messages[0]["content"] for t in tasks} == {"Name a lake.", "Name a sea."}


@pytest.mark.parametrize("trouble", ["same", "refused", "filter"])
async def test_without_enough_good_answers_there_is_no_task(redis, work, engine, trouble):
    await create_key(redis, name="rater", tenant="t", scopes=("label",))
    await log(redis, "a" * 52, "Name a river.", answers=("Elbe", "Rhine"))
    engine.same = trouble == "same"
    engine.status = 503 if trouble == "refused" else 200
    fail = "example.org" if trouble == "filter" else None
    assert await fill_stock(work, EmailFilter(fail)) == 0
    assert await labeling.tasks_of(redis, RUN) == []
    assert len(engine.asked) == 3


async def test_prompts_that_make_no_task_do_not_stand_before_those_that_do(redis, work, engine):
    await create_key(redis, name="rater", tenant="t", scopes=("label",))
    for token in "abcdef":  # the engine is asked about four prompts at a time
        await log(redis, token * 52, f"Say {token}.", answers=("Elbe",))
    work = replace(work, settings=Settings(feedback={"tasks_open": 9}))
    engine.same = True
    assert await fill_stock(work, EmailFilter()) == 0
    engine.same = False
    await redis.delete(keys.labeling_sampling())
    assert await fill_stock(work, EmailFilter()) == 2
    asked = [body["messages"][0]["content"] for *_, body in engine.asked]
    assert len(set(asked)) == len(asked) / 3 == 6


async def test_two_workers_do_not_sample_at_once(redis, work, engine):
    await create_key(redis, name="rater", tenant="t", scopes=("label",))
    await log(redis, "a" * 52, "Name a river.")
    await redis.set(keys.labeling_sampling(), "1", px=5000)
    assert await fill_stock(work, EmailFilter()) == 0
    assert engine.asked == []
