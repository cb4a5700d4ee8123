"""What leaves comes back as it was: rankings with ties, ratings, tags, words of any script."""

import json
from dataclasses import replace

import pyarrow.dataset
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.records import Answer, LabelingOutput, LabelingTask
from core.setting_groups import FeedbackSettings, LogSettings
from core.settings import Settings
from feedback import labeling, store
from feedback.export import rows_of
from feedback.export_files import write_export
from feedback.export_shapes import FORMATS
from feedback.import_files import read_lines
from feedback.import_rankings import Understood, whole_rankings
from feedback.imported import Item, parse
from feedback.preferences import labeling_rows
from feedback.snapshot import Gathered
from feedback.tables import table
from tests.feedback.test_import_export import exported, shapes, taken_in
from tests.feedback.test_snapshot import World

USER, RATER = "ab" * 16, "cd" * 16
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
prompts = st.one_of(
    st.builds(lambda text: {"prompt": text}, words),
    st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["system", "user", "assistant"]), "content": words}
        ),
        min_size=1,
        max_size=4,
    ),
)


@st.composite
def tasks(draw, name="t1"):
    """A labeling task with one answer: K of 2 to 9, ties, not all alike."""
    texts = draw(st.lists(words, min_size=2, max_size=9, unique=True))
    ranks = draw(st.lists(st.integers(1, len(texts)), min_size=len(texts), max_size=len(texts)))
    ranks[0] = 0  # one is better than all others
    outputs = [
        LabelingOutput(
            output_id=f"o{n}",
            text=text,
            policy="v0000",
            finish_reason=draw(st.sampled_from(["stop", "length"])),
        )
        for n, text in enumerate(texts)
    ]
    order = [[f"o{n}" for n, r in enumerate(ranks) if r == rank] for rank in sorted(set(ranks))]
    answer = Answer(
        rater=RATER,
        heldout_rater=False,
        ranking=tuple(tuple(tie) for tie in order),
        answered_at=5.0,
    )
    return LabelingTask(
        id=name, tenant="acme", mode="training", run_id="r", user=USER, messages=draw(prompts),
        outputs=tuple(outputs), created_at=1.0, answers=(answer,),
    )  # fmt: skip


def understood(path):
    return [Understood(n, parse("comparisons", value)) for n, value in read_lines(path)]


@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(of=st.lists(tasks(), min_size=1, max_size=3))
def test_rankings_with_ties_of_any_words_come_back_whole(form, of, tmp_path):
    of = [task.model_copy(update={"id": f"t{n}"}) for n, task in enumerate(of)]
    ranked = [row for task in of for row in labeling_rows(task, "train")[0]]
    gathered = Gathered([], {}, [], of, 1, 0)
    rows = list(rows_of("comparisons", {"rankings": table(ranked)}, gathered))
    path = tmp_path / "out"
    write_export(rows, path, what="comparisons", form=form, force=True, progress=lambda _: None)
    back = list(whole_rankings(understood(path)))
    assert len(back) == len(of)
    assert sum(one.lines for one in back) == len(rows)
    by_name = {task.id: task for task in of}
    for one in back:
        task = by_name[one.item.known_as]
        text_of = {output.output_id: output.text for output in task.outputs}
        wanted = [{text_of[name] for name in tie} for tie in task.answers[0].ranking]
        assert [{one.item.answers[at] for at in tie} for tie in one.item.ranking] == wanted
        ended = {output.text: output.finish_reason for output in task.outputs}
        assert dict(zip(one.item.answers, one.item.finish_reasons, strict=True)) == ended
        assert (one.item.prompt, one.item.created_at) == (task.messages, 5.0)
        assert (one.item.user, one.item.rater, one.item.heldout) == (USER, RATER, False)


def pairs(*names, known_as="fb-1"):
    """The three pairs of a > b = c > nothing, or some of them."""
    row = {"prompt": "p", "feedback_id": known_as, "ranked_answers": 3, "ranked_pairs": 2}
    lines = {
        "ab": {"chosen": "a", "rejected": "b", "chosen_rank": 1, "rejected_rank": 2},
        "ac": {"chosen": "a", "rejected": "c", "chosen_rank": 1, "rejected_rank": 2},
    }
    found = [parse("comparisons", row | lines[name]) for name in names]
    return [Understood(number, item) for number, item in enumerate(found, start=1)]


def test_what_is_not_all_there_or_does_not_fit_stays_pairs():
    (whole,) = whole_rankings(pairs("ab", "ac"))
    assert (whole.item.ranking, whole.lines) == (((0,), (1, 2)), 2)
    for some in (
        pairs("ab"),
        [*pairs("ab"), *pairs("ac", known_as="fb-2")],
        [*pairs("ab"), Understood(2, ValueError("bad")), *pairs("ac")],
        [pairs("ab")[0], replace(one := pairs("ac")[0], item=changed(one.item))],
    ):
        assert list(whole_rankings(some)) == some


