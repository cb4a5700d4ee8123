"""What Open WebUI and Langfuse export, taken in as their people meant it."""

import csv
import json
import time

import pytest

from core import keys
from core.errors import InstructLoopError
from core.setting_groups import FeedbackSettings, LogSettings
from feedback import erasure, store
from feedback.erasing import erase_what_is_due
from feedback.import_data import Import, import_lines
from feedback.import_files import read_lines
from feedback.import_langfuse import langfuse, with_texts_of
from feedback.import_open_webui import open_webui
from feedback.ingest import ingest_batch
from tests.feedback.factory import EmailFilter
from tests.feedback.test_snapshot import World

ANN = "7c1e4b1a-0f8e-4d0b-9a51-3a1d6f0c2b11"
AT = 1_790_000_000
ASKED = [{"role": "user", "content": "Name a river."}]


@pytest.fixture
def world(redis, keyring, settings):
    log = LogSettings(split_by_prompt_under_users=0, pii_second_tier=False)
    feedback = FeedbackSettings(heldout_raters=("heldout-*",))
    update = {"log": log, "feedback": feedback}
    return World(redis, keyring, settings.model_copy(update=update))


async def taken_in(world, path, origin, what="comparisons"):
    async def make_room():
        while await ingest_batch(
            world.redis, world.keyring, world.settings, EmailFilter(), limit=100
        ):
            pass

    work = Import(world.redis, world.keyring, world.settings, "acme", path.name)
    lines = read_lines(path, origin)
    return await import_lines(
        work, lines, what, make_room=make_room, progress=lambda _: None, origin=origin
    )


async def what_was_said(world) -> dict[str, list]:
    """Rankings as texts, and thumbs with the text that they are on and the comment."""
    said = await store.get_all(world.redis)
    tokens = {output.token for one in said for output in one.outputs}
    found = await store.completions(world.redis, tokens)
    told = {"ranking": [], "rating": []}
    for one in said:
        texts = [found[output.token].choices[0].text for output in one.outputs]
        if one.kind == "ranking":
            told["ranking"].append([sorted(texts[at] for at in tie) for tie in one.ranking])
        else:
            comment = (one.text or {}).get("comment")
            told["rating"].append((texts[0], one.thumb, comment))
    return {kind: sorted(rows, key=str) for kind, rows in told.items()}


def chatted(rating, *, about="a1", answers=("Elbe", "Fuji"), arena=False, annotation=None, **data):
    """A record as Open WebUI exports it: one question, its answers a0, a1, ..."""
    ids = [f"a{at}" for at in range(len(answers))]
    messages = {
        "q1": {
            "id": "q1",
            "parentId": None,
            "childrenIds": ids,
            "role": "user",
            "content": "Name a river.",
        }
    }
    for at, text in zip(ids, answers, strict=True):
        messages[at] = {
            "id": at,
            "parentId": "q1",
            "childrenIds": [],
            "role": "assistant",
            "content": text,
            "model": f"model-{at}",
            "done": True,
        }
    if annotation:
        messages["a0"]["annotation"] = annotation
    return {
        "id": "8b0c",
        "user_id": ANN,
        "version": 0,
        "type": "rating",
        "data": {"rating": rating, "model_id": "model-a1", "sibling_model_ids": None} | data,
        "meta": {"arena": arena, "chat_id": "c1", "message_id": about},
        "snapshot": {
            "chat": {
                "id": "c1",
                "chat": {"history": {"messages": messages, "currentId": about}, "params": {}},
            }
        },
        "created_at": AT,
        "updated_at": AT,
    }


@pytest.mark.parametrize(
    ("record", "answers", "ranking", "thumb"),
    [
        (chatted(1), ("Fuji", "Elbe"), ((0,), (1,)), "up"),  # asked for again, and preferred
        (chatted("-1"), ("Fuji",), (), "down"),  # asked for again, and no better
        (chatted(-1, arena=True), ("Fuji", "Elbe"), ((1,), (0,)), "down"),
        (
            chatted(1, about="a2", answers=("Elbe", "Como", "Rhine"), sibling_model_ids=["m", "n"]),
            ("Rhine", "Elbe", "Como"),
            ((0,), (1, 2)),
            "up",
        ),
        (chatted(1, annotation={"rating": 1}), ("Fuji",), (), "up"),  # both are liked
        (chatted(1, answers=("Fuji", "Fuji")), ("Fuji",), (), "up"),
    ],
)
def test_a_thumb_of_open_webui_is_a_choice_where_it_is_one(record, answers, ranking, thumb):
    item = open_webui("comparisons", record)
    assert (item.prompt, item.answers) == (ASKED, answers)
    assert (item.ranking, item.thumb) == (ranking, thumb)
    assert (item.user, item.rater, item.created_at) == (ANN, ANN, AT)


