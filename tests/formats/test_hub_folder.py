"""A folder for the hub, read again, is the model that was exported."""

import json
import subprocess
import sys

import jax
import numpy as np
import pandas as pd
import pytest
from merged_models import SMALL, roupkt_model, rule_model, steph_with, tree

from steph_jax import predict
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.data.features.open import open_features
from steph_jax.formats import hub_folder, model_card
from steph_jax.formats.model_card import Origin
from steph_jax.models import task_vectors
from steph_jax.survival.objectives import Objective, objective_record

ORIGIN = Origin("mine", "some", {})


def own_model():
    """Whose outputs are not read by the default loss."""
    settings = {"dataset": "x", "objective": objective_record(Objective((("incidence_nll", 1.0),)))}
    return SavedModel("abmil", SMALL, settings, tree(3))


MODELS = {
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


def test_models_without_published_names_are_refused(tmp_path):
    model_card.write(roupkt_model(), tmp_path / "hub", ORIGIN)
    with pytest.raises(ValueError, match=r"found an export of a model of kind roupkt, which"):
        hub_folder.read(tmp_path / "hub")
