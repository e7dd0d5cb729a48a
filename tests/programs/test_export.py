"""Models written under the published names, and read again."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from steph_jax import export, predict
from steph_jax.checkpoints import saved_model, torch_import, torch_names
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.data.features.open import open_features
from steph_jax.data.torch_format import reader
from steph_jax.methods.base import as_numpy
from steph_jax.models import abmil, hypernetworks, steph
from steph_jax.models.abmil import Architecture

SMALL = Architecture(feature_dim=12, embed_dim=8, attention_dim=5, num_bins=4)


def tree(seed: int, architecture: Architecture = SMALL):
    return as_numpy(abmil.init(jax.random.key(seed), architecture))


def steph_model(mixing: str = "nn", fixed: tuple[float, ...] = ()) -> SavedModel:
    options = steph.Options(top_k=2, mixing=mixing, fixed_mixing=fixed)
    null, target, sources = tree(0), tree(1), [tree(i) for i in (2, 3, 4)]
    vectors = [jax.tree.map(np.subtract, source, null) for source in sources]
    frozen = {
        "null": null,
        "target": target,
        "target_task_vector": jax.tree.map(np.subtract, target, null),
        "task_vectors": jax.tree.map(lambda *leaves: np.stack(leaves), *vectors),
    }
    trainable = hypernetworks.init(jax.random.key(5), 12, 3, "relu", mixing, fixed)
    trainable = as_numpy(trainable | {"pred_head": tree(6)["pred_head"]})
    settings = {"sources": ["a", "b", "c"], "options": steph.as_dict(options)}
    return SavedModel("steph", SMALL, settings, {"trainable": trainable, "frozen": frozen})


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


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
    found_architecture, found = torch_names.abmil_from_torch(state)
    assert found_architecture == architecture
    assert_same(found, params)
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
    found = torch_names.steph_from_torch(state, vector_mixing=vector)
    assert_same(found.trainable, model.params["trainable"])
    assert_same(found.frozen, model.params["frozen"])


def test_an_exported_file_is_imported_by_the_converter(tmp_path):
    params = tree(3)
    out = tmp_path / "mine.pth"
    export.export(SavedModel("abmil", SMALL, {}, params), out)
    outcome = torch_import.convert(
        out, torch_import.Pool(tmp_path / "pool"), "null", torch_import.Unsaid()
    )
    assert outcome.status == "written"
    assert_same(torch_import.Pool(tmp_path / "pool").null().params, params)


def test_models_without_a_published_class_have_their_own_names(tmp_path):
    params = {"trainable": {"router": tree(1)}, "frozen": {}}
    model = SavedModel("roupkt", SMALL, {}, params)
    export.export(model, tmp_path / "model.safetensors")
    found = load_file(tmp_path / "model.safetensors")
    name = "trainable/router/pred_head/bias"
    np.testing.assert_array_equal(found[name], params["trainable"]["router"]["pred_head"]["bias"])
    with pytest.raises(ValueError, match="no published class"):
        export.export(model, tmp_path / "model.pth")


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_a_folder_that_is_not_there(tmp_path, ending):
    out = tmp_path / "none" / f"model{ending}"
    with pytest.raises(FileNotFoundError, match=rf"none/model{ending}: no folder .*none; make it"):
        export.export(SavedModel("abmil", SMALL, {}, tree(0)), out)


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.safetensors or \.pth"):
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
def test_a_published_class_loads_what_we_write(tmp_path, ending):
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
    found = module.eval()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def published_steph():
    """A STEPH model over three sources with the modules of the published program."""
    import torch
    from torch import nn

    def vector():
        named = published_class().named_parameters()
        return nn.ParameterDict({name.replace(".", "_"): value for name, value in named})

    def hypernetwork():
        return nn.Sequential(
            *(nn.Linear(512, 512), nn.ReLU(), nn.Dropout(0.25), nn.Linear(512, 3), nn.ReLU())
        )

    class Steph(nn.Module):
        def __init__(self):
            super().__init__()
            self.null_model, self.target_model = published_class(), published_class()
            self.task_vectors = nn.ModuleList(vector() for _ in range(3))
            self.target_task_vector = vector()
            self.regulate_layer_emb = nn.Sequential(nn.Linear(12, 512), nn.ReLU())
            self.regulate_layer_prj, self.vecmix_layer = hypernetwork(), hypernetwork()
            self.pred_head = nn.Linear(8, 4)

        def forward(self, x, top_k=2):
            g = self.regulate_layer_emb(x).mean(0)
            w, ratio = self.regulate_layer_prj(g), 1 / (1 + self.vecmix_layer(g))
            theta = dict(self.null_model.named_parameters())
            for s in w.topk(top_k).indices:
                for name in theta:
                    flat = name.replace(".", "_")
                    ours, theirs = self.target_task_vector[flat], self.task_vectors[s][flat]
                    theta[name] = theta[name] + w[s] * (ratio[s] * ours + (1 - ratio[s]) * theirs)
            theta["pred_head.weight"], theta["pred_head.bias"] = self.pred_head.parameters()
            return torch.func.functional_call(self.null_model, theta, x)

    return Steph()


@pytest.mark.torch
def test_a_published_steph_loads_what_we_write_and_predicts_the_same(tmp_path):
    import torch

    model = steph_model()
    head = model.params["trainable"]["weights"]["output"]
    head["bias"] = head["bias"] + np.float32([0.5, 0.2, 0.4])  # two sources have a weight at least
    export.export(model, tmp_path / "steph.pth")
    module = published_steph()
    state = torch.load(tmp_path / "steph.pth", weights_only=True)["model"]
    module.load_state_dict(state, strict=True)
    x = np.random.default_rng(0).standard_normal((9, 12)).astype(np.float32)
    (tmp_path / "slides").mkdir()
    np.save(tmp_path / "slides" / "a.npy", x)
    found = predict.predict(model, open_features(tmp_path / "slides"), {"a": ("a",)})
    with torch.no_grad():
        hazards = module.eval()(torch.from_numpy(x)).sigmoid().numpy()
    np.testing.assert_allclose(found.survival[0], np.cumprod(1 - hazards), rtol=1e-5)
    assert (found.record["weight"][0] > 0).sum() >= 2


@pytest.mark.torch
def test_torch_reads_what_we_write(tmp_path):
    import torch

    params = tree(0)
    export.export(SavedModel("abmil", SMALL, {}, params), tmp_path / "model.pth")
    state = torch.load(tmp_path / "model.pth", weights_only=True)["model"]
    expected = torch_names.abmil_to_torch(params)
    assert list(state) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(state[name].numpy(), array)
