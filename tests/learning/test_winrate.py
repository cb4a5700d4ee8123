import numpy as np
import pytest
from scipy.stats import bootstrap

from learning.gate.winrate import bootstrap_interval, per_user, points, win_rate


def test_points_are_one_for_a_win_a_half_for_a_tie_and_none_for_a_loss() -> None:
    assert points([3.0, 1.0, 2.0], [2.0, 1.0, 5.0]).tolist() == [1.0, 0.5, 0.0]


def test_sums_and_counts_are_by_user_whatever_the_order() -> None:
    sums, counts = per_user(np.array([1.0, 0.0, 0.5, 1.0]), ["b", "a", "b", "a"])
    assert (sums.tolist(), counts.tolist()) == ([1.0, 1.5], [2.0, 2.0])


def test_a_small_win_rate_by_hand() -> None:
    rate = win_rate([1.0, 2.0, 3.0, 4.0], [0.0, 3.0, 3.0, 0.0], ["u", "u", "v", "w"])
    assert (rate.value, rate.ties, rate.comparisons, rate.users) == (0.625, 1, 4, 3)
    assert 0.0 <= rate.low <= rate.value <= rate.high <= 1.0


def test_swapping_the_two_policies_mirrors_the_win_rate() -> None:
    generator = np.random.default_rng(1)
    mine, other = generator.normal(size=(2, 57)).round(1)
    users = [f"u{i % 13}" for i in range(57)]
    there, back = win_rate(mine, other, users), win_rate(other, mine, users)
    assert there.value == pytest.approx(1.0 - back.value)
    assert (there.low, there.high) == (pytest.approx(1 - back.high), pytest.approx(1 - back.low))


def test_the_interval_is_scipys_bootstrap_over_users() -> None:
    generator = np.random.default_rng(2)
    counts = generator.integers(1, 6, size=41).astype(float)
    sums = np.array([generator.binomial(int(n), 0.7) for n in counts], float)
    low, high = bootstrap_interval(sums, counts, confidence=0.9, samples=40_000, seed=3)

    def ratio(s: np.ndarray, n: np.ndarray, axis: int = -1) -> np.ndarray:
        return s.sum(axis=axis) / n.sum(axis=axis)

    theirs = bootstrap(
        (sums, counts), ratio, paired=True, vectorized=True, confidence_level=0.9,
        n_resamples=40_000, method="percentile", random_state=np.random.default_rng(4),
    ).confidence_interval  # fmt: skip
    assert low == pytest.approx(theirs.low, abs=0.003)
    assert high == pytest.approx(theirs.high, abs=0.003)


def test_a_user_who_says_the_same_ten_times_does_not_make_the_interval_narrower() -> None:
    generator = np.random.default_rng(5)
    once = generator.integers(0, 2, size=50).astype(float)
    users = [f"u{i}" for i in range(50)]
    single = win_rate(once, 1 - once, users)
    repeated = win_rate(np.repeat(once, 10), np.repeat(1 - once, 10), np.repeat(users, 10))
    assert (repeated.low, repeated.high) == (single.low, single.high)


def test_about_95_of_100_intervals_hold_the_truth() -> None:
    generator = np.random.default_rng(6)
    held = 0
    for trial in range(200):
        taste = generator.beta(6, 3, size=60)  # each user's own chance; the mean is 2/3
        won = [generator.random() < taste[i // 3] for i in range(180)]
        rate = win_rate(
            np.array(won, float), np.full(180, 0.5), [str(i // 3) for i in range(180)], seed=trial,
            samples=500,
        )  # fmt: skip
        held += rate.low <= 2 / 3 <= rate.high
    assert 180 <= held <= 198


def test_the_interval_depends_on_the_seed_alone() -> None:
    sums, counts = np.arange(9.0), np.full(9, 10.0)
    first = bootstrap_interval(sums, counts, confidence=0.95, samples=300, seed=7)
    assert first == bootstrap_interval(sums, counts, confidence=0.95, samples=300, seed=7)
    assert first != bootstrap_interval(sums, counts, confidence=0.95, samples=300, seed=8)
