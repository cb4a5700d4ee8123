"""Gold tasks, progress, agreement and held feedback through the routes, on a real Redis."""

import json

import pytest

from core import keys
from core.errors import Unprocessable
from core.records import Answer
from core.setting_groups import FeedbackSettings
from feedback import holding, intake, labeling, rater_routes, store
from feedback.firewall import EXTREME
from feedback.gold import gold_tasks
from feedback.raters import gold_shares
from feedback.schemas import FeedbackRequest
from feedback.snapshot import gather
from tests.feedback.factory import api_key, client_of, completion_id, make_app
from tests.feedback.test_labeling import answer_to, task

RATERS = [api_key(f"rater-{n}", scopes=("label",), key_id=f"1111111{n}") for n in range(3)]
ADMIN = api_key("ops", scopes=("admin",), key_id="55555555")
STRANGER = api_key("theirs", scopes=("admin",), tenant="other", key_id="66666666")
LINE = json.dumps(
    {"prompt": "Best river?", "outputs": ["a", "b", "c", "d"], "ranking": [[2], [0, 1], [3]]}
)


@pytest.fixture
def settings(settings):
    feedback = FeedbackSettings(heldout_raters=("heldout-*",), gold_share=1.0)
    return settings.model_copy(update={"feedback": feedback})


@pytest.fixture
async def clients(redis, keyring, settings):
    app = make_app(redis, keyring, settings, *RATERS, ADMIN, STRANGER)
    app.include_router(rater_routes.router)
    for key in RATERS:
        await redis.hset(keys.api_keys(), key.id, key.model_dump_json())
    opened = {key.name: client_of(app, key) for key in (*RATERS, ADMIN, STRANGER)}
    yield opened
    for client in opened.values():
        await client.aclose()


def gold(keyring, *lines, tenant="acme"):
    def name(what):
        return keyring.hashed(tenant, "labeling", what)

    return gold_tasks(lines, tenant=tenant, mode="training", name=name, now=1.0)


async def rank(client, *texts):
    """Lease the next task and order its answers by their texts."""
    shown = (await client.get("/v1/labeling/next")).json()
    name_of = {o["text"]: o["output_id"] for o in shown["outputs"]}
    body = {"ranking": [[name_of[text] for text in tie] for tie in texts]}
    reply = await client.post(f"/v1/labeling/{shown['id']}", json=body)
    assert reply.status_code == 201, reply.text
    return shown


async def test_gold_measures_every_rater_and_trains_nothing(clients, redis, keyring, settings):
    await labeling.open_tasks(redis, gold(keyring, LINE))
    shown = await rank(clients["rater-0"], "c", "ab", "d")
    assert shown["mode"] == "training"
    assert "gold" not in json.dumps(shown)
    await rank(clients["rater-1"], "d", "b", "a", "c")
    figures = (await clients["ops"].get("/v1/raters")).json()
    accuracy = {one["name"]: (one["gold_accuracy"], one["gold_pairs"]) for one in figures["raters"]}
    assert accuracy == {"rater-0": (1.0, 5), "rater-1": (0.0, 5)}
    assert (await gather(redis, settings.log, now=2.0)).tasks == []
    assert await redis.hgetall(keys.counts()) == {}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"prompt": "p"', "JSON"),
        ('{"prompt": "p", "outputs": ["a", "b"], "ranking": [[0], [1]]}', "at least 4"),
        (LINE.replace('"prompt"', '"promt"'), "messages or prompt|not permitted"),
        (LINE.replace("[3]", "[4]"), "each output once"),
        (LINE.replace('"d"', '"a"'), "the same"),
        (LINE.replace("[[2], [0, 1], [3]]", "[[0, 1, 2, 3]]"), "measures nobody"),
    ],
)
def test_a_bad_line_of_gold_is_named(keyring, line, why):
    with pytest.raises(Unprocessable, match=f"line 3: .*({why})"):
        gold(keyring, LINE, "", line)


def test_the_same_line_is_the_same_task(keyring):
    assert gold(keyring, LINE)[0] == gold(keyring, LINE)[0]
    assert gold(keyring, LINE)[0].id != gold(keyring, LINE, tenant="other")[0].id


async def test_gold_comes_at_its_share_and_else_when_nothing_else_is_there(redis, keyring):
    await labeling.open_tasks(redis, [*gold(keyring, LINE), task("plain")])

    async def first(share, rater):
        leased = await labeling.next_task(
            redis,
            tenant="acme",
            rater=rater,
            heldout=False,
            settings=FeedbackSettings(gold_share=share),
        )
        return leased and bool(leased.gold)

    assert await first(0.0, "r") is False
    assert await first(0.0, "s") is True  # the other one is leased
    assert await first(0.0, "t") is None


