import asyncio
import base64
import time

import orjson
import pytest

from core import keys
from core.errors import Conflict, NotFound, Unprocessable
from core.records import Answer, ApiKey, LabelingOutput, LabelingTask
from core.setting_groups import FeedbackSettings
from feedback import intake, labeling
from feedback.ingest import ingest_batch, retry_quarantine
from tests.feedback.factory import PROMPT, EmailFilter, api_key, client_of, make_app

TRAINERS = [api_key(f"rater-{n}", scopes=("label",), key_id=f"1111111{n}") for n in range(5)]
HELDOUT = api_key("heldout-1", scopes=("label",), key_id="22222222")
STRANGER = api_key("theirs", scopes=("label",), tenant="other", key_id="33333333")
APP = api_key()


def task(name="t1", *, count=4, mode="training", tenant="acme", run_id="run-1") -> LabelingTask:
    return LabelingTask(
        id=name,
        tenant=tenant,
        mode=mode,
        run_id=run_id,
        user="u" * 32,
        messages=PROMPT,
        outputs=tuple(
            LabelingOutput(
                output_id=f"candidate-{i}" if i % 2 else f"parent-{i}",
                text=f"{name} answer {i}",
                policy="v0001" if i % 2 else "v0000",
            )
            for i in range(count)
        ),
        created_at=0.0,
    )


@pytest.fixture
def settings(settings):
    feedback = FeedbackSettings(heldout_raters=("heldout-*",), lease_seconds=5)
    return settings.model_copy(update={"feedback": feedback})


@pytest.fixture
def app(redis, keyring, settings):
    return make_app(redis, keyring, settings, *TRAINERS, HELDOUT, STRANGER, APP)


@pytest.fixture
async def clients(app):
    opened = {key.name: client_of(app, key) for key in (*TRAINERS, HELDOUT, STRANGER, APP)}
    yield opened
    for client in opened.values():
        await client.aclose()


async def lease(client) -> dict | None:
    reply = await client.get("/v1/labeling/next")
    if reply.status_code == 204:
        assert reply.content == b""
        return None
    assert reply.status_code == 200, reply.text
    return reply.json()


def answer_to(shown: dict, **changes) -> dict:
    names = [o["output_id"] for o in shown["outputs"]]
    return {
        "outputs": [{"output_id": names[0], "rating": 6, "flags": {"fails_task": False}}],
        "ranking": [[names[1]], [names[0], names[3]], [names[2]]],
        **changes,
    }


async def expire(redis, task_id, mode="training") -> None:
    """As if the lease had run out."""
    leased = LabelingTask.model_validate_json(await redis.get(keys.labeling_task(task_id)))
    late = leased.model_copy(update={"leased_until": 0.001})
    await redis.set(keys.labeling_task(task_id), late.model_dump_json())
    await redis.zadd(keys.labeling_open(mode), {task_id: 1})


async def test_a_rater_gets_a_task_answers_it_and_the_answer_is_kept_under_real_names(
    clients, redis, keyring
):
    await labeling.open_tasks(redis, [task()])
    shown = await lease(clients["rater-0"])
    assert (shown["id"], shown["mode"], shown["messages"]) == ("t1", "training", PROMPT)
    reply = await clients["rater-0"].post("/v1/labeling/t1", json=answer_to(shown))
    assert (reply.status_code, reply.json()) == (201, {"id": "t1", "status": "recorded"})
    (done,) = await labeling.tasks_of(redis, "run-1")
    (answer,) = done.answers
    text_of = {o.output_id: o.text for o in done.outputs}
    shown_text = [o["text"] for o in shown["outputs"]]
    assert [{text_of[name] for name in tie} for tie in answer.ranking] == [
        {shown_text[1]}, {shown_text[0], shown_text[3]}, {shown_text[2]},
    ]  # fmt: skip
    assert [text_of[name] for name in answer.ratings] == [shown_text[0]]
    assert list(answer.flags.values()) == [{"fails_task": False}]
    rater = intake.speaker(TRAINERS[0], None, keyring=keyring, settings=FeedbackSettings()).rater
    assert (answer.rater, answer.heldout_rater) == (rater, False)
    assert await lease(clients["rater-1"]) is None  # one answer is enough
    counts = await redis.hgetall(keys.counts())
    assert counts == {b"rankings": b"1", b"comparisons": b"5"}


