"""Names of an ABMIL model's parameters in the published PyTorch files, and their places here.

    feat_proj.{0,3,6,..}                      feat_proj/layers_{0,1,2,..}
    attention_net.attention_{a,b}.0, _c       attention_net/attention_{a,b,c}    (gated)
    attention_net.module.{0,3}                attention_net/attention_{a,c}      (plain)
    pred_head                                 pred_head

Every tensor of a file is used and every parameter filled, or an error lists what is not. Merged
models are those of `torch_merged`.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from steph_jax.checkpoints import torch_layers
from steph_jax.checkpoints.torch_layers import UNKNOWN, Linear, State
from steph_jax.models.abmil import Architecture, Params

#: First words of the names of an ABMIL model.
PARTS = ("feat_proj", "attention_net", "pred_head")
_ATTENTION: Mapping[str, Mapping[str, str]] = {
    "gated": {
        "attention_a.0": "attention_a",
        "attention_b.0": "attention_b",
        "attention_c": "attention_c",
    },
    "plain": {"module.0": "attention_a", "module.3": "attention_c"},
    "none": {},
}


class Dims(NamedTuple):
    """Dimensions of an ABMIL model as its tensors show them; `UNKNOWN` where they do not."""

    feature_dim: int
    embed_dim: int
    attention_dim: int
    num_bins: int
    attention: str
    num_layers: int

    @classmethod
    def read(cls, state: State, prefix: str = "") -> "Dims":
        """Dimensions from the tensors whose names start with `prefix`."""
        attention = _attention(state, prefix)
        first = "module.0" if attention == "plain" else "attention_a.0"
        num_layers = 1
        while f"{prefix}feat_proj.{3 * num_layers}.weight" in state:
            num_layers += 1
        return cls(
            torch_layers.size(state, f"{prefix}feat_proj.0.weight", 1),
            torch_layers.size(state, f"{prefix}feat_proj.0.weight", 0),
            torch_layers.size(state, f"{prefix}attention_net.{first}.weight", 0),
            torch_layers.size(state, f"{prefix}pred_head.weight", 0),
            attention,
            num_layers,
        )

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
        """The architecture; `without_attention` pools where there are no attention tensors."""
        return Architecture(
            feature_dim=self.feature_dim,
            embed_dim=self.embed_dim,
            attention_dim=max(self.attention_dim, 0),
            num_bins=self.num_bins,
            pooling=without_attention if self.attention == "none" else self.attention,
            num_layers=self.num_layers,
        )


def _attention(state: State, prefix: str) -> str:
    """Kind of attention. A model that lacks other parts too is missing it, not without it."""
    if has_any(state, (f"{prefix}attention_net.attention_",)):
        return "gated"
    if has_any(state, (f"{prefix}attention_net.module.",)):
        return "plain"
    others = all(has_any(state, (f"{prefix}{part}.",)) for part in ("feat_proj", "pred_head"))
    return "none" if others and not has_any(state, (f"{prefix}attention_net.",)) else "gated"


def has_any(state: Mapping[str, object], prefixes: tuple[str, ...]) -> bool:
    """Whether any name of a state dict starts with one of some prefixes."""
    return any(name.startswith(prefixes) for name in state)


def has_attention(state: Mapping[str, object]) -> bool:
    """Whether the models in a state dict have attention; others pool by mean or by maximum."""
    return has_any(state, ("attention_net.", "null_model.attention_net."))


def abmil_from_torch(state: State, without_attention: str = "mean") -> tuple[Architecture, Params]:
    """An ABMIL model from the state dict of the published class.

    Args:
        state: tensors by name.
        without_attention: pooling of a model without attention tensors, "mean" or "max": no
            tensor distinguishes them.

    Returns:
        its architecture, and its float32 tree.

    Raises:
        ValueError: tensors missing, unexpected or misshapen, in a table that names them; NaN,
            infinity or values beyond float32.
    """
    dims = Dims.read(state)
    layers = dims.layers()
    torch_layers.check(state, torch_layers.shapes(layers), "an ABMIL model")
    return dims.architecture(without_attention), torch_layers.to_tree(state, layers)


def abmil_to_torch(tree: Params) -> OrderedDict[str, np.ndarray]:
    """The state dict that the published class loads, from an ABMIL tree."""
    return torch_layers.to_state(tree, layers_of(tree))


def layers_of(tree: Params) -> list[Linear]:
    """The linear layers of an ABMIL tree, which may lack parts."""
    attention = "none"
    if "attention_net" in tree:
        attention = "gated" if "attention_b" in tree["attention_net"] else "plain"
    num_layers = len(tree.get("feat_proj", ())) or 1
    dims = Dims(UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, attention, num_layers)
    return [layer for layer in dims.layers() if layer.path[0] in tree]
