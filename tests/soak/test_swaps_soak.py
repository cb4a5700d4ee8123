"""A thousand swaps that break at every step, under traffic, on doubles: `make soak`.

A failure names the round and its faults; the same seed gives the same faults again.
"""

import pytest

from tests.serving.conftest import gateway_settings  # noqa: F401 - a fixture
from tests.serving.swap_rig import KINDS, STEPS, broken_swaps, swap_rig
from tests.serving.test_release_machine import run

pytestmark = [pytest.mark.soak, pytest.mark.slow]
ROUNDS = 500


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [1, 2])
async def test_a_thousand_broken_swaps_fail_no_request_and_misattribute_no_token(
    gateway_settings,  # noqa: F811
    redis,
    keyring,
    monkeypatch,
    seed,
):
    async with swap_rig(gateway_settings, redis, keyring, monkeypatch, seed=seed) as rig:
        await broken_swaps(rig, ROUNDS)
        assert sum(rig.struck.values()) > ROUNDS / 2
        assert len(rig.struck) > len(STEPS) * len(KINDS) / 2
        assert rig.heard.crossed > 0


@pytest.mark.timeout(1800)
def test_in_any_order_of_many_only_live_versions_answer(shared_redis):
    run(shared_redis.url, examples=150, steps=60)
