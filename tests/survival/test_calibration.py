"""Calibration, D-calibration and hazard ratios, on patients whose true survival is known."""

import math

import lifelines
import numpy as np
import pandas as pd
import pytest
from scipy.stats import chi2

from steph_jax.survival import calibration, cox_models
from steph_jax.survival.calibration import Calibration
from steph_jax.survival.censoring import Estimate

AT = 1000.0


def draw(num_patients, seed=0, shrink=1.0):
    """Exponential deaths; the survival predicted at AT is true to the power e^(shrink * x - x)."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=num_patients)
    death = rng.exponential(AT * np.exp(-x))
    censored = rng.uniform(200, 4000, num_patients)
    time, event = np.minimum(death, censored), death <= censored
    return time, event, x, np.exp(-np.exp(shrink * x))


def folds_of(num_patients):
    return np.arange(num_patients) % 5


def test_true_probabilities_are_calibrated():
    time, event, _, survival = draw(4000)
    actual = calibration.calibration(time, event, survival, AT, folds_of(4000))
    assert isinstance(actual, Calibration)
    assert actual.missing == {}
    assert actual.slope.interval.low < 1.0 < actual.slope.interval.high
    assert actual.slope.value == pytest.approx(1.0, abs=0.06)
    assert actual.in_the_large == pytest.approx(0.0, abs=0.02)
    assert actual.ici < 0.02
    assert [fifth.patients for fifth in actual.fifths] == [800] * 5
    for fifth in actual.fifths:
        low, high = fifth.observed.interval
        assert low - 0.02 < fifth.predicted < high + 0.02
    spread = calibration.d_calibration(event, np.exp(-time / AT * np.exp(draw(4000)[2])))
    np.testing.assert_allclose(spread.shares, 0.1, atol=0.02)
    assert spread.p > 0.01


def test_too_extreme_probabilities_have_a_slope_below_one():
    time, event, _, survival = draw(3000, shrink=2.0)
    actual = calibration.calibration(time, event, survival, AT, folds_of(3000))
    assert actual.slope.value == pytest.approx(0.5, abs=0.05)
    assert actual.ici > 0.05
    extreme = calibration.d_calibration(event, np.exp(-time / AT * np.exp(2 * draw(3000)[2])))
    assert extreme.p < 1e-6


def test_in_the_large_is_the_mean_minus_kaplan_meier():
    time, event, _, survival = draw(500, seed=2)
    actual = calibration.calibration(time, event, survival, AT, folds_of(500))
    km = lifelines.KaplanMeierFitter().fit(time, event).predict(AT)
    assert actual.in_the_large == pytest.approx(survival.mean() - km, abs=1e-12)


def test_slope_equals_a_stratified_cox_model():
    time, event, _, survival = draw(300, seed=4)
    table = pd.DataFrame(
        {
            "t": time,
            "e": event,
            "g": np.log(-np.log(np.clip(survival, 1e-8, 1))),
            "fold": folds_of(300),
        }
    )
    fit = lifelines.CoxPHFitter().fit(table, "t", "e", strata=["fold"])
    actual = calibration.calibration(time, event, survival, AT, folds_of(300))
    assert actual.slope.value == pytest.approx(float(fit.params_["g"]), abs=1e-6)
    ends = fit.confidence_intervals_.to_numpy()[0]
    np.testing.assert_allclose(actual.slope.interval, ends, atol=1e-6)


def test_restricted_cubic_spline_is_smooth_and_straight_outside():
    knots, step = np.array([-1.0, 0.5, 2.0]), 1e-3
    x = np.arange(-4.0, 5.0, step)
    line, bend = calibration.restricted_cubic_spline(x, knots).T
    np.testing.assert_array_equal(line, x)
    second = np.diff(bend, 2) / step**2
    inside = (x[1:-1] > -1.0) & (x[1:-1] < 2.0)
    np.testing.assert_allclose(second[x[1:-1] < -1.01], 0.0, atol=1e-6)
    np.testing.assert_allclose(second[x[1:-1] > 2.01], 0.0, atol=1e-6)
    assert np.abs(np.diff(second)).max() < 0.01  # the second derivative has no jump
    assert second[inside].max() > 0.5
    assert calibration.restricted_cubic_spline(x, np.zeros(3)).shape == (len(x), 1)


def test_d_calibration_spreads_the_censored():
    event = np.array([True, True, False, False])
    survival = np.array([0.05, 1.0, 0.25, 0.0])
    shares = np.zeros(10)
    shares[0] += 1  # died at 0.05
    shares[9] += 1  # died at 1
    shares[:2] += 0.1 / 0.25
    shares[2] += 0.05 / 0.25
    shares[0] += 1  # censored at 0
    actual = calibration.d_calibration(event, survival)
    np.testing.assert_allclose(actual.shares, shares / 4, atol=1e-12)
    statistic = np.sum((shares - 0.4) ** 2) / 0.4
    assert actual.p == pytest.approx(chi2.sf(statistic, 9), rel=1e-12)


def test_calibration_without_events_or_follow_up_has_a_reason():
    time, event, _, survival = draw(100)
    actual = calibration.calibration(time, np.zeros(100, bool), survival, AT, folds_of(100))
    assert actual == Estimate(None, "0 events by then, 10 are needed")
    actual = calibration.calibration(np.minimum(time, 900), event, survival, AT, folds_of(100))
    assert actual.value is None
    assert actual.reason == "follow-up of all patients ends before"


def test_equal_predictions_have_no_slope():
    time, event, _, _ = draw(200)
    actual = calibration.calibration(time, event, np.full(200, 0.5), AT, folds_of(200))
    assert actual.slope is None
    assert actual.ici is None
    assert actual.missing["slope"] == "the predictor is the same for all patients"
    assert actual.missing["ici"] == "the prediction is the same for all patients"


def test_hazard_ratio_is_the_inverse_variance_mean_over_folds():
    folds = [draw(150, seed)[:3] for seed in range(3)]
    estimates = []
    for time, event, x in folds:
        fit = lifelines.CoxPHFitter().fit(pd.DataFrame({"t": time, "e": event, "x": x}), "t", "e")
        estimates.append((float(fit.params_["x"]), float(fit.standard_errors_["x"])))
    weights = np.array([1 / error**2 for _, error in estimates])
    mean = sum(w * b for w, (b, _) in zip(weights, estimates, strict=True)) / weights.sum()
    ratio, missing = calibration.hazard_ratio(folds, widening=1.0)
    assert missing == {}
    assert ratio.value == pytest.approx(math.exp(mean), rel=1e-6)
    half = 1.959964 / math.sqrt(weights.sum())
    np.testing.assert_allclose(np.log(ratio.interval), [mean - half, mean + half], atol=1e-5)
    wide, _ = calibration.hazard_ratio(folds, widening=2.0)
    np.testing.assert_allclose(np.log(wide.interval), [mean - 2 * half, mean + 2 * half], atol=1e-5)


def test_a_fold_whose_groups_are_empty_is_left_out_of_the_hazard_ratio():
    time, event, x = draw(150)[:3]
    alone, missing = calibration.hazard_ratio(
        [(time, event, x), (time, event, np.zeros(150)), (time, np.zeros(150, bool), x)], 1.0
    )
    assert missing == {1: "the predictor is the same for all patients", 2: "no event was seen"}
    assert alone == calibration.hazard_ratio([(time, event, x)], 1.0)[0]
    nothing, missing = calibration.hazard_ratio([(time, event, np.zeros(150))], 1.0)
    assert nothing is None
    assert list(missing) == [0]


def test_separated_groups_have_no_finite_hazard_ratio():
    """All who died are in one group: the likelihood has no maximum."""
    time = np.arange(1.0, 41.0)
    event = np.arange(40) < 20
    with pytest.raises(ValueError, match="a Cox model cannot be fitted"):
        cox_models.cox_coefficient(time, event, event.astype(float))