def test_the_prompt_is_the_way_through_the_conversation():
    record = chatted(1, about="a3", answers=("Elbe", "Fuji"))
    chat = record["snapshot"]["chat"]["chat"]
    chat["params"]["system"] = "Be brief."
    messages = chat["history"]["messages"]
    more = [{"type": "text", "text": "Another?"}, {"type": "image_url", "image_url": {}}]
    messages["q2"] = {"id": "q2", "parentId": "a0", "role": "user", "content": more}
    messages["a3"] = {"id": "a3", "parentId": "q2", "role": "assistant", "content": "Oder"}
    item = open_webui("comparisons", record)
    assert item.answers == ("Oder",)
    assert item.prompt == [
        {"role": "system", "content": "Be brief."},
        *ASKED,
        {"role": "assistant", "content": "Elbe"},
        {"role": "user", "content": "Another?"},
    ]


async def test_an_export_of_open_webui_goes_in_once_and_bad_records_are_told(world, state_dir):
    arena = chatted(1, arena=True, answers=("Elbe", "Mail me@example.org"))
    plain = chatted(-1, answers=("Como", "Garda"), reason="too_short", comment="ask x@example.org")
    circle = chatted(1)
    circle["snapshot"]["chat"]["chat"]["history"]["messages"]["q1"]["parentId"] = "q1"
    shared = {name: value for name, value in chatted(1).items() if name != "snapshot"}
    records = [arena, shared, plain, chatted(1, about="gone"), chatted(None), circle, 7]
    records.append(chatted(1, answers=("Elbe", " ")))
    path = state_dir / "feedback-history-export.json"
    path.write_text(json.dumps(records, indent=1))
    summary = await taken_in(world, path, "open-webui")
    assert summary.counts == {"imported": 2, "bad": 6}, summary.bad
    assert [number for number, _ in summary.bad] == [2, 4, 5, 6, 7, 8]
    assert "no snapshot" in summary.bad[0][1]
    before = await what_was_said(world)
    assert before == {
        "ranking": [[["Mail <EMAIL_1>"], ["Elbe"]]],
        "rating": [
            ("Garda", "down", "too_short\nask <EMAIL_1>"),
            ("Mail <EMAIL_1>", "up", None),
        ],
    }
    assert (await taken_in(world, path, "open-webui")).counts == {"known": 2, "bad": 6}
    assert await what_was_said(world) == before
    assert int(await world.redis.hget(keys.counts(), "ratings")) == 2


async def test_a_person_of_open_webui_who_was_erased_does_not_come_back(world, state_dir):
    path = state_dir / "feedback.json"
    path.write_text(json.dumps([chatted(1)]))
    assert (await taken_in(world, path, "open-webui")).counts == {"imported": 1}
    await erasure.begin(world.redis, world.keyring, tenant="acme", user=ANN, now=time.time())
    assert await erase_what_is_due(world.redis, world.keyring, world.settings) == 1
    assert await store.get_all(world.redis) == []
    assert (await taken_in(world, path, "open-webui")).counts == {"erased": 1}


TRACE = {
    "id": "t1",
    "timestamp": "2026-09-21T13:00:00.000Z",
    "name": "chat",
    "userId": "bob",
    "input": {"messages": ASKED},
    "output": {"role": "assistant", "content": "Elbe"},
}
SCORE = {
    "id": "s1",
    "traceId": "t1",
    "observationId": None,
    "name": "thumb",
    "value": 1,
    "dataType": "BOOLEAN",
    "stringValue": "True",
    "comment": "from me@example.org",
    "source": "API",
    "timestamp": "2026-09-21 13:05:00.000000",
}


def understood(*rows, what="comparisons"):
    """The items of rows; the reasons of bad ones."""
    found = []
    for _, row in with_texts_of(enumerate(rows, start=1), what):
        try:
            if isinstance(row, ValueError):
                raise row
            found.append(langfuse(what, row))
        except ValueError as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize(
    ("score", "thumb"),
    [
        ({}, "up"),
        ({"value": 0, "stringValue": "False"}, "down"),
        ({"value": "1.0", "stringValue": "", "dataType": "NUMERIC"}, "up"),
        ({"value": -1, "stringValue": None, "dataType": "NUMERIC"}, "down"),
        ({"value": 3, "stringValue": "Good", "dataType": "CATEGORICAL"}, "up"),
        ({"value": 0, "stringValue": "it is a mountain", "dataType": "TEXT"}, None),
    ],
)
def test_a_score_of_langfuse_is_a_thumb_on_the_answer_of_its_trace(score, thumb):
    (item,) = understood(SCORE | score, TRACE)
    assert (item.prompt, item.answers, item.thumb) == (ASKED, ("Elbe",), thumb)
    assert (item.user, item.rater) == ("bob", "bob:thumb")
    assert item.created_at == 1_789_995_900.0
    if thumb is None:
        assert item.comment == "it is a mountain\nfrom me@example.org"


