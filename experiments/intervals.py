"""Estimates and their 95 % intervals: of one environment's seeds, and of environments and their seeds together.

Intervals need five seeds, in every environment. Where environments are resampled too, the bootstrap has two levels, as
the runs have: environments first, then the seeds of each (percentile: scipy's default, BCa, gives NaN where seeds tie).
Everything here is a function of plain numbers, and the same numbers give the same interval.

Shapes: R resamples, E environments, n seeds of the environment that has most, k numbers of each seed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "FEWEST_SEEDS",
    "Estimate",
    "Interval",
    "Statistic",
    "estimate",
    "interquartile_mean",
    "mean_interval",
    "mean_of_means",
    "paired_interval",
    "probability_of_improvement",
    "share_of",
]

FEWEST_SEEDS = 5  # with fewer, an interval says more about luck than about the arm
RESAMPLES = 10_000

Interval = tuple[float, float] | None
Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]  # (R, E, n, k), NaN where there is no seed, to (R,)


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval; None under five seeds."""

    value: float
    interval: Interval


# ---- one environment ----
def mean_interval(shares: Sequence[float]) -> Interval:
    """95 % t interval of the mean of shares, within 0 and 1; None under five. (A bootstrap of so few is too narrow.)"""
    interval = paired_interval(shares)
    return interval and (max(0.0, interval[0]), min(1.0, interval[1]))


def paired_interval(differences: Sequence[float]) -> Interval:
    """95 % t interval of the mean of paired differences; None under five pairs."""
    n = len(differences)
    if n < FEWEST_SEEDS:
        return None
    from scipy.stats import t  # slow to import

    margin = float(t.ppf(0.975, n - 1)) * float(np.std(differences, ddof=1)) / math.sqrt(n)
    mean = float(np.mean(differences))
    return mean - margin, mean + margin


# ---- environments and seeds ----
def estimate(samples: Sequence[ArrayLike], statistic: Statistic, resamples: int = RESAMPLES) -> Estimate:
    """A statistic of all environments, with the interval of a bootstrap of environments and then seeds.

    samples: of each environment, a number (n,) or several (n, k) of each seed; seeds are drawn with all their numbers.
    With one environment it is a bootstrap of its seeds. No interval if any environment has fewer than five. With
    as few environments and seeds as a study has, it is a little too narrow.
    """
    arrays = [np.asarray(sample, dtype=float).reshape(len(np.asarray(sample)), -1) for sample in samples]
    sizes = np.array([len(array) for array in arrays])
    padded = np.full((len(arrays), sizes.max(), arrays[0].shape[1]), np.nan)  # (E, n, k)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    value = float(statistic(padded[None])[0])
    if sizes.min() < FEWEST_SEEDS:
        return Estimate(value, None)
    rng = np.random.default_rng(0)
    env = rng.integers(len(arrays), size=(resamples, len(arrays)))  # (R, E)
    seed = (rng.random((*env.shape, padded.shape[1])) * sizes[env][..., None]).astype(int)  # (R, E, n)
    drawn = padded[env[..., None], seed]  # (R, E, n, k)
    drawn[np.arange(padded.shape[1]) >= sizes[env][..., None]] = np.nan
    # one of the values that occurred, so that infinite ones beyond the 2.5 % do no harm
    low, high = np.percentile(statistic(drawn), [2.5, 97.5], method="inverted_cdf")
    return Estimate(value, (float(low), float(high)))


def mean_of_means(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over environments of the mean over seeds: every environment counts the same. k = 1."""
    return np.nanmean(drawn[..., 0], axis=2).mean(axis=1)


def interquartile_mean(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of the middle half of all runs; a quarter, rounded down, is cut at each end. k = 1."""
    runs = np.sort(drawn[..., 0].reshape(len(drawn), -1), axis=1)  # NaN last
    count = (~np.isnan(runs)).sum(axis=1, keepdims=True)
    rank, cut = np.arange(runs.shape[1]), count // 4
    return np.nanmean(np.where((rank >= cut) & (rank < count - cut), runs, np.nan), axis=1)


def probability_of_improvement(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of all pairs of seeds in which the first number beats the second, mean over environments; k = 2.

    Each seed's first number meets every seed's second; a tie counts half.
    """
    ours, theirs = drawn[..., :, None, 0], drawn[..., None, :, 1]  # (R, E, n, 1) and (R, E, 1, n)
    wins = (ours > theirs).sum(axis=(2, 3)) + 0.5 * (ours == theirs).sum(axis=(2, 3))
    return (wins / (~np.isnan(ours)).sum(axis=(2, 3)) ** 2).mean(axis=1)


def share_of(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of the first number over mean of the second, -inf where that is not above zero; k = 2.

    A ratio of means: a seed, or an environment, with little to share does not get a large say.
    """
    part, whole = np.nanmean(drawn, axis=2).mean(axis=1).T  # (R,) each
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole > 0, part / whole, -np.inf)
