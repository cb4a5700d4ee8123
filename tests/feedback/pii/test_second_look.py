"""Before a snapshot the second model reads; what it found is remembered and holds no text."""

import json
import stat

import pytest

from core import keys
from core.records import Feedback, LabelingOutput, LabelingTask
from feedback.dataset import Gathered
from feedback.pii import second_look as module
from feedback.pii.record import Plan, filter_record, filter_version
from feedback.pii.second_look import FILE, edited, edits_between, second_look
from feedback.pii.worker import PiiFailed, PiiWorker
from feedback.snapshot import write_snapshot
from tests.feedback.factory import completion

SECOND = Plan(second_tier=True)
ONLY_SECOND = "The soup of Kelechi is good, and <PERSON_1> agreed."
"""A name that the second model finds and the first does not."""


def gathered(*, prompt=ONLY_SECOND, text="Kelechi likes it.", tokens=("t" * 52,)) -> Gathered:
    messages = [{"role": "user", "content": prompt}]
    about = {
        "kind": "demonstration", "tenant": "acme", "key_id": "0a0b0c0d", "rater": "r" * 32,
        "created_at": 1.0, "updated_at": 1.0,
    }  # fmt: skip
    task = LabelingTask(
        id="t1",
        tenant="acme",
        mode="training",
        run_id="",
        user="u" * 32,
        messages=messages,
        outputs=(LabelingOutput(output_id="a", text=text, policy="v0000"),),
        created_at=1.0,
    )
    return Gathered(
        feedback=[
            Feedback(id="fb-1", messages=messages, text={"text": text}, **about),
            Feedback(id="fb-2", **about),
        ],
        completions={t: completion(t, answers=(text, "No."), messages=messages) for t in tokens},
        prompt_tokens=list(tokens),
        tasks=[task],
        num_users=1,
        recorded_comparisons=0,
    )


class Counting(PiiWorker):
    """A real worker that counts."""

    starts = 0
    records = 0

    def _spawn(self) -> None:
        Counting.starts += 1
        super()._spawn()

    def filter_record(self, texts, *, deadline_seconds):
        Counting.records += 1
        return super().filter_record(texts, deadline_seconds=deadline_seconds)


@pytest.fixture
def counting(monkeypatch):
    monkeypatch.setattr(module, "PiiWorker", Counting)
    Counting.starts = Counting.records = 0
    return Counting


pytestmark = pytest.mark.slow  # each look starts a process with two models


def test_the_example_is_one_that_only_the_second_model_finds() -> None:
    assert filter_record([ONLY_SECOND], deadline_seconds=10).texts == (ONLY_SECOND,)
    clear = filter_record([ONLY_SECOND], deadline_seconds=10, plan=SECOND).texts[0]
    assert clear == ONLY_SECOND.replace("Kelechi", "<PERSON_2>")


async def test_names_go_from_all_that_trains_and_the_rest_stays(keyring, settings) -> None:
    old = gathered()
    new = await second_look(old, keyring=keyring, settings=settings)
    (record,) = new.completions.values()
    first, without_text = new.feedback
    clear = ONLY_SECOND.replace("Kelechi", "<PERSON_2>")
    assert record.messages == [{"role": "user", "content": clear}]
    assert [c.text for c in record.choices] == ["<PERSON_2> likes it.", "No."]
    assert first.messages == [{"role": "user", "content": clear}]
    assert first.text == {"text": "<PERSON_2> likes it."}
    assert without_text == old.feedback[1]
    assert (new.tasks[0].messages, new.tasks[0].outputs[0].text) == (
        [{"role": "user", "content": clear}],
        "<PERSON_2> likes it.",
    )
    assert new.prompt_tokens == old.prompt_tokens


async def test_what_was_read_once_is_not_read_again(keyring, settings, counting) -> None:
    first = await second_look(gathered(), keyring=keyring, settings=settings)
    assert (counting.starts, counting.records) == (1, 2)  # demonstration and task say the same
    again = await second_look(gathered(), keyring=keyring, settings=settings)
    assert again == first
    assert (counting.starts, counting.records) == (1, 2)
    more = gathered(tokens=("t" * 52, "n" * 52))
    await second_look(more, keyring=keyring, settings=settings)
    assert (counting.starts, counting.records) == (1, 2)  # the new record says the same


async def test_the_memory_holds_no_text_and_forgets_what_is_gone(keyring, settings) -> None:
    await second_look(gathered(), keyring=keyring, settings=settings)
    file = settings.state_dir / FILE
    content = json.loads(file.read_text())
    assert content["version"] == filter_version(SECOND)
    assert not {"Kelechi", "soup", "likes"} & set(file.read_text().replace('"', " ").split())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    await second_look(gathered(prompt="Name a river."), keyring=keyring, settings=settings)
    later = json.loads(file.read_text())["found"]
    assert not later.keys() & content["found"].keys()


async def test_another_filter_reads_everything_again(keyring, settings, counting) -> None:
    await second_look(gathered(), keyring=keyring, settings=settings)
    file = settings.state_dir / FILE
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "version": "rules-of-yesterday"}))
    await second_look(gathered(), keyring=keyring, settings=settings)
    assert (counting.starts, counting.records) == (2, 4)


async def test_a_record_that_cannot_be_cleared_is_left_out(keyring, settings) -> None:
    log = settings.log.model_copy(update={"pii_seconds": 0.001})
    hard = settings.model_copy(update={"log": log})
    new = await second_look(gathered(prompt=ONLY_SECOND * 3000), keyring=keyring, settings=hard)
    assert new.completions == {}
    assert [f.id for f in new.feedback] == ["fb-2"]
    assert new.tasks == []
    assert json.loads((settings.state_dir / FILE).read_text())["found"] == {}


async def test_a_filter_that_does_not_start_makes_no_snapshot(
    redis, keyring, settings, state_dir
) -> None:
    record = completion()
    await redis.set(keys.completion(record.token), record.model_dump_json())
    await redis.zadd(keys.prompts(), {record.token: 1e15})
    log = settings.log.model_copy(update={"pii_recognizers": ("no.such.module:X",)})
    broken = settings.model_copy(update={"log": log})
    with pytest.raises(PiiFailed):
        await write_snapshot(redis, keyring, broken, state_dir / "snapshot")
    assert not (state_dir / "snapshot").exists()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["a Bo c"], ["a <PERSON_1> c"]),
        (["Bo"], ["<PERSON_1>"]),
        (["Bo and Cy, Bo"], ["<PERSON_1> and <PERSON_2>, <PERSON_1>"]),
        (["<PERSON_1>, Bo <EMAIL_3> x", "same"], ["<PERSON_1>, <PERSON_2> <EMAIL_3> x", "same"]),
        (["x", "y"], ["x", "y"]),
    ],
)  # fmt: skip
def test_edits_lead_from_the_old_texts_to_the_new(old: list[str], new: list[str]) -> None:
    edits = edits_between(old, new)
    assert edits is not None
    assert edited(old, json.loads(json.dumps(edits))) == new


def test_what_no_edit_explains_is_not_remembered() -> None:
    assert edits_between(['{"n": 12345678}'], ['{"n": "<PHONE_1>"}']) is None
    assert edits_between(["a"], ["b"]) is None
