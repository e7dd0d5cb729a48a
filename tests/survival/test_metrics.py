"""Metrics against the published program, slow twins, lifelines, and cases by hand."""

import json
import math

import jax.numpy as jnp
import lifelines
import lifelines.utils
import numpy as np
import pandas as pd
import pytest

from steph_jax.messages import join_names
from steph_jax.survival import losses, metrics
from steph_jax.survival.labels import survival_labels


def slow_concordance_index(time, event, risk):
    """Equation 40 of docs/method.md, pair by pair."""
    pairs = score = 0.0
    for i in range(len(time)):
        for j in range(len(time)):
            outlived = time[j] > time[i] or (time[j] == time[i] and not event[j])
            if i == j or not event[i] or not outlived:
                continue
            pairs += 1
            if abs(risk[i] - risk[j]) <= 1e-8:
                score += 0.5
            elif risk[i] > risk[j]:
                score += 1
    return score / pairs if pairs else math.nan


def cohort(seed, num=60, tied_times=12, tied_risks=15):
    """Patients with many ties in both times and risks."""
    rng = np.random.default_rng(seed)
    return (
        rng.integers(1, tied_times, num).astype(float),
        rng.random(num) < 0.5,
        rng.integers(0, tied_risks, num) / 7,
    )


# Concordance


def test_concordance_index_matches_the_published_program(parity):
    with np.load(parity / "losses.npz") as record:
        hazard, time, event = record["hazard"], record["tied_time"], record["event"]
        expected = float(record["c_index"])
    risk = losses.risk_from_survival(losses.survival_from_hazards(jnp.asarray(hazard)))
    assert abs(metrics.concordance_index(time, event, np.asarray(risk)) - expected) <= 1e-12
    exact = -np.cumprod(1 - hazard.astype(np.float64), axis=1).sum(axis=1)
    assert abs(metrics.concordance_index(time, event, exact) - expected) <= 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_concordance_index_equals_the_slow_twin(seed):
    time, event, risk = cohort(seed)
    near = risk + np.random.default_rng(seed).choice([0, 4e-9, 9e-9, 1.1e-8, 3e-8], len(risk))
    for scores in (risk, near):
        expected = slow_concordance_index(time, event, scores)
        assert abs(metrics.concordance_index(time, event, scores) - expected) <= 1e-12


def test_lifelines_compares_the_same_pairs_but_ties_only_equal_risks():
    time, event, risk = cohort(9)
    reference = lifelines.utils.concordance_index(time, -risk, event)
    assert abs(metrics.concordance_index(time, event, risk) - reference) <= 1e-12
    time, event, risk = [1.0, 2.0, 3.0], [1, 1, 1], np.asarray([0.0, 7e-9, 1.4e-8])
    # the first and the last are not tied, though both are tied with the one between
    assert metrics.concordance_index(time, event, risk) == pytest.approx(1 / 3)
    assert lifelines.utils.concordance_index(time, -risk, event) == 0


def test_concordance_index_of_many_patients():
    """More pairs than are compared at once."""
    rng = np.random.default_rng(4)
    time, risk = rng.exponential(size=2500).round(3), rng.normal(size=2500)
    event = rng.random(2500) < 0.9
    reference = lifelines.utils.concordance_index(time, -risk, event)
    assert metrics.concordance_index(time, event, risk) == pytest.approx(reference, abs=1e-12)


def test_concordance_index_by_hand():
    assert metrics.concordance_index([1, 2, 3], [1, 1, 0], [3, 2, 1]) == 1
    assert metrics.concordance_index([1, 2, 3], [1, 1, 0], [1, 2, 3]) == 0
    assert metrics.concordance_index([1, 2, 3], [1, 1, 0], [1, 1, 1]) == 0.5
    # two who die together say nothing, one censored then outlived the other
    assert math.isnan(metrics.concordance_index([5, 5], [1, 1], [2, 1]))
    assert metrics.concordance_index([5, 5], [1, 0], [2, 1]) == 1
    # nobody is comparable to one censored first
    assert math.isnan(metrics.concordance_index([1, 2], [0, 1], [2, 1]))
    assert math.isnan(metrics.concordance_index([], [], []))


def test_nonfinite_risks_are_refused():
    with pytest.raises(ValueError, match="risk must be finite; found patient 1: nan"):
        metrics.concordance_index([1, 2], [1, 0], [0.5, math.nan])
    with pytest.raises(ValueError, match=r"expected risk of shape \(2,\), found \(2, 1\)"):
        metrics.concordance_index([1, 2], [1, 0], [[0.5], [0.6]])


# Labels


@pytest.mark.parametrize(
    ("time", "event", "message"),
    [
        ([1.0, math.nan], [1, 0], "finite; found B: nan"),
        ([1.0, math.inf], [1, 0], "finite; found B: inf"),
        ([-1.0, 2.0], [1, 0], r"not be negative; found A: -1\.0"),
        ([1.0, 2.0], [1, 2], "events must be 0 or 1; found B: 2"),
        ([1.0, 2.0], [math.nan, 1], "events must be 0 or 1; found A: nan"),
        ([1.0, 2.0], [1], r"of one length; found shapes \(2,\) and \(1,\)"),
        ([[1.0], [2.0]], [[1], [0]], r"found shapes \(2, 1\)"),
        ([1.0], [1], "2 names for 1 patients"),
    ],
)
def test_invalid_labels_are_refused(time, event, message):
    with pytest.raises(ValueError, match=message):
        survival_labels(time, event, ["A", "B"])


