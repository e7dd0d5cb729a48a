"""Cumulative incidence where patients may die of something else first."""

import math
import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from steph_jax.survival.calibration import IntervalEstimate
from steph_jax.survival.significance import Interval

CENSORED, EVENT, COMPETING = 0, 1, 2


def causes(event: ArrayLike, competing: ArrayLike) -> np.ndarray:
    """[P] `CENSORED`, `EVENT` or `COMPETING`, from two columns [P] of booleans."""
    return np.where(
        np.asarray(event, bool), EVENT, np.where(np.asarray(competing, bool), COMPETING, CENSORED)
    )


def cumulative_incidence(
    time: ArrayLike, cause: ArrayLike, of_cause: int, at: Sequence[float]
) -> list[IntervalEstimate | None]:
    """Share of the patients who have died of one cause by some times (equation 51, lifelines).

        F_k(t) = sum_{u <= t} S(u-) d_k(u) / n(u)

    with S the Kaplan-Meier curve of all causes together (Aalen and Johansen 1978). One minus the
    Kaplan-Meier curve of one cause is larger: it is for a world without the other causes.

    Args:
        time: [P] in days.
        cause: [P] of `causes`.
        of_cause: k, `EVENT` or `COMPETING`.
        at: times t.

    Returns:
        estimates with 95 % intervals (of log(-log F)); None beyond the last patient.
    """
    import lifelines

    times, kinds = np.asarray(time, np.float64), np.asarray(cause)
    if not len(times):
        return [None] * len(at)
    # lifelines moves tied times apart at random. Ranks have no ties, and the estimate depends on
    # the order alone: deaths come before censorings of the same time, and one after another they
    # add up to what they do at once.
    order = np.lexsort((np.where(kinds == CENSORED, 3, kinds), times))
    ranked = times[order]
    with warnings.catch_warnings():
        # Logarithms of 0 before the first death, and no variance left after the last patient.
        warnings.simplefilter("ignore", RuntimeWarning)
        fit = lifelines.AalenJohansenFitter().fit(
            np.arange(1.0, len(times) + 1.0), kinds[order], of_cause
        )
    incidence = fit.cumulative_density_.to_numpy(np.float64)[:, 0]
    ends = np.sort(fit.confidence_interval_.to_numpy(np.float64), axis=1)
    estimates: list[IntervalEstimate | None] = []
    for moment in at:
        if times.max() < moment:
            estimates.append(None)
            continue
        place = int(np.searchsorted(ranked, moment, side="right"))  # row 0 is time 0
        value = float(incidence[place])
        low, high = (float(end) for end in ends[place])
        if not (math.isfinite(low) and math.isfinite(high)):
            low = high = value
        estimates.append(IntervalEstimate(value, Interval(low, high)))
    return estimates