async def test_what_is_shown_is_blind_and_shuffled_for_each_rater(clients, redis):
    await labeling.open_tasks(redis, [task("t1", count=9)])
    shown = await lease(clients["rater-0"])
    again = await lease(clients["rater-0"])
    assert again["outputs"] == shown["outputs"]  # a reload shows the same task in the same order
    for word in ("candidate", "parent", "v0000", "v0001", "policy"):
        assert word not in str(shown)
    await expire(redis, "t1")
    other = await lease(clients["rater-1"])
    assert [o["text"] for o in other["outputs"]] != [o["text"] for o in shown["outputs"]]
    assert sorted(o["text"] for o in other["outputs"]) == sorted(
        o["text"] for o in shown["outputs"]
    )
    assert [o["text"] for o in shown["outputs"]] != [o.text for o in task("t1", count=9).outputs]


async def test_evaluation_tasks_go_to_held_out_raters_and_training_tasks_to_the_others(
    clients, redis
):
    await labeling.open_tasks(redis, [task("train"), task("eval", mode="evaluation")])
    shown = await lease(clients["heldout-1"])
    assert (shown["id"], shown["mode"]) == ("eval", "evaluation")
    assert (await lease(clients["rater-0"]))["id"] == "train"
    await clients["heldout-1"].post("/v1/labeling/eval", json=answer_to(shown))
    assert await lease(clients["heldout-1"]) is None
    (done,) = [t for t in await labeling.tasks_of(redis, "run-1") if t.id == "eval"]
    assert [a.heldout_rater for a in done.answers] == [True]
    assert await redis.hgetall(keys.counts()) == {}  # votes on versions are no training data


async def test_a_leased_task_is_nobody_elses_until_its_lease_runs_out(clients, redis):
    await labeling.open_tasks(redis, [task()])
    shown = await lease(clients["rater-0"])
    assert await lease(clients["rater-1"]) is None
    refused = await clients["rater-1"].post("/v1/labeling/t1", json=answer_to(shown))
    assert refused.status_code == 409
    await expire(redis, "t1")
    taken = await lease(clients["rater-1"])
    assert taken["id"] == "t1"
    late = await clients["rater-0"].post("/v1/labeling/t1", json=answer_to(shown))
    assert late.status_code == 409
    done = await clients["rater-1"].post("/v1/labeling/t1", json=answer_to(taken))
    assert done.status_code == 201


async def test_a_real_lease_runs_out_by_the_clock(redis):
    await labeling.open_tasks(redis, [task()])
    brief = FeedbackSettings.model_construct(lease_seconds=0)
    first = await labeling.next_task(redis, tenant="acme", rater="a", heldout=False, settings=brief)
    assert first.leased_by == "a"
    await asyncio.sleep(0.01)
    second = await labeling.next_task(
        redis, tenant="acme", rater="b", heldout=False, settings=FeedbackSettings()
    )
    assert second.leased_by == "b"
    third = await labeling.next_task(
        redis, tenant="acme", rater="a", heldout=False, settings=FeedbackSettings()
    )
    assert third is None


async def test_an_answer_after_the_lease_counts_while_nobody_else_took_the_task(clients, redis):
    await labeling.open_tasks(redis, [task()])
    shown = await lease(clients["rater-0"])
    await expire(redis, "t1")
    reply = await clients["rater-0"].post("/v1/labeling/t1", json=answer_to(shown))
    assert reply.status_code == 201


async def test_a_skipped_task_goes_to_others_and_never_back(clients, redis, keyring):
    await labeling.open_tasks(redis, [task("t1"), task("t2")])
    first = await lease(clients["rater-0"])
    for body in ({"reason": "unclear, ask ann@example.org"}, {"reason": "again"}, {}):
        reply = await clients["rater-0"].post(f"/v1/labeling/{first['id']}/skip", json=body)
        assert (reply.status_code, reply.json()["status"]) == (201, "skipped")
    second = await lease(clients["rater-0"])
    assert second["id"] != first["id"]
    assert (await clients["rater-0"].post(f"/v1/labeling/{second['id']}/skip")).status_code == 201
    assert await lease(clients["rater-0"]) is None
    assert (await lease(clients["rater-1"]))["id"] in ("t1", "t2")
    raw = await redis.get(keys.labeling_task(first["id"]))
    assert b"example.org" not in raw
    kept = LabelingTask.model_validate_json(raw).answers[0]
    assert (kept.ranking, b"unclear" in keyring.open(base64.b64decode(kept.sealed_notes))) == (
        (),
        True,
    )
    assert all(t.answers == () for t in await labeling.tasks_of(redis, "run-1"))


