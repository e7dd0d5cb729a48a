"""Models written under the published names, and read again."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest
from merged_models import SMALL, roupkt_model, rule_model, steph_model, steph_with, tree
from safetensors.numpy import load_file

from steph_jax import convert, export, predict
from steph_jax.checkpoints import saved_model, torch_merged, torch_names
from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.data.features.open import open_features
from steph_jax.data.torch_format import reader
from steph_jax.formats import published
from steph_jax.methods import sources
from steph_jax.models import task_vectors


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "architecture",
    [SMALL, dataclasses.replace(SMALL, pooling="plain", num_layers=2)],
    ids=["gated", "plain"],
)
def test_an_abmil_model_comes_back_exactly(tmp_path, ending, architecture):
    params = tree(0, architecture)
    out = tmp_path / f"model{ending}"
    export.export(SavedModel("abmil", architecture, {}, params), out)
    state = reader.load(out)["model"] if ending == ".pth" else load_file(out)
    actual_architecture, actual = torch_names.abmil_from_torch(state)
    assert actual_architecture == architecture
    assert_same(actual, params)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("mixing", "fixed"), [("nn", ()), ("fnn", ()), ("param", ()), ("fix", (0.1, 0.5, 0.9))]
)
def test_a_steph_model_comes_back_exactly(tmp_path, ending, mixing, fixed):
    model = steph_model(mixing, fixed)
    out = tmp_path / f"model{ending}"
    export.export(model, out)
    state = reader.load(out)["model"] if ending == ".pth" else load_file(out)
    vector = "fix" if mixing == "fix" else "param"
    again = torch_merged.merged_from_torch(state, vector_mixing=vector)
    assert again.merged == "mil_encoder"
    assert_same(again.trainable, model.params["trainable"])
    tau_t = task_vectors.parts_of(model.params["frozen"]["target_task_vector"], "mil_encoder")
    assert_same(again.frozen, model.params["frozen"] | {"target_task_vector": tau_t})
    np.testing.assert_allclose(again.fixed_mixing, fixed, rtol=1e-6)


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_an_exported_file_is_imported_by_the_converter(tmp_path, ending):
    params = tree(3)
    out = tmp_path / f"mine{ending}"
    export.export(SavedModel("abmil", SMALL, {}, params), out)
    assert convert.main([str(out), "--out", str(tmp_path / "pool"), "--name", "null"]) == 0
    assert_same(Pool(tmp_path / "pool").null().params, params)


MERGED_MODELS = {
    "steph": lambda: steph_with(weight_output="softplus", clamp=True),
    "onto the target": lambda: steph_with(base="target", top_k=0),
    "all merged": lambda: steph_with(merged="all", weight_output="sigmoid"),
    "fix": lambda: rule_model("fix"),
    "learned": lambda: rule_model("learned"),
    "dynamic": lambda: rule_model("dynamic"),
}


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("case", MERGED_MODELS)
def test_an_import_with_the_printed_flags_predicts_the_same(tmp_path, case, ending):
    model = MERGED_MODELS[case]()
    saved_model.save_model(tmp_path / "model", model)
    out = tmp_path / f"merged{ending}"
    export.export(model, out)
    flags = published.import_flags(model)
    pool = tmp_path / "pool"
    assert convert.main([str(out), "--out", str(pool), "--name", "merged", *flags]) == 0
    again = saved_model.load_model(pool / "merged")
    assert again.kind == model.kind
    for name in ("sources", "dataset", "fold"):
        assert again.metadata[name] == model.metadata[name]
    (tmp_path / "slides").mkdir()
    x = np.random.default_rng(0).standard_normal((9, 12)).astype(np.float32)
    np.save(tmp_path / "slides" / "a.npy", x)
    source = open_features(tmp_path / "slides")
    first, second = (predict.predict(m, source, {"a": ("a",)}) for m in (model, again))
    np.testing.assert_array_equal(first.survival, second.survival)
    np.testing.assert_array_equal(first.aux["weight"], second.aux["weight"])
    export.export(again, tmp_path / f"again{ending}")
    assert (tmp_path / f"again{ending}").read_bytes() == out.read_bytes()


@pytest.mark.parametrize("kind", ["learned", "dynamic"])
def test_earlier_models_predict_but_cannot_be_exported(tmp_path, kind):
    model = rule_model(kind)
    stack = sources.encoder_stack(model.params["frozen"])
    earlier = dataclasses.replace(model, params=model.params | {"frozen": {"stack": stack}})
    x = np.random.default_rng(0).standard_normal((9, 12)).astype(np.float32)
    (tmp_path / "slides").mkdir()
    np.save(tmp_path / "slides" / "a.npy", x)
    source = open_features(tmp_path / "slides")
    first, second = (predict.predict(m, source, {"a": ("a",)}) for m in (model, earlier))
    np.testing.assert_array_equal(first.survival, second.survival)
    with pytest.raises(ValueError, match="as earlier versions stored it lacks the models"):
        export.export(earlier, tmp_path / "x.pth")
    export.export(earlier, tmp_path / "x.safetensors")
    state = load_file(tmp_path / "x.safetensors")
    assert state["frozen/stack/feat_proj/layers_0/bias"].shape == (4, 8)


def test_models_without_a_published_class_have_their_own_names(tmp_path):
    model = roupkt_model()
    export.export(model, tmp_path / "model.safetensors")
    tensors = load_file(tmp_path / "model.safetensors")
    name = "trainable/pred_head/bias"
    np.testing.assert_array_equal(tensors[name], model.params["trainable"]["pred_head"]["bias"])
    with pytest.raises(ValueError, match="no published class"):
        export.export(model, tmp_path / "model.pth")


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_missing_folder(tmp_path, ending):
    out = tmp_path / "none" / f"model{ending}"
    with pytest.raises(FileNotFoundError, match=rf"none/model{ending}: no folder .*none; make it"):
        export.export(SavedModel("abmil", SMALL, {}, tree(0)), out)


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"ends in .safetensors, .pth, .stablehlo, or in none"):
        export.export(SavedModel("abmil", SMALL, {}, tree(0)), tmp_path / "model.onnx")


def test_the_command_line(tmp_path):
    params = tree(3)
    saved_model.save_model(tmp_path / "mine", SavedModel("abmil", SMALL, {}, params))
    out = tmp_path / "mine.safetensors"
    words = ["--checkpoint", str(tmp_path / "mine"), "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "steph_jax.export", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert_same(torch_names.abmil_from_torch(load_file(out))[1], params)
    words[1] = str(tmp_path / "none")
    done = subprocess.run(
        [sys.executable, "-m", "steph_jax.export", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path / 'none'}: no such model")


def published_class():
    """An ABMIL with the modules, and so the names, of the published program."""
    from torch import nn

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention_a = nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Dropout(0.25))
            self.attention_b = nn.Sequential(nn.Linear(8, 5), nn.Sigmoid(), nn.Dropout(0.25))
            self.attention_c = nn.Linear(5, 1)

        def forward(self, h):
            return self.attention_c(self.attention_a(h) * self.attention_b(h))

    class Abmil(nn.Module):
        def __init__(self):
            super().__init__()
            self.feat_proj = nn.Sequential(nn.Linear(12, 8), nn.ReLU())
            self.attention_net = Attention()
            self.pred_head = nn.Linear(8, 4)

        def forward(self, x):
            h = self.feat_proj(x)
            return self.pred_head((self.attention_net(h).softmax(0) * h).sum(0))

    return Abmil()


@pytest.mark.torch
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_published_class_loads_our_export(tmp_path, ending):
    import torch

    params, out = tree(2), tmp_path / f"model{ending}"
    export.export(SavedModel("abmil", SMALL, {}, params), out)
    if ending == ".pth":
        state = torch.load(out, weights_only=True)["model"]
    else:
        state = {name: torch.from_numpy(array) for name, array in load_file(out).items()}
    module = published_class()
    module.load_state_dict(state, strict=True)
    x = np.random.default_rng(0).standard_normal((9, 12)).astype(np.float32)
    first = params["feat_proj"]["layers_0"]
    h = np.maximum(x @ first["kernel"] + first["bias"], 0)
    net = params["attention_net"]
    gate = 1 / (1 + np.exp(-(h @ net["attention_b"]["kernel"] + net["attention_b"]["bias"])))
    scores = np.tanh(h @ net["attention_a"]["kernel"] + net["attention_a"]["bias"]) * gate
    scores = scores @ net["attention_c"]["kernel"] + net["attention_c"]["bias"]
    z = (np.exp(scores) / np.exp(scores).sum() * h).sum(0)
    expected = z @ params["pred_head"]["kernel"] + params["pred_head"]["bias"]
    outputs = module.eval()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(outputs, expected, rtol=1e-5)


@pytest.mark.torch
def test_torch_reads_our_files(tmp_path):
    import torch

    params = tree(0)
    export.export(SavedModel("abmil", SMALL, {}, params), tmp_path / "model.pth")
    state = torch.load(tmp_path / "model.pth", weights_only=True)["model"]
    expected = torch_names.abmil_to_torch(params)
    assert list(state) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(state[name].numpy(), array)
