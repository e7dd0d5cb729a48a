"""Bootstrap and t-test against slow, obvious twins and independent libraries."""

import math

import numpy as np
import pytest
import scipy.stats
from lifelines.utils import concordance_index as lifelines_c_index

from steph_jax.survival import metrics, significance
from steph_jax.survival.significance import FoldRisks, Interval


def patients(num, seed, ties=True):
    rng = np.random.default_rng(seed)
    time = rng.integers(1, 15 if ties else 10**6, num).astype(float)
    event = rng.random(num) < 0.5
    risk = -time / 10 + rng.normal(size=num)
    return time, event, np.round(risk, 1) if ties else risk


def drawn(num, resamples, seed):
    """Numbers of the patients of each resample, and the same as counts."""
    chosen = np.random.default_rng(seed).integers(0, num, (resamples, num))
    return chosen, np.stack([np.bincount(row, minlength=num) for row in chosen])


def test_resampled_c_index_equals_that_of_the_listed_patients():
    time, event, risk = patients(30, 0)
    chosen, counts = drawn(30, 50, 1)
    actual = significance.resampled_c_index(time, event, risk, counts)
    slow = [metrics.concordance_index(time[i], event[i], risk[i]) for i in chosen]
    np.testing.assert_allclose(actual, slow, rtol=1e-12)
    by_lifelines = [lifelines_c_index(time[i], -risk[i], event[i]) for i in chosen]
    np.testing.assert_allclose(actual, by_lifelines, rtol=1e-12)


def test_resample_of_each_patient_once_is_the_cohort():
    time, event, risk = patients(40, 3)
    actual = significance.resampled_c_index(time, event, risk, np.ones((1, 40)))
    assert actual[0] == pytest.approx(metrics.concordance_index(time, event, risk), abs=1e-14)


def test_comparable_pairs_are_those_of_the_definition():
    time, event = [3.0, 3.0, 5.0, 1.0], [True, False, True, False]
    # The one who died at 3 against the one censored then, and the one who lived on.
    expected = np.zeros((4, 4), bool)
    expected[0, [1, 2]] = True
    np.testing.assert_array_equal(significance.comparable_pairs(time, event), expected)


def test_a_resample_without_a_comparable_pair_is_undefined():
    counts = [[2, 0], [1, 1]]
    actual = significance.resampled_c_index([1, 2], [1, 0], [0.5, 0.1], counts)
    np.testing.assert_array_equal(actual, [np.nan, 1.0])


def test_the_bootstrap_is_paired_within_folds_and_averages_seeds_then_folds():
    folds = []
    for fold in range(2):
        time, event, one = patients(25 + fold, fold)
        other = one + np.random.default_rng(fold).normal(size=len(one))
        folds.append(FoldRisks(time, event, {"a": one[None], "b": np.stack([one, other])}))
    actual = significance.bootstrap_means(folds, 20, seed=5)
    rng = np.random.default_rng(5)
    expected = {"a": np.zeros(20), "b": np.zeros(20)}
    for fold in folds:
        n = len(fold.time)
        for r, rows in enumerate(rng.integers(0, n, (20, n))):
            for method, risks in fold.risk.items():
                c = [
                    metrics.concordance_index(fold.time[rows], fold.event[rows], risk[rows])
                    for risk in risks
                ]
                expected[method][r] += np.mean(c) / 2
    for method in expected:
        np.testing.assert_allclose(actual[method], expected[method], rtol=1e-12)


def test_a_method_against_itself_does_not_differ_on_any_resample():
    time, event, risk = patients(30, 0)
    fold = FoldRisks(time, event, {"a": risk[None], "b": risk[None].copy()})
    actual = significance.bootstrap_means([fold], 100)
    interval = significance.percentile_interval(actual["b"] - actual["a"])
    assert interval == Interval(0, 0)
    assert not interval.excludes_zero()


def test_percentile_interval_coverage():
    # The true C-index of a logistic score is that of a huge cohort.
    def cohort(num, rng):
        risk = rng.normal(size=num)
        time = rng.exponential(np.exp(-risk))
        return time, np.ones(num, bool), risk

    truth = metrics.concordance_index(*cohort(5000, np.random.default_rng(0)))
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        time, event, risk = cohort(40, rng)
        means = significance.bootstrap_means([FoldRisks(time, event, {"a": risk[None]})], 200)
        low, high = significance.percentile_interval(means["a"])
        covered += low <= truth <= high
    assert 0.86 <= covered / 100 <= 0.99


def test_percentiles_ignore_undefined_resamples():
    values = np.append(np.arange(101.0), [np.nan] * 50)
    assert significance.percentile_interval(values) == pytest.approx((2.5, 97.5))
    assert all(math.isnan(end) for end in significance.percentile_interval(np.full(3, np.nan)))
    assert Interval(0.01, 0.2).excludes_zero()
    assert Interval(-0.2, -0.01).excludes_zero()
    assert not Interval(-0.1, 0.1).excludes_zero()
    assert not Interval(math.nan, math.nan).excludes_zero()


def test_the_corrected_t_test_is_students_with_a_larger_variance():
    d = np.array([0.02, 0.05, -0.01, 0.03, 0.04])
    train, test = [80, 81, 80, 79, 80], [20, 19, 20, 21, 20]
    ratio = np.mean([20 / 80, 19 / 81, 20 / 80, 21 / 79, 20 / 80])
    scale = np.sqrt((1 / 5 + ratio) * d.var(ddof=1))
    expected = 2 * scipy.stats.t.sf(d.mean() / scale, df=4)
    actual = significance.corrected_t_test(d, train, test)
    assert actual == pytest.approx(expected, rel=1e-12)
    assert significance.corrected_t_test(-d, train, test) == pytest.approx(actual)
    # Without the correction it is the usual test, which is too sure of itself.
    assert significance.corrected_t_test(d, train, [0] * 5) == pytest.approx(
        scipy.stats.ttest_1samp(d, 0).pvalue, rel=1e-10
    )
    assert scipy.stats.ttest_1samp(d, 0).pvalue < actual


@pytest.mark.parametrize(
    "differences", [[0.1], [0.1, math.nan], [0.0, 0.0], [0.1, 0.1, 0.3 - 0.2], []]
)
def test_t_test_is_nan_where_undefined(differences):
    sizes = [10] * len(differences)
    assert math.isnan(significance.corrected_t_test(differences, sizes, sizes))


def test_an_interval_is_widened_about_its_mean():
    """Twice the variance: both ends lie sqrt(2) times as far from the mean."""
    resampled = np.linspace(0.5, 0.9, 1001)
    low, high = significance.interval_of_mean(resampled, 0.6)
    assert 0.6 - low == pytest.approx(np.sqrt(2) * (0.6 - 0.51))
    assert high - 0.6 == pytest.approx(np.sqrt(2) * (0.89 - 0.6))
    assert significance.interval_of_mean(resampled, 0.6, 0.5, 0.8) == (0.5, 0.8)


def test_the_t_interval_excludes_zero_where_the_test_does():
    rng = np.random.default_rng(3)
    for _ in range(50):
        differences = rng.normal(0.02, 0.02, 5)
        p = significance.corrected_t_test(differences, [80] * 5, [20] * 5)
        interval = significance.corrected_t_interval(differences, [80] * 5, [20] * 5)
        assert interval.excludes_zero() == (p < 0.05)
        assert sum(interval) / 2 == pytest.approx(differences.mean())
    assert np.isnan(significance.corrected_t_interval([0.1], [80], [20])).all()
