"""A model as StableHLO, read back by JAX alone, gives the risks of `predict`."""

import dataclasses
import importlib.util

import jax
import numpy as np
import pytest
from jax import export as jax_export
from merged_models import SMALL, roupkt_model, rule_model, steph_with, tree

from steph_jax import export, predict
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.data.features.open import open_features
from steph_jax.methods import moments
from steph_jax.survival.objectives import Objective, objective_record


def abmil_model(terms=(("nll", 1.0),), **dimensions):
    architecture = dataclasses.replace(SMALL, **dimensions)
    settings = {"objective": objective_record(Objective(terms))}
    return SavedModel("abmil", architecture, settings, tree(0, architecture))


def linear_model():
    rng = np.random.default_rng(0)
    model = SavedModel(
        "ridge_cox",
        moments.linear_architecture(SMALL),
        {"objective": objective_record(Objective((("cox", 1.0),)))},
        moments.empty_params(SMALL.feature_dim),
    )
    model.params["trainable"]["coefficients"] = rng.normal(size=24).astype(np.float32)
    return model


MODELS = {
    "abmil": abmil_model,
    "max": lambda: abmil_model(pooling="max", num_layers=2),
    "cox": lambda: abmil_model((("cox", 1.0),), num_bins=1),
    "steph": lambda: steph_with(weight_output="softplus"),
    "steph, all merged": lambda: steph_with(weight_output="sigmoid", merged="all", mixing="param"),
    "dynamic": lambda: rule_model("dynamic"),
    "learned": lambda: rule_model("learned"),
    "roupkt": roupkt_model,
    "ridge_cox": linear_model,
}


@pytest.mark.parametrize("case", MODELS)
def test_any_number_of_patches_gives_the_risk_of_predict(tmp_path, case):
    pytest.importorskip("flatbuffers", reason="needs the extra [export]")
    model = MODELS[case]()
    if case == "steph, all merged":
        model.params["trainable"].pop("mixing")
        model.params["trainable"]["mixing_ratio"] = np.float32([0.2, 0.5, 0.8])
    out = tmp_path / "model.stablehlo"
    export.export(model, out)
    function = jax_export.deserialize(out.read_bytes())
    rng = np.random.default_rng(3)
    slides = {f"s{n}": rng.standard_normal((n, 12)).astype(np.float32) for n in (1, 9, 300)}
    (tmp_path / "slides").mkdir()
    for name, features in slides.items():
        np.save(tmp_path / "slides" / f"{name}.npy", features)
    source = open_features(tmp_path / "slides")
    expected = predict.predict(model, source, {name: (name,) for name in slides})
    risks, logits = zip(*(function.call(x) for x in slides.values()), strict=True)
    np.testing.assert_allclose(np.stack(risks), expected.risk, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.stack(logits), expected.outputs, rtol=1e-5, atol=1e-6)
    assert len(set(map(float, risks))) == 3
    assert "stablehlo" in str(function.mlir_module())


def test_features_of_another_size_are_refused(tmp_path):
    pytest.importorskip("flatbuffers", reason="needs the extra [export]")
    export.export(abmil_model(), tmp_path / "model.stablehlo")
    function = jax_export.deserialize((tmp_path / "model.stablehlo").read_bytes())
    with pytest.raises(ValueError, match="12"):
        function.call(jax.numpy.zeros((4, 13), np.float32))


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"need the package flatbuffers; pip install"):
        export.export(abmil_model(), tmp_path / "model.stablehlo")
    assert list(tmp_path.iterdir()) == []
