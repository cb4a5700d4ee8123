"""Do the gate's intervals hold the truth as often as they say, and how often does an even one pass?

Users differ in taste and in how much they ask, and what one user says is not independent: the
simulation draws all three. The small version is in tests/learning/test_winrate.py.
"""

import numpy as np
import pytest

from core.hyperparameters import GateSettings
from learning.gate.comparisons import Comparison
from learning.gate.gate import judge
from learning.gate.limits import Evidence
from learning.gate.winrate import bootstrap_interval

pytestmark = [pytest.mark.soak]
USERS = 60
TRUTH = 2.0 / 3.0


def said(generator: np.random.Generator, *, mean: float) -> tuple[np.ndarray, np.ndarray]:
    """Sums of points and counts, (users,) each; points are 0, a half or 1."""
    taste = generator.beta(6.0 * mean, 6.0 * (1.0 - mean), size=USERS)
    counts = generator.integers(1, 7, size=USERS)
    sums = [
        generator.binomial(2 * n, chance) / 2.0 for n, chance in zip(counts, taste, strict=True)
    ]
    return np.asarray(sums), counts.astype(float)


def test_intervals_at_sixty_users_hold_the_truth_in_93_to_97_of_100_cases() -> None:
    generator = np.random.default_rng(17)
    trials = 4000
    held = 0
    for trial in range(trials):
        sums, counts = said(generator, mean=TRUTH)
        low, high = bootstrap_interval(sums, counts, confidence=0.95, samples=1000, seed=trial)
        held += low <= TRUTH <= high


def test_an_even_candidate_passes_less_often_than_alpha_over_five_attempts() -> None:
    generator = np.random.default_rng(23)
    settings = GateSettings(min_users=40, bootstrap_samples=400)
    trials, passed = 300, 0
    for trial in range(trials):
        for attempt in range(1, 6):
            sums, counts = said(generator, mean=0.5)
            points = sums / counts
            votes = [Comparison(f"u{n}", float(p), float(p)) for n, p in enumerate(points)]
            evidence = Evidence(
                votes=votes,
                proxies=[],
                kl_per_token=0.1,
                pretraining_loss_share=0.0,
                length_ratio=1.0,
                broken_share=0.0,
            )
            verdict = judge(evidence, settings=settings, attempt=attempt, seed=trial)
            if verdict.passed:
                passed += 1
                break

    # alpha .05 in all, one-sided; three standard errors of chance above it
    assert passed / trials <= 0.05 + 3.0 * np.sqrt(0.05 * 0.95 / trials)
