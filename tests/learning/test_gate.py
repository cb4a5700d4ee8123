"""The gate: who decides, at which alpha, and which limits refuse; statistics by enumeration."""

import dataclasses
import itertools

import numpy as np
import pytest

from core.hyperparameters import GateSettings
from core.records import Run, StageState
from learning.comparisons import Comparison
from learning.gate import Evidence, alpha_of_attempt, attempt_number, judge

SETTINGS = GateSettings(min_users=5, bootstrap_samples=4000)


def comparisons(points, *, users=None):
    users = users or [f"user-{n}" for n in range(len(points))]
    return [Comparison(u, p, p) for u, p in zip(users, points, strict=True)]


GOOD = Evidence(
    votes=comparisons([1.0, 0.75, 1.0, 0.5, 1.0, 0.75, 0.75]),
    proxies=comparisons([0.0, 0.25, 0.5, 0.0, 0.25, 0.0]),
    kl_per_token=0.1,
    pretraining_loss_change=0.01,
    length_ratio=1.2,
    broken_share=0.02,
)


def verdict(attempt=1, settings=SETTINGS, **changes):
    evidence = dataclasses.replace(GOOD, **changes)
    return judge(evidence, settings=settings, attempt=attempt, seed=0)


def test_votes_of_enough_users_decide_against_the_reward_model():
    found = verdict()
    assert found.verdict == "pass"
    assert found.win_rate.judge == "held-out raters"
    assert found.win_rate.value == pytest.approx(5.75 / 7)
    assert "held-out raters preferred it in 82.1% of 7 comparisons" in found.reasons[0]


def test_without_enough_voters_the_reward_model_stands_in_and_it_is_said():
    found = verdict(votes=GOOD.votes[:4])
    assert found.verdict == "fail"
    assert found.win_rate.judge == "reward model"
    assert any("stand in" in reason and "4 users" in reason for reason in found.reasons)


def test_many_votes_on_few_users_prompts_are_few():
    votes = comparisons([1.0] * 40, users=[f"user-{n % 4}" for n in range(40)])
    assert verdict(votes=votes).win_rate.judge == "reward model"


def test_too_few_users_on_both_sides_are_not_enough_data():
    found = verdict(votes=[], proxies=comparisons([1.0] * 4))
    assert found.verdict == "not_enough_data"
    assert not found.passed
    assert any("too few users" in reason for reason in found.reasons)


def test_no_comparison_at_all_is_not_enough_data():
    found = verdict(votes=[], proxies=[])
    assert (found.verdict, found.win_rate) == ("not_enough_data", None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kl_per_token": 0.31}, "nats per token from the first policy"),
        ({"pretraining_loss_change": 0.06}, "forgets"),
        ({"length_ratio": 3.1}, "times as long"),
        ({"length_ratio": 0.3}, "times as long"),
        ({"broken_share": 0.11}, "broken text"),
        ({"kl_per_token": float("nan")}, "nats per token from the first policy"),
    ],
)
def test_a_limit_that_is_passed_fails_a_winner_and_is_the_first_reason(changes, said):
    found = verdict(**changes)
    assert found.verdict == "fail"
    assert said in found.reasons[0]


def test_a_limit_fails_even_where_the_data_could_not_decide():
    assert verdict(votes=[], proxies=[], broken_share=0.5).verdict == "fail"


def test_exactly_at_a_limit_is_within_it():
    assert verdict(kl_per_token=0.3, broken_share=0.10, length_ratio=3.0).verdict == "pass"


def test_text_that_was_learned_is_remarked_but_fails_nothing():
    found = verdict(pretraining_loss_change=-0.2)
    assert found.passed
    assert "fell by 0.200" in found.reasons[-1]


def test_an_even_candidate_fails():
    even = comparisons([0.0, 1.0] * 30)
    found = verdict(votes=even)
    assert found.win_rate.value == 0.5
    assert found.verdict == "fail"


