import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ville.evalues import combine
from ville.means import BettingCS
from ville.proportions import BernoulliTest

from learning.canary.sequential import (
    STAKES,
    Observations,
    confidence_sequence,
    decide,
    e_process,
    e_value,
    log_e_process,
    ratio_mismatch,
)
from tests.learning.sequential_runs import first_crossings, paired_votes, share_above, users


def watched(candidate: list[float], live: list[float], *, share: float = 0.5) -> Observations:
    return Observations({"thumbs": candidate}, {"thumbs": live}, len(candidate), len(live), share)


def test_the_evidence_is_the_mean_capital_of_gamblers() -> None:
    capital = [(1 + stake * 1.0) * (1 - stake * 0.5) for stake in STAKES]
    assert e_value(np.array([1.0, -0.5]), 0.0) == pytest.approx(sum(capital) / len(STAKES))


def test_against_a_mean_of_a_half_stakes_shrink_so_that_nobody_owes() -> None:
    stakes = STAKES / 1.5
    capital = [1 + stake * (-1.0 - 0.5) for stake in stakes]
    assert e_value(np.array([-1.0]), 0.5) == pytest.approx(sum(capital) / len(STAKES))
    assert min(capital) > 0


@given(
    st.lists(st.floats(-1, 1), min_size=2, max_size=2),
    st.floats(-0.8, 0.8),
)
def test_a_bet_is_fair_when_the_hypothesis_is_just_true(values: list[float], mean: float) -> None:
    low, high = min(*values, mean - 0.1), max(*values, mean + 0.1)
    low, high = max(low, -1.0), min(high, 1.0)
    odds = (mean - low) / (high - low)  # of the higher value, so that the mean is `mean`
    expected = odds * e_value(np.array([high]), mean) + (1 - odds) * e_value(np.array([low]), mean)
    assert expected == pytest.approx(1.0)


def test_nobody_said_anything_is_no_evidence() -> None:
    assert e_value(np.array([]), 0.0) == 1.0
    assert len(e_process(np.array([]), 0.0)) == 0
    decision = decide(Observations({}, {}, 0, 0, 0.2))
    assert decision.action == "continue"
    assert decision.evidence["worse"] == 1.0


@pytest.mark.parametrize("values", [[1.5], [float("nan")], [-1.01]])
def test_values_beyond_their_bounds_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        e_process(np.array(values), 0.0)


def test_more_of_the_same_only_continues_the_evidence() -> None:
    values = paired_votes(np.random.default_rng(3), 1, 50, 0.3)[0]
    assert e_process(values[:20], 0.1) == pytest.approx(e_process(values, 0.1)[:20])


def test_a_much_worse_candidate_is_rolled_back_and_an_equal_one_is_promoted() -> None:
    rng = np.random.default_rng(4)
    bad, good, equal = (list(users(rng, 1, 900, rate)[0]) for rate in (0.4, 0.7, 0.7))
    assert decide(watched(bad, good)).action == "rollback"
    promoted = decide(watched(equal, good))
    assert promoted.action == "promote"
    assert "no worse" in promoted.why
    assert promoted.evidence["thumbs.units"] == 900
    assert decide(watched(equal[:30], good[:30])).action == "continue"


def test_a_small_share_compares_each_user_with_several_others() -> None:
    found = decide(watched([1.0, 0.0, 1.0], [1.0, 0.0, 0.5, 1.0, 1.0], share=1 / 3))
    assert found.evidence["thumbs.units"] == 2
    assert found.evidence["thumbs.difference"] == pytest.approx((0.5 - 0.75) / 2)


def test_a_ranking_with_both_policies_is_compared_with_a_tie() -> None:
    lost = Observations({"rankings": [0.0] * 30}, {}, 0, 0, 0.5)
    assert decide(lost).action == "rollback"
    assert decide(lost).evidence["rankings.difference"] == -1.0
    tied = Observations({"rankings": [0.5] * 30}, {}, 0, 0, 0.5)
    assert decide(tied).evidence["worse"] == pytest.approx(1.0)


