"""Names of parameters in the published PyTorch files, and their places in our trees.

    feat_proj.{0,3,6,..}                      feat_proj/layers_{0,1,2,..}
    attention_net.attention_{a,b}.0, _c       attention_net/attention_{a,b,c}    (gated)
    attention_net.module.{0,3}                attention_net/attention_{a,c}      (plain)
    pred_head                                 pred_head

    null_model.NAME, target_model.NAME        frozen/null, frozen/target
    task_vectors.{i}.NAME, with _ for .       frozen/task_vectors, leaves [S, ...]
    target_task_vector.NAME, with _ for .     frozen/target_task_vector
    regulate_layer_emb.0                      trainable/embedding
    regulate_layer_prj.{0,3}                  trainable/weights/{hidden,output}
    vecmix_layer.{0,3}                        trainable/mixing/{hidden,output}   (nn, fnn)
    vecmix_layer_emb.0                        trainable/mixing_embedding         (fnn)
    vecmix_layer                              trainable/mixing_ratio (param), or lambda itself (fix)

Every tensor of a file is used and every parameter filled, or an error lists what is not.
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from steph_jax.checkpoints import torch_layers
from steph_jax.checkpoints.torch_layers import UNKNOWN, Linear, State
from steph_jax.models.abmil import Architecture, Params
from steph_jax.models.hypernetworks import HIDDEN_DIM

_ATTENTION: Mapping[str, Mapping[str, str]] = {
    "gated": {
        "attention_a.0": "attention_a",
        "attention_b.0": "attention_b",
        "attention_c": "attention_c",
    },
    "plain": {"module.0": "attention_a", "module.3": "attention_c"},
    "none": {},
}


class _Dims(NamedTuple):
    """What tensors say of an ABMIL model; `UNKNOWN` where they do not."""

    feature_dim: int
    embed_dim: int
    attention_dim: int
    num_bins: int
    attention: str
    num_layers: int

    def layers(self) -> list[Linear]:
        """Its linear layers, in the order of the published program."""
        size, attention = self.embed_dim, self.attention_dim
        layers = [
            Linear(f"feat_proj.{3 * i}", ("feat_proj", f"layers_{i}"), size, size)
            for i in range(self.num_layers)
        ]
        layers[0] = layers[0]._replace(num_inputs=self.feature_dim)
        for name, part in _ATTENTION[self.attention].items():
            sizes = (1, attention) if part == "attention_c" else (attention, size)
            layers.append(Linear(f"attention_net.{name}", ("attention_net", part), *sizes))
        layers.append(Linear("pred_head", ("pred_head",), self.num_bins, size))
        return layers

    def architecture(self, without_attention: str) -> Architecture:
        return Architecture(
            feature_dim=self.feature_dim,
            embed_dim=self.embed_dim,
            attention_dim=max(self.attention_dim, 0),
            num_bins=self.num_bins,
            pooling=without_attention if self.attention == "none" else self.attention,
            num_layers=self.num_layers,
        )


@dataclasses.dataclass(frozen=True)
class StephState:
    """What a file says of a trained STEPH model.

    Attributes:
        architecture: of the models that are merged.
        trainable: hypernetworks, and the new pred_head where there is one.
        frozen: "null", "target", "target_task_vector" and "task_vectors" (leaves [S, ...]).
        num_sources: S.
        mixing: "nn", "fnn", "param" or "fix".
        fixed_mixing: lambda per source for "fix", or ().
        retrained: "pred_head" where the file holds a head of its own, or "none".
    """

    architecture: Architecture
    trainable: Params
    frozen: Params
    num_sources: int
    mixing: str
    fixed_mixing: tuple[float, ...]
    retrained: str


def is_steph(state: Mapping[str, object]) -> bool:
    """Whether names of a state dict are those of a STEPH model (complete or not)."""
    return _any(state, ("null_model.", "target_model.", "task_vectors.", "regulate_layer_"))


def has_attention(state: Mapping[str, object]) -> bool:
    """Whether the models in a state dict have attention; others pool by mean or by maximum."""
    return _any(state, ("attention_net.", "null_model.attention_net."))


def abmil_from_torch(state: State, without_attention: str = "mean") -> tuple[Architecture, Params]:
    """An ABMIL model from the state dict of the published class.

    Args:
        state: tensors by name.
        without_attention: pooling of a model without attention tensors, "mean" or "max": no
            tensor tells them apart.

    Returns:
        its architecture, and its tree of arrays of the types they came in.

    Raises:
        ValueError: tensors missing, unexpected or misshapen; a table names them.
    """
    dims = _dims(state, "")
    layers = dims.layers()
    torch_layers.check(state, torch_layers.shapes(layers), "an ABMIL model")
    return dims.architecture(without_attention), torch_layers.to_tree(state, layers)


def abmil_to_torch(tree: Params) -> OrderedDict[str, np.ndarray]:
    """The state dict that the published class loads, from an ABMIL tree."""
    return torch_layers.to_state(tree, _layers_of(tree))


def steph_from_torch(
    state: State, without_attention: str = "mean", vector_mixing: str = "param"
) -> StephState:
    """A trained STEPH model from the state dict of the published class.

    Args:
        state: tensors by name. The task vectors may lack pred_head, all of them alike.
        without_attention: as in `abmil_from_torch`.
        vector_mixing: what `vecmix_layer` is where it is one vector: "param" (r) or "fix" (lambda).

    Raises:
        ValueError: tensors missing, unexpected or misshapen; a table names them.
    """
    dims = _dims(state, "null_model.")
    models = dims.layers()
    has_heads = any("pred_head" in n for n in state if n.startswith(_VECTORS))
    vectors = [layer for layer in models if has_heads or layer.name != "pred_head"]
    num_sources = 0
    while _any(state, (f"task_vectors.{num_sources}.",)):
        num_sources += 1
    sources = [f"task_vectors.{i}." for i in range(max(num_sources, 1))]
    mixing = "fnn" if _any(state, ("vecmix_layer_emb.",)) else "nn"
    if "vecmix_layer" in state:
        mixing = vector_mixing
    trained = _hypernetworks(mixing, dims.feature_dim, num_sources or UNKNOWN)
    if _any(state, ("pred_head.",)):
        num_outputs = torch_layers.size(state, "pred_head.weight", 0)
        trained.append(Linear("pred_head", ("pred_head",), num_outputs, dims.embed_dim))

    expected = torch_layers.shapes(models, "null_model.")
    expected |= torch_layers.shapes(models, "target_model.")
    for prefix in (*sources, "target_task_vector."):
        expected |= torch_layers.shapes(vectors, prefix, "_")
    expected |= torch_layers.shapes(trained)
    if mixing in ("param", "fix"):
        expected["vecmix_layer"] = (num_sources or UNKNOWN,)
    torch_layers.check(state, expected, "a STEPH model")

    trainable = torch_layers.to_tree(state, trained)
    if mixing == "param":
        trainable["mixing_ratio"] = np.array(state["vecmix_layer"])
    frozen = {
        "null": torch_layers.to_tree(state, models, "null_model."),
        "target": torch_layers.to_tree(state, models, "target_model."),
        "target_task_vector": torch_layers.to_tree(state, vectors, "target_task_vector.", "_"),
        "task_vectors": _stack([torch_layers.to_tree(state, vectors, p, "_") for p in sources]),
    }
    fixed = tuple(float(x) for x in state["vecmix_layer"]) if mixing == "fix" else ()
    retrained = "pred_head" if "pred_head" in trainable else "none"
    architecture = dims.architecture(without_attention)
    return StephState(architecture, trainable, frozen, num_sources, mixing, fixed, retrained)


def steph_to_torch(
    trainable: Params, frozen: Params, fixed_mixing: Sequence[float] = ()
) -> OrderedDict[str, np.ndarray]:
    """The state dict that the published class loads, from the trees of a STEPH model.

    Args:
        trainable: as `StephState.trainable`.
        frozen: as `StephState.frozen`.
        fixed_mixing: lambda per source where mixing is "fix", or ().
    """
    state = torch_layers.to_state(frozen["null"], _layers_of(frozen["null"]), "null_model.")
    target = frozen["target"]
    state |= torch_layers.to_state(target, _layers_of(target), "target_model.")
    taus = frozen["task_vectors"]
    vectors = _layers_of(taus)
    for i in range(len(taus["feat_proj"]["layers_0"]["bias"])):
        state |= torch_layers.to_state(_item(taus, i), vectors, f"task_vectors.{i}.", "_")
    tau_t = frozen["target_task_vector"]
    state |= torch_layers.to_state(tau_t, _layers_of(tau_t), "target_task_vector.", "_")
    trained = [*_hypernetworks("fnn", UNKNOWN, UNKNOWN), Linear("pred_head", ("pred_head",))]
    state |= torch_layers.to_state(trainable, [x for x in trained if x.path[0] in trainable])
    if "mixing_ratio" in trainable:
        state["vecmix_layer"] = np.array(trainable["mixing_ratio"])
    elif len(fixed_mixing):
        state["vecmix_layer"] = np.array(fixed_mixing, np.float32)
    return state


_VECTORS = ("task_vectors.", "target_task_vector.")


def _any(state: Mapping[str, object], prefixes: tuple[str, ...]) -> bool:
    return any(name.startswith(prefixes) for name in state)


def _hypernetworks(mixing: str, feature_dim: int, num_sources: int) -> list[Linear]:
    """Linear layers of the hypernetworks."""
    hidden = HIDDEN_DIM
    layers = [
        Linear("regulate_layer_emb.0", ("embedding",), hidden, feature_dim),
        Linear("regulate_layer_prj.0", ("weights", "hidden"), hidden, hidden),
        Linear("regulate_layer_prj.3", ("weights", "output"), num_sources, hidden),
    ]
    if mixing == "fnn":
        layers.append(Linear("vecmix_layer_emb.0", ("mixing_embedding",), hidden, feature_dim))
    if mixing in ("nn", "fnn"):
        layers.append(Linear("vecmix_layer.0", ("mixing", "hidden"), hidden, hidden))
        layers.append(Linear("vecmix_layer.3", ("mixing", "output"), num_sources, hidden))
    return layers


def _dims(state: State, prefix: str) -> _Dims:
    """Dimensions of an ABMIL model from the tensors whose names start with `prefix`."""
    attention = "none"
    if _any(state, (f"{prefix}attention_net.module.",)):
        attention = "plain"
    if _any(state, (f"{prefix}attention_net.attention_",)):
        attention = "gated"
    first = "module.0" if attention == "plain" else "attention_a.0"
    num_layers = 1
    while f"{prefix}feat_proj.{3 * num_layers}.weight" in state:
        num_layers += 1
    return _Dims(
        torch_layers.size(state, f"{prefix}feat_proj.0.weight", 1),
        torch_layers.size(state, f"{prefix}feat_proj.0.weight", 0),
        torch_layers.size(state, f"{prefix}attention_net.{first}.weight", 0),
        torch_layers.size(state, f"{prefix}pred_head.weight", 0),
        attention,
        num_layers,
    )


def _layers_of(tree: Params) -> list[Linear]:
    """The linear layers of an ABMIL tree, which may lack pred_head."""
    attention = "none"
    if "attention_net" in tree:
        attention = "gated" if "attention_b" in tree["attention_net"] else "plain"
    dims = _Dims(UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, attention, len(tree["feat_proj"]))
    return [layer for layer in dims.layers() if layer.path[0] in tree]


def _stack(trees: Sequence[Params]) -> Params:
    """One tree with leaves [S, ...] from S trees of the same names."""
    return {
        name: _stack([tree[name] for tree in trees])
        if isinstance(leaf, dict)
        else np.stack([tree[name] for tree in trees])
        for name, leaf in trees[0].items()
    }


def _item(tree: Params, index: int) -> Params:
    """One tree of a stack."""
    return {
        name: _item(leaf, index) if isinstance(leaf, dict) else np.asarray(leaf)[index]
        for name, leaf in tree.items()
    }
