"""Which tensors the state dict of a merged model has, by their names; see `torch_merged`."""

import dataclasses
from collections.abc import Mapping
from typing import Self

from steph_jax.checkpoints import torch_layers
from steph_jax.checkpoints.torch_layers import UNKNOWN, Linear, State
from steph_jax.checkpoints.torch_names import Dims, has_any
from steph_jax.models.hypernetworks import HIDDEN_DIM
from steph_jax.models.task_vectors import PARTS

#: First words of the names of a merged model, but for those of its pred_head.
NAMES = (
    "null_model",
    "target_model",
    "task_vectors",
    "target_task_vector",
    "regulate_layer_emb",
    "regulate_layer_prj",
    "vecmix_layer",
    "vecmix_layer_emb",
    "merge_weight",
)
TARGET = "target_task_vector."
HEAD = Linear("pred_head", ("pred_head",))


def is_merged(state: Mapping[str, object]) -> bool:
    """Whether names of a state dict are those of a merged model (complete or not)."""
    return has_any(state, tuple(f"{name}." for name in NAMES)) or "merge_weight" in state


@dataclasses.dataclass(frozen=True)
class MergedLayout:
    """Which tensors a state dict of a merged model has, judged by its names.

    Attributes:
        is_older: whether it is an export of our first versions.
        kind, num_sources, mixing, merged: as in `MergedState`.
        dims: of the models.
        models: linear layers of the null and the target model.
        vectors: those of a source's task vector.
        target_vector: those of target_task_vector.
        trained: those of hypernetworks and of the new head.
    """

    is_older: bool
    kind: str
    num_sources: int
    mixing: str
    merged: str
    dims: Dims
    models: list[Linear]
    vectors: list[Linear]
    target_vector: list[Linear]
    trained: list[Linear]

    @classmethod
    def read(cls, state: State, vector_mixing: str) -> Self:
        """The layout of a state dict; `vector_mixing` as in `merged_from_torch`."""
        is_older = any(n.startswith("task_vectors.") and n.count(".") == 2 for n in state)
        kind = "steph" if is_older else _kind(state)
        dims = Dims.read(state, "null_model.")
        models = dims.layers()
        num_sources = _num_sources(state)
        vectors = models
        if is_older and not any(n.startswith("task_vectors.") and "pred_head" in n for n in state):
            vectors = [layer for layer in models if layer.path[0] != "pred_head"]
        merged = "" if is_older or kind != "steph" else _merged_parts(state)
        target_vector = vectors
        if merged:
            target_vector = [layer for layer in models if layer.path[0] in PARTS[merged]]
        mixing = _mixing(state, vector_mixing) if kind == "steph" else ""
        trained = _trained(state, kind, mixing, dims, num_sources or UNKNOWN)
        return cls(
            is_older,
            kind,
            num_sources,
            mixing,
            merged,
            dims,
            models,
            vectors,
            target_vector,
            trained,
        )

    @property
    def separator(self) -> str:
        return "_" if self.is_older else "."

    @property
    def sources(self) -> list[str]:
        return [f"task_vectors.{i}." for i in range(max(self.num_sources, 1))]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors that the state dict must have."""
        shapes = torch_layers.shapes(self.models, "null_model.")
        shapes |= torch_layers.shapes(self.models, "target_model.")
        for prefix in self.sources:
            shapes |= torch_layers.shapes(self.vectors, prefix, self.separator)
        if self.kind == "steph":
            shapes |= torch_layers.shapes(self.target_vector, TARGET, "_")
        shapes |= torch_layers.shapes(self.trained)
        if self.mixing in ("param", "fix"):
            shapes["vecmix_layer"] = (self.num_sources or UNKNOWN,)
        if self.kind in ("learned", "fix"):
            shapes["merge_weight"] = (self.num_sources or UNKNOWN,)
        return shapes


def _kind(state: State) -> str:
    """The rule that wrote a state dict, as in `MergedState`."""
    if "merge_weight" in state:
        return "learned" if has_any(state, ("pred_head.",)) else "fix"
    if has_any(state, ("regulate_layer_",)) and not has_any(state, ("vecmix_layer", TARGET)):
        return "dynamic"
    return "steph"


def _num_sources(state: State) -> int:
    """S: one more than the largest number of a task vector, so that a lost one is missed."""
    words = {name.split(".")[1] for name in state if name.startswith("task_vectors.")}
    numbers = {int(word) for word in words if word.isascii() and word.isdecimal() and len(word) < 9}
    largest = max(numbers, default=-1)
    return largest + 1 if largest < len(state) else len(numbers)


def _merged_parts(state: State) -> str:
    """Which tensors target_task_vector holds: those that are merged."""
    if not has_any(state, (f"{TARGET}pred_head",)):
        return "mil_encoder"
    has_encoder = has_any(state, (f"{TARGET}feat_proj", f"{TARGET}attention_net"))
    return "all" if has_encoder else "pred_head"


def _mixing(state: State, vector_mixing: str) -> str:
    if "vecmix_layer" in state:
        return vector_mixing
    return "fnn" if has_any(state, ("vecmix_layer_emb.",)) else "nn"


def _trained(state: State, kind: str, mixing: str, dims: Dims, num_sources: int) -> list[Linear]:
    """The trained linear layers of a merged model."""
    layers = []
    if kind in ("steph", "dynamic"):
        layers = hypernetworks(mixing, dims.feature_dim, num_sources)
    if kind in ("learned", "dynamic") or has_any(state, ("pred_head.",)):
        num_outputs = torch_layers.size(state, "pred_head.weight", 0)
        layers.append(HEAD._replace(num_outputs=num_outputs, num_inputs=dims.embed_dim))
    return layers


def hypernetworks(mixing: str, feature_dim: int, num_sources: int) -> list[Linear]:
    """Linear layers of the hypernetworks, in the order of the published program."""
    hidden = HIDDEN_DIM
    layers = [
        Linear("regulate_layer_emb.0", ("embedding",), hidden, feature_dim),
        Linear("regulate_layer_prj.0", ("weights", "hidden"), hidden, hidden),
        Linear("regulate_layer_prj.3", ("weights", "output"), num_sources, hidden),
    ]
    if mixing in ("nn", "fnn"):
        layers.append(Linear("vecmix_layer.0", ("mixing", "hidden"), hidden, hidden))
        layers.append(Linear("vecmix_layer.3", ("mixing", "output"), num_sources, hidden))
    if mixing == "fnn":
        layers.append(Linear("vecmix_layer_emb.0", ("mixing_embedding",), hidden, feature_dim))
    return layers
