"""Which prompts become tasks, and what a task is made of: by hand and by invariant."""

from collections import Counter
from hashlib import sha256

import pytest

from core.records import Choice
from core.setting_groups import FeedbackSettings
from feedback import labeling_supply as supply
from feedback.labeling_rules import indexes_for
from feedback.labeling_supply import Sampled
from tests.feedback.factory import api_key, completion

NOW = 1_000_000.0
WEEK = 7 * 86_400.0


def logged(token, *, said="Name a river.", **fields):
    messages = [{"role": "user", "content": said}]
    return completion(token, messages=messages, **{"created_at": NOW, **fields})


def found(*counted, traffic=None, known=(), tenants=("acme",), disagreement=None):
    return [
        one.completion.token
        for one in supply.candidates(
            counted,
            Counter(traffic or {}),
            opening=lambda c: c.messages[0]["content"],
            known=set(known),
            tenants=set(tenants),
            now=NOW,
            disagreement=disagreement,
        )
    ]


def named(what):
    return sha256(what.encode()).hexdigest()


def test_worth_is_disagreement_times_traffic_and_halves_in_a_week():
    assert supply.worth(traffic=6, age_seconds=WEEK, disagreement=0.5) == pytest.approx(1.5)
    assert supply.worth(traffic=3, age_seconds=0) == 3.0
    assert supply.worth(traffic=2, age_seconds=-5, disagreement=2.0) == 4.0  # clocks differ
    assert supply.worth(traffic=9, age_seconds=0, disagreement=0.0) == 0.0


def test_with_equal_traffic_what_heads_disagree_about_comes_first_and_it_is_a_product():
    three = [logged(name, said=name) for name in "abc"]
    assert found(*three, disagreement={"a": 0.1, "b": 0.9, "c": 0.5}) == ["b", "c", "a"]
    busy = {"a": 10}  # 10 x 0.3 against 1 x 2.0: as a sum as well; 10 x 0.1 against 1 x 2.0: not
    assert found(*three, traffic=busy, disagreement={"a": 0.3, "b": 2.0, "c": 0.5})[0] == "a"
    assert found(*three, traffic=busy, disagreement={"a": 0.1, "b": 2.0, "c": 0.5})[0] == "b"


def test_a_prompt_without_a_value_counts_as_the_median_one():
    five = [logged(name, said=name) for name in "abcde"]
    order = found(*five, disagreement={"a": 0.2, "b": 0.8, "c": 0.4, "gone": 0.4})
    assert order == ["b", "c", "d", "e", "a"]  # equal ones by name
    assert supply.usual_disagreement([0.2, 0.8, 0.4, 0.5]) == pytest.approx(0.45)
    assert supply.usual_disagreement([]) == supply.usual_disagreement([0.0, 0.0]) == 1.0
    assert found(*five, traffic={"e": 2}, disagreement={"gone": 0.0})[0] == "e"


def test_what_many_ask_comes_first_then_what_is_new_and_each_opening_once():
    busy, old, new = logged("a", said="busy"), logged("b", said="old"), logged("c", said="new")
    old = old.model_copy(update={"created_at": NOW - WEEK})
    again = logged("d", said="busy", created_at=NOW - WEEK)
    assert found(old, new, again, busy, traffic={"busy": 5}) == ["a", "c", "b"]


@pytest.mark.parametrize(
    "fields",
    [
        {"split": "test"},
        {"split": "validation"},
        {"counted": False},
        {"trains": False},
        {"outcome": "pii_filtered"},
        {"error": "engine"},
        {"tenant": "other"},
    ],
)
def test_only_counted_training_prompts_of_tenants_with_raters_are_asked(fields):
    assert found(logged("a"), logged("b", said="2", **fields)) == ["a"]


def test_what_was_ranked_or_is_a_task_is_not_asked_again_nor_what_is_more_than_text():
    picture = completion("p", messages=[{"role": "user", "content": [{"type": "image_url"}]}])
    assert found(logged("a"), logged("b", said="2"), picture, known={"a"}) == ["b"]


