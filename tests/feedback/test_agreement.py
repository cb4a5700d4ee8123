"""Agreement: by hand, by invariant, and against computations written down another way."""

from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback.agreement import (
    LEVELS,
    Share,
    Verdict,
    accuracy,
    alpha,
    alpha_by_rater,
    alpha_by_week,
    by_rater,
    by_week,
    pairwise,
)

MONDAY = 1_771_200_000.0  # 2026-02-16
WEEK = 7 * 86_400.0


def ranked(rater, at=MONDAY, **ranks):
    return Verdict(rater, at, ranks=ranks)


def rated(rater, at=MONDAY, **ratings):
    return Verdict(rater, at, ratings=ratings)


def test_two_raters_by_hand():
    """Three pairs: ab alike, ac alike, bc the other way round."""
    said = [ranked("r", a=1, b=2, c=3), ranked("s", a=1, b=3, c=2)]
    assert pairwise(said) == Share(2, 3)
    assert by_rater(said) == {"r": Share(2, 3), "s": Share(2, 3)}


def test_ties_and_answers_that_one_did_not_rank_say_nothing():
    said = [ranked("r", a=1, b=1, c=2), ranked("s", a=1, b=2), ranked("s", d=1, e=2)]
    assert pairwise(said) == Share(0, 0)
    assert pairwise(said).value is None
    assert by_rater(said) == {}


def test_a_third_rater_alone_is_the_odd_one_out():
    said = [ranked(name, a=1, b=2) for name in "rs"] + [ranked("t", a=2, b=1)]
    assert pairwise(said) == Share(1, 3)
    assert by_rater(said) == {"r": Share(1, 2), "s": Share(1, 2), "t": Share(0, 2)}


def test_the_latest_word_counts_and_a_later_tie_takes_it_back():
    said = [ranked("r", a=1, b=2), ranked("s", a=2, b=1), ranked("s", at=MONDAY + 1, a=1, b=2)]
    assert pairwise(said) == Share(1, 1)
    assert pairwise([*said, ranked("s", at=MONDAY + 2, a=1, b=1)]) == Share(0, 0)


def test_by_week_a_pair_counts_when_the_last_rater_ordered_it():
    said = [
        ranked("r", a=1, b=2),
        ranked("s", at=MONDAY + WEEK, a=1, b=2),
        ranked("r", c=1, d=2),
        ranked("s", c=2, d=1),
    ]
    assert by_week(said) == {"2026-W08": Share(0, 1), "2026-W09": Share(1, 1)}


orders = st.lists(st.lists(st.integers(1, 4), min_size=5, max_size=5), min_size=2, max_size=5)


@given(orders)
def test_it_is_what_comparing_all_raters_on_all_pairs_gives(ranks):
    """The definition, spelled out over ordered pairs of raters and answers."""
    said = [
        ranked(f"r{n}", **{name: row[i] for i, name in enumerate("abcde")})
        for n, row in enumerate(ranks)
    ]
    hits = of = 0
    for one, other in combinations(ranks, 2):
        for i, j in combinations(range(5), 2):
            product = np.sign(one[i] - one[j]) * np.sign(other[i] - other[j])
            hits, of = hits + (product > 0), of + (product != 0)
    assert pairwise(said) == Share(hits, of)
    total = sum(by_rater(said).values(), Share())
    assert total == Share(2 * hits, 2 * of)


def ordinal_alpha(units):
    """Krippendorff (2011): coincidences of values within units, ordinal differences squared."""
    coincidence = np.zeros((7, 7))
    for values in units:
        for a, b in permutations(values, 2):
            coincidence[a - 1, b - 1] += 1 / (len(values) - 1)
    n = coincidence.sum(axis=0)
    observed = expected = 0.0
    for c in range(7):
        for k in range(c + 1, 7):
            distance = (n[c : k + 1].sum() - (n[c] + n[k]) / 2) ** 2
            observed += coincidence[c, k] * distance
            expected += n[c] * n[k] * distance
    return 1 - (n.sum() - 1) * observed / expected


units_of_ratings = st.lists(
    st.lists(st.sampled_from(LEVELS), min_size=2, max_size=4), min_size=2, max_size=6
).filter(lambda units: len({v for values in units for v in values}) > 1)


@given(units_of_ratings)
def test_alpha_is_krippendorffs_formula(units):
    said = [
        rated(f"r{r}", **{f"answer{u}": value})
        for u, values in enumerate(units)
        for r, value in enumerate(values)
    ]
    assert alpha(said) == pytest.approx(ordinal_alpha(units), abs=1e-9)


def test_alpha_of_raters_who_always_agree_is_one_and_falls_with_distance():
    def two(*pairs):
        return alpha(
            [rated("r", **{f"a{n}": one for n, (one, _) in enumerate(pairs)})]
            + [rated("s", **{f"a{n}": other for n, (_, other) in enumerate(pairs)})]
        )

    assert two((1, 1), (7, 7), (4, 4)) == pytest.approx(1.0)
    near, far = two((1, 1), (7, 7), (4, 5)), two((1, 7), (7, 1), (4, 5))
    assert near > 0.9
    assert far < 0


def test_alpha_has_no_value_without_two_ratings_of_one_answer_or_without_variation():
    assert alpha([]) is None
    assert alpha([rated("r", a=1), rated("s", b=7)]) is None
    assert alpha([rated("r", a=4), rated("s", a=4)]) is None
    assert alpha([rated("r", a=1), rated("r", at=MONDAY + 1, a=7)]) is None  # one rater, twice


def test_accuracy_on_a_known_order_counts_pairs_that_are_not_tied_in_it():
    gold = (("a",), ("b", "c"), ("d",))
    assert accuracy(gold, gold) == Share(5, 5)
    assert accuracy(gold, (("d",), ("c", "b"), ("a",))) == Share(0, 5)
    assert accuracy(gold, (("a", "b"), ("c",), ("d",))) == Share(4, 5)  # a tie is no answer


@given(units_of_ratings)
def test_alpha_by_rater_and_by_week_is_alpha_of_their_answers(units):
    def said(places):
        return [
            rated(f"r{r}", at=MONDAY + u % 2 * WEEK, **{f"answer{u}": value})
            for u in places
            for r, value in enumerate(units[u])
        ]

    everything = said(range(len(units)))
    all_raters = {verdict.rater for verdict in everything}
    for rater in all_raters:
        theirs = [u for u, values in enumerate(units) if len(values) > int(rater[1:])]
        assert alpha_by_rater(everything).get(rater) == alpha(said(theirs))
    for odd, week in enumerate(("2026-W08", "2026-W09")):
        assert alpha_by_week(everything).get(week) == alpha(said(range(odd, len(units), 2)))


def test_alpha_by_rater_and_week_by_hand():
    """r and s agree on two answers in week 8; t is far from both on others in week 9."""
    said = [rated(name, a=1, b=7) for name in "rs"]
    said += [rated("r", at=MONDAY + WEEK, c=1, d=7), rated("t", at=MONDAY + WEEK, c=7, d=1)]
    assert alpha_by_rater(said) == {
        "s": pytest.approx(1.0), "t": pytest.approx(-0.5), "r": pytest.approx(alpha(said)),
    }  # fmt: skip
    assert alpha_by_week(said) == {"2026-W08": pytest.approx(1.0), "2026-W09": pytest.approx(-0.5)}
    assert alpha_by_week([rated("r", a=1), rated("s", a=1)]) == {}
