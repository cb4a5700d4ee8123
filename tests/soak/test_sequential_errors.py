"""How often a canary's test is wrong, over ten thousand simulated ones."""

import numpy as np
import pytest

from learning.canary.sequential import confidence_sequence
from tests.learning.sequential_runs import first_crossings, paired_votes, share_above, users

pytestmark = [pytest.mark.soak, pytest.mark.slow]
RUNS, AT_ONCE, UNITS = 10_000, 250, 4_000


@pytest.mark.parametrize("kind", ["users", "paired"])
def test_equal_policies_are_rolled_back_in_at_most_one_of_a_hundred_canaries(kind: str) -> None:
    rng = np.random.default_rng(11)
    false = 0
    for _ in range(RUNS // AT_ONCE):
        if kind == "paired":
            values = paired_votes(rng, AT_ONCE, UNITS, 0.5)
        else:
            values = users(rng, AT_ONCE, UNITS, 0.7) - users(rng, AT_ONCE, UNITS, 0.7)
        false += int(np.isfinite(first_crossings(-values, 0.0, alpha=0.01)).sum())
    print(f"{kind}: {false} of {RUNS}, upper bound {share_above(false, RUNS):.4f}")
    assert share_above(false, RUNS) <= 0.01


def test_five_points_worse_is_found_in_a_median_of_about_eleven_hundred_votes() -> None:
    votes = paired_votes(np.random.default_rng(12), 2_000, 8_000, 0.45)
    found = first_crossings(-votes, 0.0, alpha=0.01)
    print(f"median {np.median(found):.0f}, found {np.isfinite(found).mean():.4f}")
    assert np.median(found) <= 1_150
    assert np.isfinite(found).mean() > 0.99


def test_the_confidence_sequence_covers_in_at_least_95_of_100_over_all_looks() -> None:
    rng = np.random.default_rng(13)
    runs, missed = 1_000, 0
    for _ in range(runs):
        values = (users(rng, 1, 1_000, 0.65) - users(rng, 1, 1_000, 0.70))[0]
        low, high = confidence_sequence(values)
        missed += bool(((low > -0.05) | (high < -0.05)).any())
    print(f"missed {missed} of {runs}")
    assert missed / runs <= 0.05
