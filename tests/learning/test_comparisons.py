"""Points of a candidate beside its parent, counted by hand on answers of unequal number."""

import pytest

from learning.gate.comparisons import broken_share, by_ranking, by_score, length_ratio


def output(name, policy, *, score=0.0, broken=False, tokens=4):
    return {
        "output_id": name,
        "policy": policy,
        "score": score,
        "broken": broken,
        "token_ids": list(range(tokens)),
    }


def row(*outputs, user="ada"):
    return {"prompt_id": "p", "user": user, "messages": [], "outputs": list(outputs)}


THREE_TO_TWO = row(
    output("a", "candidate", score=2.0),
    output("b", "candidate", score=0.5),
    output("c", "candidate", score=-1.0, broken=True),
    output("d", "parent", score=0.5, tokens=6),
    output("e", "parent", score=-2.0, tokens=6),
)


def test_points_average_all_pairs_and_a_tie_is_half():
    (compared,) = by_score([THREE_TO_TWO])
    # a beats d and e; b ties d and beats e; c loses to d and beats e by score
    assert compared.plain_points == pytest.approx((1 + 1 + 0.5 + 1 + 0 + 1) / 6)
    # and loses both because it is broken
    assert compared.points == pytest.approx((1 + 1 + 0.5 + 1 + 0 + 0) / 6)
    assert compared.user == "ada"


def test_a_broken_answer_of_the_parent_loses_and_two_broken_ones_tie():
    broken_parent = row(output("a", "candidate"), output("b", "parent", score=9.0, broken=True))
    assert by_score([broken_parent])[0].points == 1.0
    both = row(output("a", "candidate", broken=True), output("b", "parent", score=9.0, broken=True))
    assert by_score([both])[0].points == 0.5


def test_swapping_the_policies_turns_the_points_around():
    names = {"candidate": "parent", "parent": "candidate"}
    swapped = row(*({**o, "policy": names[o["policy"]]} for o in THREE_TO_TWO["outputs"]))
    there, back = by_score([THREE_TO_TWO])[0], by_score([swapped])[0]
    assert there.points == pytest.approx(1 - back.points)
    assert there.plain_points == pytest.approx(1 - back.plain_points)


def test_a_ranking_gives_the_points_of_its_places():
    compared = by_ranking(THREE_TO_TWO, [["a"], ["b", "d"], ["e"], ["c"]])
    # a beats both; b ties d, beats e; c loses both
    assert compared.plain_points == pytest.approx((2 + 1.5 + 0) / 6)


def test_a_ranking_of_one_policys_answers_compares_nothing():
    assert by_ranking(THREE_TO_TWO, [["a"], ["b"]]) is None


def test_outputs_that_a_ranking_leaves_out_are_not_judged():
    assert by_ranking(THREE_TO_TWO, [["a"], ["e"]]).points == 1.0


def test_lengths_and_broken_text_are_counted_by_policy():
    assert length_ratio([THREE_TO_TWO]) == pytest.approx(4 / 6)
    assert broken_share([THREE_TO_TWO], "candidate") == pytest.approx(1 / 3)
    assert broken_share([THREE_TO_TWO], "parent") == 0.0
