"""Penalties of linear Cox models, and how far they are shrunk to other cancers, by inner folds.

Features are standardized on all training patients of the fold (`standardize`, which sees no
outcome); penalties are compared by the partial likelihood of held-out patients.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int
from numpy.typing import ArrayLike

from steph_jax.survival import cox

#: A column whose spread is below this share of its largest entry is rounding noise.
_LEAST_SPREAD = 1e-5


class Standard(NamedTuple):
    """How columns are standardized: (x - mean) / scale.

    Attributes:
        mean: [K].
        scale: [K] standard deviation (n); infinity for a constant column, which becomes 0.
    """

    mean: Float64[np.ndarray, " K"]
    scale: Float64[np.ndarray, " K"]

    def __call__(self, features: ArrayLike) -> Float64[np.ndarray, "P K"]:
        """Standardized features [P, K]."""
        return (np.asarray(features, np.float64) - self.mean) / self.scale


def standardize(features: ArrayLike) -> Standard:
    """Mean and scale of the columns of features [P, K]."""
    x = np.asarray(features, np.float64)
    scale = x.std(axis=0)
    is_constant = scale <= _LEAST_SPREAD * np.abs(x).max(axis=0)
    return Standard(x.mean(axis=0), np.where(is_constant, math.inf, scale))


class RidgeFit(NamedTuple):
    """A ridge Cox model and its penalty.

    Attributes:
        coefficients: [K] of standardized features; a higher sum means a shorter life.
        penalty: a, the one chosen.
        scores: [C, J] held-out partial likelihood per event, by penalty and inner fold.
    """

    coefficients: Float64[np.ndarray, " K"]
    penalty: float
    scores: Float64[np.ndarray, "C J"]


def fit_ridge(
    features: Float64[np.ndarray, "P K"],
    time: ArrayLike,
    event: ArrayLike,
    folds: Int[np.ndarray, "R P"],
    penalties: Sequence[float],
) -> RidgeFit:
    """The ridge Cox model with the penalty that is best on inner folds.

    Args:
        features: [P, K] standardized.
        time, event: [P].
        folds: [R, P] of `cox.inner_folds`.
        penalties: a to choose from, each above 0.

    Raises:
        ValueError: as `cox.ridge_cox` does; the training part of an inner fold has no event.
    """
    kernel = features @ features.T
    scores = np.stack([_scores(kernel / a, time, event, folds) for a in penalties])
    penalty = float(penalties[_best(scores)])
    alpha = cox.dual_coefficients(kernel / penalty, time, event)
    return RidgeFit(features.T @ alpha / penalty, penalty, scores)


def _scores(
    kernel: Float64[np.ndarray, "P P"],
    time: ArrayLike,
    event: ArrayLike,
    folds: Int[np.ndarray, "R P"],
) -> Float64[np.ndarray, " J"]:
    """[J] held-out partial likelihood per event of the model with a kernel X A^-1 X'."""
    times, events = np.asarray(time), np.asarray(event)

    def predict(
        train: Int[np.ndarray, " train"], rest: Int[np.ndarray, " rest"]
    ) -> Float64[np.ndarray, " rest"]:
        inner = kernel[np.ix_(train, train)]
        alpha = cox.dual_coefficients(inner, times[train], events[train])
        return kernel[np.ix_(rest, train)] @ alpha

    return cox.held_out_likelihood(predict, time, event, folds)


def _best(scores: Float64[np.ndarray, "C J"]) -> int:
    """The candidate of the best mean; an inner fold without events does not count."""
    return int(np.argmax(np.nanmean(scores, axis=1)))


class PooledGrid(NamedTuple):
    """What `fit_pooled` chooses from, beside not to use other cancers at all.

    Attributes:
        common: p_0, penalties of kappa, the weight of the sources' mean direction.
        own: p_1, penalties of kappa_s, the weight of each source's direction; infinity for none.
    """

    common: tuple[float, ...] = (100.0, 10.0, 1.0)
    own: tuple[float, ...] = (math.inf, 30.0)


class PooledFit(NamedTuple):
    """A Cox model shrunk to other cancers (equation 57 of docs/method.md).

    Attributes:
        coefficients: [K] delta + kappa b + sum_s kappa_s b_s, of standardized features.
        penalty: a of delta.
        common_penalty, own_penalty: p_0 and p_1; infinity where the pool is not used.
        kappa: weight of b.
        kappa_s: [S] weights of b_s.
        share: of the pool in the coefficients, |pool| / (|delta| + |pool|).
    """

    coefficients: Float64[np.ndarray, " K"]
    penalty: float
    common_penalty: float
    own_penalty: float
    kappa: float
    kappa_s: Float64[np.ndarray, " S"]
    share: float


def fit_pooled(
    features: Float64[np.ndarray, "P K"],
    time: ArrayLike,
    event: ArrayLike,
    folds: Int[np.ndarray, "R P"],
    penalties: Sequence[float],
    directions: Float64[np.ndarray, "S K"],
    grid: PooledGrid,
) -> PooledFit:
    """The ridge Cox model whose coefficients are shrunk to those of other cancers.

    The strengths of the shrinkage are the simplest within one standard error of the best: first
    not to use the pool, then the sources' mean direction alone, then each source's own. For each of
    these, a is the best.

    Args:
        features, time, event, folds, penalties: as of `fit_ridge`.
        directions: [S, K] b_s, coefficients of the sources' models, each of length 1.
        grid: of p_0 and p_1.

    Raises:
        ValueError: as `fit_ridge` does.
    """
    columns = _pool_columns(features, directions)
    own, pool_scores = features @ features.T, features @ columns
    ladder = [(math.inf, math.inf), *((p0, p1) for p1 in grid.own for p0 in grid.common)]

    def weights(common: float, each: float) -> Float64[np.ndarray, " S1"]:
        return 1 / np.repeat([common, each], [1, len(directions)])

    choices = []
    for common, each in ladder:
        shared = (pool_scores * weights(common, each)) @ pool_scores.T
        scores = np.stack([_scores(own / a + shared, time, event, folds) for a in penalties])
        best = _best(scores)
        choices.append((scores[best], float(penalties[best]), common, each))
    chosen = cox.one_standard_error([scores for scores, *_ in choices])
    _, penalty, common, each = choices[chosen]
    shared = (pool_scores * weights(common, each)) @ pool_scores.T
    alpha = cox.dual_coefficients(own / penalty + shared, time, event)
    delta = features.T @ alpha / penalty
    kappas = weights(common, each) * (pool_scores.T @ alpha)
    pool = columns @ kappas
    lengths = float(np.linalg.norm(delta)), float(np.linalg.norm(pool))
    share = lengths[1] / sum(lengths) if sum(lengths) else 0.0
    return PooledFit(delta + pool, penalty, common, each, float(kappas[0]), kappas[1:], share)


def _pool_columns(
    features: Float64[np.ndarray, "P K"], directions: Float64[np.ndarray, "S K"]
) -> Float64[np.ndarray, "K S1"]:
    """[K, 1 + S] b and b_s, scaled so that each score X b has a standard deviation of 1."""
    columns = np.concatenate([directions.mean(axis=0)[None], directions]).T
    spread = (features @ columns).std(axis=0)
    return columns / np.where(spread > 0, spread, 1.0)


def unit(vector: Float64[np.ndarray, " K"]) -> Float64[np.ndarray, " K"]:
    """The vector with length 1; one of zeros stays as it is."""
    length = float(np.linalg.norm(vector))
    return vector / length if length else vector
