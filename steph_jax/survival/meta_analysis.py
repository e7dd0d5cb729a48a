"""One number from several cohorts: a mean difference, its interval, and tests.

Equations 61 to 63 of docs/method.md.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from steph_jax.survival.metrics import Floats
from steph_jax.survival.significance import Interval


class OverCohorts(NamedTuple):
    """Differences of several cohorts, as one.

    Attributes:
        mean: over cohorts.
        interval: 95 %, of that mean.
        p: that it is 0, two-sided; NaN where the differences do not vary.
        tau: standard deviation of true differences between cohorts.
        weights: [C] of the cohorts in the mean; they add up to 1.
    """

    mean: float
    interval: Interval
    p: float
    tau: float
    weights: Floats


def random_effects(differences: ArrayLike, standard_errors: ArrayLike) -> OverCohorts:
    """The mean of true differences that vary between cohorts (equations 61 and 62).

    DerSimonian and Laird's variance between cohorts, Hartung and Knapp's interval. Where a cohort
    has no error (two methods that predict the same), no cohort can be weighted by its error: all
    weigh the same, and interval and test are those of the t-test.

    Args:
        differences: [C] finite, of two cohorts at least.
        standard_errors: [C] finite, at least 0.

    Raises:
        ValueError: fewer than two cohorts.
    """
    from scipy.special import stdtr, stdtrit  # here: a slow import that only comparisons need

    values, errors = (np.asarray(x, np.float64) for x in (differences, standard_errors))
    count = len(values)
    if count < 2:
        raise ValueError(f"a mean over cohorts takes two of them at least; found {count}")
    tau2 = _between_cohorts(values, errors**2)
    total = errors**2 + tau2
    weights = 1 / total if errors.min() > 0 else np.ones(count)
    weights = weights / weights.sum()
    mean = float(weights @ values)
    error = math.sqrt(float(weights @ (values - mean) ** 2) / (count - 1))
    half = float(stdtrit(count - 1, 0.975)) * error
    # Equal differences have a deviation of rounding errors.
    p = math.nan
    if error > 1e-12 * abs(mean):
        p = float(2 * stdtr(count - 1, -abs(mean) / error))
    return OverCohorts(mean, Interval(mean - half, mean + half), p, math.sqrt(tau2), weights)


def _between_cohorts(values: Floats, variances: Floats) -> float:
    """tau^2 of equation 61; by the variance of the values where a cohort has no error."""
    if variances.min() == 0:
        return max(0.0, float(np.var(values, ddof=1) - variances.mean()))
    weights = 1 / variances
    mean = float(weights @ values) / weights.sum()
    q = float(weights @ (values - mean) ** 2)
    scale = weights.sum() - (weights**2).sum() / weights.sum()
    return max(0.0, (q - (len(values) - 1)) / float(scale))


def wilcoxon(differences: Sequence[float] | Floats) -> float:
    """p of Wilcoxon's signed-rank test over cohorts, two-sided; NaN where all are 0."""
    from scipy import stats

    values = np.asarray(differences, np.float64)
    return float(stats.wilcoxon(values).pvalue) if values.any() else math.nan


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values, each corrected for the number of tests (Holm 1979; equation 63).

    The chance that one of them is below 0.05 is 5 % at most where none of the differences is there.

    Args:
        p_values: NaN for a test that could not be made, which is not counted and stays NaN.
    """
    values = np.asarray(p_values, np.float64)
    made = np.flatnonzero(~np.isnan(values))
    order = made[np.argsort(values[made], kind="stable")]
    corrected = np.full(len(values), np.nan)
    steps = np.minimum(1, values[order] * np.arange(len(order), 0, -1))
    corrected[order] = np.maximum.accumulate(steps) if len(order) else steps
    return [float(value) for value in corrected]
