"""What simulated raters would say, by hand and by invariants."""

from collections import Counter

import numpy as np
import pytest

from deploy.simulate.raters import marks, num_pairs, rank, rater_names, who_ranks


def order(scores, **more):
    return rank(scores, **{"noise": 0.0, "seed": 0, "rater": "r", "about": "p", **more})


def test_without_noise_a_ranking_is_the_order_of_the_scores():
    assert order([0.1, 0.9, -0.5, 0.4]) == [[1], [3], [0], [2]]


def test_equal_scores_tie():
    assert order([1.0, 2.0, 1.0, 2.0, 2.0]) == [[1, 3, 4], [0, 2]]
    assert order([3.0, 3.0]) == [[0, 1]]


def test_scores_within_the_margin_of_the_best_of_a_tie_tie_by_hand():
    # median 4, deviations 4 3 1 1 2 4 -> median 2.5, spread 1.4826 * 2.5 = 3.7065
    scores = [0.0, 1.0, 3.0, 5.0, 6.0, 8.0]
    assert order(scores, margin=0.28) == [[5], [4, 3], [2], [1, 0]]  # 0.28 * 3.7065 = 1.038
    assert order(scores, margin=0.26) == [[5], [4], [3], [2], [1], [0]]  # 0.964
    assert order(scores, margin=0.55) == [[5, 4], [3, 2], [1, 0]]  # 2.039, from the best member


@pytest.mark.parametrize("scale", [1e-3, 1.0, 700.0])
def test_noise_and_ties_do_not_depend_on_the_judges_scale(scale):
    scores = np.array([0.2, 0.9, -0.4, 0.45, 0.31, 0.3])
    said = order(list(scores * scale + 5 * scale), noise=0.7, margin=0.2)
    assert said == order(list(scores), noise=0.7, margin=0.2)


def test_one_empty_answer_does_not_drown_the_others_in_noise_or_ties():
    ranking = order([0.1, 0.9, -1000.0, 0.4, 0.6])
    assert ranking == [[1], [4], [3], [0], [2]]


def test_more_noise_means_less_agreement_with_the_judge():
    scores = list(np.linspace(-1, 1, 8))

    def agreement(noise: float) -> float:
        agreed = total = 0
        for i in range(60):
            flat = [x for tie in order(scores, noise=noise, about=str(i)) for x in tie]
            place = {x: n for n, x in enumerate(flat)}
            agreed += sum(place[b] < place[a] for a in range(8) for b in range(a + 1, 8))
            total += 28
        return agreed / total

    assert agreement(0.0) == 1.0
    assert 0.75 < agreement(0.5) < 0.95
    assert 0.5 < agreement(3.0) < agreement(0.5)


def test_noise_is_each_raters_own_and_repeatable():
    scores = [0.1 * i for i in range(9)]
    said = {
        (seed, rater, about): str(order(scores, noise=1.0, seed=seed, rater=rater, about=about))
        for seed in (0, 1)
        for rater in ("a", "b")
        for about in ("x", "y")
    }
    assert len(set(said.values())) == 8
    again = str(order(scores, noise=1.0, seed=1, rater="b", about="x"))
    assert again == said[1, "b", "x"]


def test_marks_lie_between_the_worst_and_the_best():
    assert marks([0.0, 1.0, 0.5, 0.24]) == [1, 7, 4, 2]
    assert marks([2.0, 2.0, 2.0]) == [4, 4, 4]


def test_pairs_within_a_tie_do_not_count():
    assert num_pairs([[0], [1], [2], [3]]) == 6
    assert num_pairs([[0, 1], [2, 3, 4]]) == 6
    assert num_pairs([[0, 1, 2]]) == 0


def test_heldout_raters_are_known_by_their_names():
    names, heldout = rater_names(2, 3)
    assert names == ["rater-1", "rater-2"]
    assert heldout == ["heldout-1", "heldout-2", "heldout-3"]


def test_raters_share_the_prompts_evenly_and_the_seed_decides_who():
    names, _ = rater_names(6, 0)
    work = [who_ranks(i, names, seed=4) for i in range(125)]
    assert set(Counter(work).values()) == {20, 21}
    assert work != [who_ranks(i, names, seed=5) for i in range(125)]
