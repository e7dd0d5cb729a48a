"""How good predictions of survival are: numpy arrays in, numbers out.

Everywhere `time` is in days (any unit will do, if it is one), `event` is True or 1 where death was
seen, and a higher `risk` means a shorter life.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy.typing import ArrayLike, NDArray

from steph_jax.messages import join_names
from steph_jax.survival.labels import survival_labels

#: Risks no further apart than this count as tied.
RISK_TOLERANCE = 1e-8
#: Pairs compared at once; bounds the memory of `concordance_index`.
_PAIRS_AT_ONCE = 1 << 22

Floats = NDArray[np.float64]


def _finite(values: ArrayLike, length: int, what: str) -> Float64[np.ndarray, " P"]:
    """`values` as a float64 vector; a ValueError unless it is finite and of this length."""
    array = np.asarray(values, np.float64)
    if array.shape != (length,):
        raise ValueError(f"expected {what} of shape ({length},), found {array.shape}")
    if not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array))
        raise ValueError(
            f"{what} must be finite; found {join_names(f'patient {i}: {array[i]}' for i in bad)}"
        )
    return array


def concordance_index(time: ArrayLike, event: ArrayLike, risk: ArrayLike) -> float:
    """Harrell's concordance index (equation 40 of docs/method.md).

    A patient i with an event is comparable to every j with t_j > t_i, and to every censored j with
    t_j = t_i. The index is the share of comparable pairs with risk_i > risk_j; a pair whose risks
    differ by at most `RISK_TOLERANCE` counts one half.

    lifelines' `concordance_index` compares the same pairs, but only risks that are exactly equal
    are tied there; no rounding of the risks makes up for that, since "differs by at most 1e-8" is
    not transitive. Hence this one (a test holds both against each other where they must agree).

    Args:
        time: [P] finite, at least 0.
        event: [P] in {0, 1}.
        risk: [P] finite, higher = worse.

    Returns:
        the index in [0, 1]; NaN if no pair is comparable.

    Raises:
        ValueError: for invalid labels or risks.
    """
    times, events = survival_labels(time, event)
    risks = _finite(risk, len(times), "risk")
    deaths = np.flatnonzero(events)
    block = max(1, _PAIRS_AT_ONCE // max(1, len(times)))
    pairs = concordant = tied = 0
    for start in range(0, len(deaths), block):
        i = deaths[start : start + block, None]
        comparable = (times > times[i]) | ((times == times[i]) & ~events)
        difference = (risks[i] - risks)[comparable]
        pairs += difference.size
        concordant += int(np.count_nonzero(difference > RISK_TOLERANCE))
        tied += int(np.count_nonzero(np.abs(difference) <= RISK_TOLERANCE))
    return (concordant + 0.5 * tied) / pairs if pairs else math.nan


@dataclasses.dataclass(frozen=True, eq=False)
class KaplanMeier:
    """A Kaplan-Meier curve: steps down at `times`, constant in between.

    Attributes:
        times: [K] 0 and the distinct times of the patients, increasing.
        survival: [K] estimated probability of being alive after each time.
        lower: [K] lower end of the pointwise 95 % interval (log-log transformed).
        upper: [K] upper end.
    """

    times: Float64[np.ndarray, " K"]
    survival: Float64[np.ndarray, " K"]
    lower: Float64[np.ndarray, " K"]
    upper: Float64[np.ndarray, " K"]


def kaplan_meier(time: ArrayLike, event: ArrayLike) -> KaplanMeier:
    """Kaplan-Meier estimate of the survival curve of a group of patients (by lifelines).

    Args:
        time: [P] finite, at least 0; P at least 1.
        event: [P] in {0, 1}.

    Raises:
        ValueError: for invalid labels, or none.
    """
    import lifelines  # here, since it takes a second that only pictures and their tests need

    times, events = survival_labels(time, event)
    if not len(times):
        raise ValueError("a Kaplan-Meier curve needs at least one patient, found none")
    fit = lifelines.KaplanMeierFitter().fit(times, events)
    interval = fit.confidence_interval_survival_function_.to_numpy(np.float64)
    return KaplanMeier(
        times=fit.survival_function_.index.to_numpy(np.float64),
        survival=fit.survival_function_.to_numpy(np.float64)[:, 0],
        lower=interval[:, 0],
        upper=interval[:, 1],
    )


def number_at_risk(time: ArrayLike, at: ArrayLike) -> Int64[np.ndarray, " M"]:
    """How many of the patients with follow-up `time` [P] are under observation at times `at` [M].

    A patient counts up to and including the own time.

    Returns:
        counts [M].
    """
    ordered = np.sort(np.asarray(time, np.float64))
    earlier = np.searchsorted(ordered, np.asarray(at, np.float64), side="left")
    return np.asarray(len(ordered) - earlier, np.int64)


def logrank_p(time: ArrayLike, event: ArrayLike, group: ArrayLike) -> float:
    """p-value of the log-rank test that two groups share one survival curve (by lifelines).

    Args:
        time: [P] finite, at least 0.
        event: [P] in {0, 1}.
        group: [P] booleans: the two groups.

    Returns:
        p in [0, 1]; NaN if a group has no patient, or if no event was seen.

    Raises:
        ValueError: for invalid labels, or a group of another shape or type.
    """
    times, events = survival_labels(time, event)
    member = np.asarray(group)
    if member.dtype != bool or member.shape != times.shape:
        raise ValueError(
            f"expected a boolean per patient as group, shape {times.shape}; "
            f"found {member.dtype} of shape {member.shape}"
        )
    if member.all() or not member.any() or not events.any():
        return math.nan
    from lifelines.statistics import logrank_test

    test = logrank_test(times[member], times[~member], events[member], events[~member])
    return float(test.p_value)


def risk_groups(risk: ArrayLike, cut: float) -> Bool[np.ndarray, " P"]:
    """True for the high-risk group: risk above `cut` (pictures use the training median)."""
    return np.asarray(risk, np.float64) > cut


@dataclasses.dataclass(frozen=True)
class Baseline:
    """Breslow's cumulative baseline hazard, a step function.

    Attributes:
        times: the distinct event times, increasing, in days.
        hazard: the cumulative hazard of a patient with log risk 0 from each of them on.
    """

    times: tuple[float, ...]
    hazard: tuple[float, ...]

    def survival(self, log_risk: ArrayLike, at: ArrayLike) -> Float64[np.ndarray, "P M"]:
        """S(t | x) = exp(-H_0(t) exp(x)).

        Args:
            log_risk: [P] log risks x, higher = worse.
            at: [M] times t in days.

        Returns:
            survival [P, M].
        """
        steps = np.searchsorted(np.asarray(self.times), np.asarray(at, np.float64), side="right")
        cumulative = np.concatenate([[0.0], self.hazard])[steps]
        return np.exp(-np.exp(np.asarray(log_risk, np.float64))[:, None] * cumulative[None])

    def to_json(self) -> dict[str, Any]:
        """JSON-able form, which `from_json` reads."""
        return {"times": list(self.times), "hazard": list(self.hazard)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Baseline":
        """The baseline that `to_json` wrote.

        Raises:
            ValueError: if the record lacks a field.
        """
        if set(record) != {"times", "hazard"}:
            raise ValueError(
                f"a baseline hazard has the fields times and hazard, found {join_names(record)}"
            )
        return cls(tuple(map(float, record["times"])), tuple(map(float, record["hazard"])))


def breslow_baseline(time: ArrayLike, event: ArrayLike, log_risk: ArrayLike) -> Baseline:
    """Breslow's estimate of the cumulative baseline hazard of a Cox model.

        H_0(t) = sum_{event times u <= t} d_u / sum_{j: t_j >= u} exp(x_j)

    with d_u the number of events at u (Breslow 1972).

    Args:
        time: [P] of the training patients, in days.
        event: [P] in {0, 1}, at least one of them 1.
        log_risk: [P] log risks x, finite, higher = worse.

    Raises:
        ValueError: for invalid labels or log risks, or without an event.
    """
    times, events = survival_labels(time, event)
    x = _finite(log_risk, len(times), "log_risk")
    if not events.any():
        raise ValueError("Breslow's baseline needs at least one event, found none")
    order = np.argsort(times, kind="stable")
    ordered, weights = times[order], np.exp(x[order])
    at_risk = np.cumsum(weights[::-1])[::-1]  # weight of this patient and of all later ones
    event_times, deaths = np.unique(times[events], return_counts=True)
    first = np.searchsorted(ordered, event_times, side="left")
    hazard = np.cumsum(deaths / at_risk[first])
    return Baseline(tuple(event_times.tolist()), tuple(hazard.tolist()))


def mean_sd(values: Sequence[float] | Floats) -> tuple[float, float]:
    """Mean and standard deviation (n - 1) of a number per fold.

    NaN among the values makes both NaN: an undefined fold is not left out in silence.

    Returns:
        (mean, sd); the sd of fewer than two values, and the mean of none, is NaN.
    """
    array = np.asarray(values, np.float64)
    mean = float(array.mean()) if array.size else math.nan
    return mean, float(array.std(ddof=1)) if array.size > 1 else math.nan