@pytest.mark.parametrize(
    "row",
    [
        SCORE | {"input": "Name a river.", "output": "Elbe", "userId": "bob"},
        SCORE | {"trace": TRACE},
        TRACE | {"scores": [SCORE]},
        {"trace": TRACE | {"scores": [SCORE]}, "observations": [{"id": "o1", "input": None}]},
        {
            "scores": [{"trace_id": "t1", "name": "thumb", "value": 1}],
            "observations": [
                {
                    "id": "o1",
                    "trace_id": "t1",
                    "user_id": "bob",
                    "input": json.dumps(ASKED),
                    "output": json.dumps({"choices": [{"message": {"content": "Elbe"}}]}),
                }
            ],
        },
    ],
)
def test_the_texts_of_a_score_are_found_wherever_langfuse_puts_them(row):
    (item,) = understood(row)
    assert (item.prompt, item.answers, item.user) == (ASKED, ("Elbe",), "bob")
    assert item.thumb == "up"


def test_what_is_no_persons_word_or_has_no_known_scale_is_left_out():
    scores = [
        SCORE | {"source": "EVAL"},
        SCORE | {"value": 4.5, "stringValue": None, "dataType": "NUMERIC"},
        SCORE | {"traceId": "elsewhere"},
        SCORE | {"observationId": "elsewhere"},
    ]
    told = understood(TRACE, *scores, {"id": "x"})
    assert ["evaluator" in told[0], "no thumb" in told[1]] == [True, True]
    assert ["no text" in told[2], "no text" in told[3]] == [True, True]
    assert "neither a score nor a trace" in told[4]


def write_csv(path, rows) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[*rows[0]])
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("form", ["json", "jsonl", "csv", "reply"])
async def test_an_export_of_langfuse_goes_in_once_in_each_format(world, state_dir, form):
    texts = {"userId": "bob", "input": "Name a\nriver.", "output": "Elbe"}
    rows = [
        SCORE | texts,
        SCORE | texts | {"name": "style", "value": 0, "stringValue": "", "comment": ""},
        SCORE | texts | {"input": "", "output": ""},
    ]
    path = state_dir / "scores"
    if form == "csv":
        write_csv(path, rows)
    elif form == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        path.write_text(json.dumps(rows if form == "json" else {"data": rows}, indent=1))
    summary = await taken_in(world, path, "langfuse")
    assert summary.counts == {"imported": 2, "bad": 1}, summary.bad
    before = await what_was_said(world)
    assert before["rating"] == [("Elbe", "down", None), ("Elbe", "up", "from <EMAIL_1>")]
    assert [number for number, _ in summary.bad] == [6 if form == "csv" else 3]
    assert (await taken_in(world, path, "langfuse")).counts == {"known": 2, "bad": 1}
    assert await what_was_said(world) == before


async def test_traces_and_answers_give_prompts_and_no_demonstrations(world, state_dir):
    path = state_dir / "all.json"
    path.write_text(json.dumps([TRACE, SCORE, {**TRACE, "id": "t2", "type": "SPAN"}]))
    summary = await taken_in(world, path, "langfuse", "prompts")
    assert summary.counts == {"imported": 1}, summary.bad
    assert await store.get_all(world.redis) == []
    (token,) = await world.redis.zrange(keys.prompts(), 0, -1)
    found = await store.completions(world.redis, [token.decode()])
    (kept,) = found.values()
    assert (kept.messages, kept.choices[0].text) == (ASKED, "Elbe")
    with pytest.raises(InstructLoopError, match="no demonstrations"):
        await taken_in(world, path, "langfuse", "demonstrations")


async def test_a_file_that_is_no_csv_is_told(world, state_dir):
    path = state_dir / "scores.csv"
    path.write_bytes(b"traceId,name\n\xff\xfe,1\n")
    with pytest.raises(InstructLoopError, match="is not CSV"):
        await taken_in(world, path, "langfuse")
    path.write_text("traceId,name,value\nt1,thumb\n")
    summary = await taken_in(world, path, "langfuse")
    assert summary.bad == [(2, "it has not one value for each column")]