def test_signals_are_averaged_as_the_reference_does() -> None:
    seen = Observations(
        {"thumbs": [0.0, 1.0, 0.0], "ratings": [0.2, 0.4]},
        {"thumbs": [1.0, 1.0, 1.0], "ratings": [0.9, 0.3]},
        5,
        5,
        0.5,
    )
    alone = [
        e_value(np.array([1.0, 0.0, 1.0]), 0.0),
        e_value(np.array([0.7, -0.1]), 0.0),
    ]
    assert decide(seen).evidence["worse"] == pytest.approx(float(combine(alone)))


def test_cohorts_of_the_wrong_size_stop_the_canary() -> None:
    broken = Observations({"thumbs": [1.0] * 50}, {"thumbs": [1.0] * 50}, 300, 500, 0.5)
    assert decide(broken).action == "stop"
    assert ratio_mismatch(401, 399, 0.5) < 1.0
    assert ratio_mismatch(80, 320, 0.2) < 1.0


@given(st.integers(0, 60), st.integers(0, 60), st.sampled_from([0.1, 0.5, 0.8]))
@settings(max_examples=30)
def test_the_mismatch_is_the_reference_s_bayes_factor(
    candidate: int, live: int, share: float
) -> None:
    if not candidate + live:
        assert ratio_mismatch(0, 0, share) == 1.0
        return
    reference = BernoulliTest(share)
    reference.fit(np.array([1.0] * candidate + [0.0] * live))
    assert math.log(ratio_mismatch(candidate, live, share)) == pytest.approx(
        float(reference.log_e_values_[-1])
    )


def test_without_a_split_there_is_no_mismatch() -> None:
    assert ratio_mismatch(10, 0, 1.0) == ratio_mismatch(0, 10, 0.0) == 1.0


def test_equal_policies_are_rarely_rolled_back_however_often_one_looks() -> None:
    rng = np.random.default_rng(5)
    difference = users(rng, 1000, 1500, 0.7) - users(rng, 1000, 1500, 0.7)
    false = int(np.isfinite(first_crossings(-difference, 0.0, alpha=0.01)).sum())
    assert share_above(false, 1000) <= 0.02


def test_five_points_in_paired_votes_are_found_in_about_a_thousand() -> None:
    votes = paired_votes(np.random.default_rng(6), 300, 6000, 0.45)
    assert np.median(first_crossings(-votes, 0.0, alpha=0.01)) <= 1200


def test_the_confidence_sequence_covers_the_mean_at_all_looks_and_closes_in() -> None:
    rng = np.random.default_rng(7)
    missed = 0
    for run in users(rng, 60, 300, 0.65) - users(rng, 60, 300, 0.70):
        low, high = confidence_sequence(run)
        missed += bool(((low > -0.05) | (high < -0.05)).any())
        assert (np.diff(low) >= 0).all()
        assert (np.diff(high) <= 0).all()
    assert missed <= 6
    assert high[-1] - low[-1] < 0.5


def test_the_confidence_sequence_is_about_as_narrow_as_the_reference() -> None:
    values = users(np.random.default_rng(8), 1, 800, 0.6)[0] - 0.5
    low, high = confidence_sequence(values)
    reference = BettingCS(bounds=(-1.0, 1.0)).fit(values)
    lower, upper = reference.interval()
    assert low[-1] <= values.mean() <= high[-1]
    assert lower <= high[-1]
    assert low[-1] <= upper
    assert high[-1] - low[-1] < 1.5 * (upper - lower)


def test_many_runs_at_once_are_what_each_is_alone() -> None:
    values = paired_votes(np.random.default_rng(9), 3, 7, 0.5)
    together = log_e_process(values, -0.05)
    assert together.shape == (3, 7)
    for run, alone in zip(together, values, strict=True):
        assert np.exp(run) == pytest.approx(e_process(alone, -0.05))