def test_labels_have_one_form():
    time, event = survival_labels(np.asarray([0, 3], np.int32), np.asarray([1.0, 0.0]))
    assert time.dtype == np.float64
    assert event.tolist() == [True, False]


def test_at_most_ten_names_are_spelled_out():
    assert join_names("abc") == "a, b, c"
    assert join_names(range(12)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ... (12 in all)"
    with pytest.raises(ValueError, match=r"patient 9: -1\.0, \.\.\. \(30 in all\)$"):
        survival_labels(np.full(30, -1.0), np.ones(30))


# Curves and groups


def test_kaplan_meier_by_hand():
    curve = metrics.kaplan_meier([1, 2, 2, 3, 4], [1, 1, 0, 0, 1])
    np.testing.assert_array_equal(curve.times, [0, 1, 2, 3, 4])
    np.testing.assert_allclose(curve.survival, [1, 0.8, 0.6, 0.6, 0])
    assert (curve.lower <= curve.survival).all()
    assert (curve.survival <= curve.upper).all()
    with pytest.raises(ValueError, match="at least one patient"):
        metrics.kaplan_meier([], [])


def test_numbers_at_risk_by_hand():
    at_risk = metrics.number_at_risk([1, 2, 2, 5], [0, 1, 1.5, 2, 5, 6])
    assert at_risk.tolist() == [4, 4, 3, 3, 1, 0]


def test_logrank_equals_the_formula():
    time, event, risk = cohort(2)
    high = risk > np.median(risk)
    observed = expected = variance = 0.0
    for t in np.unique(time[event]):
        n, n1 = np.sum(time >= t), np.sum((time >= t) & high)
        d, d1 = np.sum((time == t) & event), np.sum((time == t) & event & high)
        observed, expected = observed + d1, expected + d * n1 / n
        if n > 1:
            variance += d * (n1 / n) * (1 - n1 / n) * (n - d) / (n - 1)
    z = abs(observed - expected) / math.sqrt(variance)
    np.testing.assert_allclose(
        metrics.logrank_p(time, event, high), math.erfc(z / math.sqrt(2)), rtol=1e-9
    )


def test_logrank_of_one_group_or_without_events_is_undefined():
    assert math.isnan(metrics.logrank_p([1, 2], [1, 1], np.asarray([True, True])))
    assert math.isnan(metrics.logrank_p([1, 2], [1, 1], np.asarray([False, False])))
    assert math.isnan(metrics.logrank_p([1, 2], [0, 0], np.asarray([False, True])))
    with pytest.raises(ValueError, match="a boolean per patient as group"):
        metrics.logrank_p([1, 2], [1, 1], [0, 1])


def test_high_risk_lies_above_the_cut():
    assert metrics.risk_groups([1.0, 2.0, 3.0], 2.0).tolist() == [False, False, True]


# The Cox model's baseline


def test_breslow_baseline_equals_the_formula():
    time, event, risk = cohort(3)
    baseline = metrics.breslow_baseline(time, event, risk)
    at = np.asarray([0.0, 1.0, 2.5, 7.0, 50.0])
    for t, column in zip(at, baseline.survival(risk, at).T, strict=True):
        cumulative = sum(
            1 / np.sum(np.exp(risk[time >= time[i]]))
            for i in range(len(time))
            if event[i] and time[i] <= t
        )
        np.testing.assert_allclose(column, np.exp(-cumulative * np.exp(risk)), rtol=1e-12)


def test_breslow_curve_is_that_of_a_fitted_cox_model():
    time, event, risk = cohort(6)
    table = pd.DataFrame({"t": time, "e": event, "x": risk})
    fit = lifelines.CoxPHFitter().fit(table, "t", "e")
    log_risk = np.log(fit.predict_partial_hazard(table).to_numpy())
    at = np.arange(1.0, 12.0)
    reference = fit.predict_survival_function(table, times=at).to_numpy().T
    actual = metrics.breslow_baseline(time, event, log_risk).survival(log_risk, at)
    np.testing.assert_allclose(actual, reference, rtol=1e-6)


def test_baseline_survives_json():
    baseline = metrics.breslow_baseline(*cohort(3))
    assert metrics.Baseline.from_json(json.loads(json.dumps(baseline.to_json()))) == baseline
    with pytest.raises(ValueError, match="fields times and hazard, found times"):
        metrics.Baseline.from_json({"times": []})


def test_baseline_needs_an_event():
    with pytest.raises(ValueError, match="at least one event"):
        metrics.breslow_baseline([1, 2], [0, 0], [0.1, 0.2])
    with pytest.raises(ValueError, match="log_risk must be finite; found patient 0: inf"):
        metrics.breslow_baseline([1, 2], [1, 0], [math.inf, 0.2])


# Folds


def test_mean_and_sd_over_folds():
    mean, sd = metrics.mean_sd([0.6, 0.7, 0.8])
    assert mean == pytest.approx(0.7)
    assert sd == pytest.approx(0.1)
    assert metrics.mean_sd([0.6])[0] == 0.6
    assert math.isnan(metrics.mean_sd([0.6])[1])
    assert all(math.isnan(x) for x in metrics.mean_sd([]))
    assert all(math.isnan(x) for x in metrics.mean_sd([0.6, math.nan, 0.7]))
