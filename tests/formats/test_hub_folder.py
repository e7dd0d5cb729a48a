"""A folder for the hub, read again, is the model that was exported."""

import json
import subprocess
import sys

import jax
import numpy as np
import pandas as pd
import pytest
from merged_models import SMALL, roupkt_model, rule_model, steph_with, tree
from safetensors.numpy import load_file, save_file

from steph_jax import predict
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.data.features.open import open_features
from steph_jax.formats import hub_folder, model_card
from steph_jax.formats.model_card import Origin
from steph_jax.methods import moments
from steph_jax.models import task_vectors
from steph_jax.survival.objectives import Objective, objective_record

ORIGIN = Origin("mine", "some", {})


def own_model():
    """Whose outputs are not read by the default loss."""
    settings = {"dataset": "x", "objective": objective_record(Objective((("incidence_nll", 1.0),)))}
    return SavedModel("abmil", SMALL, settings, tree(3))


def linear_model():
    """Whose parameters are all trained, and none of them frozen."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(leaf.dtype), moments.empty_params(12)
    )
    return SavedModel("ridge_cox", moments.linear_architecture(SMALL), {"dataset": "x"}, params)


MODELS = {
    "linear": linear_model,
    "roupkt": roupkt_model,
    "softplus": lambda: steph_with(mixing_output="softplus"),
    "abmil": own_model,
    "steph": lambda: steph_with(weight_output="softplus", clamp=True),
    "fix": lambda: rule_model("fix"),
    "dynamic": lambda: rule_model("dynamic"),
}


@pytest.mark.parametrize("case", MODELS)
def test_it_is_the_model_that_was_exported(tmp_path, case):
    model = MODELS[case]()
    model_card.write(model, tmp_path / "hub", ORIGIN)
    assert hub_folder.is_hub_folder(tmp_path / "hub")
    again = hub_folder.read(tmp_path / "hub")
    assert (again.kind, again.architecture) == (model.kind, model.architecture)
    assert again.metadata == json.loads(json.dumps(model.metadata))
    expected = model.params
    if case == "steph":  # the published class holds the merged tensors of tau_t alone
        frozen = expected["frozen"]
        tau_t = task_vectors.parts_of(frozen["target_task_vector"], "mil_encoder")
        expected = expected | {"frozen": frozen | {"target_task_vector": tau_t}}
    jax.tree.map(np.testing.assert_array_equal, again.params, expected)


def test_predict_takes_the_folder(tmp_path):
    model = own_model()
    model_card.write(model, tmp_path / "hub", ORIGIN)
    (tmp_path / "slides").mkdir()
    for name in "ab":
        features = np.random.default_rng(ord(name)).standard_normal((7, 12))
        np.save(tmp_path / "slides" / f"{name}.npy", features.astype(np.float32))
    flags = ["--checkpoint", tmp_path / "hub", "--features", tmp_path / "slides"]
    words = [sys.executable, "-m", "steph_jax.predict", *flags, "--out", tmp_path / "p.csv"]
    subprocess.run([*map(str, words)], check=True, capture_output=True)
    expected = predict.predict(model, open_features(tmp_path / "slides"), {n: (n,) for n in "ab"})
    np.testing.assert_allclose(pd.read_csv(tmp_path / "p.csv")["risk"], expected.risk, rtol=1e-6)


def test_folders_that_are_no_model(tmp_path):
    path = tmp_path / "hub"
    model_card.write(own_model(), path, ORIGIN)
    config = json.loads((path / "config.json").read_text())

    def refused(fields, message):
        (path / "config.json").write_text(json.dumps(fields))
        with pytest.raises(ValueError, match=message):
            hub_folder.read(path)

    refused({"kind": "abmil"}, r"config\.json: expected what an exported model is; architecture")
    refused(config | {"kind": "steph"}, r"model\.safetensors: expected a model of kind 'steph', fo")
    smaller = config["architecture"] | {"embed_dim": 4}
    refused(config | {"architecture": smaller}, r"config\.json: parameters \(params\) that are not")
    refused(config | {"settings": {"fold": "x"}}, r"config\.json: .*settings\.fold: expected a who")
    (path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    refused(config, r"model\.safetensors: ")


@pytest.mark.parametrize("case", ["linear", "roupkt", "softplus"])
def test_models_without_published_names_that_lack_a_tensor(tmp_path, case):
    model_card.write(MODELS[case](), tmp_path / "hub", ORIGIN)
    file = tmp_path / "hub" / "model.safetensors"
    tensors = load_file(file)
    assert all("/" in name for name in tensors)
    for name in [name for name in tensors if name.startswith("trainable/")][::5]:
        save_file({other: x for other, x in tensors.items() if other != name}, file)
        with pytest.raises(
            ValueError, match=r"model\.safetensors: expected the tensors of a model"
        ):
            hub_folder.read(tmp_path / "hub")
        twisted = tensors | {name: np.zeros((3, *tensors[name].shape), np.float32)}
        save_file(twisted, file)
        with pytest.raises(
            ValueError, match=r"model\.safetensors: expected the tensors of a model"
        ):
            hub_folder.read(tmp_path / "hub")
    save_file(tensors | {"trainable/a": np.zeros(1), "trainable/a/b": np.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"found trainable/a/?b? within another one"):
        hub_folder.read(tmp_path / "hub")


def test_kind_of_model_that_is_not_known(tmp_path):
    model_card.write(roupkt_model(), tmp_path / "hub", ORIGIN)
    config = tmp_path / "hub" / "config.json"
    config.write_text(config.read_text().replace('"roupkt"', '"future"'))
    with pytest.raises(ValueError, match=r"config\.json: a model of kind future; this version"):
        hub_folder.read(tmp_path / "hub")
