"""Numbers that weigh patients by their inverse probability of being uncensored (IPCW).

Harrell's C depends on who was censored when; Uno's C, the time-dependent AUC and the Brier score
do not, as long as censoring does not depend on the risk. All of them need the curve G of censoring,
estimated on the training patients, and a last time tau beyond which G is not known.

Where an event and a censoring fall on the same time, the event came first: the weight of the event
is 1 / G(t-), the limit from the left (Uno et al. 2011; Graf et al. 1999).
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike

from steph_jax.survival.labels import survival_labels
from steph_jax.survival.metrics import RISK_TOLERANCE

#: Censoring curves are followed down to this value, and to this number of patients at risk.
LOWEST_CENSORING, FEWEST_AT_RISK = 0.1, 10
#: An AUC needs so many patients with an event before its time, and as many who outlived it.
FEWEST_PATIENTS = 5


class Estimate(NamedTuple):
    """A number, or why there is none.

    Attributes:
        value: the number; None where it cannot be computed.
        reason: why it cannot; "" where it can.
    """

    value: float | None
    reason: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class CensoringCurve:
    """Kaplan-Meier curve G of the time to censoring.

    Attributes:
        times: [K] distinct times of the patients, increasing.
        survival: [K] G after each time.
    """

    times: Float64[np.ndarray, " K"]
    survival: Float64[np.ndarray, " K"]

    def at(self, time: ArrayLike) -> Float64[np.ndarray, "..."]:
        """G(t), of any shape."""
        steps = np.searchsorted(self.times, np.asarray(time, np.float64), side="right")
        return np.asarray(np.concatenate([[1.0], self.survival])[steps])

    def before(self, time: ArrayLike) -> Float64[np.ndarray, "..."]:
        """G(t-), the limit from the left, of any shape."""
        steps = np.searchsorted(self.times, np.asarray(time, np.float64), side="left")
        return np.asarray(np.concatenate([[1.0], self.survival])[steps])


def censoring_curve(time: ArrayLike, event: ArrayLike) -> CensoringCurve:
    """Kaplan-Meier estimate of G, with censorings as the events.

    A patient whose event falls on the time of a censoring is no longer at risk of it.

    Args:
        time: [P] finite, at least 0.
        event: [P] in {0, 1}.

    Raises:
        ValueError: for invalid labels, or none.
    """
    times, events = survival_labels(time, event)
    if not len(times):
        raise ValueError("a censoring curve needs at least one patient, found none")
    distinct, place = np.unique(times, return_inverse=True)
    deaths = np.bincount(place, weights=events, minlength=len(distinct))
    censored = np.bincount(place, weights=~events, minlength=len(distinct))
    at_risk = np.cumsum((deaths + censored)[::-1])[::-1] - deaths
    share = np.divide(censored, at_risk, out=np.zeros(len(distinct)), where=censored > 0)
    return CensoringCurve(distinct, np.cumprod(1.0 - share).astype(np.float64))


def last_time(time: ArrayLike, event: ArrayLike, limit: float) -> float:
    """tau: the last training time up to which censoring weights can be trusted, at most `limit`.

    Up to tau, G is above `LOWEST_CENSORING` and at least `FEWEST_AT_RISK` patients are at risk.

    Args:
        time, event: [P] of the training patients.
        limit: the horizon asked for, in the unit of `time`.

    Returns:
        tau; 0 where no time of the training patients qualifies.
    """
    times, _ = survival_labels(time, event)
    ordered = np.sort(times)
    at_risk = len(ordered) - np.searchsorted(ordered, ordered, side="left")
    curve = censoring_curve(time, event)
    trusted = ordered[(curve.at(ordered) > LOWEST_CENSORING) & (at_risk >= FEWEST_AT_RISK)]
    return float(min(limit, trusted[-1])) if len(trusted) else 0.0


def uno_concordance(
    curve: CensoringCurve, time: ArrayLike, event: ArrayLike, risk: ArrayLike, tau: float
) -> Estimate:
    """Uno's concordance index up to tau (equation 43 of docs/method.md).

        C = sum_ij w_i [t_i < t_j] ([r_i > r_j] + [r_i ~ r_j] / 2) / sum_ij w_i [t_i < t_j]
        w_i = e_i [t_i < tau] / G(t_i-)^2

    Args:
        curve: of censoring, of the training patients.
        time, event, risk: [P] of the test patients; a higher risk means a shorter life.
        tau: see `last_time`.
    """
    times, events = survival_labels(time, event)
    risks = np.asarray(risk, np.float64)
    cases = np.flatnonzero(events & (times < tau))
    before = curve.before(times[cases])
    if not before.all():
        return Estimate(None, "an event falls where all training patients are censored")
    weight = 1.0 / before**2
    longer = times[None] > times[cases, None]
    difference = risks[cases, None] - risks[None]
    score = (difference > RISK_TOLERANCE) + 0.5 * (np.abs(difference) <= RISK_TOLERANCE)
    total = float(np.sum(weight[:, None] * longer))
    if total == 0.0:
        return Estimate(None, f"no pair of patients can be compared before {tau:g}")
    return Estimate(float(np.sum(weight[:, None] * longer * score)) / total)


def largest_weight(curve: CensoringCurve, time: ArrayLike, event: ArrayLike, tau: float) -> float:
    """The largest weight 1 / G(t-) of a test patient with an event before tau; 1 without events.

    One weight above 20 dominates a weighted number, so the largest is reported too.
    """
    times, events = survival_labels(time, event)
    before = curve.before(times[events & (times < tau)])
    return float(1.0 / before.min()) if len(before) and before.min() > 0 else 1.0


def auc(
    curve: CensoringCurve, time: ArrayLike, event: ArrayLike, risk: ArrayLike, at: float
) -> Estimate:
    """Cumulative/dynamic AUC at one time (equation 44 of docs/method.md).

        AUC(t) = sum_ij w_i [t_i <= t] [t_j > t] ([r_i > r_j] + [r_i ~ r_j] / 2)
                 / (sum_i w_i [t_i <= t] sum_j [t_j > t]),          w_i = e_i / G(t_i-)

    (Uno et al. 2007; Hung and Chiang 2010.)

    Args:
        curve: of censoring, of the training patients.
        time, event, risk: [P] of the test patients.
        at: t, in the unit of `time`.
    """
    times, events = survival_labels(time, event)
    risks = np.asarray(risk, np.float64)
    cases, controls = np.flatnonzero(events & (times <= at)), np.flatnonzero(times > at)
    for size, which in ((len(cases), "died by then"), (len(controls), "outlived it")):
        if size < FEWEST_PATIENTS:
            patients = "patient" if size == 1 else "patients"
            return Estimate(None, f"{size} {patients} {which}, {FEWEST_PATIENTS} are needed")
    before = curve.before(times[cases])
    if not before.all():
        return Estimate(None, "an event falls where all training patients are censored")
    weight = 1.0 / before
    difference = risks[cases, None] - risks[None, controls]
    score = (difference > RISK_TOLERANCE) + 0.5 * (np.abs(difference) <= RISK_TOLERANCE)
    return Estimate(float(weight @ score.mean(axis=1) / weight.sum()))


def survival_at(curves: ArrayLike, edges: ArrayLike, at: ArrayLike) -> Float64[np.ndarray, "P M"]:
    """Survival curves of discrete bins between their edges (equation 47 of docs/method.md).

        S(t) = S_{k-1} (1 - h_k)^((t - a_k) / (a_{k+1} - a_k)),   1 - h_k = S_k / S_{k-1}

    Args:
        curves: [P, T] survival at the end of every bin.
        edges: [T + 1] edges a of the bins, increasing from 0; the last one may be infinite, where
            the last bin is open and its curve is not followed.
        at: [M] times, from 0 to the last finite edge.

    Returns:
        survival [P, M].

    Raises:
        ValueError: for a time beyond the bins.
    """
    bounds, times = np.asarray(edges, np.float64), np.asarray(at, np.float64)
    last = bounds[np.isfinite(bounds)][-1]
    if times.size and (times.min() < 0 or times.max() > last):
        raise ValueError(
            f"curves are known from 0 to {last:g}; found {times.min():g} to {times.max():g}"
        )
    ends = np.asarray(curves, np.float64)
    whole = np.concatenate([np.ones((len(ends), 1)), ends], axis=1)
    k = np.clip(np.searchsorted(bounds, times, side="right") - 1, 0, len(bounds) - 2)
    width = bounds[k + 1] - bounds[k]
    share = np.where(np.isfinite(width), (times - bounds[k]) / width, 0.0)
    start, end = whole[:, k], whole[:, k + 1]
    survivors = np.divide(end, start, out=np.zeros_like(end), where=start > 0)
    return start * survivors**share


def brier_scores(
    curve: CensoringCurve, time: ArrayLike, event: ArrayLike, survival: ArrayLike, at: ArrayLike
) -> Float64[np.ndarray, " M"]:
    """Brier scores at some times (equation 45 of docs/method.md): squared errors, weighted by IPCW.

        BS(t) = mean_i { S_i(t)^2 e_i [t_i <= t] / G(t_i-) + (1 - S_i(t))^2 [t_i > t] / G(t) }

    (Graf et al. 1999.)

    Args:
        curve: of censoring, of the training patients.
        time, event: [P] of the test patients.
        survival: [P, M] predicted survival at each time.
        at: [M] times, no later than tau of `last_time`.

    Returns:
        [M].
    """
    times, events = survival_labels(time, event)
    moments, predicted = np.asarray(at, np.float64), np.asarray(survival, np.float64)
    died = (times[:, None] <= moments) & events[:, None]
    alive = times[:, None] > moments
    before, now = curve.before(times)[:, None], curve.at(moments)[None]
    dead = np.divide(predicted**2, before, out=np.zeros_like(predicted), where=died)
    living = np.divide((1 - predicted) ** 2, now, out=np.zeros_like(predicted), where=alive)
    return np.mean(dead + living, axis=0)


def integrated(scores: ArrayLike, at: ArrayLike) -> float:
    """Mean of a score over time, by the trapezoidal rule from the first to the last time."""
    moments = np.asarray(at, np.float64)
    span = moments[-1] - moments[0]
    return float(np.trapezoid(np.asarray(scores, np.float64), moments) / span)


def grid(tau: float, points: int = 100) -> Float64[np.ndarray, " points"]:
    """[points] times from tau / points to tau, evenly spaced: where Brier scores are integrated."""
    return np.linspace(tau / points, tau, points)


def kaplan_meier_at(time: ArrayLike, event: ArrayLike, at: ArrayLike) -> Float64[np.ndarray, " M"]:
    """[M] Kaplan-Meier survival of some patients at times `at` (the model without predictors)."""
    times, events = survival_labels(time, event)
    distinct, place = np.unique(times, return_inverse=True)
    deaths = np.bincount(place, weights=events, minlength=len(distinct))
    at_risk = len(times) - np.searchsorted(np.sort(times), distinct, side="left")
    steps = np.searchsorted(distinct, np.asarray(at, np.float64), side="right")
    return np.concatenate([[1.0], np.cumprod(1.0 - deaths / at_risk)])[steps]


def ipa(model: float, null: float) -> float:
    """Index of prediction accuracy, 1 - IBS / IBS of Kaplan-Meier (equation 46 of docs/method.md).

    Above 0 the predictions are better than none (Kattan and Gerds 2018); NaN for a null of 0.
    """
    return 1.0 - model / null if null > 0 else math.nan
