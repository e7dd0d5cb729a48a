"""What arrays seem to be that are no features of patches."""

import numpy as np
import pytest

from steph_jax.data.features import lookalikes


@pytest.mark.parametrize(
    ("shapes", "expected_dim", "answer"),
    [
        ([(1536, 64), (1536, 64)], 1536, True),
        ([(1536, 900), (1536, 12), (1536, 77)], None, True),
        ([(1024, 900), (1024, 901)], 1536, True),
        ([(24, 900), (24, 901)], 24, True),
        ([(1000, 1536), (1000, 1536)], 1536, False),
        ([(1000, 30), (1000, 30)], 1536, False),
        ([(1024, 1536), (1024, 1536)], 1536, False),
        ([(1024, 1536), (1024, 1024)], None, False),
        ([(900, 1536), (77, 1536)], None, False),
        ([(1536, 64)], 1536, False),
        ([], 1536, False),
    ],
)
def test_transposed_arrays(shapes, expected_dim, answer):
    assert lookalikes.seem_transposed(shapes, expected_dim) is answer


def test_arrays_by_shape():
    assert "coordinates" in lookalikes.kind_of_shape((900, 2), np.dtype(np.int64))
    assert "tile images" in lookalikes.kind_of_shape((9, 224, 224, 3), np.dtype(np.float32))
    assert "whole slide" in lookalikes.kind_of_shape((1536,), np.dtype(np.float32))
    assert lookalikes.kind_of_shape((900, 2), np.dtype(np.float32)) == ""
    assert lookalikes.kind_of_shape((900, 1536), np.dtype(np.int8)) == ""
    assert lookalikes.kind_of_shape((900, 1536, 1, 1), np.dtype(np.float32)) == ""


def test_arrays_by_name():
    assert lookalikes.without_features(["coords"]) == "coordinates"
    assert lookalikes.without_features(["imgs", "20x/coords"]) == "tile images and coordinates"
    assert lookalikes.without_features(["coords", "uni"]) == ""


def test_advice_for_sizes():
    assert lookalikes.dim_advice(64) == "set --config.model.feature_dim=64"
    assert "coordinates" in lookalikes.dim_advice(2)


def test_slides_with_one_patch():
    assert lookalikes.slide_level_text([1, 1]).startswith("every slide has one patch (2)")
    assert lookalikes.slide_level_text([1, 2]) == ""
    assert lookalikes.slide_level_text([]) == ""


def test_spellings_of_encoders():
    assert lookalikes.several_encoders({"a": "UNI_v2", "b": "uni-v2", "c": ""}) == ""
    text = lookalikes.several_encoders({"a": "UNI_v2", "b": "uni-v2", "c": "conch"})
    assert text == "features of several encoders: univ2 in 2, conch in 1"
