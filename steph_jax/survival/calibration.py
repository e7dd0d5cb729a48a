"""Whether predicted probabilities of survival are right, and what a step of risk is worth.

Probabilities have a unit, so those of the models of several folds may be pooled.
Risks have none: a hazard ratio is estimated within each fold, and the folds' ratios are averaged.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64
from numpy.typing import ArrayLike

from steph_jax.survival.censoring import Estimate
from steph_jax.survival.cox_models import cox_coefficient, fit_cox
from steph_jax.survival.labels import survival_labels
from steph_jax.survival.metrics import breslow_baseline, kaplan_meier
from steph_jax.survival.significance import Interval

#: 97.5 % point of the normal distribution.
_Z = 1.959963984540054
#: Probabilities are kept so far from 0 and 1 before their log(-log) is taken.
_EDGE = 1e-8
#: Bins of D-calibration, and events that a calibration curve needs.
NUM_BINS, FEWEST_EVENTS = 10, 10


class IntervalEstimate(NamedTuple):
    """An estimate with its 95 % interval."""

    value: float
    interval: Interval


@dataclasses.dataclass(frozen=True)
class Fifth:
    """Patients whose predicted risk at one time is alike.

    Attributes:
        patients: their number.
        predicted: mean predicted probability of survival.
        observed: Kaplan-Meier estimate at the same time, with its 95 % band.
    """

    patients: int
    predicted: float
    observed: IntervalEstimate


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Predicted and observed survival at one time.

    Attributes:
        at: the time.
        fifths: of the patients, from the lowest predicted survival to the highest.
        slope: of log(-log S) in a Cox model stratified by fold; 1 is right, below 1 the predictions
            are too extreme. None with a reason in `missing` where it cannot be fitted.
        in_the_large: mean predicted survival minus the Kaplan-Meier estimate; 0 is right.
        ici: integrated calibration index, the mean of abs(S^c - S), where S^c is a smooth
            calibration curve (Austin, Harrell, van Klaveren 2020); 0 is right.
        missing: name of what could not be computed -> why.
    """

    at: float
    fifths: tuple[Fifth, ...]
    slope: IntervalEstimate | None
    in_the_large: float
    ici: float | None
    missing: dict[str, str]


def calibration(
    time: ArrayLike, event: ArrayLike, survival: ArrayLike, at: float, fold: ArrayLike
) -> Calibration | Estimate:
    """Calibration of predicted survival at one time.

    Args:
        time, event: [P] of test patients of one fold or several.
        survival: [P] predicted probability of being alive at `at`, by the model of the own fold.
        at: the time.
        fold: [P] number of the fold.

    Returns:
        the numbers; an `Estimate` with the reason where follow-up or events do not suffice.
    """
    times, events = survival_labels(time, event)
    predicted, folds = np.asarray(survival, np.float64), np.asarray(fold)
    deaths = int(np.count_nonzero(events & (times <= at)))
    if deaths < FEWEST_EVENTS:
        return Estimate(None, f"{deaths} events by then, {FEWEST_EVENTS} are needed")
    if times.max() < at:
        return Estimate(None, "follow-up of all patients ends before")
    missing: dict[str, str] = {}
    order = np.argsort(predicted, kind="stable")
    fifths = tuple(
        Fifth(len(rows), float(predicted[rows].mean()), observed)
        for rows in np.array_split(order, 5)
        if len(rows) and (observed := _observed(times[rows], events[rows], at)) is not None
    )
    if len(fifths) < 5:
        missing["fifths"] = "follow-up of all patients of a fifth ends before"
    whole = _observed(times, events, at)
    assert whole is not None  # follow-up reaches the time, above
    x = np.log(-np.log(np.clip(predicted, _EDGE, 1 - _EDGE)))
    slope = None
    try:
        value, error = cox_coefficient(times, events, x, folds)
        slope = IntervalEstimate(value, _normal_interval(value, error))
    except ValueError as problem:
        missing["slope"] = str(problem)
    ici = None
    try:
        ici = float(np.mean(np.abs(_calibration_curve(times, events, x, at) - predicted)))
    except ValueError as problem:
        missing["ici"] = str(problem)
    return Calibration(at, fifths, slope, float(predicted.mean()) - whole.value, ici, missing)


def _observed(
    time: Float64[np.ndarray, " P"], event: Bool[np.ndarray, " P"], at: float
) -> IntervalEstimate | None:
    """Kaplan-Meier estimate at a time, with its band; None beyond the last patient."""
    if time.max() < at:
        return None
    curve = kaplan_meier(time, event)
    step = int(np.searchsorted(curve.times, at, side="right")) - 1
    value, low, high = (float(x[step]) for x in (curve.survival, curve.lower, curve.upper))
    # Without an event so far, and after the last one, lifelines has no band.
    band = Interval(value if math.isnan(low) else low, value if math.isnan(high) else high)
    return IntervalEstimate(value, band)


