"""Cumulative incidence against its sum written out, ties among it, and against Kaplan-Meier."""

import lifelines
import numpy as np
import pytest

from steph_jax.survival import censoring, competing
from steph_jax.survival.competing import CENSORED, COMPETING, EVENT


def draw(ties, seed=0, num_patients=150):
    rng = np.random.default_rng(seed)
    one, two = rng.exponential(1000, num_patients), rng.exponential(2000, num_patients)
    censored = rng.uniform(100, 3000, num_patients)
    time = np.minimum(np.minimum(one, two), censored)
    cause = competing.causes((one < two) & (one < censored), (two < one) & (two < censored))
    return (np.ceil(time / 200) * 200 if ties else time), cause


def incidence(time, cause, of_cause, at):
    """sum_{u <= t} S(u-) d_k(u) / n(u), day by day."""
    alive, total = 1.0, 0.0
    for day in np.unique(time[time <= at]):
        at_risk = np.sum(time >= day)
        total += alive * np.sum((time == day) & (cause == of_cause)) / at_risk
        alive *= 1 - np.sum((time == day) & (cause != CENSORED)) / at_risk
    return total


@pytest.mark.parametrize("ties", [False, True])
def test_incidence_is_its_sum(ties):
    time, cause = draw(ties)
    days = [200.0, 365.0, 1000.0]
    shares = {}
    for of_cause in (EVENT, COMPETING):
        estimates = competing.cumulative_incidence(time, cause, of_cause, days)
        shares[of_cause] = [estimate.value for estimate in estimates]
        expected = [incidence(time, cause, of_cause, day) for day in days]
        np.testing.assert_allclose(shares[of_cause], expected, atol=1e-12)
        for estimate in estimates:
            assert estimate.interval.low < estimate.value < estimate.interval.high
    alive = censoring.kaplan_meier_at(time, cause != CENSORED, days)
    np.testing.assert_allclose(np.sum(list(shares.values()), axis=0) + alive, 1.0, atol=1e-12)
    alone = 1 - censoring.kaplan_meier_at(time, cause == EVENT, days)
    assert (alone > shares[EVENT]).all()


def test_interval_is_that_of_lifelines_where_nothing_ties():
    time, cause = draw(False, seed=4)
    fit = lifelines.AalenJohansenFitter().fit(time, cause, 1)
    row = np.searchsorted(fit.confidence_interval_.index, 800.0, side="right") - 1
    (estimate,) = competing.cumulative_incidence(time, cause, EVENT, [800.0])
    expected = np.sort(fit.confidence_interval_.to_numpy()[row])
    np.testing.assert_allclose(estimate.interval, expected, rtol=1e-9)


def test_without_other_causes_it_is_one_minus_kaplan_meier():
    time, cause = draw(True, seed=2)
    cause = np.where(cause == COMPETING, CENSORED, cause)
    estimates = competing.cumulative_incidence(time, cause, EVENT, [400.0, 1200.0])
    expected = 1 - censoring.kaplan_meier_at(time, cause == EVENT, [400.0, 1200.0])
    np.testing.assert_allclose([e.value for e in estimates], expected, atol=1e-12)


def test_beyond_the_last_patient_and_without_patients_there_is_none():
    time, cause = draw(False)
    last = float(time.max())
    assert competing.cumulative_incidence(time, cause, EVENT, [last + 1]) == [None]
    assert competing.cumulative_incidence(time, cause, EVENT, [last])[0].value > 0
    assert competing.cumulative_incidence(time[:0], cause[:0], EVENT, [1.0, 2.0]) == [None, None]
    (none_yet,) = competing.cumulative_incidence(time, cause, EVENT, [0.0])
    assert (none_yet.value, *none_yet.interval) == (0.0, 0.0, 0.0)
