"""What comes from other cancers, by the coefficients of the merged model."""

import numpy as np
import pandas as pd
import pytest

from steph_jax.evaluation import predictions
from steph_jax.evaluation.predictions import Predictions
from steph_jax.evaluation.source_share import in_words, source_share


def table(target, source):
    return pd.DataFrame(
        {
            "patient_id": ["p", "p", "q", "q"],
            "source": ["a", "b"] * 2,
            "target": target,
            "source_coefficient": source,
        }
    )


def test_share_of_the_coefficients():
    weights = table([0.5, 0.25, 0.0, 0.25], [0.0, 0.5, 0.5, 0.0])
    assert source_share(weights, onto_target=False) == pytest.approx(1.0 / 2.0)
    assert source_share(weights, onto_target=True) == pytest.approx(1.0 / 4.0)


def test_coefficients_of_either_sign_count():
    weights = table([1.0, -2.0, 1.0, 0.0], [-0.5, 0.5, 0.0, 0.0])
    assert source_share(weights, onto_target=False) == pytest.approx(1.0 / 3.0)


def test_no_coefficient_is_no_share():
    nothing = table([0.0] * 4, [0.0] * 4)
    assert source_share(nothing, onto_target=False) is None
    assert source_share(nothing, onto_target=True) == 0.0


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (None, "no other cancer is used: all coefficients are 0"),
        (0.012, "no other cancer is used: their share in the merged model is 1.2 %"),
        (0.05, "other cancers have a share of 5 % in the merged model"),
    ],
)
def test_share_in_words(share, words):
    assert in_words(share) == words


def test_the_target_among_the_sources_is_no_other_cancer():
    record = {"weight": np.array([[0.3, 0.6]]), "source": np.array([[0.3, 0.6]])}
    predicted = Predictions(["p"], np.zeros((1, 1)), np.zeros(1), None, record)
    weights = predictions.merge_weights_table(predicted, ["mine", "other"], "mine")
    assert weights["target"].tolist() == [0.3, 0.0]
    assert weights["source_coefficient"].tolist() == [0.0, 0.6]
    assert source_share(weights, onto_target=False) == pytest.approx(2 / 3)
