"""The arithmetic of limits: by hand, and what must hold whatever gateways and clients do."""

import math

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from serving.limits import (
    ALONE,
    Bucket,
    Places,
    Standing,
    duration,
    estimated_tokens,
    headers_of,
    whole_seconds,
)
from tests.serving.limit_model import GONE, Pool

ONE = Standing()


def bucket(limit=60, now=100.0, kind="requests") -> Bucket:
    return Bucket("b", kind, limit, now)


def spend(meter, cost, now, standing=ONE) -> bool:
    if not meter.fits(cost, now, standing):
        meter.refuse(cost, now)
        return False
    meter.take(cost, now)
    return True


def exchange(meter: Bucket, pool: Pool, who: str, now: float, *, give_back=False) -> None:
    said, before, want = meter.report(now)
    granted, left = pool.lease(who, now * 1000, said, before, -1 if give_back else want)
    meter.renew(said, granted, left, now)
    meter.leased = not give_back


def test_a_gateway_by_itself_lets_exactly_the_budget_in_at_once():
    meter = bucket(limit=7)
    assert [spend(meter, 1, 100.0) for _ in range(9)] == [True] * 7 + [False] * 2
    assert meter.wait(1, 100.0) == pytest.approx(60 / 7)


def test_what_flows_back_comes_with_the_next_slice():
    meter, pool = bucket(limit=60), Pool(60, 60 / 60_000)
    for _ in range(60):
        assert spend(meter, 1, 100.0)
    exchange(meter, pool, "a", 100.0)
    assert not spend(meter, 1, 100.0)
    exchange(meter, pool, "a", 103.5)
    assert [spend(meter, 1, 103.5) for _ in range(4)] == [True] * 3 + [False]
    assert meter.credit == pytest.approx(0.5)


def test_what_is_spent_while_a_report_is_on_its_way_is_not_forgotten():
    meter, pool = bucket(limit=10), Pool(10, 10 / 60_000)
    assert spend(meter, 4, 100.0)
    said, before, want = meter.report(100.0)
    granted, left = pool.lease("a", 100_000, said, before, want)
    assert spend(meter, 5, 100.0)
    meter.renew(said, granted, left, 100.0)
    assert meter.credit == pytest.approx(1)
    assert meter.pool(100.0) == pytest.approx(1)
    assert meter.is_due(100.0)


def test_a_report_whose_answer_was_lost_counts_once():
    meter, pool = bucket(limit=10), Pool(10, 10 / 60_000)
    assert spend(meter, 4, 100.0)
    pool.lease("a", 100_000, *meter.report(100.0))  # the answer never comes
    exchange(meter, pool, "a", 100.0)
    assert meter.credit == pytest.approx(6)


def test_tokens_are_corrected_when_a_reply_has_ended_up_and_down():
    meter = bucket(limit=1000, kind="tokens")
    assert spend(meter, 600, 100.0)
    meter.settle(600, 250, 100.0)
    assert meter.pool(100.0) == pytest.approx(750)
    assert spend(meter, 700, 100.0)
    meter.settle(700, 900, 100.0)
    assert meter.pool(100.0) == pytest.approx(-150)
    assert not spend(meter, 1, 100.0)
    assert meter.wait(1, 100.0) == pytest.approx(151 * 60 / 1000)
    assert meter.open == 0


def test_a_request_counts_whatever_becomes_of_it():
    meter = bucket(limit=3)
    assert spend(meter, 1, 100.0)
    meter.settle(1, 500, 100.0)
    assert meter.pool(100.0) == pytest.approx(2)


def test_a_refused_request_finds_room_in_the_next_slice():
    """Two gateways hold a third each of 900; neither could ever let 500 in without saying so."""
    one, two, pool = bucket(900), bucket(900), Pool(900, 900 / 60_000)
    for meter, name in ((one, "a"), (two, "b")) * 9:
        exchange(meter, pool, name, 100.0)
    assert one.credit == pytest.approx(300, abs=2)
    assert not spend(one, 500, 100.0)
    exchange(one, pool, "a", 100.0)
    assert spend(one, 500, 100.0)


def test_without_redis_a_gateway_is_stricter_and_never_stops():
    away = Standing(gateways=2, alone=True)
    meter = bucket(limit=120)
    assert away.share == ALONE / 2 == 0.25
    assert spend(meter, 1, 100.0)
    meter.go_alone(0.0, 100.0, away)
    assert meter.credit == 30
    for _ in range(30):
        assert spend(meter, 1, 100.0, away)
    assert not spend(meter, 1, 100.0, away)
    meter.go_alone(4.0, 104.0, away)
    assert meter.credit == pytest.approx(2)
    pool = Pool(120, 120 / 60_000)
    exchange(meter, pool, "a", 104.0)  # afterwards all of it is told
    assert pool.level + meter.credit == pytest.approx(120 - 31)


def test_what_is_forgotten_is_as_good_as_new():
    meter, pool = bucket(limit=30), Pool(30, 30 / 60_000)
    for _ in range(30):
        assert spend(meter, 1, 100.0)
    meter.open = 0
    exchange(meter, pool, "a", 102.0, give_back=True)
    assert not meter.can_go(102.0, ONE)
    assert not spend(meter, 2, 102.0)  # a second on credit is not a new budget
    exchange(meter, pool, "a", 105.5, give_back=True)
    assert not meter.can_go(161.0, ONE)
    assert meter.can_go(162.1, ONE)


