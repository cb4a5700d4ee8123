"""A simulated roll: its time by hand, its limits, and what several turns at a time change."""

import dataclasses
import math

import pytest

from deploy.bench.fleet import Fleet, roll
from serving.agent import TICK_SECONDS

SMALL = Fleet(replicas=12, failures=0.0, requests_per_second=40.0, answer_seconds=2.0)


def test_one_at_a_time_takes_the_sum_of_all_turns_and_the_looks_between():
    found = roll(SMALL)
    assert (found.most_swapping, found.attempts) == (1, 12)
    least = 12 * (0.8 * SMALL.load_seconds + SMALL.pause_seconds)
    most = 12 * (1.2 * SMALL.load_seconds + SMALL.pause_seconds + TICK_SECONDS)
    assert least < found.seconds < most


def test_all_at_one_time_take_as_long_as_the_slowest():
    found = roll(dataclasses.replace(SMALL, swap_share=1.0))
    assert found.most_swapping > 6
    assert found.seconds < 3 * (1.2 * SMALL.load_seconds + SMALL.pause_seconds + TICK_SECONDS)


def test_never_more_than_the_share_swap_and_all_end_though_some_fail():
    fleet = dataclasses.replace(SMALL, replicas=100, failures=0.3, requests_per_second=300.0)
    found = roll(fleet)
    assert found.most_swapping == 10
    assert found.attempts > 110
    assert found.waited_share == 0.0
    assert found.seconds < 3 * 10 * (fleet.load_seconds + 2)


def test_as_many_replies_are_stalled_as_littles_law_says_are_in_flight():
    fleet = dataclasses.replace(SMALL, replicas=200, requests_per_second=2000.0)
    found = roll(fleet)
    in_flight = fleet.requests_per_second * fleet.answer_seconds
    assert found.stalled_share * found.requests == pytest.approx(in_flight, rel=0.1)


def test_a_fleet_without_room_lets_requests_wait():
    full = dataclasses.replace(SMALL, requests_per_second=math.ceil(12 * 32 / 2.0) * 1.5)
    assert roll(full).waited_share > 0.1


def test_the_same_seed_gives_the_same_roll():
    assert roll(SMALL) == roll(SMALL)
    assert roll(SMALL) != roll(dataclasses.replace(SMALL, seed=1))
