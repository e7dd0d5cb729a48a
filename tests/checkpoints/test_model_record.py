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


def merged(branch: str, models: int) -> bytes:
    """The record of a model merged of two sources, of the first format, which has no checksums."""
    record = json.loads(readers.model_records()[0])
    settings = {"sources": ["a", "b"], "merge_weight": 0.0}
    frozen = {branch: {"pred_head": {"bias": ["float32", [models, 4]]}}}
    return json.dumps(
        record | {"kind": "learned", "settings": settings, "params": {"frozen": frozen}}
    ).encode()


@pytest.mark.parametrize("branch", ["task_vectors", "sources"])
def test_every_source_has_a_model(tmp_path, branch):
    for number in (2, 3):
        (tmp_path / str(number)).mkdir()
    assert saved_model.load_header(readers.in_model(tmp_path / "2", merged(branch, 2)))
    path = readers.in_model(tmp_path / "3", merged(branch, 3))
    with pytest.raises(ValueError, match=rf"\.json: settings\.sources: .*3 .*{branch}, found 2"):
        saved_model.load_header(path)
