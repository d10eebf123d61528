"""Statistics worked by hand."""

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu, trim_mean

from headstart.experiments.intervals import (
    estimate,
    interquartile_mean,
    mean_interval,
    mean_of_means,
    paired_interval,
    probability_of_improvement,
    share_of,
)


def test_paired_t_interval_by_hand() -> None:
    # mean 0.15; squares of deviations sum to 0.025, so sd = sqrt(0.025 / 4), its error sqrt(0.00125); t(4) = 2.776445
    interval = paired_interval([0.10, 0.20, 0.15, 0.05, 0.25])
    assert interval == pytest.approx((0.15 - 2.776445 * math.sqrt(0.00125), 0.15 + 2.776445 * math.sqrt(0.00125)))
    assert paired_interval([0.10, 0.20, 0.15, 0.05]) is None


def test_interval_of_a_mean_of_shares_by_hand() -> None:
    """Within 0 and 1, where shares are."""
    # squares of deviations sum to 0.8, so the error of the mean is sqrt(0.2 / 5) = 0.2
    assert mean_interval([0, 0, 1, 0, 0]) == pytest.approx((0.0, 0.2 + 2.776445 * 0.2))
    assert mean_interval([1, 1, 0, 1, 1]) == pytest.approx((0.8 - 2.776445 * 0.2, 1.0))
    assert mean_interval([0.4] * 10) == pytest.approx((0.4, 0.4))
    assert mean_interval([0.1, 0.2, 0.3, 0.4]) is None


def test_the_interval_of_five_seeds_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    intervals = [mean_interval(rng.normal(0.6, 0.1, 5).tolist()) or (math.nan, math.nan) for _ in range(500)]
    assert 465 <= sum(low < 0.6 < high for low, high in intervals) <= 488  # 475 are 95 %


# ---- the bootstrap of two levels ----
def test_environments_are_resampled_first() -> None:
    """Seeds that all agree, environments that do not: the number of ones among four is Binomial(4, 1/4)."""
    # P(X = 0) = 0.316; P(X <= 2) = 0.949, P(X <= 3) = 0.996: a quarter of 3 is the 97.5th percentile
    found = estimate([[0.0] * 5, [0.0] * 5, [1.0] * 5, [0.0] * 5], mean_of_means)
    assert (found.value, found.interval) == (0.25, (0.0, 0.75))


def test_seeds_are_resampled_within_their_environment() -> None:
    """One environment: the ordinary bootstrap of its seeds. The mean of a resample is Binomial(5, 0.2) / 5."""
    # P(X = 0) = 0.33, P(X <= 2) = 0.942, P(X <= 3) = 0.993
    found = estimate([[0, 0, 1, 0, 0]], mean_of_means)
    assert (found.value, found.interval) == (pytest.approx(0.2), pytest.approx((0.0, 0.6)))


def test_an_environment_counts_once_however_many_seeds_it_has() -> None:
    assert estimate([[0.0] * 5, [1.0] * 10], mean_of_means).value == 0.5
    # both, one or the other environment twice: 0, 0.5, 0.5, 1 in equal parts
    assert estimate([[0.0] * 5, [1.0] * 10], mean_of_means).interval == (0.0, 1.0)


def test_no_interval_with_fewer_than_five_seeds_anywhere() -> None:
    found = estimate([[0.1] * 5, [0.2] * 4, [0.3] * 5], mean_of_means)
    assert (found.value, found.interval) == (pytest.approx(0.2), None)


def test_the_same_numbers_give_the_same_interval() -> None:
    numbers = np.random.default_rng(0).random((3, 5)).tolist()
    assert estimate(numbers, mean_of_means) == estimate(numbers, mean_of_means)


