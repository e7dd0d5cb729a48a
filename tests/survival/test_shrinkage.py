"""Penalties chosen on inner folds, and models shrunk to other cancers, against slow formulas."""

import itertools
import math

import lifelines
import numpy as np
import pandas as pd
import pytest

from steph_jax.survival import cox, shrinkage
from steph_jax.survival.shrinkage import PooledGrid

PENALTIES = (3.0, 30.0, 300.0)


def draw(num_patients=90, num_features=6, seed=0, truth=(1.0, -0.5)):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num_patients, num_features))
    effect = x[:, : len(truth)] @ np.asarray(truth)
    death = rng.exponential(1000 * np.exp(-effect))
    censored = rng.uniform(100, 3000, num_patients)
    return x, np.minimum(death, censored), death <= censored


def fitted_by_lifelines(x, time, event, penalty):
    """Coefficients by lifelines, whose penalty is that of the mean likelihood."""
    table = pd.DataFrame(x, columns=[f"x{k}" for k in range(x.shape[1])])
    table["t"], table["e"] = time, event
    # lifelines standardizes the columns itself, and returns coefficients of them as they are.
    scale = x.std(axis=0, ddof=1)
    fit = lifelines.CoxPHFitter(penalizer=penalty / len(x) / scale**2)
    return fit.fit(table, "t", "e").params_.to_numpy()


def test_standardized_columns_have_mean_0_and_deviation_1():
    x, _, _ = draw()
    x[:, 2], x[:, 3] = 7.0, 1e6 + 1e-9 * x[:, 3]
    standard = shrinkage.standardize(x)
    z = standard(x)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(z.std(axis=0), [1, 1, 0, 0, 1, 1], atol=1e-12)
    assert np.isinf(standard.scale[[2, 3]]).all()
    np.testing.assert_array_equal(standard(np.zeros((1, 6)))[0, 2:4], 0)


def test_ridge_equals_lifelines_at_the_penalty_of_the_best_held_out_likelihood():
    x, time, event = draw()
    x = shrinkage.standardize(x)(x)
    folds = cox.inner_folds(event, 3, seed=1, repeats=2)
    fit = shrinkage.fit_ridge(x, time, event, folds, PENALTIES)
    expected = np.zeros((len(PENALTIES), 6))
    for i, penalty in enumerate(PENALTIES):
        for place, (draw_of, fold) in enumerate(itertools.product(folds, range(3))):
            train, rest = draw_of != fold, draw_of == fold
            beta = fitted_by_lifelines(x[train], time[train], event[train], penalty)
            likelihood = cox.log_partial_likelihood(time[rest], event[rest], x[rest] @ beta)
            expected[i, place] = likelihood / event[rest].sum()
    np.testing.assert_allclose(fit.scores, expected, atol=2e-4)
    assert fit.penalty == PENALTIES[int(expected.mean(axis=1).argmax())]
    np.testing.assert_allclose(
        fit.coefficients, fitted_by_lifelines(x, time, event, fit.penalty), atol=2e-4
    )


def test_noise_has_the_largest_penalty():
    x, time, event = draw(num_features=40, seed=3, truth=(0.0,))
    folds = cox.inner_folds(event, 3, seed=1)
    assert shrinkage.fit_ridge(x, time, event, folds, PENALTIES).penalty == PENALTIES[-1]


def test_pooled_coefficients_are_those_of_a_model_with_the_pool_as_columns():
    """Against `cox.ridge_cox` on [X, X b, X b_s] with a penalty for each column."""
    x, time, event = draw(num_features=12, seed=2, truth=(0.6, -0.6))
    x = shrinkage.standardize(x)(x)
    folds = cox.inner_folds(event, 3, seed=1)
    rng = np.random.default_rng(0)
    truth = np.zeros(12)
    truth[:2] = 1, -1
    directions = np.stack([shrinkage.unit(truth + 0.1 * rng.normal(size=12)) for _ in range(3)])
    grid = PooledGrid(common=(1.0,), own=(5.0,))
    fit = shrinkage.fit_pooled(x, time, event, folds, (300.0,), directions, grid)
    assert (fit.common_penalty, fit.own_penalty) == (1.0, 5.0)
    columns = np.concatenate([directions.mean(axis=0)[None], directions]).T
    columns = columns / (x @ columns).std(axis=0)
    wide = np.concatenate([x, x @ columns], axis=1)
    beta = cox.ridge_cox(wide, time, event, [300.0] * 12 + [1.0] + [5.0] * 3)
    np.testing.assert_allclose([fit.kappa, *fit.kappa_s], beta[12:], atol=1e-8)
    np.testing.assert_allclose(fit.coefficients, beta[:12] + columns @ beta[12:], atol=1e-8)
    pool, delta = np.linalg.norm(columns @ beta[12:]), np.linalg.norm(beta[:12])
    assert fit.share == pytest.approx(pool / (pool + delta))
    assert fit.share > 0.5


