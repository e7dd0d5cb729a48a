"""Means over cohorts, against published values, independent formulas and chance."""

import math

import numpy as np
import pytest
from scipy import stats

from steph_jax.survival.meta_analysis import holm, random_effects, wilcoxon

#: Trials of the BCG vaccine (Colditz et al. 1994): tuberculosis and none, vaccinated and not.
BCG = """
4 119 11 128
6 300 29 274
3 228 11 209
62 13536 248 12619
33 5036 47 5761
180 1361 372 1079
8 2537 10 619
505 87886 499 87892
29 7470 45 7232
17 1699 65 1600
186 50448 141 27197
5 2493 3 2338
27 16886 29 17825
"""


def bcg():
    """Log relative risks and their standard errors."""
    a, b, c, d = np.array([line.split() for line in BCG.split("\n") if line], float).T
    risk = np.log(a / (a + b)) - np.log(c / (c + d))
    return risk, np.sqrt(1 / a - 1 / (a + b) + 1 / c - 1 / (c + d))


def test_trials_of_bcg_have_the_published_mean_and_heterogeneity():
    risk, errors = bcg()
    result = random_effects(risk, errors)
    # As R's metafor has them, rma(method = "DL"): -0.7141, tau^2 0.3088, standard error 0.1787.
    assert result.mean == pytest.approx(-0.7141, abs=5e-5)
    assert result.tau**2 == pytest.approx(0.3088, abs=5e-5)
    plain = 1 / math.sqrt(np.sum(1 / (errors**2 + result.tau**2)))
    assert plain == pytest.approx(0.1787, abs=5e-5)


def test_interval_is_that_of_a_weighted_regression_on_a_constant():
    """Hartung and Knapp's error is the one of weighted least squares with a scale parameter."""
    risk, errors = bcg()
    result = random_effects(risk, errors)
    root = 1 / np.sqrt(errors**2 + result.tau**2)
    design, outcome = root[:, None], root * risk
    (mean,), (squares,), *_ = np.linalg.lstsq(design, outcome)
    error = math.sqrt(squares / (len(risk) - 1) * np.linalg.inv(design.T @ design)[0, 0])
    expected = stats.t(len(risk) - 1, mean, error)
    assert result.mean == pytest.approx(mean)
    np.testing.assert_allclose(result.interval, expected.interval(0.95), rtol=1e-10)
    null = stats.t(len(risk) - 1)
    assert result.p == pytest.approx(2 * null.sf(abs(mean / error)))
    assert result.weights.sum() == pytest.approx(1)


def test_equal_errors_give_the_t_test():
    values = np.random.default_rng(0).normal(0.01, 0.02, 8)
    result = random_effects(values, np.full(8, 0.004))
    test = stats.ttest_1samp(values, 0)
    assert (result.mean, result.p) == pytest.approx((values.mean(), test.pvalue))
    np.testing.assert_allclose(result.interval, test.confidence_interval(), rtol=1e-9)


def test_a_cohort_without_error_does_not_rule_the_mean():
    values = np.array([0.0, 0.02, 0.03, 0.01])
    result = random_effects(values, [0.0, 0.01, 0.01, 0.02])
    assert result.mean == pytest.approx(0.015)
    assert result.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    alike = random_effects(np.zeros(3), np.zeros(3))
    assert tuple(alike.interval) == (0, 0)
    assert math.isnan(alike.p)
    with pytest.raises(ValueError, match=r"takes two of them at least; found 1"):
        random_effects([0.1], [0.1])


@pytest.mark.parametrize("tau", [0.0, 0.02])
def test_intervals_hold_the_truth_in_95_of_100(tau):
    rng = np.random.default_rng(1)
    held = []
    for _ in range(2000):
        errors = rng.uniform(0.008, 0.02, 8)
        differences = rng.normal(0.01, np.sqrt(errors**2 + tau**2))
        low, high = random_effects(differences, errors).interval
        held.append(low <= 0.01 <= high)
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)


def test_holm_rejects_what_its_definition_rejects():
    """By definition: the smallest p against 0.05 / m, the next against 0.05 / (m - 1), until one
    is not below."""
    rng = np.random.default_rng(2)
    for _ in range(200):
        p_values = rng.uniform(0, 0.1, rng.integers(1, 7))
        rejected = np.zeros(len(p_values), bool)
        for step, place in enumerate(np.argsort(p_values)):
            if p_values[place] >= 0.05 / (len(p_values) - step):
                break
            rejected[place] = True
        assert ((np.array(holm(p_values.tolist())) < 0.05) == rejected).all()
    assert holm([0.01, math.nan, 0.04]) == pytest.approx([0.02, math.nan, 0.04], nan_ok=True)
    assert holm([]) == []


def test_wilcoxon_counts_signs_and_ranks():
    # All eight on one side: 2 of 2^8 orders of signs are as extreme.
    assert wilcoxon(np.arange(1.0, 9.0)) == pytest.approx(2 / 2**8)
    assert math.isnan(wilcoxon([0.0, 0.0]))
