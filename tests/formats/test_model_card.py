"""A folder for a model hub: what the card says, and that the hub's own library reads it."""

import dataclasses
import json
import math

import numpy as np
import pytest
import yaml
from merged_models import SMALL, roupkt_model, rule_model, steph_with, tree
from safetensors.numpy import load_file

from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.formats import model_card
from steph_jax.formats.model_card import Origin

C_INDEX = {0: 0.61, 2: 0.58, 3: 0.7}


def front(text):
    """The header of a card as YAML gives it."""
    before, header, _ = text.split("---\n", 2)
    assert before == ""
    return yaml.safe_load(header)


def test_the_folder_of_a_merged_model(tmp_path):
    model = steph_with(weight_output="softplus")
    model_card.write(model, tmp_path / "hub", Origin("steph-x-fold_2", "steph", C_INDEX))
    names = sorted(path.name for path in (tmp_path / "hub").iterdir())
    assert names == ["README.md", "config.json", "model.safetensors"]
    tensors = load_file(tmp_path / "hub" / "model.safetensors")
    bias = model.params["trainable"]["pred_head"]["bias"]
    np.testing.assert_array_equal(tensors["pred_head.bias"], bias)
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert config["kind"] == "steph"
    assert config["architecture"] == dataclasses.asdict(SMALL)
    assert config["settings"]["options"]["weight_output"] == "softplus"
    text = (tmp_path / "hub" / "README.md").read_text()
    header = front(text)
    assert header["base_model"] == ["x-fold_2", "a-fold_0", "b-fold_0", "c-fold_0"]
    assert header["base_model_relation"] == "merge"
    assert "license" not in header
    assert "## License\n\nNone is set." in text
    (entry,) = header["model-index"]
    assert entry["name"] == "steph-x-fold_2"
    values = {
        result["metrics"][0]["name"]: result["metrics"][0]["value"] for result in entry["results"]
    }
    assert values.pop("C-index, mean over 3 folds") == pytest.approx(np.mean([0.61, 0.58, 0.7]))
    assert values == {f"C-index, test patients of fold {k}": c for k, c in C_INDEX.items()}
    assert "| 2 (this model) | 0.5800 |" in text
    assert "    --sources a,b,c --dataset x --fold 2 --top-k 2 --weight-output softplus" in text


def test_the_library_of_the_hub_reads_the_card(tmp_path):
    hub = pytest.importorskip("huggingface_hub", reason="needs the extra [test]")
    name = 'sim: "a" #1\\'
    model = steph_with(weight_output="softplus")
    model = dataclasses.replace(model, metadata=model.metadata | {"dataset": name})
    model_card.write(model, tmp_path / "hub", Origin("steph-x", "steph", C_INDEX))
    data = hub.ModelCard.load(tmp_path / "hub" / "README.md").data
    assert data.library_name == "steph_jax"
    assert data.base_model[0] == f"{name}-fold_2"
    assert data.model_name == "steph-x"
    results = data.eval_results
    assert [result.metric_value for result in results[:3]] == list(C_INDEX.values())
    assert {result.dataset_name for result in results} == {name}
    assert {result.metric_type for result in results} == {"c_index"}
    again = hub.ModelCardData(**data.to_dict())
    assert again.to_dict() == data.to_dict()


def test_a_c_index_that_is_not_defined_is_no_result():
    text = model_card.card(rule_model("learned"), Origin("m", "learned", {0: 0.6, 1: math.nan}))
    (entry,) = front(text)["model-index"]
    assert [result["metrics"][0]["value"] for result in entry["results"]] == [0.6]
    assert "| 1 | not defined |" in text


def test_a_model_without_a_run_has_no_results():
    text = model_card.card(SavedModel("abmil", SMALL, {}, tree(0)), Origin("mine", "abmil"))
    assert {"model-index", "base_model", "license"}.isdisjoint(front(text))
    assert "Discrimination" not in text


def test_the_base_of_other_methods():
    fitted = SavedModel("abmil", SMALL, {"dataset": "x", "fold": 1, "source": "b"}, tree(0))
    assert model_card.base_models(fitted) == ["b-fold_0"]
    own = rule_model("learned")
    own = dataclasses.replace(own, metadata=own.metadata | {"sources": ["a", "x"]})
    assert model_card.base_models(own) == ["x-fold_2", "a-fold_0"]
    text = model_card.card(roupkt_model(), Origin("m", "roupkt"))
    assert front(text)["base_model"] == ["a-fold_0", "b-fold_0", "c-fold_0"]
    assert "under the names that steph_jax has for them" in text
    assert "--sources" not in text


def test_names_are_text_in_the_card():
    name = "<b>x</b> [y](z)"
    model = SavedModel("abmil", SMALL, {"dataset": name, "fold": 0, "encoder": "a|b"}, tree(0))
    text = model_card.card(model, Origin(name, "abmil", {0: 0.5}))
    body = text.split("---\n", 2)[2]
    assert "<b>" not in body
    assert r"\[y\](z)" in body
    assert r"a\|b" in body
    assert front(text)["model-index"][0]["results"][0]["dataset"]["name"] == name


def test_folders_of_others_stay_as_they_are(tmp_path):
    model, origin = SavedModel("abmil", SMALL, {}, tree(0)), Origin("mine", "abmil")
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ValueError, match="expected a new or empty folder, or one that this progr"):
        model_card.write(model, tmp_path, origin)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / ".gitattributes").write_text("")
    for _ in range(2):  # an earlier export is replaced
        model_card.write(model, tmp_path / "hub", origin)
