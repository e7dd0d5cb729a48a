"""Cox models with a ridge penalty, and how their penalty is chosen; numpy, exact, seconds a fold.

The penalized log partial likelihood (Breslow's form for ties)

    l(beta) - 1/2 sum_k a_k beta_k^2,   l = sum_i e_i (eta_i - log sum_{j: t_j >= t_i} exp eta_j)

with eta = X beta is maximized by Newton's method in the space that the patients span: with many
more features than patients, beta = A^-1 X' alpha for n numbers alpha, and alpha = dl/d eta at the
maximum.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int
from numpy.typing import ArrayLike

from steph_jax.survival.labels import survival_labels

_MOST_STEPS = 100
_TOLERANCE = 1e-10


class _Order(NamedTuple):
    """Risk sets of patients sorted by time.

    Attributes:
        rows: [n] patients in the order of their times.
        event: [n] in that order.
        first: [n] place of the first patient with the same time.
        last: [n] place of the last patient with the same time.
    """

    rows: Int[np.ndarray, " n"]
    event: Bool[np.ndarray, " n"]
    first: Int[np.ndarray, " n"]
    last: Int[np.ndarray, " n"]


def _ordered(time: Float64[np.ndarray, " n"], event: Bool[np.ndarray, " n"]) -> _Order:
    rows = np.argsort(time, kind="stable")
    ordered = time[rows]
    first = np.searchsorted(ordered, ordered, side="left")
    last = np.searchsorted(ordered, ordered, side="right") - 1
    return _Order(rows, event[rows], first, last)


def _terms(
    order: _Order, eta: Float64[np.ndarray, " n"]
) -> tuple[float, Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Log partial likelihood, exp(eta) and the sums of it over risk sets, in sorted order.

    eta is shifted by its maximum, which changes neither the likelihood nor its derivatives.
    """
    x = eta[order.rows]
    x = x - x.max()
    weights = np.exp(x)
    at_risk = np.cumsum(weights[::-1])[::-1][order.first]
    return float(np.sum((x - np.log(at_risk))[order.event])), weights, at_risk


def log_partial_likelihood(time: ArrayLike, event: ArrayLike, log_risk: ArrayLike) -> float:
    """Breslow's log partial likelihood of log risks [P]; 0 without events."""
    times, events = survival_labels(time, event)
    return _terms(_ordered(times, events), np.asarray(log_risk, np.float64))[0]


def gain_per_event(time: ArrayLike, event: ArrayLike, log_risk: ArrayLike) -> float:
    """Log partial likelihood less that of equal risks, per event; NaN without events.

    Comparable between sets of patients of any size.
    """
    times, events = survival_labels(time, event)
    if not events.any():
        return math.nan
    risks = np.asarray(log_risk, np.float64)
    gain = log_partial_likelihood(times, events, risks)
    return (gain - log_partial_likelihood(times, events, np.zeros_like(risks))) / int(events.sum())


def _derivatives(
    order: _Order, weights: Float64[np.ndarray, " n"], at_risk: Float64[np.ndarray, " n"]
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, "n n"]]:
    """Gradient [n] and negative Hessian [n, n] of the likelihood over eta, in sorted order."""
    hazard = np.cumsum(np.where(order.event, 1.0 / at_risk, 0.0))[order.last]
    gradient = order.event - weights * hazard
    deaths = np.flatnonzero(order.event)
    shares = weights / at_risk[deaths, None]
    shares[np.arange(len(weights)) < order.first[deaths, None]] = 0.0
    return gradient, np.diag(weights * hazard) - shares.T @ shares


def ridge_cox(
    features: ArrayLike, time: ArrayLike, event: ArrayLike, penalty: ArrayLike
) -> Float64[np.ndarray, " K"]:
    """Coefficients of the Cox model with a ridge penalty.

    Args:
        features: [P, K], each column of about the same scale.
        time: [P] finite, at least 0.
        event: [P] in {0, 1}, at least one of them 1.
        penalty: a, above 0; one number or [K]. Infinity keeps a coefficient at 0.

    Returns:
        beta [K]; a higher X beta means a shorter life.

    Raises:
        ValueError: for invalid labels, without an event, or for another penalty.
    """
    x = np.asarray(features, np.float64)
    times, events = survival_labels(time, event)
    if x.ndim != 2 or len(x) != len(times):
        raise ValueError(f"expected features [{len(times)}, K], found shape {x.shape}")
    penalties = np.broadcast_to(np.asarray(penalty, np.float64), x.shape[1])
    if not (penalties > 0).all():
        raise ValueError(f"penalties are above 0; found {penalties.min():g}")
    centered = x - x.mean(axis=0)
    scaled = centered / penalties
    return scaled.T @ dual_coefficients(centered @ scaled.T, times, events)


