"""IPCW numbers against scikit-survival where definitions agree, and against sums by hand."""

import numpy as np
import pytest
from sksurv.metrics import (
    brier_score,
    concordance_index_ipcw,
    cumulative_dynamic_auc,
    integrated_brier_score,
)
from sksurv.util import Surv

from steph_jax.survival import censoring, metrics


def draw(seed, num_patients=120, ties=False):
    """Labels and risks that say something; with ties, events and censorings share days."""
    rng = np.random.default_rng(seed)
    risk = rng.normal(size=num_patients)
    death = rng.exponential(1000 * np.exp(-0.7 * risk))
    censored = rng.uniform(100, 3000, num_patients)
    time = np.minimum(death, censored)
    if ties:
        time = np.ceil(time / 200) * 200
    return time, death <= censored, np.round(risk, 1)


def without_shared_days(seed):
    """Two sets of which no event of the test patients falls on a censoring day."""
    train, test = draw(seed), draw(seed + 1000)
    return train, test


def survival_of(risk, at):
    return np.exp(-np.exp(0.7 * risk)[:, None] * at / 1000)


@pytest.mark.parametrize("seed", range(8))
def test_numbers_equal_scikit_survival(seed):
    train, (time, event, risk) = without_shared_days(seed)
    inside = time < train[0].max()  # scikit-survival refuses others
    time, event, risk = time[inside], event[inside], risk[inside]
    tau = censoring.last_time(*train[:2], 1825.0)
    curve = censoring.censoring_curve(*train[:2])
    y_train, y = Surv.from_arrays(train[1], train[0]), Surv.from_arrays(event, time)
    expected = concordance_index_ipcw(y_train, y, risk, tau=tau, tied_tol=1e-8)[0]
    computed = censoring.uno_concordance(curve, time, event, risk, tau)
    assert computed.value == pytest.approx(expected, abs=1e-10)

    at = np.array([200.0, 600.0, min(tau, time.max()) * 0.99])
    scores, _ = cumulative_dynamic_auc(y_train, y, risk, at, tied_tol=1e-8)
    actual = [censoring.auc(curve, time, event, risk, t).value for t in at]
    np.testing.assert_allclose(actual, scores, atol=1e-10)

    predicted = survival_of(risk, at)
    _, expected_scores = brier_score(y_train, y, predicted, at)
    np.testing.assert_allclose(
        censoring.brier_scores(curve, time, event, predicted, at), expected_scores, atol=1e-10
    )
    grid = np.linspace(150.0, at[-1], 40)
    curves = survival_of(risk, grid)
    whole = integrated_brier_score(y_train, y, curves, grid)
    computed = censoring.integrated(censoring.brier_scores(curve, time, event, curves, grid), grid)
    assert computed == pytest.approx(whole, abs=1e-10)


@pytest.mark.parametrize("seed", range(4))
def test_numbers_equal_scikit_survival_where_test_patients_share_days(seed):
    """Events and censorings of test patients on one day, none of it a day of a training patient.

    Uno's C differs there: scikit-survival compares an event with a censoring of the same day,
    equation 43 does not.
    """
    train, (time, event, risk) = draw(seed), draw(seed + 100, ties=True)
    inside = time < train[0].max()
    time, event, risk = time[inside], event[inside], risk[inside]
    assert set(time[event]) & set(time[~event])
    assert not set(time) & set(train[0])
    curve = censoring.censoring_curve(*train[:2])
    y_train, y = Surv.from_arrays(train[1], train[0]), Surv.from_arrays(event, time)
    at = np.array([200.0, 500.0, 800.0])
    scores, _ = cumulative_dynamic_auc(y_train, y, risk, at, tied_tol=1e-8)
    actual = [censoring.auc(curve, time, event, risk, t).value for t in at]
    np.testing.assert_allclose(actual, scores, atol=1e-10)
    predicted = survival_of(risk, at)
    _, expected = brier_score(y_train, y, predicted, at)
    np.testing.assert_allclose(
        censoring.brier_scores(curve, time, event, predicted, at), expected, atol=1e-10
    )


