"""`model.json` as somebody else may have written it."""

import json

import pytest
import readers

from steph_jax.checkpoints import saved_model


def record(dtype: str) -> bytes:
    """A sound record, but for the type of one array."""
    written = json.loads(readers.model_records()[0])
    written["params"]["pred_head"]["bias"][0] = dtype
    return json.dumps(written).encode()


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "int32", "uint32", "bool"])
def test_usual_types_of_arrays(tmp_path, dtype):
    assert saved_model.load_header(readers.in_model(tmp_path, record(dtype))).kind == "abmil"


@pytest.mark.parametrize("dtype", ["01f4", "f4,i4", "(9,9)f4", "O", "object", "no", "", "f4\n"])
def test_types_are_plain_names_of_numbers(tmp_path, dtype):
    """NumPy evaluates some texts in place of a type, and gives records for others."""
    path = readers.in_model(tmp_path, record(dtype))
    with pytest.raises(ValueError, match=r"model\.json: .*the type and the shape of an array"):
        saved_model.load_header(path)