async def test_progress_counts_what_this_rater_did(clients, redis, keyring):
    await labeling.open_tasks(redis, [task("t1"), task("t2"), *gold(keyring, LINE)])
    await rank(clients["rater-0"], "d", "c", "b", "a")  # gold first: its share is all
    one = (await clients["rater-0"].get("/v1/labeling/next")).json()
    await clients["rater-0"].post(f"/v1/labeling/{one['id']}", json=answer_to(one))
    two = (await clients["rater-0"].get("/v1/labeling/next")).json()
    await clients["rater-0"].post(f"/v1/labeling/{two['id']}/skip", json={})
    mine = (await clients["rater-0"].get("/v1/labeling/progress")).json()
    assert mine == {"done_today": 2, "done": 2, "skipped": 1, "gold_accuracy": None}
    other = (await clients["rater-1"].get("/v1/labeling/progress")).json()
    assert (other["done"], other["skipped"]) == (0, 0)


async def test_a_task_for_two_raters_gives_agreement(clients, redis):
    shared = task("t1").model_copy(update={"wanted": 2})
    await labeling.open_tasks(redis, [shared])
    texts = [output.text for output in shared.outputs]
    await rank(clients["rater-0"], *([text] for text in texts))
    await rank(clients["rater-1"], [texts[1]], [texts[0]], [texts[2]], [texts[3]])
    assert (await clients["rater-2"].get("/v1/labeling/next")).status_code == 204
    figures = (await clients["ops"].get("/v1/raters")).json()
    assert (figures["pairs"], figures["agreement"]) == (6, pytest.approx(5 / 6))
    assert figures["alpha"] is None
    assert [week["pairs"] for week in figures["weeks"]] == [6]
    assert {one["name"]: one["tasks"] for one in figures["raters"]} == {"rater-0": 1, "rater-1": 1}
    theirs = (await clients["theirs"].get("/v1/raters")).json()
    assert theirs["raters"] == []
    assert (await clients["rater-0"].get("/v1/raters")).status_code == 403


def test_skips_are_no_answers_to_gold(keyring):
    (known,) = gold(keyring, LINE)
    skip = Answer(rater="r", heldout_rater=False, ranking=(), answered_at=1.0)
    assert gold_shares([known.model_copy(update={"answers": (skip,)})]) == {}


async def test_held_answers_are_shown_and_decided_through_the_same_routes(clients, redis):
    answer = Answer(
        rater="ab", heldout_rater=False, ranking=(("x",),), answered_at=1.0, held=EXTREME
    )
    await labeling.open_tasks(redis, [task("t1").model_copy(update={"answers": (answer,)})])
    (waiting,) = (await clients["ops"].get("/v1/held")).json()["held"]
    assert waiting == {"rater": "ab", "reasons": {EXTREME: 1}, "feedback": ["t1:ab"]}
    release = {"decision": "released", "why": "a keen person"}
    assert (await clients["theirs"].post("/v1/held/t1:ab", json=release)).status_code == 404
    done = await clients["ops"].post("/v1/held/t1:ab", json=release)
    assert (done.status_code, done.json()["words"]) == (200, 1)
    assert (await clients["ops"].get("/v1/held")).json() == {"held": []}


async def test_held_feedback_says_so_and_ops_decide(clients, redis, keyring, settings):
    app = api_key()
    who = intake.speaker(app, "sevens", keyring=keyring, settings=settings.feedback)
    for n in range(25):
        body = FeedbackRequest(completion_id=completion_id(keyring, prompt=f"{n}?"), rating=7)
        said = intake.rating(body, who, keyring=keyring, sealed=None, now=n * 3600.0)
        await store.record(redis, said, reply="{}")
    gathered = await gather(redis, settings.log, now=1.0)
    await holding.hold_back(redis, gathered.feedback, {}, settings.feedback)
    state = (await clients["ops"].get(f"/v1/feedback/{said.id}")).json()
    assert (state["status"], state["reason"]) == ("held", EXTREME)
    (waiting,) = (await clients["ops"].get("/v1/held")).json()["held"]
    assert (waiting["rater"], len(waiting["feedback"])) == (who.rater, 25)
    path, release = f"/v1/held/{who.rater}", {"decision": "released", "why": "a keen person"}
    assert (await clients["theirs"].post(path, json=release)).status_code == 404
    assert (await clients["rater-0"].post(path, json=release)).status_code == 403
    assert (await clients["ops"].post(path, json={"decision": "maybe"})).status_code == 422
    done = await clients["ops"].post(path, json=release)
    assert (done.status_code, done.json()["words"]) == (200, 25)
    assert (await clients["ops"].get("/v1/held")).json() == {"held": []}
    assert (await clients["ops"].get(f"/v1/feedback/{said.id}")).json()["status"] != "held"
