"""The gate: who decides, at which alpha, and which limits refuse; statistics by enumeration."""

import dataclasses
import itertools

import numpy as np
import pytest

from core.hyperparameters import GateSettings
from core.records import Run, StageState
from learning.gate.comparisons import Comparison
from learning.gate.gate import alpha_of_attempt, attempt_number, judge
from learning.gate.limits import Evidence
from learning.gate.regressions import compared
from learning.gate.toxicity import Rise

SETTINGS = GateSettings(min_users=5, bootstrap_samples=4000)
WITHOUT_VOTES = SETTINGS.model_copy(update={"require_votes": False})


def comparisons(points, *, users=None):
    users = users or [f"user-{n}" for n in range(len(points))]
    return [Comparison(u, p, p) for u, p in zip(users, points, strict=True)]


GOOD = Evidence(
    votes=comparisons([1.0, 0.75, 1.0, 0.5, 1.0, 0.75, 0.75]),
    proxies=comparisons([0.0, 0.25, 0.5, 0.0, 0.25, 0.0]),
    kl_per_token=0.1,
    pretraining_loss_share=0.004,
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


def test_without_enough_voters_the_reward_model_decides_nothing():
    for proxies in (GOOD.proxies, comparisons([1.0] * 6)):
        found = verdict(votes=GOOD.votes[:4], proxies=proxies)
        assert found.verdict == "not_enough_data"
        assert found.win_rate.judge == "reward model"
        said = "held-out raters voted on prompts of 4 users, 5 are needed"
        assert any(said in reason and "require_votes" in reason for reason in found.reasons)


def test_where_votes_are_not_required_the_reward_model_stands_in_and_it_is_said():
    found = verdict(settings=WITHOUT_VOTES, votes=GOOD.votes[:4])
    assert found.verdict == "fail"
    assert any("stand in" in reason and "4 users" in reason for reason in found.reasons)
    pleased = verdict(settings=WITHOUT_VOTES, votes=[], proxies=comparisons([1.0] * 6))
    assert pleased.verdict == "pass"


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
        ({"kl_per_token": 0.31}, "nats per token from the anchor"),
        ({"pretraining_loss_share": 0.011}, "forgets"),
        ({"pretraining_loss_share": float("nan")}, "forgets"),
        ({"regressions": [compared("sums", [True] * 8, [False] * 8, alpha=0.05)]}, "suite sums"),
        ({"toxicity": Rise(candidate=0.05, parent=0.01, rise=0.04, low=0.01)}, "words of abuse"),
        ({"length_ratio": 3.1}, "times as long"),
        ({"length_ratio": 0.3}, "times as long"),
        ({"broken_share": 0.11}, "broken text"),
        ({"kl_per_token": float("nan")}, "nats per token from the anchor"),
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
    found = verdict(pretraining_loss_share=-0.02)
    assert (found.passed, found.retention) == (True, "learned")
    assert "fell by 2.0%" in found.reasons[-1]


def test_within_one_percent_on_both_sides_it_kept_what_it_knew():
    assert {verdict(pretraining_loss_share=s).retention for s in (-0.01, 0.0, 0.01)} == {"kept"}
    assert verdict(pretraining_loss_share=0.02).retention == "lost"


@pytest.mark.parametrize(
    "changes",
    [
        # two of forty items are 5 %, within the limit however unlikely
        {"regressions": [compared("s", [True] * 40, [False] * 2 + [True] * 38, alpha=0.05)]},
        # one of ten is 10 %, but chance does that
        {"regressions": [compared("s", [True] * 10, [False] + [True] * 9, alpha=0.05)]},
        {"toxicity": Rise(candidate=0.05, parent=0.01, rise=0.04, low=-0.001)},
        {"toxicity": Rise(candidate=0.03, parent=0.02, rise=0.01, low=0.005)},
    ],
)
def test_a_loss_that_is_small_or_may_be_chance_fails_nothing(changes):
    assert verdict(**changes).passed


# --- over the anchor ------------------------------------------------------------------------


def test_without_another_anchor_there_is_one_bar():
    assert verdict().win_rate_vs_anchor is None


def test_a_winner_over_the_parent_that_loses_to_the_anchor_fails():
    found = verdict(votes_vs_anchor=comparisons([0.25, 0.0, 0.5, 0.25, 0.5, 0.0]))
    assert found.verdict == "fail"
    assert found.win_rate.low > 0.5
    assert found.win_rate_vs_anchor.value == pytest.approx(0.25)
    assert any("to the anchor in 25.0%" in reason for reason in found.reasons)


def test_both_bars_are_passed_at_the_alpha_of_the_attempt():
    found = verdict(votes_vs_anchor=GOOD.votes, attempt=2)
    assert found.verdict == "pass"
    assert found.win_rate_vs_anchor == found.win_rate


def test_the_bar_of_the_anchor_is_a_setting():
    settings = SETTINGS.model_copy(update={"min_win_rate_vs_anchor": 0.2})
    votes = comparisons([0.25, 0.5, 0.5, 0.25, 0.5, 0.5])
    assert verdict(votes_vs_anchor=votes).verdict == "fail"
    assert verdict(votes_vs_anchor=votes, settings=settings).verdict == "pass"


def test_the_reward_model_stands_in_for_few_votes_over_the_anchor_too():
    asked = {"votes_vs_anchor": GOOD.votes[:2], "proxies_vs_anchor": comparisons([1.0] * 6)}
    found = verdict(settings=WITHOUT_VOTES, **asked)
    assert found.win_rate.judge == "held-out raters"
    assert found.win_rate_vs_anchor.judge == "reward model"
    assert found.passed
    assert verdict(**asked).verdict == "not_enough_data"
    few = verdict(votes_vs_anchor=GOOD.votes[:2])
    assert few.verdict == "not_enough_data"


# --- over-optimisation ----------------------------------------------------------------------


def test_people_and_reward_model_on_both_sides_of_one_half_fail_as_over_optimised():
    found = verdict(votes=comparisons([0.0, 0.25] * 4), proxies=comparisons([1.0, 0.75] * 4))
    assert (found.verdict, found.over_optimised) == ("fail", True)
    assert found.reasons[0].startswith("over-optimised: the reward model prefers it in 87.5%")


def test_a_gap_between_two_wins_is_remarked_and_fails_nothing():
    found = verdict(votes=comparisons([0.5, 0.75] * 4), proxies=comparisons([1.0] * 8))
    assert (found.verdict, found.over_optimised) == ("pass", True)
    assert found.reasons[-1].startswith("over-optimised")
    assert found.reasons[0].startswith("held-out raters")


def test_intervals_that_overlap_are_no_alarm():
    found = verdict(votes=comparisons([1.0, 0.5] * 4), proxies=comparisons([1.0, 0.75] * 4))
    assert not found.over_optimised


def test_people_who_like_it_better_than_the_reward_model_does_are_no_alarm():
    assert not verdict().over_optimised


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