def test_the_interval_covers_the_truth_as_often_as_it_can() -> None:
    """Eight environments of five seeds, drawn at random: about nine of ten intervals cover (of eight, not of many)."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        environments = rng.normal(0, 1, (8, 1)) + rng.normal(0, 0.5, (8, 5))
        low, high = estimate(list(environments), mean_of_means, resamples=500).interval or (math.nan, math.nan)
        covered += low < 0 < high
    assert 170 <= covered <= 196


# ---- the statistics ----
def test_interquartile_mean_by_hand() -> None:
    # eight runs: two are cut at each end, 0.3 to 0.6 are left
    runs = [[0.8, 0.1, 0.4, 0.5], [0.3, 0.7, 0.2, 0.6]]
    assert estimate(runs, interquartile_mean).value == pytest.approx(0.45)


@pytest.mark.parametrize("sizes", [(5, 5), (5, 7), (6, 10, 5)])
def test_interquartile_mean_is_scipys(sizes: tuple[int, ...]) -> None:
    """Also where environments have different numbers of seeds."""
    rng = np.random.default_rng(1)
    runs = [rng.random(size) for size in sizes]
    assert estimate(runs, interquartile_mean).value == pytest.approx(trim_mean(np.concatenate(runs), 0.25))


def test_probability_of_improvement_by_hand() -> None:
    # first environment: 0.5 beats 0.1, 0.4 and ties with 0.5 (2.5); 0.3 beats 0.1 (1); 0.6 beats all (3): 6.5 of 9
    # second: never
    first, second = [(0.5, 0.1), (0.3, 0.5), (0.6, 0.4)], [(0.0, 1.0), (0.2, 0.9)]
    assert estimate([first, second], probability_of_improvement).value == pytest.approx((6.5 / 9 + 0) / 2)


def test_probability_of_improvement_is_mann_and_whitneys() -> None:
    ours, theirs = np.random.default_rng(2).random((2, 8)).round(1)  # with ties
    wins = mannwhitneyu(ours, theirs).statistic
    found = estimate([np.stack([ours, theirs], axis=1)], probability_of_improvement)
    assert found.value == pytest.approx(wins / 64)
    assert found.interval is not None
    assert found.interval[0] <= found.value <= found.interval[1]


def test_environments_may_have_different_numbers_of_seeds() -> None:
    """Mann and Whitney's number in each, and the interval of a plain loop, whose resamples are others."""
    rng = np.random.default_rng(1)
    environments = [rng.random((n, 2)).round(1) for n in (5, 8)]  # with ties
    found = estimate(environments, probability_of_improvement)
    whole = [float(mannwhitneyu(*pairs.T).statistic) for pairs in environments]
    assert found.value == pytest.approx((whole[0] / 25 + whole[1] / 64) / 2)

    def wins(pairs: NDArray[np.float64]) -> float:
        return float(
            np.mean([(ours > theirs) + 0.5 * (ours == theirs) for ours in pairs[:, 0] for theirs in pairs[:, 1]])
        )

    def resample() -> float:
        chosen = [environments[one] for one in rng.integers(2, size=2)]
        return sum(wins(pairs[rng.integers(len(pairs), size=len(pairs))]) for pairs in chosen) / 2

    low, high = np.percentile([resample() for _ in range(3000)], [2.5, 97.5])
    # as many seeds from five as from eight would be 0.215 to 0.656
    assert found.interval == (pytest.approx(low, abs=0.015), pytest.approx(high, abs=0.015))


def test_share_is_a_ratio_of_means_by_hand() -> None:
    # means 0.1 of 0.2 and 0.3 of 0.6: 0.4 / 0.8 and not the mean of the ratios of seeds, 0 and 1 and 0.5
    first, second = [(0.0, 0.1), (0.2, 0.3)], [(0.3, 0.6), (0.3, 0.6)]
    assert estimate([first, second], share_of).value == pytest.approx(0.5)
    assert estimate([[(0.1, 0.1), (0.0, 0.3)]], share_of).value == pytest.approx(0.25)


def test_share_is_resampled_in_pairs() -> None:
    """Every seed closes half of its own gap, so every resample does: the interval has no width."""
    pairs = [(0.5 * gap, gap) for gap in (0.1, 0.2, 0.3, 0.4, 0.5)]
    found = estimate([pairs], share_of)
    assert found.interval == (pytest.approx(0.5), pytest.approx(0.5))


def test_share_of_nothing_is_no_number_to_rely_on() -> None:
    assert estimate([[(0.1, 0.0)] * 5], share_of).value == -math.inf


def test_statistics_agree_with_the_plain_loop() -> None:
    """All 5 ** 5 resamples of one environment, against the interval that is drawn at random."""
    values = [0.0, 0.1, 0.3, 0.4, 0.9]
    means = [float(np.mean(some)) for some in itertools.product(values, repeat=5)]
    low, high = np.percentile(means, [2.5, 97.5])
    assert estimate([values], mean_of_means).interval == (
        pytest.approx(low, abs=0.021),
        pytest.approx(high, abs=0.021),
    )