def dual_coefficients(
    kernel: Float64[np.ndarray, "n n"], time: ArrayLike, event: ArrayLike
) -> Float64[np.ndarray, " n"]:
    """alpha [n] of the ridge Cox model with beta = A^-1 X' alpha, from the kernel X A^-1 X' alone.

    The log risks of other patients are X_other A^-1 X' alpha, so that one kernel of all patients
    serves every inner fold and penalty.

    Args:
        kernel: [n, n].
        time: [n] finite, at least 0.
        event: [n] in {0, 1}, at least one of them 1.

    Raises:
        ValueError: for invalid labels or without an event.
    """
    times, events = survival_labels(time, event)
    if not events.any():
        raise ValueError("a Cox model needs at least one event, found none")
    return _dual(kernel, _ordered(times, events))


def _dual(kernel: Float64[np.ndarray, "n n"], order: _Order) -> Float64[np.ndarray, " n"]:
    """alpha [n] in the patients' own order, for the kernel X A^-1 X' [n, n]."""
    k = kernel[np.ix_(order.rows, order.rows)]
    plain = order._replace(rows=np.arange(len(k)))
    alpha = np.zeros(len(k))

    def objective(candidate: Float64[np.ndarray, " n"]) -> float:
        eta = k @ candidate
        return _terms(plain, eta)[0] - 0.5 * float(candidate @ eta)

    value = objective(alpha)
    for _ in range(_MOST_STEPS):
        eta = k @ alpha
        _, weights, at_risk = _terms(plain, eta)
        gradient, curvature = _derivatives(plain, weights, at_risk)
        newton = np.linalg.solve(np.eye(len(k)) + curvature @ k, gradient + curvature @ eta)
        length = 1.0
        while (better := objective(alpha + length * (newton - alpha))) < value and length > 1e-8:
            length /= 2
        alpha = alpha + length * (newton - alpha)
        if better - value <= _TOLERANCE * max(1.0, abs(better)):
            break
        value = better
    in_own_order = np.empty_like(alpha)
    in_own_order[order.rows] = alpha
    return in_own_order


def inner_folds(
    event: ArrayLike, number: int, seed: int, repeats: int = 1
) -> Int[np.ndarray, "R P"]:
    """[R, P] number of the inner fold of every patient, in each of R draws; events spread evenly.

    The first draws are the same whatever R.
    """
    events = np.asarray(event).astype(bool)
    rng = np.random.default_rng(seed)
    folds = np.empty((repeats, len(events)), np.intp)
    for fold in folds:
        for members in (np.flatnonzero(events), np.flatnonzero(~events)):
            shuffled = rng.permutation(members)
            fold[shuffled] = np.arange(len(shuffled)) % number
    return folds


def held_out_likelihood(
    predict: Callable[
        [Int[np.ndarray, " train"], Int[np.ndarray, " rest"]], Float64[np.ndarray, " rest"]
    ],
    time: ArrayLike,
    event: ArrayLike,
    folds: Int[np.ndarray, "R P"],
) -> Float64[np.ndarray, " J"]:
    """Partial likelihood per event of the held-out patients of every inner fold of every draw.

    Args:
        predict: (rows to train on, rows held out) -> log risks of the latter.
        time, event: [P].
        folds: [R, P] of `inner_folds`.

    Returns:
        [J] R times the number of folds; NaN for a fold without an event.
    """
    times, events = survival_labels(time, event)
    scores = []
    for fold_of in folds:
        for fold in np.unique(fold_of):
            train, rest = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
            deaths = int(events[rest].sum())
            value = log_partial_likelihood(times[rest], events[rest], predict(train, rest))
            scores.append(value / deaths if deaths else math.nan)
    return np.asarray(scores)


def one_standard_error(scores: Sequence[ArrayLike]) -> int:
    """The simplest candidate whose score is within one standard error of the best one's.

    Args:
        scores: [C] candidates from the simplest on, each with its scores on the inner folds [J];
            higher is better.

    Returns:
        index of the candidate chosen. The error is that of the paired differences to the best.
    """
    table = np.asarray(scores, np.float64)
    means = np.nanmean(table, axis=1)
    best = int(np.argmax(means))
    for candidate in range(best):
        difference = table[best] - table[candidate]
        finite = difference[np.isfinite(difference)]
        error = finite.std(ddof=1) / math.sqrt(len(finite)) if len(finite) > 1 else 0.0
        if finite.mean() <= error:
            return candidate
    return best