def test_logged_answers_are_those_of_the_same_user_to_the_same_prompt_without_doubles():
    about = logged("a", answers=("one", "two"))
    others = [
        logged("b", answers=("two ", "three"), policy_versions=("v0001",)),
        logged("c", answers=("of bob",), user="b" * 32),
        logged("d", answers=("other prompt",), said="Name a lake."),
        logged("e", answers=("mixed",), policy_versions=("v0000", "v0001")),
        logged("f", answers=("broken",), error="engine"),
    ]
    answers = supply.logged_answers(about, others)
    assert [(a.text, a.policy) for a in answers] == [
        ("one", "v0000"), ("two", "v0000"), ("three", "v0001"),
    ]  # fmt: skip


def test_empty_and_broken_off_answers_are_no_choice():
    call = logged("a").model_copy(
        update={"choices": (Choice(text="", finish_reason="tool_calls", tool_calls=[{}]),)}
    )
    assert supply.logged_answers(call, []) == []
    kept = supply.distinct(
        [Sampled(" ", "v1", "stop"), Sampled("x", "v1", "abort"), Sampled("y", "v1", "length")]
    )
    assert [answer.text for answer in kept] == ["y"]


def test_every_version_gets_its_turn():
    answers = [Sampled(f"{v}{n}", v, "stop") for v in ("a", "b") for n in range(4)]
    assert [a.text for a in supply.pick(answers, 5)] == ["a0", "b0", "a1", "b1", "a2"]
    assert len(supply.pick(answers, 9)) == 8


def test_a_task_is_blind_repeatable_and_a_share_of_them_goes_to_several_raters():
    settings = FeedbackSettings(overlap_share=0.3, overlap_raters=3)
    answers = [Sampled(f"answer {n}", f"v000{n % 2}", "stop") for n in range(5)]

    def make(token):
        about = logged(token)
        return supply.make_task(about, answers, name=named, settings=settings, now=NOW)

    tasks = [make(f"token {n}") for n in range(1000)]
    assert make("token 7") == tasks[7]
    assert len({task.id for task in tasks}) == 1000
    shared = sum(task.wanted == 3 for task in tasks)
    assert 240 < shared < 360  # 0.3 of 1000, four standard deviations
    assert {task.wanted for task in tasks} == {1, 3}
    first = tasks[0]
    assert (first.mode, first.run_id, first.user) == ("training", supply.RUN, "u" * 32)
    shown = "".join(output.output_id for output in first.outputs)
    assert "v000" not in shown
    assert "token" not in first.id


def test_only_keys_whose_labels_may_train_ask_for_tasks():
    settings = FeedbackSettings(heldout_raters=("heldout-*",))

    def counts(key):
        return supply.labels_for_training(key, settings, now=NOW)

    label = api_key("rater", scopes=("label",))
    assert counts(label)
    assert not counts(api_key("heldout-1", scopes=("label",)))
    assert not counts(api_key("app", scopes=("feedback", "admin")))
    assert not counts(api_key("rater", scopes=("label",), trains=False))
    assert not counts(label.model_copy(update={"revoked_at": 1.0}))
    assert not counts(label.model_copy(update={"expires_at": NOW - 1}))


def test_gold_is_mixed_in_at_its_share_and_asking_again_changes_nothing():
    def first(rater, seen):
        return indexes_for("training", rater, num_seen=seen, gold_share=0.1)[0]

    drawn = [first(f"rater {r}", seen) for r in range(20) for seen in range(100)]
    assert drawn == [first(f"rater {r}", seen) for r in range(20) for seen in range(100)]
    assert 146 < drawn.count("gold-training") < 254  # 0.1 of 2000, four standard deviations
    assert set(drawn) == {"gold-training", "training"}
    assert indexes_for("evaluation", "r", num_seen=0, gold_share=0.0) == (
        "evaluation",
        "gold-evaluation",
    )
