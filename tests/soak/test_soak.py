"""What takes too long for every change: `make soak`.

Both demonstrations with their win rates, the gateway's memory over 100,000 requests, and hot swaps
under load, each started as people start it.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.soak, pytest.mark.slow]
MINUTES = 60


def instructloop(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deploy", *words], capture_output=True, text=True, check=False
    )


@pytest.mark.timeout(25 * MINUTES)
@pytest.mark.parametrize("judge", ["sentiment", "brevity"])
def test_a_taste_is_learned_within_twenty_minutes(judge: str, tmp_path: Path) -> None:
    ended = instructloop("demo", "--judge", judge, "--seed", "0", "--out", str(tmp_path))
    assert ended.returncode == 0, ended.stderr[-2000:]
    report = json.loads((tmp_path / "report.json").read_text())
    low, high = report["win_rate"]["interval"]
    assert 0.6 < low < report["win_rate"]["value"] < high
    assert report["win_rate"]["n"] >= 200
    assert report["failed_requests"] == 0
    assert report["seconds"] < 20 * MINUTES


@pytest.mark.timeout(30 * MINUTES)
def test_memory_stays_flat_over_a_hundred_thousand_requests() -> None:
    ended = instructloop("bench", "gateway", "--memory", "--no-peers", "--rounds", "1", "--json")
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert json.loads(ended.stdout)["memory_mib_per_100k"] < 1.0


@pytest.mark.timeout(60 * MINUTES)
def test_fifty_swaps_under_load_fail_nothing_and_attribute_every_token() -> None:
    ended = instructloop("bench", "swap", "--swaps", "50", "--streams", "8", "--json")
    assert ended.returncode == 0, ended.stderr[-2000:]
    ways = json.loads(ended.stdout)["figures"]
    assert {way["swaps"] for way in ways} == {50}
    assert [(way["failed"], way["misattributed"]) for way in ways] == [(0, 0)] * len(ways)
