"""Raters who share a taste and differ in their leanings."""

import itertools

import pytest

from core.errors import StartError
from deploy.reproduce.raters import agreement, people, ranking, scales_of, vote

GLAD, SAD = "What a wonderful, lovely day!", "What a terrible, awful day!"
PROMPT = "How was it?"


def test_training_and_held_out_raters_lean_to_different_tastes():
    crowd = people("sentiment")
    training, heldout = crowd.pool(heldout=False), crowd.pool(heldout=True)
    assert [len(training), len(heldout)] == [6, 4]
    leanings = [{name for rater in pool for name in rater.weights} for pool in (training, heldout)]
    assert leanings[0] & leanings[1] == {"sentiment"}
    assert sum(rater.weights["address"] for rater in training) == pytest.approx(0.0)


@pytest.mark.parametrize("judge", ["sentiment", "brevity", "plain", "address"])
def test_a_main_taste_is_never_its_own_leaning(judge):
    crowd = people(judge)
    assert len({one.name for one in crowd.judges}) == 3
    assert all(len(rater.weights) == 2 for rater in crowd.raters)


def test_an_unknown_taste_is_refused():
    with pytest.raises(StartError, match="no judge"):
        people("kindness")


def test_all_raters_share_the_main_taste():
    crowd = people("sentiment", {"sentiment": 0.3, "address": 0.1, "plain": 0.5})
    for rater in crowd.raters:
        assert vote(crowd, rater, PROMPT, GLAD, SAD, seed=1) == 1.0
        assert vote(crowd, rater, PROMPT, SAD, GLAD, seed=1) == 0.0
        assert ranking(crowd, rater, PROMPT, [SAD, GLAD], seed=1) == [[1], [0]]


def test_equal_texts_tie_and_an_empty_answer_loses():
    crowd = people("sentiment", {"sentiment": 0.3, "address": 0.1, "plain": 0.5})
    rater = crowd.raters[0]
    assert vote(crowd, rater, PROMPT, GLAD, GLAD, seed=4) == 0.5
    assert vote(crowd, rater, PROMPT, "", SAD, seed=4) == 0.0


def test_scales_are_not_moved_by_an_empty_answer():
    judges = people("plain").judges[:1]
    said = [(PROMPT, text) for text in ("a bb", "aaa bbb", "aaaa bbbbb", "aaaaa bbbbbbb")]
    assert scales_of(judges, said) == scales_of(judges, [*said, (PROMPT, "")])
    assert scales_of(judges, said)["plain"] > 0.5


def test_agreement_by_hand():
    # pairs ordered by both: 0-1, 0-2 (1 and 2 tie in the first): one the same way, one not
    assert agreement([[0], [1, 2]], [[2], [0], [1]]) == (1, 2)


def test_agreement_is_all_with_oneself_and_none_with_the_reverse():
    for order in itertools.permutations([[0], [1], [2, 3]]):
        assert agreement(order, order) == (5, 5)
        assert agreement(order, order[::-1]) == (0, 5)
