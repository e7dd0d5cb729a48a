"""Significance of a difference between methods: bootstrap over patients, t-test over folds.

The two measure different noise. The bootstrap keeps the fitted models and draws other patients of
the same kind; the t-test asks for the spread over folds, whose models are fitted again. A higher
`risk` means a shorter life.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy.typing import ArrayLike

from steph_jax.survival.labels import survival_labels
from steph_jax.survival.metrics import RISK_TOLERANCE, Floats, mean_sd

RESAMPLES = 5000
#: Factor of the width of a bootstrap interval of cross-validated numbers. A patient who is tested
#: in one fold trains the models of the others, which resampling the test patients leaves out; at
#: the null this doubles the variance (Bates, Hastie, Tibshirani 2023). scripts/interval_coverage.py
#: shows what the intervals hold with it and without it.
WIDENING = math.sqrt(2.0)


class Interval(NamedTuple):
    """A 95 % interval; NaN where there is none."""

    low: float
    high: float

    def excludes_zero(self) -> bool:
        """Whether it lies on one side of zero."""
        return self.low > 0 or self.high < 0


@dataclasses.dataclass(frozen=True, eq=False)
class FoldRisks:
    """The test patients of a fold, and the risks that methods predict for them.

    Attributes:
        time: [P] finite, at least 0.
        event: [P] in {0, 1}.
        risk: by method, [K, P] for K seeds; higher = worse.
    """

    time: Float64[np.ndarray, " P"]
    event: Bool[np.ndarray, " P"]
    risk: Mapping[str, Float64[np.ndarray, "K P"]]


def comparable_pairs(time: ArrayLike, event: ArrayLike) -> Bool[np.ndarray, "P P"]:
    """Pairs of patients that can be compared: [P, P], True where i died before j (equation 40).

    i has an event, and j outlived t_i or was censored at it. A patient is never comparable to a
    copy of itself, so resampled patients need no matrix of their own.
    """
    times, events = survival_labels(time, event)
    later = times > times[:, None]
    censored_then = (times == times[:, None]) & ~events
    return events[:, None] & (later | censored_then)


def resampled_c_index(
    time: ArrayLike, event: ArrayLike, risk: ArrayLike, counts: ArrayLike
) -> Float64[np.ndarray, " R"]:
    """Harrell's C-index of resamples of some patients.

        C = sum_ij n_i n_j c_ij / sum_ij n_i n_j m_ij

    with n_i how often patient i was drawn, m_ij whether i and j are comparable, and c_ij = 1 where
    they are and risk_i > risk_j, 1/2 where the two risks are tied. All resamples are one product.

    Args:
        time: [P].
        event: [P].
        risk: [P], higher = worse.
        counts: [R, P] how often every patient is in every resample.

    Returns:
        [R]; NaN where a resample has no comparable pair.
    """
    pairs = comparable_pairs(time, event)
    risks, weights = np.asarray(risk, np.float64), np.asarray(counts, np.float64)
    difference = risks[:, None] - risks
    concordant = (difference > RISK_TOLERANCE) + 0.5 * (np.abs(difference) <= RISK_TOLERANCE)
    won = _pair_sums(concordant * pairs, weights)
    compared = _pair_sums(pairs.astype(np.float64), weights)
    return np.divide(won, compared, out=np.full(len(weights), np.nan), where=compared > 0)


def _pair_sums(
    pairs: Float64[np.ndarray, "P P"], counts: Float64[np.ndarray, "R P"]
) -> Float64[np.ndarray, " R"]:
    """sum_ij n_i n_j x_ij for every row n of counts [R, P]: [R]."""
    return np.asarray(np.einsum("rp,rp->r", counts @ pairs, counts), np.float64)


def _resample(
    num_patients: int, resamples: int, rng: np.random.Generator
) -> Int64[np.ndarray, "R P"]:
    """How often every patient is drawn when as many are drawn with replacement: [R, P]."""
    patients = rng.integers(0, num_patients, (resamples, num_patients))
    offsets = num_patients * np.arange(resamples)[:, None]
    counts = np.bincount((patients + offsets).ravel(), minlength=resamples * num_patients)
    return counts.reshape(resamples, num_patients)


def bootstrap_means(
    folds: Sequence[FoldRisks], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Float64[np.ndarray, " R"]]:
    """The mean C-index over folds of every method, on resamples of the patients.

    Patients are drawn with replacement within each fold, since risks of
    different folds' models are not comparable. All methods and seeds see the same resample; seeds
    are averaged within it.

    Args:
        folds: with the same methods in each.
        resamples: R.
        seed: of the resampling.

    Returns:
        by method, [R]; NaN where some fold's resample has no comparable pair.
    """
    rng = np.random.default_rng(seed)
    sums = {method: np.zeros(resamples) for method in folds[0].risk}
    for fold in folds:
        counts = _resample(len(fold.time), resamples, rng)
        for method, risks in fold.risk.items():
            seed_values = [resampled_c_index(fold.time, fold.event, r, counts) for r in risks]
            sums[method] += np.mean(seed_values, axis=0)
    return {method: total / len(folds) for method, total in sums.items()}


def percentile_interval(resampled: Float64[np.ndarray, " R"]) -> Interval:
    """The 2.5th and 97.5th percentile of numbers on resamples [R], of those that are defined."""
    defined = resampled[np.isfinite(resampled)]
    if not len(defined):
        return Interval(math.nan, math.nan)
    low, high = np.quantile(defined, [0.025, 0.975])
    return Interval(float(low), float(high))


def corrected_t_interval(
    differences: Sequence[float] | Floats, num_train: Sequence[int], num_test: Sequence[int]
) -> Interval:
    """95 % interval of a mean difference over folds, of the test that `corrected_t_test` makes.

    Args and NaN as there, but that equal differences have an interval without width.
    """
    from scipy.special import stdtrit

    mean, sd = mean_sd(differences)
    num_folds = len(differences)
    if num_folds < 2 or not math.isfinite(mean):
        return Interval(math.nan, math.nan)
    ratio = float(np.mean(np.asarray(num_test) / np.asarray(num_train)))
    half = float(stdtrit(num_folds - 1, 0.975)) * sd * math.sqrt(1 / num_folds + ratio)
    return Interval(mean - half, mean + half)


def widened(interval: Interval, value: float) -> Interval:
    """The interval with both ends `WIDENING` times as far from the estimate."""
    return Interval(
        value - WIDENING * (value - interval.low), value + WIDENING * (interval.high - value)
    )


def interval_of_mean(
    resampled: Floats, mean: float, least: float = -math.inf, most: float = math.inf
) -> Interval:
    """95 % interval of a mean over folds from its values on resamples [R]: percentiles, widened.

    Args:
        resampled: [R] means of the resamples.
        mean: of the patients as they are.
        least, most: the range of what is estimated, which the interval does not leave.
    """
    low, high = widened(percentile_interval(resampled), mean)
    return Interval(max(low, least), min(high, most))


def corrected_t_test(
    differences: Sequence[float] | Floats, num_train: Sequence[int], num_test: Sequence[int]
) -> float:
    """p of the corrected resampled t-test that the mean difference over folds is 0, two-sided.

        t = mean(d) / sqrt((1 / J + n_test / n_train) var(d)),   J - 1 degrees of freedom

    The folds share training patients, so their differences are not independent; n_test / n_train
    in the variance corrects for it (Nadeau and Bengio 2003; equation 42 of docs/method.md).

    Args:
        differences: [J] difference between two methods on each fold.
        num_train: [J] training patients of each fold.
        num_test: [J] test patients; the ratio is averaged over folds.

    Returns:
        p in [0, 1]; NaN for fewer than two folds, an undefined difference, or where the
        differences do not vary.
    """
    from scipy.special import stdtr  # here: a slow import that only comparisons need

    mean, sd = mean_sd(differences)
    # Equal differences have a deviation of rounding errors.
    if not sd > 1e-12 * abs(mean):
        return math.nan
    num_folds = len(differences)
    ratio = float(np.mean(np.asarray(num_test) / np.asarray(num_train)))
    t = mean / (sd * math.sqrt(1 / num_folds + ratio))
    return float(2 * stdtr(num_folds - 1, -abs(t)))
