"""Multivariable Cox models against Newton steps written out here, and what is fitted on whom."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import chi2

from steph_jax.survival import clinical, metrics
from steph_jax.survival.clinical import TestPatients
from steph_jax.survival.significance import WIDENING


def draw(num_patients=240, num_folds=4, effect=0.7, seed=0):
    """Patients whose hazard depends on age, on one of two stages, and on the risk."""
    rng = np.random.default_rng(seed)
    age, stage = rng.normal(size=num_patients), rng.integers(0, 2, num_patients)
    risk = rng.normal(size=num_patients)
    death = rng.exponential(np.exp(-(0.5 * age + 0.8 * stage + effect * risk)))
    censored = rng.uniform(0.0, 3.0, num_patients)
    return TestPatients(
        patient=np.array([f"P{i:03d}" for i in range(num_patients)]),
        fold=np.arange(num_patients) % num_folds,
        time=np.minimum(death, censored),
        event=death <= censored,
        risk=risk,
        clinical=np.column_stack([age, stage]).astype(np.float64),
        names=("age", "stage"),
    )


def newton(x, patients, steps=12):
    """Coefficients, their errors and the likelihood of a Cox model without ties, by its sums."""
    beta = np.zeros(x.shape[1])
    for _ in range(steps):
        value, gradient, information = 0.0, np.zeros(len(beta)), np.zeros((len(beta), len(beta)))
        for i in np.flatnonzero(patients.event):
            at_risk = (patients.time >= patients.time[i]) & (patients.fold == patients.fold[i])
            weights = np.exp(x[at_risk] @ beta)
            share = weights / weights.sum()
            mean = share @ x[at_risk]
            value += x[i] @ beta - np.log(weights.sum())
            gradient += x[i] - mean
            information += (x[at_risk] * share[:, None]).T @ x[at_risk] - np.outer(mean, mean)
        beta = beta + np.linalg.solve(information, gradient)
    return beta, np.sqrt(np.diag(np.linalg.inv(information))), value


def test_hazard_ratios_and_likelihood_ratio():
    patients = draw()
    model = clinical.multivariable(patients)
    beta, errors, value = newton(np.column_stack([patients.risk, patients.clinical]), patients)
    _, _, alone = newton(patients.clinical, patients)
    actual = [model.risk, *model.clinical]
    np.testing.assert_allclose([a.value for a in actual], np.exp(beta), rtol=1e-5)
    widths = errors * np.array([WIDENING, 1.0, 1.0])
    for estimate, coefficient, width in zip(actual, beta, widths, strict=True):
        expected = np.exp(coefficient + 1.959964 * width * np.array([-1, 1]))
        np.testing.assert_allclose(estimate.interval, expected, rtol=1e-5)
    assert model.likelihood_ratio == pytest.approx(2 * (value - alone) / 2, rel=1e-5)
    assert model.p == pytest.approx(chi2.sf(value - alone, 1), rel=1e-4)


def test_gain_is_that_of_models_of_the_other_folds():
    patients = draw()
    gain = clinical.cross_validated_gain(patients)
    for fold in range(4):
        train, test = (
            patients.take(np.flatnonzero(m)) for m in (patients.fold != fold, patients.fold == fold)
        )
        alone, _, _ = newton(train.clinical, train)
        both, _, _ = newton(np.column_stack([train.risk, train.clinical]), train)
        for beta, with_risk, actual in ((alone, False, gain.clinical), (both, True, gain.both)):
            score = test.predictors(with_risk) @ beta
            c_index = metrics.concordance_index(test.time, test.event, score)
            assert actual[fold] == pytest.approx(c_index, abs=3e-3)  # the penalty
    assert gain.mean == pytest.approx(np.mean(gain.both - gain.clinical))
    assert gain.interval.low > 0
    assert gain.p < 0.05


def test_a_risk_without_effect_has_no_gain():
    patients = draw(effect=0.0, seed=3)
    assert not clinical.cross_validated_gain(patients).interval.excludes_zero()
    assert clinical.multivariable(patients).p > 0.05


def test_a_patient_tested_in_two_folds_is_not_fitted_for_either():
    patients = draw()
    again = patients.take(np.flatnonzero(patients.fold == 0))
    # Fold 0's patients once more, in fold 1, with an outcome that would turn every sign.
    wrong = dataclasses.replace(again, fold=np.ones(len(again.time), int), time=5.0 - again.time)
    both = TestPatients.joined([patients, wrong])
    expected, actual = (clinical.cross_validated_gain(p) for p in (patients, both))
    assert actual.both[0] == pytest.approx(expected.both[0], abs=1e-9)
    assert actual.both[1] != pytest.approx(expected.both[1], abs=1e-9)
    one, two = (clinical.multivariable(p) for p in (patients, both))
    assert one.risk.value == pytest.approx(two.risk.value)


def test_a_category_without_events_elsewhere_does_not_end_the_gain():
    patients = draw()
    rare = (patients.fold == 0) & (np.arange(len(patients.time)) < 40)
    event = patients.event & ~((patients.fold != 0) & (np.arange(len(patients.time)) < 40))
    column = (np.arange(len(patients.time)) < 40).astype(float)
    assert event[rare].any()
    changed = dataclasses.replace(
        patients, event=event, clinical=np.column_stack([patients.clinical, column])
    )
    assert np.isfinite(clinical.cross_validated_gain(changed).mean)


def test_what_cannot_be_fitted_says_why():
    patients = draw(num_folds=1)
    with pytest.raises(ValueError, match="a single fold cannot be cross-validated"):
        clinical.cross_validated_gain(patients)
    nobody = dataclasses.replace(patients, event=np.zeros(len(patients.time), bool))
    with pytest.raises(ValueError, match="no event was seen"):
        clinical.multivariable(nobody)
    told = dataclasses.replace(
        patients, clinical=patients.event[:, None].astype(float), names=("seen",)
    )
    with pytest.raises(ValueError, match="cannot be fitted"):
        clinical.multivariable(told)
