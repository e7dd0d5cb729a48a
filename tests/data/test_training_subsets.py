"""Subsets of training patients: nested, with the share of events of all."""

import types

import numpy as np
import pytest

from steph_jax.data.cohort import Cohort, Fold, TableSize
from steph_jax.data.training_subsets import spread_order, with_fewer_training_patients


def cohort(event):
    """Two folds of a cohort; the even and the odd patients are their tests."""
    rows = np.arange(len(event))
    folds = {
        k: Fold(rows[rows % 2 != k], rows[rows % 2 == k], np.zeros(0, np.intp)) for k in (0, 1)
    }
    table = types.SimpleNamespace(event=np.asarray(event, bool))
    return Cohort("x", table, folds, TableSize(len(event), len(event), 0, 0))


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.93])
def test_every_first_part_has_the_share_of_events_of_all(share):
    rng = np.random.default_rng(0)
    event = rng.random(137) < share
    order = spread_order(event, rng)
    assert sorted(order) == list(range(137))
    counts = np.cumsum(event[order])
    expected = np.arange(1, 138) * event.mean()
    assert np.abs(counts - expected).max() <= 1


def test_patients_without_events_and_with_events_alone_have_an_order():
    for event in (np.zeros(5, bool), np.ones(5, bool), np.zeros(0, bool)):
        order = spread_order(event, np.random.default_rng(0))
        assert sorted(order) == list(range(len(event)))


def test_subsets_are_nested_and_tests_stay():
    event = np.random.default_rng(1).random(200) < 0.3
    whole = cohort(event)
    before = {k: set() for k in (0, 1)}
    for number in (10, 40, 80, 100):
        few = with_fewer_training_patients(whole, number, seed=7)
        assert few.splits is whole.folds
        for k, fold in few.folds.items():
            assert len(set(fold.train)) == number
            assert before[k] < set(fold.train) <= set(whole.folds[k].train)
            np.testing.assert_array_equal(fold.test, whole.folds[k].test)
            before[k] = set(fold.train)
    assert whole.splits is whole.folds


def test_seeds_and_folds_have_subsets_of_their_own():
    whole = cohort(np.random.default_rng(2).random(200) < 0.3)
    one, other = (with_fewer_training_patients(whole, 20, seed) for seed in (1, 2))
    again = with_fewer_training_patients(whole, 20, 1)
    assert set(one.folds[0].train) != set(other.folds[0].train)
    np.testing.assert_array_equal(one.folds[0].train, again.folds[0].train)
    assert set(one.folds[0].train // 2) != set(one.folds[1].train // 2)


def test_numbers_that_no_fold_has_are_refused():
    whole = cohort(np.arange(40) == 1)
    with pytest.raises(ValueError, match=r"train_patients = 21, but fold 0 of x has 20 training"):
        with_fewer_training_patients(whole, 21, 0)
    with pytest.raises(ValueError, match=r"= 20: none of them has an event in fold 1 of x, where"):
        with_fewer_training_patients(whole, 20, 0)