def test_places_come_back_when_completions_end():
    meter = Places("p", "concurrency", 2, 100.0)
    assert [spend(meter, 1, 100.0) for _ in range(3)] == [True, True, False]
    meter.settle(1, 0, 101.0)
    assert spend(meter, 1, 101.0)
    assert not meter.is_idle(200.0)
    meter.settle(1, 0, 200.0)
    meter.settle(1, 0, 200.0)
    assert meter.is_idle(202.0)
    meter.leased = False
    assert meter.can_go(202.0, ONE)


def test_one_completion_at_a_time_is_left_without_redis():
    meter = Places("p", "concurrency", 3, 100.0)
    meter.go_alone(1.0, 100.0, Standing(gateways=9, alone=True))
    assert meter.credit == 1


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0ms"), (0.012, "12ms"), (1.5, "1.5s"), (6, "6s"), (360, "6m0s"), (3725, "1h2m5s")],
)
def test_times_read_as_openais_do(seconds, said):
    assert duration(seconds) == said


def test_headers_show_the_tighter_of_two_budgets_of_a_kind():
    wide, tight = bucket(limit=600), bucket(limit=60)
    spend(tight, 15, 100.0)
    tokens = bucket(limit=6000, kind="tokens")
    said = {k.decode(): v.decode() for k, v in headers_of([wide, tight, tokens], 100.0)}
    assert said == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "45",
        "x-ratelimit-reset-requests": "15s",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "6000",
        "x-ratelimit-reset-tokens": "0ms",
    }


def test_estimates_and_waits_round_up():
    assert estimated_tokens(9, 2, 50, 7) == 3 + 100
    assert estimated_tokens(8, 3, None, 7) == 2 + 21
    assert (whole_seconds(0), whole_seconds(1.01)) == (1, 2)


STEPS = st.lists(
    st.tuples(
        st.integers(0, 2),  # which gateway
        st.sampled_from(["spend", "flood", "flood", "report", "idle", "idle"]),
        st.integers(1, 4),  # cost
        st.sampled_from([0.0, 0.0, 0.0, 0.1, 2.0]),  # seconds until the next step
    ),
    min_size=40,
    max_size=80,
)


@given(limit=st.integers(4, 20), steps=STEPS)
@hypothesis_settings(deadline=None, max_examples=200)
def test_no_window_lets_in_more_than_the_budget_and_a_slice_for_each_gateway(limit, steps):
    assert overrun(limit, steps) <= 1e-3


@given(limit=st.integers(4, 20), steps=STEPS, lost_at=st.integers(0, 39), who=st.integers(0, 2))
@hypothesis_settings(deadline=None, max_examples=100)
def test_a_reply_of_redis_that_is_lost_lets_in_one_slice_more(limit, steps, lost_at, who):
    lost = (who, "lost", 1, 0.0)
    assert overrun(limit, [*steps[:lost_at], lost, *steps[lost_at:]]) <= limit + 1e-3


def overrun(limit, steps):
    """How much more than the promise any window of time let in; what happens is in `steps`."""
    gateways = 3
    standing = Standing(gateways=gateways)
    pool = Pool(limit, limit / 60_000)
    meters = [bucket(limit, now=0.0) for _ in range(gateways)]
    now, spent = 0.0, []
    for who, what, cost, pause in steps:
        if now >= GONE / 1000:
            break  # one that is silent for so long counts as dead, and its slice comes back
        meter = meters[who]
        if what in ("spend", "flood"):
            while spend(meter, cost, now, standing):
                spent.append((now, cost))
                if what == "spend":
                    break
        elif what == "lost":
            said, before, want = meter.report(now)
            pool.lease(str(who), now * 1000, said, before, want)
        else:
            exchange(meter, pool, str(who), now, give_back=what == "idle")
        now += pause
    slices = gateways * max(limit / gateways, 4)
    worst = -math.inf
    for first, (begin, _) in enumerate(spent):
        total = 0
        for end, cost in spent[first:]:
            total += cost
            worst = max(worst, total - limit - (end - begin) * limit / 60 - slices)
    return worst


@given(
    limit=st.integers(1, 9),
    steps=st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(["begin", "begin", "end", "report"])),
        max_size=80,
    ),
)
@hypothesis_settings(deadline=None, max_examples=200)
def test_places_of_all_gateways_stay_below_the_limit_once_they_were_leased(limit, steps):
    pool = Pool(limit, 0)
    meters = [Places("p", "concurrency", limit, 0.0) for _ in range(3)]
    for who, meter in enumerate(meters):
        meter.credit, meter.leased = pool.lease(str(who), 0.0, 0.0)[0], True
    for who, what in steps:
        meter = meters[who]
        if what == "begin":
            spend(meter, 1, 0.0)
        elif what == "end" and meter.open:
            meter.settle(1, 0, 0.0)
        elif what == "report":
            said, before, want = meter.report(0.0)
            meter.renew(said, *pool.lease(str(who), 0.0, said, before, want), 0.0)
        assert sum(one.open for one in meters) <= limit