@pytest.mark.parametrize("seed", range(4))
def test_an_event_on_the_day_of_a_censoring_comes_first(seed):
    """Where events tie with censorings, weights are 1 / G(t-): sums written out patient by patient.

    scikit-survival 0.28 takes G(t) there, so it cannot be the yardstick.
    """
    (train_time, train_event, _), (time, event, risk) = (
        draw(seed, ties=True),
        draw(seed + 50, ties=True),
    )
    tau = 1500.0

    def g(t, left):
        value = 1.0
        for day in np.unique(train_time):
            if day > t or (left and day == t):
                break
            at_risk = np.sum(train_time >= day) - np.sum((train_time == day) & train_event)
            lost = np.sum((train_time == day) & ~train_event)
            value *= 1.0 - lost / at_risk if lost else 1.0
        return value

    top = bottom = 0.0
    for i in range(len(time)):
        if not event[i] or time[i] >= tau:
            continue
        for j in range(len(time)):
            if time[j] > time[i]:
                weight = g(time[i], left=True) ** -2
                bottom += weight
                top += weight * (0.5 if abs(risk[i] - risk[j]) <= 1e-8 else risk[i] > risk[j])
    curve = censoring.censoring_curve(train_time, train_event)
    actual = censoring.uno_concordance(curve, time, event, risk, tau)
    assert actual.value == pytest.approx(top / bottom, abs=1e-12)

    at = 800.0
    survival = survival_of(risk, np.array([at]))[:, 0]
    terms = [
        s**2 / g(t, left=True)
        if t <= at and e
        else (1 - s) ** 2 / g(at, left=False)
        if t > at
        else 0
        for t, e, s in zip(time, event, survival, strict=True)
    ]
    score = censoring.brier_scores(curve, time, event, survival[:, None], np.array([at]))
    assert score[0] == pytest.approx(np.mean(terms), abs=1e-12)

    cases = [i for i in range(len(time)) if event[i] and time[i] <= at]
    controls = [j for j in range(len(time)) if time[j] > at]
    weights = {i: 1 / g(time[i], left=True) for i in cases}
    won = sum(
        weights[i] * (0.5 if abs(risk[i] - risk[j]) <= 1e-8 else risk[i] > risk[j])
        for i in cases
        for j in controls
    )
    expected = won / (sum(weights.values()) * len(controls))
    assert censoring.auc(curve, time, event, risk, at).value == pytest.approx(expected, abs=1e-12)


def test_without_censoring_uno_is_harrell():
    time, _, risk = draw(3)
    everyone = np.ones(len(time), bool)
    curve = censoring.censoring_curve(time, everyone)
    actual = censoring.uno_concordance(curve, time, everyone, risk, tau=np.inf)
    assert actual.value == pytest.approx(metrics.concordance_index(time, everyone, risk), abs=1e-12)
    assert censoring.largest_weight(curve, time, everyone, np.inf) == 1.0


def test_last_time_stops_where_few_are_at_risk():
    time = np.arange(1.0, 101.0)
    event = np.ones(100, bool)
    assert censoring.last_time(time, event, 1e9) == 91.0  # 10 patients have 91 or more
    assert censoring.last_time(time, event, 50.0) == 50.0
    assert censoring.last_time(time[:5], event[:5], 50.0) == 0.0
    # All but one censored: G falls to 0.1 after nine tenths of them.
    event = np.zeros(100, bool)
    curve = censoring.censoring_curve(time, event)
    last = censoring.last_time(time, event, 1e9)
    assert curve.at(last) > 0.1 >= curve.at(last + 1)


def test_missing_estimates_have_a_reason():
    time, event, risk = draw(5)
    curve = censoring.censoring_curve(time, event)
    early = censoring.auc(curve, time, event, risk, 1e-3)
    assert early.value is None
    assert early.reason == "0 patients died by then, 5 are needed"
    late = censoring.auc(curve, time, event, risk, 1e6)
    assert late.value is None
    assert "outlived it" in late.reason
    nobody = censoring.uno_concordance(curve, time, event, risk, 0.0)
    assert nobody.value is None
    assert "no pair" in nobody.reason
    lost = censoring.CensoringCurve(np.array([1.0]), np.array([0.0]))
    assert (
        "training patients are censored"
        in censoring.uno_concordance(lost, time, event, risk, 1000.0).reason
    )


def test_survival_inside_a_bin_has_a_constant_hazard():
    curves = np.array([[0.8, 0.4, 0.4], [0.5, 0.0, 0.0]])
    edges = np.array([0.0, 100.0, 300.0, np.inf])
    at = np.array([0.0, 50.0, 100.0, 200.0, 300.0])
    expected = [
        [1.0, np.sqrt(0.8), 0.8, 0.8 * np.sqrt(0.5), 0.4],
        [1.0, np.sqrt(0.5), 0.5, 0.0, 0.0],
    ]
    np.testing.assert_allclose(censoring.survival_at(curves, edges, at), expected, atol=1e-12)
    with pytest.raises(ValueError, match="known from 0 to 300; found 0 to 301"):
        censoring.survival_at(curves, edges, np.array([0.0, 301.0]))


def test_kaplan_meier_equals_lifelines():
    time, event, _ = draw(9, ties=True)
    curve = metrics.kaplan_meier(time, event)
    np.testing.assert_allclose(
        censoring.kaplan_meier_at(time, event, curve.times), curve.survival, atol=1e-12
    )


def test_kaplan_meier_has_no_prediction_accuracy():
    assert censoring.ipa(0.2, 0.2) == 0.0
    assert censoring.ipa(0.1, 0.2) == 0.5
    assert np.isnan(censoring.ipa(0.1, 0.0))