def test_the_lower_bound_is_that_of_all_resamples_of_three_users():
    # sums and counts by user: a 1.5 of 2, b 1 of 1, c .25 of 3 -> 27 resamples by enumeration
    votes = comparisons([1.0, 0.5, 1.0, 0.25, 0.0, 0.0], users=list("aabccc"))
    sums, counts = np.array([1.5, 1.0, 0.25]), np.array([2.0, 1.0, 3.0])
    resamples = [list(drawn) for drawn in itertools.product(range(3), repeat=3)]
    exact = sorted(sums[d].sum() / counts[d].sum() for d in resamples)
    settings = GateSettings(min_users=3, bootstrap_samples=50_000)
    found = verdict(votes=votes, settings=settings)
    assert found.win_rate.value == pytest.approx(2.75 / 6)
    # alpha of the first attempt is .025, its lower tail .0125 of 27 resamples: the smallest
    assert found.win_rate.low == pytest.approx(exact[0])
    # 95 %: tails of .025 are still the smallest and the largest of 27
    assert found.win_rate.interval == pytest.approx((exact[0], exact[-1]))


def test_the_win_rate_is_the_mean_over_votes_whatever_the_order():
    shuffled = [GOOD.votes[n] for n in (3, 0, 6, 2, 5, 1, 4)]
    assert verdict(votes=shuffled).win_rate == verdict().win_rate


def test_the_plain_win_rate_is_kept_beside_the_one_with_broken_text_lost():
    votes = [Comparison(f"u{n}", points=0.25, plain_points=0.75) for n in range(6)]
    found = verdict(votes=votes)
    assert (found.win_rate.value, found.win_rate.plain_value) == (0.25, 0.75)


def test_all_attempts_together_never_spend_more_than_alpha():
    spent = [alpha_of_attempt(0.05, attempt) for attempt in range(1, 60)]
    assert spent[:3] == pytest.approx([0.025, 0.0125, 0.00625])
    assert sum(spent) <= 0.05


def test_a_later_attempt_has_a_lower_bound_and_says_so():
    points = list(np.random.default_rng(7).choice([0.0, 0.5, 1.0], size=60, p=[0.3, 0.2, 0.5]))
    first, sixth = verdict(votes=comparisons(points)), verdict(6, votes=comparisons(points))
    assert sixth.win_rate.low < first.win_rate.low
    assert sixth.win_rate.interval == first.win_rate.interval
    assert any("attempt 6" in reason for reason in sixth.reasons)
    assert not any("attempt" in reason for reason in first.reasons)


def run(name, *, parent="v0001", outcome="refused", gated=True):
    states = {"gate": StageState()} if gated else {}
    stages = ("policy", "evaluate", "vote", "gate")
    return Run(
        id=name, stages=stages, created_at=0.0, parent=parent, outcome=outcome, states=states
    )


def test_attempts_are_counted_by_the_verdicts_on_the_same_parent():
    earlier = [
        run("a"),
        run("b", outcome="promoted"),
        run("c", outcome="passed"),
        run("d", parent="v0000"),
        run("e", outcome="not_enough_data"),
        run("f", outcome="failed"),
        run("g", outcome="passed", gated=False),
    ]
    own = run("own", outcome="running")
    assert attempt_number([*earlier, own], own) == 4
    assert attempt_number([own], own) == 1


def test_a_false_pass_is_rarer_than_alpha_over_repeated_attempts():
    """Even candidates, users who answer alike in all their votes: the unit must be the user."""
    generator = np.random.default_rng(3)
    settings = GateSettings(min_users=40, bootstrap_samples=500)
    passed = 0
    for _ in range(200):
        tastes = generator.choice([0.2, 0.8], size=60)
        users = [f"u{n}" for n in range(60) for _ in range(6)]
        points = [float(generator.random() < taste) for taste in tastes for _ in range(6)]
        evidence = dataclasses.replace(GOOD, votes=comparisons(points, users=users))
        passed += judge(evidence, settings=settings, attempt=1, seed=1).passed
    assert passed <= 10  # alpha .05 of 200; with each vote as a unit 19 pass
