"""The measurement of the gateway: its figures by hand, and the whole of it as a process."""

import json
import os
import subprocess
import sys

import pytest

from core.errors import StartError
from deploy.bench.figures import added, ratios, summary
from deploy.bench.maths import Spread
from deploy.bench.memory import slices
from deploy.bench.report import LABELS, Aim, Report
from deploy.bench.targets import Target, folder_in, service

ROUNDS = {
    "direct": [{"alone_p50_ms": 1.0, "requests_per_second": 900.0}]
    + [{"alone_p50_ms": 5.0, "requests_per_second": 700.0}],
    "gateway": [{"alone_p50_ms": 1.5, "requests_per_second": 90.0}]
    + [{"alone_p50_ms": 6.5, "requests_per_second": 110.0}],
}

SYNC = {"p50": Spread(0.1, 0.1, 0.3), "p99": Spread(0.2, 0.1, 0.3)}


def test_what_is_added_is_taken_within_a_round():
    assert added(ROUNDS) == {"gateway": {"alone_p50_ms": Spread(1.0, 0.5, 1.5)}}
    assert summary(ROUNDS)["gateway"]["requests_per_second"] == Spread(100.0, 90.0, 110.0)


def test_a_ratio_is_ours_over_theirs_where_both_add_anything():
    ours = {name: Spread(v, 0, 9) for name, v in zip("abcd", (1.0, 3.0, 2.0, -0.1), strict=True)}
    theirs = {name: Spread(v, 0, 9) for name, v in zip("abcd", (4.0, 2.0, 0.0, 2.0), strict=True)}
    assert ratios(ours, theirs) == {"a": 0.25, "b": 1.5}


@pytest.mark.parametrize(
    ("value", "at_most", "met"),
    [(1.0, True, True), (1.1, True, False), (1.0, False, True), (0.9, False, False)],
)
def test_an_aim_is_met_up_to_its_bound(value, at_most, met):
    assert Aim("x", value, 1.0, at_most).met is met


def test_memory_is_measured_over_as_many_requests_as_asked_for_after_a_tenth_of_warm_up():
    assert slices(100_000) == (10, 97)  # of 1,024 requests
    assert slices(1) == (1, 2)


def test_options_that_were_measured_have_an_aim_and_others_have_none():
    figures = dict.fromkeys(LABELS, 1.0)
    rounds = {"direct": [figures], "gateway": [figures]}
    bare = Report(seconds=1.0, rounds=rounds, disk_sync_ms=SYNC)
    full = Report(
        seconds=1.0,
        rounds=rounds,
        disk_sync_ms=SYNC,
        memory_mib_per_100k=0.5,
        tokens={"share": Spread(0.96, 0.9, 0.99)},
    )
    more = {aim.what: aim.met for aim in full.aims()[len(bare.aims()) :]}
    assert more == {"memory_mib_per_100k": True, "share_of_tokens_per_second": False}


def test_growth_is_what_512_clients_wait_over_what_one_does_and_noise_divides_nothing():
    bare = dict.fromkeys(LABELS, 1.0)
    for alone, crowd, growth in ((1.5, 2.0, 2.0), (0.9, 1.3, 3.0)):  # adds 0.5; less than nothing
        ours = {**bare, "crowd_1_p50_ms": alone, "crowd_512_p50_ms": crowd}
        report = Report(
            seconds=1.0, rounds={"direct": [bare], "gateway": [ours]}, disk_sync_ms=SYNC
        )
        found = {aim.what: aim.value for aim in report.aims()}
        assert found["growth_from_1_to_512_clients"] == pytest.approx(growth)


def test_a_process_tells_its_time_and_its_memory():
    this = Target("tests", "", os.getpid())
    time_before, memory_before = this.processor_seconds(), this.resident_bytes()
    held = b"x" * (64 << 20)
    while this.processor_seconds() == time_before:
        hash(held[:1024])
    assert this.resident_bytes() - memory_before > len(held) // 2


def test_a_redis_that_holds_data_is_left_alone(redis_server, state_dir):
    import redis as redis_sync

    with redis_sync.Redis.from_url(redis_server.url) as client:
        client.set("theirs", "x")
        with (
            pytest.raises(StartError, match="give an empty one"),
            folder_in(state_dir) as folder,
            service(folder, "http://127.0.0.1:9", redis_url=redis_server.url),
        ):
            raise AssertionError
        assert client.keys() == [b"theirs"]
    assert list(state_dir.glob("bench-*")) == []


@pytest.mark.slow
def test_the_whole_measurement_runs_as_a_process_and_leaves_nothing(state_dir):
    command = [sys.executable, "-m", "deploy", "bench", "gateway", "--no-peers", "--json"]
    options = ["--seconds", "0.2", "--rounds", "2", "--state-dir", str(state_dir)]
    ended = subprocess.run([*command, *options], capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout)
    assert said["rounds"] == 2
    assert set(said["figures"]) == {"direct", "pass-through", "gateway"}
    assert set(said["added"]) == {"pass-through", "gateway"}
    for figures in said["figures"].values():
        assert set(figures) == set(LABELS)
        for spread in figures.values():
            assert spread["low"] <= spread["median"] <= spread["high"]
    gateway = said["figures"]["gateway"]
    assert gateway["requests_per_second"]["median"] > 0 < gateway["processor_ms"]["median"]
    assert gateway["alone_p50_ms"]["median"] <= gateway["alone_p99_ms"]["median"]
    assert "requests_per_second" in said["ratios"]["pass-through"]
    sync = said["disk_sync_ms"]
    assert 0 < sync["p50"]["median"] <= sync["p99"]["median"]
    assert {aim["what"] for aim in said["aims"]} >= {"added_alone_p50_ms", "requests_per_second"}
    assert said["memory_mib_per_100k"] is said["tokens_per_second"] is None
    assert list(state_dir.glob("bench-*")) == []
