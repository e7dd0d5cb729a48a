"""Names of a trained merged model's parameters in the published PyTorch files, and here.

    null_model.NAME, target_model.NAME        frozen/null, frozen/target
    task_vectors.{i}.NAME                     frozen/task_vectors, leaves [S, ...]
    pred_head                                 trainable/pred_head, where a head is retrained
    target_task_vector.NA_ME                  frozen/target_task_vector (STEPH): merged tensors only
    regulate_layer_emb.0                      trainable/embedding               (STEPH, dynamic)
    regulate_layer_prj.{0,3}                  trainable/weights/{hidden,output} (STEPH, dynamic)
    vecmix_layer.{0,3}                        trainable/mixing/{hidden,output}  (mixing nn, fnn)
    vecmix_layer_emb.0                        trainable/mixing_embedding        (mixing fnn)
    vecmix_layer [S]                          r: trainable/mixing_ratio (param), or lambda (fix)
    merge_weight [S]                          trainable/weights (learned), or given (fix, average)

NAMEs are those of `torch_names`; in target_task_vector their dots are underscores. A vector
`vecmix_layer` is r, and lambda = 1 / (1 + r), whether r was learned or lambda was given. Exports of
our first versions have underscores in task_vectors too, all tensors in target_task_vector, and
lambda itself where it was given; they are read as well. k, the output function, the clamp, the base
and the names of the sources are in no file; `ImportOptions` has them.
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np

from steph_jax.checkpoints import torch_layers
from steph_jax.checkpoints.torch_layers import UNKNOWN, Linear, State
from steph_jax.checkpoints.torch_names import Dims, has_any, layers_of
from steph_jax.models.abmil import Architecture, Params
from steph_jax.models.hypernetworks import HIDDEN_DIM
from steph_jax.models.task_vectors import PARTS, parts_of

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
_TARGET = "target_task_vector."


@dataclasses.dataclass(frozen=True)
class MergedState:
    """A trained merged model as its file describes it.

    Attributes:
        kind: "steph", "learned", "dynamic", or "fix" for given weights (`average` among them).
        architecture: of the models that are merged.
        trainable: what was trained: hypernetworks, weights [S], the new pred_head.
        frozen: "null", "target", "task_vectors" (leaves [S, ...]) and, for "steph",
            "target_task_vector".
        num_sources: S.
        mixing: "nn", "fnn", "param" or "fix"; "" where the kind has none.
        fixed_mixing: lambda per source where mixing is "fix", or ().
        merged: name in `task_vectors.PARTS` of what is merged; "" where the file leaves it open.
        retrained: "pred_head" where the file holds a head of its own, or "none".
        weights: w per source for "fix", or ().
    """

    kind: str
    architecture: Architecture
    trainable: Params
    frozen: Params
    num_sources: int
    mixing: str
    fixed_mixing: tuple[float, ...]
    merged: str
    retrained: str
    weights: tuple[float, ...]


def is_merged(state: Mapping[str, object]) -> bool:
    """Whether names of a state dict are those of a merged model (complete or not)."""
    return has_any(state, tuple(f"{name}." for name in NAMES)) or "merge_weight" in state


def merged_from_torch(
    state: State, without_attention: str = "mean", vector_mixing: str = "param"
) -> MergedState:
    """A trained merged model from the state dict of a published class, or of an older export.

    Args:
        state: tensors by name.
        without_attention: as in `torch_names.abmil_from_torch`.
        vector_mixing: whether a vector `vecmix_layer` was learned ("param") or given ("fix"): no
            tensor distinguishes them.

    Raises:
        ValueError: tensors missing, unexpected or misshapen, in a table that names them; NaN,
            infinity or values beyond float32.
    """
    is_older = any(n.startswith("task_vectors.") and n.count(".") == 2 for n in state)
    kind = "steph" if is_older else _kind(state)
    dims = Dims.read(state, "null_model.")
    models = dims.layers()
    num_sources = _num_sources(state)
    sources = [f"task_vectors.{i}." for i in range(max(num_sources, 1))]
    separator = "_" if is_older else "."
    vectors = models
    if is_older and not any(n.startswith("task_vectors.") and "pred_head" in n for n in state):
        vectors = [layer for layer in models if layer.path[0] != "pred_head"]
    merged = "" if is_older or kind != "steph" else _merged_parts(state)
    own_vector = vectors
    if merged:
        own_vector = [layer for layer in models if layer.path[0] in PARTS[merged]]
    mixing = _mixing(state, vector_mixing) if kind == "steph" else ""
    layers = _trained(state, kind, mixing, dims, num_sources or UNKNOWN)

    expected = torch_layers.shapes(models, "null_model.")
    expected |= torch_layers.shapes(models, "target_model.")
    for prefix in sources:
        expected |= torch_layers.shapes(vectors, prefix, separator)
    if kind == "steph":
        expected |= torch_layers.shapes(own_vector, _TARGET, "_")
    expected |= torch_layers.shapes(layers)
    if mixing in ("param", "fix"):
        expected["vecmix_layer"] = (num_sources or UNKNOWN,)
    if kind in ("learned", "fix"):
        expected["merge_weight"] = (num_sources or UNKNOWN,)
    what = "a STEPH model" if kind == "steph" else f"a merged model of the rule {kind}"
    torch_layers.check(state, expected, what)

    trainable = torch_layers.to_tree(state, layers)
    if mixing == "param":
        trainable["mixing_ratio"] = torch_layers.float32(state, "vecmix_layer")
    if kind == "learned":
        trainable["weights"] = torch_layers.float32(state, "merge_weight")
    frozen = {
        "null": torch_layers.to_tree(state, models, "null_model."),
        "target": torch_layers.to_tree(state, models, "target_model."),
        "task_vectors": _stack(
            [torch_layers.to_tree(state, vectors, prefix, separator) for prefix in sources]
        ),
    }
    if kind == "steph":
        frozen["target_task_vector"] = torch_layers.to_tree(state, own_vector, _TARGET, "_")
    return MergedState(
        kind,
        dims.architecture(without_attention),
        trainable,
        frozen,
        num_sources,
        mixing,
        _given_ratios(state["vecmix_layer"], is_older) if mixing == "fix" else (),
        merged,
        "pred_head" if "pred_head" in trainable else "none",
        tuple(torch_layers.float32(state, "merge_weight").tolist()) if kind == "fix" else (),
    )


def merged_to_torch(
    trainable: Params,
    frozen: Params,
    merged: str = "mil_encoder",
    fixed_mixing: Sequence[float] = (),
    weights: Sequence[float] = (),
) -> OrderedDict[str, np.ndarray]:
    """The state dict that the published class loads, in its order, from a merged model's trees.

    Args:
        trainable, frozen: as in `MergedState`.
        merged: which tensors are merged, a name in `task_vectors.PARTS`.
        fixed_mixing: lambda per source where mixing is "fix", or ().
        weights: w per source where they are given, or ().

    Raises:
        ValueError: a number that float32 cannot hold.
    """
    state = torch_layers.to_state(frozen["null"], layers_of(frozen["null"]), "null_model.")
    target = frozen["target"]
    state |= torch_layers.to_state(target, layers_of(target), "target_model.")
    taus = frozen["task_vectors"]
    vectors = layers_of(taus)
    for i in range(_length(taus)):
        state |= torch_layers.to_state(_item(taus, i), vectors, f"task_vectors.{i}.")
    if "pred_head" in trainable:
        state |= torch_layers.to_state(trainable, [_HEAD])
    if "target_task_vector" in frozen:
        tau_t = parts_of(frozen["target_task_vector"], merged)
        state |= torch_layers.to_state(tau_t, layers_of(tau_t), _TARGET, "_")
    if "embedding" in trainable:
        networks = _hypernetworks("fnn", UNKNOWN, UNKNOWN)
        present = [layer for layer in networks if layer.path[0] in trainable]
        state |= torch_layers.to_state(trainable, present)
    elif "weights" in trainable:
        state["merge_weight"] = np.array(trainable["weights"], np.float32)
    if "mixing_ratio" in trainable:
        state["vecmix_layer"] = np.array(trainable["mixing_ratio"], np.float32)
    elif len(fixed_mixing):
        state["vecmix_layer"] = _stored_ratios(np.asarray(fixed_mixing, np.float64))
    if len(weights):
        tensors = {"merge_weight": np.asarray(weights, np.float64)}
        state["merge_weight"] = torch_layers.float32(tensors, "merge_weight")
    return state


_HEAD = Linear("pred_head", ("pred_head",))


def _kind(state: State) -> str:
    """The rule that wrote a state dict, as in `MergedState`."""
    if "merge_weight" in state:
        return "learned" if has_any(state, ("pred_head.",)) else "fix"
    if has_any(state, ("regulate_layer_",)) and not has_any(state, ("vecmix_layer", _TARGET)):
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
    if not has_any(state, (f"{_TARGET}pred_head",)):
        return "mil_encoder"
    has_encoder = has_any(state, (f"{_TARGET}feat_proj", f"{_TARGET}attention_net"))
    return "all" if has_encoder else "pred_head"


def _mixing(state: State, vector_mixing: str) -> str:
    if "vecmix_layer" in state:
        return vector_mixing
    return "fnn" if has_any(state, ("vecmix_layer_emb.",)) else "nn"


def _trained(state: State, kind: str, mixing: str, dims: Dims, num_sources: int) -> list[Linear]:
    """The trained linear layers of a merged model."""
    layers = []
    if kind in ("steph", "dynamic"):
        layers = _hypernetworks(mixing, dims.feature_dim, num_sources)
    if kind in ("learned", "dynamic") or has_any(state, ("pred_head.",)):
        num_outputs = torch_layers.size(state, "pred_head.weight", 0)
        layers.append(_HEAD._replace(num_outputs=num_outputs, num_inputs=dims.embed_dim))
    return layers


def _hypernetworks(mixing: str, feature_dim: int, num_sources: int) -> list[Linear]:
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


def _given_ratios(stored: np.ndarray, is_older: bool) -> tuple[float, ...]:
    """lambda per source from `vecmix_layer`: itself in older exports, else 1 / (1 + r).

    r may be infinite, which is how lambda = 0 is written.
    """
    values = stored.astype(np.float64)
    with np.errstate(divide="ignore"):
        ratios = values if is_older else 1 / (1 + values)
    if not np.isfinite(ratios).all():
        problem = "NaN or infinity" if is_older else "NaN, or -1 (an infinite lambda)"
        raise ValueError(f"{problem} in vecmix_layer; expected a finite lambda for every source")
    return tuple(ratios.tolist())


def _stored_ratios(ratios: np.ndarray) -> np.ndarray:
    """r = (1 - lambda) / lambda of every source, infinite for lambda = 0."""
    ratios = ratios + 0.0  # -0.0 would give -infinity
    with np.errstate(divide="ignore", over="ignore"):
        stored = ((1 - ratios) / ratios).astype(np.float32)
    unrepresentable = ~np.isfinite(stored) & (ratios != 0)
    if unrepresentable.any():
        raise ValueError(
            f"lambda = {ratios[unrepresentable][0]:.4g} of a source cannot be written as "
            "(1 - lambda) / lambda in float32; give that source a lambda of 0"
        )
    return stored


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


def _length(tree: Params) -> int:
    """S of a stack."""
    return len(tree["feat_proj"]["layers_0"]["bias"])
