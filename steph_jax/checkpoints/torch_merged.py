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
from collections.abc import Sequence

import numpy as np

from steph_jax.checkpoints import torch_layers
from steph_jax.checkpoints.torch_layers import UNKNOWN, State
from steph_jax.checkpoints.torch_merged_layout import HEAD, TARGET, MergedLayout, hypernetworks
from steph_jax.checkpoints.torch_names import layers_of
from steph_jax.models.abmil import Architecture, Params
from steph_jax.models.task_vectors import parts_of


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
    layout = MergedLayout.read(state, vector_mixing)
    rule = f"a merged model of the rule {layout.kind}"
    what = "a STEPH model" if layout.kind == "steph" else rule
    torch_layers.check(state, layout.shapes(), what)
    trainable, frozen = _trees(layout, state)
    has_given_ratios = layout.mixing == "fix"
    has_given_weights = layout.kind == "fix"
    return MergedState(
        layout.kind,
        layout.dims.architecture(without_attention),
        trainable,
        frozen,
        layout.num_sources,
        layout.mixing,
        _given_ratios(state["vecmix_layer"], layout.is_older) if has_given_ratios else (),
        layout.merged,
        "pred_head" if "pred_head" in trainable else "none",
        tuple(torch_layers.float32(state, "merge_weight").tolist()) if has_given_weights else (),
    )


def _trees(layout: MergedLayout, state: State) -> tuple[Params, Params]:
    """The trainable and the frozen tree of a state dict with these tensors."""
    trainable = torch_layers.to_tree(state, layout.trained)
    if layout.mixing == "param":
        trainable["mixing_ratio"] = torch_layers.float32(state, "vecmix_layer")
    if layout.kind == "learned":
        trainable["weights"] = torch_layers.float32(state, "merge_weight")
    vectors = [
        torch_layers.to_tree(state, layout.vectors, prefix, layout.separator)
        for prefix in layout.sources
    ]
    frozen = {
        "null": torch_layers.to_tree(state, layout.models, "null_model."),
        "target": torch_layers.to_tree(state, layout.models, "target_model."),
        "task_vectors": _stack(vectors),
    }
    if layout.kind == "steph":
        frozen["target_task_vector"] = torch_layers.to_tree(
            state, layout.target_vector, TARGET, "_"
        )
    return trainable, frozen


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
        state |= torch_layers.to_state(trainable, [HEAD])
    if "target_task_vector" in frozen:
        tau_t = parts_of(frozen["target_task_vector"], merged)
        state |= torch_layers.to_state(tau_t, layers_of(tau_t), TARGET, "_")
    if "embedding" in trainable:
        networks = hypernetworks("fnn", UNKNOWN, UNKNOWN)
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
