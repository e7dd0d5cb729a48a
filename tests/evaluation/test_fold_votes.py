"""New patients by all models of a run."""

import numpy as np
import pytest

from steph_jax.evaluation import fold_votes
from steph_jax.evaluation.fold_votes import Cut

PATIENTS = ["a", "b", "c", "d"]


def mean_ranks(risks):
    """One plus the patients with a lower risk and half of the others with the same, by hand."""
    return [
        np.mean([1 + np.sum(r < r[i]) + (np.sum(r == r[i]) - 1) / 2 for r in risks])
        for i in range(len(risks[0]))
    ]


def test_ranks_and_groups():
    risks = [np.float32([-3, -1, -1, -2]), np.float32([10, 30, 20, 40]), np.float32([5, 5, 5, 6])]
    table = fold_votes.table(PATIENTS, risks, [Cut(0, -1.5), Cut(1, 25.0), Cut(4, 5.0)])
    columns = ["risk_fold_0", "risk_fold_1", "risk_fold_4"]
    assert list(table) == ["patient_id", *columns, "mean_rank", "models_above_cut", "group"]
    np.testing.assert_array_equal(table[columns].to_numpy().T, risks)
    np.testing.assert_allclose(table["mean_rank"], mean_ranks(risks))
    assert table["models_above_cut"].tolist() == [0, 2, 1, 2]
    assert table["group"].tolist() == ["low", "high", "low", "high"]


@pytest.mark.parametrize(("cut", "group"), [(1.5, "high"), (2.5, "low")])
def test_half_of_the_models_are_enough(cut, group):
    risks = [np.float32([2.0]), np.float32([2.0])]
    table = fold_votes.table(["a"], risks, [Cut(0, cut), Cut(1, 3.0)])
    assert table["group"].tolist() == [group]
    assert table["mean_rank"].tolist() == [1.0]