def changed(item: Item) -> Item:
    return replace(item, prompt={"prompt": "another"})


@pytest.fixture
async def world(redis, keyring, settings):
    log = LogSettings(split_by_prompt_under_users=0, pii_second_tier=False)
    feedback = FeedbackSettings(heldout_raters=("heldout-*",))
    return World(redis, keyring, settings.model_copy(update={"log": log, "feedback": feedback}))


async def fill(world) -> None:
    """A ranking of five with ties, tags, comments, and a labeling task that says everything."""
    tags = {"slice": "größe 🌊", "n": "1"}
    one = await world.ask("Name a sea. 🌊", *"abcde", metadata=tags)
    await world.rank("r1", [(one, 3)], [(one, 0), (one, 4)], [(one, 2), (one, 1)])
    rated = await world.rate("r1", one, 2, rating=2, thumb="down")
    await store.change(
        world.redis, rated, lambda f: f.model_copy(update={"text": {"comment": "no\nsea — 海"}})
    )
    task = LabelingTask(
        id="t1", tenant="acme", mode="training", run_id="r", user=USER,
        messages={"prompt": "Once"}, created_at=1.0,
        outputs=tuple(
            LabelingOutput(output_id=f"o{n}", text=f"upon {n}", policy="v0000") for n in range(4)
        ),
        answers=tuple(
            Answer(
                rater=rater, heldout_rater=False, ranking=(("o1", "o3"), ("o0",), ("o2",)),
                ratings={"o0": 7, "o1": rating}, flags={"o1": {"hallucination": True}},
                notes={"o2": "dull"}, answered_at=9e8 + rating,
            )
            for rating, rater in enumerate((RATER, "ef" * 16), start=3)
        ),
    )  # fmt: skip
    await labeling.open_tasks(world.redis, [task])


@pytest.mark.parametrize("form", FORMATS)
async def test_all_of_it_out_into_an_empty_service_and_out_again_is_the_same(
    world, state_dir, form
):
    await fill(world)
    before = {}
    for what in ("prompts", "ratings", "comparisons"):  # prompts first: copies count no more
        before[what] = await exported(world, what)
        write_export(
            before[what], state_dir / what, what=what, form=form, force=True,
            progress=lambda _: None,
        )  # fmt: skip
    assert [len(rows) for rows in before.values()] == [1, 1 + 2 * 3, 8 + 2 * 5]
    known = await taken_in(world, state_dir / "comparisons", "comparisons")
    assert known.counts == {"known": 18}  # labeling, too, is known where it was said
    await world.redis.flushall()
    for what, rows in before.items():
        summary = await taken_in(world, state_dir / what, what)
        assert summary.counts == {"imported": len(rows)}, summary.bad
    for what in ("ratings", "comparisons"):
        assert shapes(what, await exported(world, what)) == shapes(what, before[what])
    (prompt,) = before["prompts"]
    assert shapes("prompts", [prompt])[0] in shapes("prompts", await exported(world, "prompts"))
    kinds = [f.kind for f in await store.get_all(world.redis)]
    assert (kinds.count("ranking"), kinds.count("rating")) == (3, 7)


async def test_readers_of_datasets_read_every_row(world, state_dir):
    await fill(world)
    for what in ("ratings", "comparisons", "demonstrations", "prompts"):
        rows = await exported(world, what)
        for form, reader in (("jsonl", "json"), ("trl", "json"), ("parquet", "parquet")):
            path = state_dir / f"{what}.{form}"
            write_export(rows, path, what=what, form=form, force=False, progress=lambda _: None)
            if rows:
                read = pyarrow.dataset.dataset(path, format=reader).to_table().to_pylist()
                assert len(read) == len(rows)
                assert {json.dumps(r["metadata"]) for r in read} == {
                    json.dumps(r["metadata"]) for r in rows
                }
    (prompt,) = await exported(world, "prompts")
    assert json.loads(prompt["metadata"]) == {"slice": "größe 🌊", "n": "1"}
    assert prompt["other_completions"] == ["b", "c", "d", "e"]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({}, "says nothing"),
        ({"thumb": "sideways"}, "up or down"),
        ({"rating": 8}, "from 1 to 7"),
        ({"rating": "seven"}, "whole number"),
        ({"flags": '{"nice": true}'}, "by the names"),
        ({"flags": "{"}, "not JSON"),
        ({"signal": "copy", "thumb": "up"}, "alone"),
        ({"comment": "x" * 10_001}, "comment"),
    ],
)
def test_what_a_rating_may_not_say_is_told(said, why):
    with pytest.raises(ValueError, match=why):
        parse("ratings", {"prompt": "p", "completion": "c", **said})


def test_trl_s_unpaired_preference_is_a_thumb():
    row = {"prompt": "p", "completion": [{"role": "assistant", "content": "c"}], "label": True}
    assert parse("ratings", row).thumb == "up"
    assert parse("ratings", row | {"label": False}).thumb == "down"
    assert Settings().feedback.signals_train is False
