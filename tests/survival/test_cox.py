"""Ridge Cox models against lifelines, against slow formulas, and on inner folds."""

import math

import lifelines
import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

from steph_jax.survival import cox


def draw(num_patients=80, num_features=5, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num_patients, num_features))
    death = rng.exponential(1000 * np.exp(-x[:, 0] + 0.5 * x[:, 1]))
    censored = rng.uniform(100, 3000, num_patients)
    time = np.minimum(death, censored)
    return x, np.ceil(time / 100) * 100 if ties else time, death <= censored


def slow_likelihood(time, event, eta):
    return sum(
        eta[i] - math.log(sum(math.exp(eta[j]) for j in range(len(time)) if time[j] >= time[i]))
        for i in range(len(time))
        if event[i]
    )


@pytest.mark.parametrize("ties", [False, True])
def test_likelihood_equals_the_sum_over_risk_sets(ties):
    x, time, event = draw(ties=ties)
    eta = 3 * x[:, 0]
    actual = cox.log_partial_likelihood(time, event, eta)
    assert actual == pytest.approx(slow_likelihood(time, event, eta), rel=1e-12)
    assert cox.log_partial_likelihood(time, event, eta + 800) == pytest.approx(actual, rel=1e-9)


def test_gain_per_event_does_not_grow_with_the_cohort():
    x, time, event = draw(2000)
    whole = cox.gain_per_event(time, event, x[:, 0])
    quarters = [slice(500 * k, 500 * k + 500) for k in range(4)]
    parts = [cox.gain_per_event(time[q], event[q], x[q, 0]) for q in quarters]
    assert whole > 0.2
    assert np.mean(parts) == pytest.approx(whole, abs=0.02)
    assert cox.gain_per_event(time, event, np.full(2000, 7.0)) == pytest.approx(0.0, abs=1e-12)
    assert math.isnan(cox.gain_per_event(time, np.zeros(2000), x[:, 0]))


def test_coefficients_equal_lifelines():
    x, time, event = draw()
    x = (x - x.mean(axis=0)) / x.std(axis=0, ddof=1)
    table = pd.DataFrame(x, columns=[f"x{k}" for k in range(5)])
    table["t"], table["e"] = time, event
    for penalty in (0.8, 8.0, 80.0):
        fit = lifelines.CoxPHFitter(penalizer=penalty / len(x)).fit(table, "t", "e")
        actual = cox.ridge_cox(x, time, event, penalty)
        np.testing.assert_allclose(actual, fit.params_.to_numpy(), atol=2e-4)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("num_features", [4, 60])
def test_coefficients_maximize_the_penalized_likelihood(ties, num_features):
    """Against a general optimizer; with 60 features there are more than patients."""
    x, time, event = draw(40, num_features, seed=1, ties=ties)
    penalty = np.linspace(0.5, 4.0, num_features)

    def loss(beta):
        return -slow_likelihood(time, event, x @ beta) + 0.5 * np.sum(penalty * beta**2)

    actual = cox.ridge_cox(x, time, event, penalty)
    best = minimize(loss, np.zeros(num_features), method="L-BFGS-B", options={"maxfun": 100_000})
    assert loss(actual) <= best.fun + 1e-7
    np.testing.assert_allclose(actual, best.x, atol=5e-3)


def test_an_infinite_penalty_keeps_a_coefficient_at_zero():
    x, time, event = draw()
    alone = cox.ridge_cox(x[:, :2], time, event, 3.0)
    both = cox.ridge_cox(x, time, event, [3.0, 3.0, np.inf, np.inf, np.inf])
    np.testing.assert_allclose(both, [*alone, 0, 0, 0], atol=1e-9)
    np.testing.assert_array_equal(cox.ridge_cox(x, time, event, np.inf), np.zeros(5))


def test_huge_features_do_not_break_the_fit():
    x, time, event = draw()
    beta = cox.ridge_cox(100 * x, time, event, 1e-3)
    assert np.isfinite(beta).all()
    np.testing.assert_allclose(100 * beta, cox.ridge_cox(x, time, event, 1e-7), atol=1e-4)


def test_bad_input_is_named():
    x, time, event = draw()
    with pytest.raises(ValueError, match="at least one event"):
        cox.ridge_cox(x, time, np.zeros(80), 1.0)
    with pytest.raises(ValueError, match=r"penalties are above 0; found 0"):
        cox.ridge_cox(x, time, event, 0.0)
    with pytest.raises(ValueError, match=r"expected features \[80, K\], found shape \(79, 5\)"):
        cox.ridge_cox(x[:-1], time, event, 1.0)


def test_inner_folds_spread_the_events():
    event = np.arange(50) < 12
    draws = cox.inner_folds(event, 3, seed=5, repeats=4)
    assert draws.shape == (4, 50)
    for folds in draws:
        assert np.bincount(folds).tolist() == [17, 17, 16]
        assert np.bincount(folds[event]).tolist() == [4, 4, 4]
    assert len(np.unique(draws, axis=0)) == 4
    np.testing.assert_array_equal(draws[:1], cox.inner_folds(event, 3, seed=5))


def test_held_out_likelihood_is_per_event():
    x, time, event = draw()
    folds = cox.inner_folds(event, 3, seed=0)
    trained = []

    def predict(train, rest):
        trained.append((set(train), set(rest)))
        return x[rest, 0]

    scores = cox.held_out_likelihood(predict, time, event, folds)
    for fold, score in enumerate(scores):
        rows = np.flatnonzero(folds[0] == fold)
        expected = slow_likelihood(time[rows], event[rows], x[rows, 0]) / event[rows].sum()
        assert score == pytest.approx(expected)
    assert all(not train & rest and len(train | rest) == 80 for train, rest in trained)


def test_the_simplest_within_one_standard_error_is_chosen():
    best = [1.0, 1.2, 1.4]
    near = [1.1, 1.0, 1.4]  # differences -0.1, 0.2, 0.0: mean 0.033, error 0.088
    far = [0.5, 0.6, 0.9]
    assert cox.one_standard_error([far, near, best]) == 1
    assert cox.one_standard_error([near, far, best]) == 0
    assert cox.one_standard_error([far, best, near]) == 1
    assert cox.one_standard_error([best]) == 0