async def test_many_raters_at_once_get_different_tasks(clients, redis):
    await labeling.open_tasks(redis, [task(f"t{n}") for n in range(5)])
    shown = await asyncio.gather(*(lease(clients[f"rater-{n}"]) for n in range(5)))
    assert sorted(s["id"] for s in shown) == [f"t{n}" for n in range(5)]
    assert await labeling.task_counts(redis) == {"open": 0, "leased": 5, "done": 0}


async def test_every_task_is_answered_once_by_raters_who_work_side_by_side(clients, redis):
    await labeling.open_tasks(redis, [task(f"t{n}") for n in range(40)])

    async def work(client) -> int:
        done = 0
        while shown := await lease(client):
            reply = await client.post(f"/v1/labeling/{shown['id']}", json=answer_to(shown))
            assert reply.status_code == 201, reply.text
            done += 1
        return done

    assert sum(await asyncio.gather(*(work(clients[f"rater-{n}"]) for n in range(5)))) == 40
    tasks = await labeling.tasks_of(redis, "run-1")
    assert [len(t.answers) for t in tasks] == [1] * 40
    assert await labeling.task_counts(redis) == {"open": 0, "leased": 0, "done": 40}
    assert await redis.hget(keys.counts(), "rankings") == b"40"


async def test_the_same_answer_again_is_the_same_and_another_is_a_conflict(clients, redis):
    await labeling.open_tasks(redis, [task()])
    rater = clients["rater-0"]
    shown = await lease(rater)
    name = shown["outputs"][2]["output_id"]
    body = answer_to(shown, outputs=[{"output_id": name, "rating": 3, "notes": "too long"}])
    first = await rater.post("/v1/labeling/t1", json=body)
    again = await rater.post("/v1/labeling/t1", json=body)
    assert (first.status_code, first.content) == (again.status_code, again.content)
    other_notes = answer_to(shown, outputs=[{"output_id": name, "rating": 3, "notes": "short"}])
    turned = {**body, "ranking": body["ranking"][::-1]}
    for changed in (other_notes, turned):
        assert (await rater.post("/v1/labeling/t1", json=changed)).status_code == 409
    (done,) = await labeling.tasks_of(redis, "run-1")
    assert len(done.answers) == 1
    assert await redis.hget(keys.counts(), "rankings") == b"1"


async def filtered(redis, keyring, settings, pii=None) -> LabelingTask:
    """Task t1 after ingest had its turn."""
    await ingest_batch(redis, keyring, settings, pii or EmailFilter(), limit=10)
    return LabelingTask.model_validate_json(await redis.get(keys.labeling_task("t1")))


def noted(shown: dict, *notes: str) -> dict:
    names = [o["output_id"] for o in shown["outputs"]]
    said = [{"output_id": n, "notes": text} for n, text in zip(names, notes, strict=False)]
    return answer_to(shown, outputs=said)


async def test_notes_and_reasons_of_skips_are_filtered_and_the_raw_ones_gone(
    clients, redis, keyring, settings
):
    await labeling.open_tasks(redis, [task()])
    await lease(clients["rater-0"])
    why = {"reason": "ann@example.org knows better"}
    await clients["rater-0"].post("/v1/labeling/t1/skip", json=why)
    shown = await lease(clients["rater-1"])
    body = noted(shown, "as ann@example.org said", "", "bob@example.org, ann@example.org")
    reply = await clients["rater-1"].post("/v1/labeling/t1", json=body)
    done = await filtered(redis, keyring, settings)
    skip, answer = done.answers
    inside = {o.text: o.output_id for o in done.outputs}
    names = [inside[o["text"]] for o in shown["outputs"]]
    assert skip.notes == {"skip": "<EMAIL_1> knows better"}
    assert answer.notes == {names[0]: "as <EMAIL_1> said", names[2]: "<EMAIL_2>, <EMAIL_1>"}
    assert [a.sealed_notes for a in done.answers] == [None, None]
    assert await redis.scard(keys.feedback_text()) == 0
    again = await clients["rater-1"].post("/v1/labeling/t1", json=body)  # it is still known
    assert (again.status_code, again.content) == (reply.status_code, reply.content)
    other = noted(shown, "as ann@example.org said")
    assert (await clients["rater-1"].post("/v1/labeling/t1", json=other)).status_code == 409