def restricted_cubic_spline(
    x: Float64[np.ndarray, " P"], knots: Float64[np.ndarray, " 3"]
) -> Float64[np.ndarray, "P K"]:
    """[P, 2] basis of cubic splines with three knots that are straight beyond the outer two.

        x,   ((x - k1)+^3 - (x - k2)+^3 (k3 - k1)/(k3 - k2) + (x - k3)+^3 (k2 - k1)/(k3 - k2))
             / (k3 - k1)^2

    (Harrell, Regression Modeling Strategies.) [P, 1], x alone, where knots coincide.
    """
    first, second, third = knots
    if not first < second < third:
        return x[:, None]
    cubes = np.maximum(x[:, None] - knots, 0.0) ** 3
    factors = np.array(
        [1.0, (first - third) / (third - second), (second - first) / (third - second)]
    )
    return np.stack([x, cubes @ factors / (third - first) ** 2], axis=1)


def _calibration_curve(
    time: Float64[np.ndarray, " P"],
    event: Bool[np.ndarray, " P"],
    x: Float64[np.ndarray, " P"],
    at: float,
) -> Float64[np.ndarray, " P"]:
    """[P] survival at `at` as a smooth function of x = log(-log S).

    A Cox model of a restricted cubic spline of x with three knots, as Austin et al. propose;
    lifelines' own spline model (CRCSplineFitter) ends in poor optima on such data.

    Raises:
        ValueError: where the model cannot be fitted.
    """
    if np.ptp(x) == 0.0:
        raise ValueError("the prediction is the same for all patients")
    basis = restricted_cubic_spline(x, np.quantile(x, [0.1, 0.5, 0.9]))
    log_risk = basis @ fit_cox(time, event, basis).coefficients
    return breslow_baseline(time, event, log_risk).survival(log_risk, [at])[:, 0]


@dataclasses.dataclass(frozen=True)
class DCalibration:
    """How evenly S_i(t_i) spreads over [0, 1].

    Attributes:
        shares: [10] share of the patients in each tenth of survival, from 0 to 1; 0.1 is right.
        p: of the chi-squared test with 9 degrees of freedom. It accepts much that is wrong: look at
            the shares and at `Calibration`.
    """

    shares: tuple[float, ...]
    p: float


def d_calibration(event: ArrayLike, survival: ArrayLike) -> DCalibration:
    """D-calibration (Haider et al. 2020).

    A death counts in the tenth that holds S_i(t_i). A censored patient may die anywhere below
    S_i(t_i): the patient's one count is spread evenly over [0, S_i(t_i)].

    Args:
        event: [P] in {0, 1}; at least one patient.
        survival: [P] predicted survival at the patient's own time.
    """
    from scipy.stats import chi2

    event_seen, s = (
        np.asarray(event).astype(bool),
        np.clip(np.asarray(survival, np.float64), 0.0, 1.0),
    )
    edges = np.linspace(0.0, 1.0, NUM_BINS + 1)
    counts = np.bincount(
        np.minimum((s[event_seen] * NUM_BINS).astype(int), NUM_BINS - 1), minlength=NUM_BINS
    ).astype(np.float64)
    for value in s[~event_seen]:
        if value == 0.0:
            counts[0] += 1.0
            continue
        counts += np.clip(np.minimum(value, edges[1:]) - edges[:-1], 0.0, None) / value
    expected = len(s) / NUM_BINS
    statistic = float(np.sum((counts - expected) ** 2) / expected)
    return DCalibration(tuple((counts / len(s)).tolist()), float(chi2.sf(statistic, NUM_BINS - 1)))


def hazard_ratio(
    folds: Sequence[tuple[ArrayLike, ArrayLike, ArrayLike]], widening: float
) -> tuple[IntervalEstimate | None, dict[int, str]]:
    """Hazard ratio of one unit of a predictor: inverse-variance mean of the folds' log ratios.

    Args:
        folds: (time, event, predictor) of the test patients of each fold; the predictor in a unit
            that the folds share, as standard deviations of the training risks, or 0 and 1.
        widening: factor of the standard error, since test patients of one fold trained the models
            of the others; see `significance`.

    Returns:
        the ratio with its 95 % interval, None where no fold has one; and position of a fold that
        has none -> why.
    """
    estimates, missing = [], {}
    for number, (time, event, x) in enumerate(folds):
        try:
            estimates.append(cox_coefficient(time, event, x))
        except ValueError as problem:
            missing[number] = str(problem)
    if not estimates:
        return None, missing
    values, errors = np.asarray(estimates).T
    weights = errors**-2.0
    mean = float(np.sum(weights * values) / np.sum(weights))
    error = widening / math.sqrt(float(np.sum(weights)))
    low, high = _normal_interval(mean, error)
    return IntervalEstimate(math.exp(mean), Interval(math.exp(low), math.exp(high))), missing


def _normal_interval(value: float, error: float) -> Interval:
    return Interval(value - _Z * error, value + _Z * error)
