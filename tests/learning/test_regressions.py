"""Regression suites: what is a right answer, and what is a loss beyond chance, three ways."""

import itertools
import json
import math

import pytest
import torch
from scipy.stats import binomtest
from transformers import AutoTokenizer

from core.errors import Unprocessable
from learning.evaluation.regression_scoring import chosen, exam_of, marks, regressions
from learning.evaluation.regression_suites import BUNDLED, Item, is_right, read_suite, read_suites
from learning.gate.regressions import compared, is_worse
from learning.training.packing import Group
from tests.learning.packing_cases import tiny_llama
from tests.tiny_model import default_model


def regression(lost, gained, kept, *, alpha=0.05):
    parent = [True] * lost + [False] * gained + [True] * kept
    candidate = [False] * lost + [True] * gained + [True] * kept
    return compared("s", parent, candidate, alpha=alpha)


def test_a_comparison_of_ten_items_by_hand():
    found = regression(4, 1, 5)
    assert (found.items, found.parent, found.candidate) == (10, 0.9, 0.6)
    assert found.change == pytest.approx(-0.3)
    # four or five heads of five coins
    assert found.p_value == pytest.approx((5 + 1) / 32)


@pytest.mark.parametrize(("lost", "gained"), [(9, 2), (3, 3), (1, 6), (12, 0)])
def test_the_test_is_scipys_and_the_bound_agrees_with_it(lost, gained):
    found = regression(lost, gained, 7)
    theirs = binomtest(lost, lost + gained, alternative="greater")
    assert found.p_value == pytest.approx(theirs.pvalue)
    share = binomtest(gained, lost + gained, alternative="greater").proportion_ci(0.95).low
    assert found.low * found.items == pytest.approx((lost + gained) * (2 * share - 1))
    assert found.low <= found.change


def test_no_item_that_changed_sides_is_no_change():
    found = regression(0, 0, 6)
    assert (found.change, found.low, found.p_value) == (0.0, 0.0, 1.0)


def test_both_size_and_chance_have_to_speak_against_it():
    assert is_worse(regression(8, 0, 12), limit=0.05, alpha=0.05)
    assert not is_worse(regression(4, 0, 12), limit=0.05, alpha=0.05)  # p = 1/16
    assert not is_worse(regression(8, 0, 192), limit=0.05, alpha=0.05)  # 4 % of the items
    assert not is_worse(regression(0, 8, 12), limit=0.05, alpha=0.05)


def test_equally_good_policies_fail_less_often_than_the_level():
    chance = 0.0
    for outcome in itertools.product((0, 1), repeat=11):  # eleven items changed sides
        lost = sum(outcome)
        chance += is_worse(regression(lost, 11 - lost, 9), limit=0.05, alpha=0.05) / 2**11
    assert 0.0 < chance <= 0.05


# --- right answers --------------------------------------------------------------------------


def test_of_a_continuation_the_first_line_counts_and_neither_dots_nor_capitals():
    item = Item(prompt="Capital of Spain:", expected=("Madrid", "city of Madrid"))
    assert is_right(item, " Madrid.\nSpain: Paris")
    assert is_right(item, "\nThe answer is below") is False
    assert is_right(item, " the City of  Madrid") is False
    assert is_right(item, " city of madrid")


def test_contains_means_whole_words():
    item = Item(messages=[{"role": "user", "content": "2+2?"}], expected="4", match="contains")
    assert is_right(item, "It is 4.\nSure.")
    assert not is_right(item, "It is 44.")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"prompt": "a", "expected": "b", "choices": ["b", "c"], "answer": 0}, "either `choices`"),
        ({"prompt": "a"}, "either `choices`"),
        ({"expected": "b"}, "either `prompt`"),
        ({"prompt": "a", "choices": ["b", "c"], "answer": 2}, "place of the right one"),
        ({"prompt": "a", "choices": ["b"], "answer": 0}, "two or more"),
        ({"prompt": "a", "expected": "?!"}, "says nothing"),
        ({"prompt": "a", "expected": "b", "colour": 1}, "Extra inputs"),
    ],
)
def test_a_line_that_is_no_item_is_refused_with_its_number(tmp_path, line, said):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"prompt": "a", "expected": "b"}) + "\n" + json.dumps(line) + "\n")
    with pytest.raises(Unprocessable, match=f"line 2.*{said}"):
        read_suite(path)


def test_a_suite_that_is_missing_empty_or_named_twice_is_refused(tmp_path):
    with pytest.raises(Unprocessable, match="cannot be read"):
        read_suite(tmp_path / "none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "é", "expected": "b"}'.encode("latin-1"))
    with pytest.raises(Unprocessable, match="latin.jsonl cannot be read"):
        read_suite(tmp_path / "latin.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(Unprocessable, match="is empty"):
        read_suite(tmp_path / "empty.jsonl")
    (tmp_path / "basics.jsonl").write_text('{"prompt": "a", "expected": "b"}')
    with pytest.raises(Unprocessable, match="one name"):
        read_suites([tmp_path / "basics.jsonl"])


def test_the_bundled_suite_favours_no_place_and_repeats_no_prompt():
    (suite,) = read_suites([])
    assert suite.name == BUNDLED.stem
    assert len({item.content for item in suite.items}) == len(suite.items) >= 60
    places = [item.answer for item in suite.items if len(item.choices) == 4]
    assert all(places.count(place) >= 0.15 * len(places) for place in range(4))


# --- asking a model -------------------------------------------------------------------------


def test_the_most_likely_choice_per_token_is_chosen():
    model = tiny_llama(seed=3)
    groups = [
        Group(prompt=(5, 9, 11), answers=[(7, 8, 30), (31,), (40, 41)]),
        Group(prompt=(33, 4), answers=[(12, 13), (14, 15, 16)]),
    ]
    expected = []
    for group in groups:
        means = []
        for answer in group.answers:
            ids = torch.tensor([[*group.prompt, *answer]])
            table = model(ids).logits[0].detach().float().log_softmax(-1)
            start = len(group.prompt)
            each = [float(table[start + i - 1, token]) for i, token in enumerate(answer)]
            means.append(math.fsum(each) / len(each))
        expected.append(means.index(max(means)))
    assert chosen(model, groups, token_budget=64) == expected
    assert chosen(model, groups, token_budget=9) == expected  # a row for each


def test_marks_follow_the_items_whatever_their_kind(tmp_path):
    lines = [
        {"prompt": "One plus one is", "expected": "two"},
        {"prompt": "The sky is", "choices": ["blue", "made of bread"], "answer": 0},
        {"messages": [{"role": "user", "content": "Say yes."}], "expected": "yes"},
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    tokenizer = AutoTokenizer.from_pretrained(default_model(), local_files_only=True)
    exam = exam_of([read_suite(path), read_suite(path)], tokenizer)
    (group, _) = exam.choices
    assert tokenizer.decode(group.answers[0]) == " blue"
    assert [question.item.expected for question in exam.questions] == ["two", "yes"] * 2
    said = [list(tokenizer(text)["input_ids"]) for text in (" two", "No.", " six", "Yes.")]
    was = marks(exam, [0, 1], said, tokenizer)
    assert was == [True, True, False, False, False, True]
    found = regressions(exam, {"parent": was, "candidate": [True] * 6}, alpha=0.05)
    assert [(one.parent, one.candidate) for one in found] == [(2 / 3, 1.0), (1 / 3, 1.0)]