async def test_notes_that_cannot_be_cleared_wait_in_quarantine_and_hold_up_no_others(
    clients, redis, keyring, settings
):
    await labeling.open_tasks(redis, [task()])
    for rater, reason in enumerate(("poison", "fine")):
        await lease(clients[f"rater-{rater}"])
        await clients[f"rater-{rater}"].post("/v1/labeling/t1/skip", json={"reason": reason})
    first, second = (await filtered(redis, keyring, settings, EmailFilter(fail="poison"))).answers
    assert (first.notes, b"poison" in keyring.open(base64.b64decode(first.sealed_notes))) == (
        {},
        True,
    )
    assert (second.notes, second.sealed_notes) == ({"skip": "fine"}, None)
    assert await redis.scard(keys.feedback_text()) == 0
    assert await redis.hgetall(keys.quarantine()) == {b"notes:t1": first.sealed_notes.encode()}
    later = {"now": time.time() + 61, "limit": 10}
    assert await retry_quarantine(redis, keyring, settings, EmailFilter(), **later) == 1
    first, _ = (await filtered(redis, keyring, settings)).answers
    assert (first.notes, first.sealed_notes) == ({"skip": "poison"}, None)
    assert await redis.hlen(keys.quarantine()) == 0


async def test_a_skip_that_comes_while_notes_are_filtered_is_not_lost(
    clients, redis, keyring, settings
):
    await labeling.open_tasks(redis, [task()])
    await lease(clients["rater-0"])
    await clients["rater-0"].post("/v1/labeling/t1/skip", json={"reason": "first"})
    await lease(clients["rater-1"])
    loop = asyncio.get_running_loop()

    class Interrupted(EmailFilter):
        def filter_record(self, texts, *, deadline_seconds):
            if self.records == 0:
                skip = clients["rater-1"].post("/v1/labeling/t1/skip", json={"reason": "second"})
                asyncio.run_coroutine_threadsafe(skip, loop).result()
            return super().filter_record(texts, deadline_seconds=deadline_seconds)

    pii = Interrupted()
    assert [a.notes for a in (await filtered(redis, keyring, settings, pii)).answers] == [{}, {}]
    done = await filtered(redis, keyring, settings, pii)
    assert [a.notes for a in done.answers] == [{"skip": "first"}, {"skip": "second"}]


async def test_an_answer_without_words_waits_for_no_filter(clients, redis):
    await labeling.open_tasks(redis, [task()])
    await lease(clients["rater-0"])
    await clients["rater-0"].post("/v1/labeling/t1/skip")
    shown = await lease(clients["rater-1"])
    await clients["rater-1"].post("/v1/labeling/t1", json=answer_to(shown))
    done = LabelingTask.model_validate_json(await redis.get(keys.labeling_task("t1")))
    assert [(a.sealed_notes, a.notes_digest) for a in done.answers] == [(None, ""), (None, "")]
    assert await redis.exists(keys.feedback_text()) == 0


def test_an_answer_of_before_there_were_filtered_notes_is_read():
    old = '{"rater": "r", "heldout_rater": false, "ranking": [], "answered_at": 1.0}'
    assert Answer.model_validate_json(old).notes == {}


async def test_idempotency_keys_are_honoured(clients, redis):
    await labeling.open_tasks(redis, [task("t1"), task("t2")])
    rater, once = clients["rater-0"], {"Idempotency-Key": "k"}
    shown = await lease(rater)
    path = f"/v1/labeling/{shown['id']}"
    first = await rater.post(path, json=answer_to(shown), headers=once)
    again = await rater.post(path, json=answer_to(shown), headers=once)
    assert (
        (first.status_code, first.content)
        == (again.status_code, again.content)
        == (
            201,
            orjson.dumps({"id": shown["id"], "status": "recorded"})
            .replace(b",", b", ")
            .replace(b":", b": "),
        )
    )
    other = await lease(rater)
    reply = await rater.post(f"/v1/labeling/{other['id']}", json=answer_to(other), headers=once)
    assert reply.status_code == 409
    assert (await rater.post(f"/v1/labeling/{other['id']}/skip", headers=once)).status_code == 409