def test_the_pool_is_weighed_on_all_draws_of_inner_folds():
    """Against held-out likelihoods of `cox.ridge_cox` on [X, X b], and the rule written out."""
    x, time, event = draw(45, 8, seed=9, truth=(0.8,))
    x = shrinkage.standardize(x)(x)
    folds = cox.inner_folds(event, 3, seed=2, repeats=4)
    directions = shrinkage.unit(np.array([1.0, 0.6, *np.zeros(6)]))[None]
    column = x @ directions.T
    wide = np.concatenate([x, column / column.std(axis=0)], axis=1)
    strengths, scores = (np.inf, 100.0, 1.0), []
    for strength in strengths:
        penalties = [40.0] * 8 + [strength]
        scores.append([])
        for draw_of, fold in itertools.product(folds, range(3)):
            train, rest = draw_of != fold, draw_of == fold
            beta = cox.ridge_cox(wide[train], time[train], event[train], penalties)
            likelihood = cox.log_partial_likelihood(time[rest], event[rest], wide[rest] @ beta)
            scores[-1].append(likelihood / event[rest].sum())
    best = int(np.argmax(np.mean(scores, axis=1)))
    differences = [np.subtract(scores[best], score) for score in scores]
    within = [d.mean() <= d.std(ddof=1) / np.sqrt(12) for d in differences[:best]]
    expected = strengths[within.index(True) if any(within) else best]
    chosen = [
        shrinkage.fit_pooled(
            *(x, time, event, draws, (40.0,), directions),
            PooledGrid(common=(100.0, 1.0), own=(math.inf,)),
        ).common_penalty
        for draws in (folds, folds[:1])
    ]
    assert chosen[0] == expected
    assert chosen[1] != expected


def test_a_pool_that_does_not_help_is_not_used():
    x, time, event = draw(150, 12, seed=5, truth=(1.0, -1.0))
    x = shrinkage.standardize(x)(x)
    folds = cox.inner_folds(event, 3, seed=1)
    rng = np.random.default_rng(1)
    directions = np.zeros((2, 12))
    directions[:, 6:] = rng.normal(size=(2, 6))
    directions = np.stack([shrinkage.unit(b) for b in directions])
    fit = shrinkage.fit_pooled(x, time, event, folds, PENALTIES, directions, PooledGrid())
    ridge = shrinkage.fit_ridge(x, time, event, folds, PENALTIES)
    assert (fit.kappa, fit.share, fit.common_penalty) == (0.0, 0.0, math.inf)
    assert not fit.kappa_s.any()
    assert fit.penalty == ridge.penalty
    np.testing.assert_allclose(fit.coefficients, ridge.coefficients, atol=1e-9)


def test_a_pool_helps_where_patients_are_few():
    """Held-out patients of the same cancer, whose own coefficients the pool has."""
    gains = []
    for seed in range(4):
        truth = np.random.default_rng(100 + seed).normal(size=60) / 8
        x, time, event = draw(1060, 60, seed=seed, truth=truth)
        train, rest = slice(0, 60), slice(60, None)
        folds = cox.inner_folds(event[train], 3, seed=0)
        args = x[train], time[train], event[train], folds, (6.0, 60.0, 600.0)
        pooled = shrinkage.fit_pooled(*args, shrinkage.unit(truth)[None], PooledGrid())
        ridge = shrinkage.fit_ridge(*args)
        gains.append(
            cox.gain_per_event(time[rest], event[rest], x[rest] @ pooled.coefficients)
            - cox.gain_per_event(time[rest], event[rest], x[rest] @ ridge.coefficients)
        )
    assert np.mean(gains) > 0.05


def test_unit_vectors():
    np.testing.assert_allclose(shrinkage.unit(np.array([3.0, 4.0])), [0.6, 0.8])
    np.testing.assert_array_equal(shrinkage.unit(np.zeros(2)), [0, 0])
