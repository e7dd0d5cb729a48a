"""Merged models that the published program's classes wrote: imported, run, and written again."""

import runpy
import sys

import numpy as np
import pytest
import reference_bags
from reference_bags import difference

from steph_jax import convert, export, predict
from steph_jax.checkpoints import saved_model
from steph_jax.data.features.open import open_features
from steph_jax.data.torch_format import reader
from steph_jax.methods.registry import find_method

TARGET = "tcga_gbmlgg"
#: Kind of each file, and the flags that it needs besides the names of its sources.
CASES = {
    "default": ("steph", ()),
    "fnn": ("steph", ()),
    "param": ("steph", ()),
    "fix_lambda": ("steph", ("--mixing", "fix")),
    "merge_all": ("steph", ()),
    "no_retrain": ("steph", ()),
    "fix": ("fix", ()),
    "average": ("fix", ()),
    "learned": ("learned", ()),
    "learned_with_target": ("learned", ()),
    "dynamic": ("dynamic", ()),
}

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def published(parity, tmp_path_factory):
    """A folder with the files that the script of the reference data writes."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["published_steph.py", str(folder), str(parity)])
        runpy.run_path(str(parity / "published_steph.py"))
    assert {file.stem for file in folder.iterdir()} == set(CASES)
    return folder


@pytest.fixture(scope="module")
def recorded(parity):
    return np.load(parity / "options.npz")


@pytest.fixture(scope="module")
def bags(shared, recorded):
    """The four recorded patients' bags."""
    return reference_bags.bags(shared, TARGET, recorded["patient_id"], np.float32)


@pytest.fixture(scope="module")
def slides(bags, recorded, tmp_path_factory):
    """A folder with those bags."""
    folder = tmp_path_factory.mktemp("slides")
    for i, patient in enumerate(recorded["patient_id"]):
        bag = np.empty((reference_bags.NUM_PATHWAYS, bags.feature_dim), np.float32)
        bags.read(i, 0, bag)
        np.save(folder / f"{patient}.npy", bag)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_published_file(published, recorded, bags, slides, tmp_path, case):
    kind, flags = CASES[case]
    sources = [str(source) for source in recorded["sources"]]
    sources += [TARGET] if case == "learned_with_target" else []
    file = published / f"{case}.pth"
    words = [str(file), "--out", str(tmp_path), "--name", case, "--dataset", TARGET, *flags]
    assert convert.main([*words, "--sources", ",".join(sources)]) == 0
    model = saved_model.load_model(tmp_path / case)
    assert model.kind == kind
    assert model.metadata["sources"] == sources

    out = reference_bags.outputs(find_method(kind).restore(model, None), bags)
    logits = recorded[f"{case}/logits"]
    assert difference(out.logits, logits) < 1e-5
    w = np.broadcast_to(recorded[f"{case}/w"], out.aux["weight"].shape)
    assert difference(out.aux["weight"], w) < 1e-5

    # As users do it, with their own files.
    patients = [str(patient) for patient in recorded["patient_id"]]
    predicted = predict.predict(model, open_features(slides), {p: (p,) for p in patients})
    survival = np.cumprod(1 / (1 + np.exp(logits.astype(np.float64))), axis=1)
    assert difference(predicted.survival, survival) < 1e-5

    export.export(model, tmp_path / "again.pth")
    state, expected = (reader.load(path)["model"] for path in (tmp_path / "again.pth", file))
    assert list(state) == list(expected)
    for name, tensor in expected.items():
        assert (state[name].shape, state[name].dtype) == (tensor.shape, tensor.dtype), name
        np.testing.assert_array_equal(state[name], tensor, err_msg=name)


def test_live_torch_reads_an_export(published, tmp_path):
    torch = pytest.importorskip("torch")
    file = published / "learned.pth"
    assert convert.main([str(file), "--out", str(tmp_path), "--name", "learned"]) == 0
    export.export(saved_model.load_model(tmp_path / "learned"), tmp_path / "again.pth")
    state, expected = (
        torch.load(path, weights_only=True)["model"] for path in (tmp_path / "again.pth", file)
    )
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