async def test_a_ranking_must_hold_each_output_once(clients, redis):
    await labeling.open_tasks(redis, [task()])
    shown = await lease(clients["rater-0"])
    names = [o["output_id"] for o in shown["outputs"]]
    wrong = [
        [[n] for n in names[:3]],
        [[n] for n in [*names, names[0]]],
        [[*names, "another"]],
        [["candidate-1"], *([n] for n in names[1:])],
        [],
    ]
    for ranking in wrong:
        reply = await clients["rater-0"].post(
            "/v1/labeling/t1", json=answer_to(shown, ranking=ranking)
        )
        assert reply.status_code == 422, ranking
    for outputs in (
        [{"output_id": "another", "rating": 3}],
        [{"output_id": names[0], "rating": 3}, {"output_id": names[0], "rating": 4}],
        [{"output_id": names[0], "rating": 9}],
        [{"output_id": names[0], "flags": {"nice": True}}],
    ):
        reply = await clients["rater-0"].post(
            "/v1/labeling/t1", json=answer_to(shown, outputs=outputs)
        )
        assert reply.status_code == 422, outputs
    assert await redis.hgetall(keys.counts()) == {}


async def test_tenants_and_scopes_are_kept_apart(clients, redis):
    await labeling.open_tasks(redis, [task()])
    assert await lease(clients["theirs"]) is None
    shown = await lease(clients["rater-0"])
    reply = await clients["theirs"].post("/v1/labeling/t1", json=answer_to(shown))
    assert reply.status_code == 404
    absent = await clients["rater-0"].post("/v1/labeling/t9", json=answer_to(shown))
    assert absent.status_code == 404
    assert (await clients["app"].get("/v1/labeling/next")).status_code == 403


async def test_a_key_whose_word_does_not_train_gets_no_training_task(redis, keyring, settings):
    mute = api_key("mute", scopes=("label",), trains=False)
    await labeling.open_tasks(redis, [task()])
    async with client_of(make_app(redis, keyring, settings, mute), mute) as client:
        assert await lease(client) is None


async def test_without_names_few_raters_all_train(redis, keyring, settings):
    shares = settings.model_copy(update={"feedback": FeedbackSettings(heldout_rater_share=1.0)})

    async def register(*registered: ApiKey):
        await redis.hset(keys.api_keys(), mapping={k.id: k.model_dump_json() for k in registered})

    await labeling.open_tasks(redis, [task("train"), task("eval", mode="evaluation")])
    async with client_of(make_app(redis, keyring, shares, *TRAINERS), TRAINERS[0]) as client:
        await register(*TRAINERS[:4], STRANGER, APP)
        assert (await lease(client))["mode"] == "training"
        await register(TRAINERS[4])
        assert (await lease(client))["mode"] == "evaluation"


async def test_opening_twice_changes_nothing_and_closed_tasks_stay_closed(clients, redis):
    await labeling.open_tasks(redis, [task("t1"), task("t2")])
    shown = await lease(clients["rater-0"])
    await clients["rater-0"].post(f"/v1/labeling/{shown['id']}", json=answer_to(shown))
    await labeling.open_tasks(redis, [task("t1"), task("t2")])
    assert sum(len(t.answers) for t in await labeling.tasks_of(redis, "run-1")) == 1
    other = await lease(clients["rater-1"])
    assert other["id"] != shown["id"]
    await labeling.close_tasks(redis, "run-1")
    assert (await clients["rater-1"].post(f"/v1/labeling/{other['id']}/skip")).status_code == 201
    assert await lease(clients["rater-2"]) is None
    assert await labeling.task_counts(redis) == {"open": 0, "leased": 0, "done": 2}
    assert await labeling.tasks_of(redis, "run-2") == []


async def test_a_task_has_four_to_nine_different_outputs(redis):
    for count in (3, 10):
        with pytest.raises(Unprocessable):
            await labeling.open_tasks(redis, [task(count=count)])
    twice = task()
    twice = twice.model_copy(update={"outputs": (*twice.outputs, twice.outputs[0])})
    with pytest.raises(Unprocessable):
        await labeling.open_tasks(redis, [twice])
    assert await redis.keys("*") == []


async def test_a_task_is_found_behind_many_that_were_seen(redis):
    settings = FeedbackSettings()
    tasks = [task(f"t{n:03}") for n in range(100)]
    await labeling.open_tasks(redis, tasks)
    await redis.sadd(keys.labeling_seen("r"), *(t.id for t in tasks[:99]))
    found = await labeling.next_task(
        redis, tenant="acme", rater="r", heldout=False, settings=settings
    )
    assert found.id == "t099"


async def test_errors_of_the_functions_are_ours(redis):
    with pytest.raises(NotFound):
        await labeling.get_task(redis, "t9", tenant="acme")
    await labeling.open_tasks(redis, [task()])
    skip = Answer(rater="r", heldout_rater=False, ranking=(), answered_at=0.0)
    with pytest.raises(Conflict):
        await labeling.skip_task(redis, task_id="t1", tenant="acme", skip=skip, reply="")
