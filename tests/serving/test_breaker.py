"""A circuit breaker on a clock of the test's own."""

from hypothesis import given
from hypothesis import strategies as st

from serving.breaker import FAILURES, FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS, Breaker


def test_failures_in_a_row_open_it_and_an_answer_in_between_does_not():
    breaker = Breaker()
    for _ in range(4):
        assert [breaker.failed(1.0) for _ in range(FAILURES - 1)] == [False] * (FAILURES - 1)
        breaker.answered()
    assert breaker.closed
    assert [breaker.failed(2.0) for _ in range(FAILURES)] == [False] * (FAILURES - 1) + [True]
    assert breaker.state(2.0) == "open"


def test_trials_come_ever_later_up_to_a_bound_and_one_that_succeeds_closes_it():
    breaker, now, waits = Breaker(), 100.0, []
    assert breaker.open(now)
    for _ in range(9):
        waits.append(breaker.trial_at - now)
        assert breaker.state(breaker.trial_at - 0.001) == "open"
        now = breaker.trial_at
        assert breaker.state(now) == "half-open"
        assert not breaker.open(now)
    doubled = [FIRST_DELAY_SECONDS * 2**n for n in range(9)]
    assert [round(wait, 6) for wait in waits] == [min(w, LONGEST_DELAY_SECONDS) for w in doubled]
    assert doubled[-1] > LONGEST_DELAY_SECONDS
    breaker.close()
    assert breaker.state(now) == "closed"
    assert breaker.open(now)
    assert breaker.trial_at == now + FIRST_DELAY_SECONDS


def test_an_open_one_is_not_closed_by_requests_that_began_before():
    breaker = Breaker()
    breaker.open(0.0)
    breaker.answered()
    assert not breaker.closed
    assert not breaker.failed(0.0)
    assert breaker.trial_at == FIRST_DELAY_SECONDS  # late failures do not put the trial off


def test_jitter_stretches_the_wait():
    breaker = Breaker()
    breaker.open(10.0, jitter=1.2)
    assert breaker.trial_at == 10.0 + 1.2 * FIRST_DELAY_SECONDS


@given(steps=st.lists(st.sampled_from(["failed", "answered", "trial failed", "close"])))
def test_whatever_happens_it_opens_after_enough_failures_only_and_a_trial_is_never_far(steps):
    breaker, now, in_a_row, open_ = Breaker(), 0.0, 0, False
    for step in steps:
        now += 0.5
        match step:
            case "failed":
                breaker.failed(now)
                in_a_row += 1
                open_ = open_ or in_a_row >= FAILURES
            case "answered":
                breaker.answered()
                in_a_row = 0
            case "trial failed":
                breaker.open(now)
                open_ = True
            case "close":
                breaker.close()
                in_a_row, open_ = 0, False
        assert breaker.closed is not open_
        assert open_ is False or breaker.trial_at <= now + LONGEST_DELAY_SECONDS
