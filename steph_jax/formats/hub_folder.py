"""A folder that `export --to hf` wrote, read again: the tensors and all settings of the model.

config.json says what the file of tensors does not: the loss, from which the risk follows, the time
bins, and how sources are merged. Models that no published class loads have the names of our own
trees, with slashes, in which no published name has one.
"""

import pathlib
from typing import Any

import jax
import numpy as np

from steph_jax import records
from steph_jax.checkpoints import (
    saved_model,
    torch_checkpoints,
    torch_merged,
    torch_merged_layout,
    torch_names,
)
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.data.torch_format.placeholders import printable
from steph_jax.formats import stablehlo
from steph_jax.formats.model_card import CONFIG, WEIGHTS
from steph_jax.messages import on_one_line
from steph_jax.methods.registry import METHODS
from steph_jax.models.abmil import Params

_WHAT, _ADVICE = "what an exported model is", "export or download it again"
_OBJECT = records.mapping(records.ANYTHING)
_CONFIG = records.record({"kind": records.NAME, "architecture": _OBJECT, "settings": _OBJECT})


def is_hub_folder(path: pathlib.Path) -> bool:
    """Whether a directory holds a file of tensors and its config."""
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def read(folder: pathlib.Path) -> SavedModel:
    """The model of a folder; reading it runs no code.

    Raises:
        ValueError: a damaged file, or tensors that are not those of the config; the message names
            the file.
    """
    file = folder / CONFIG
    config = records.read(file, _CONFIG, _WHAT, _ADVICE)
    weights = folder / WEIGHTS
    tree = _own_tree(weights)
    state = {} if tree is not None else torch_checkpoints.read(weights).state
    try:
        params = _params(config, state) if tree is None else tree
    except ValueError as error:
        raise ValueError(f"{weights}: {error}; {_ADVICE}") from None
    fields = {name: config[name] for name in ("kind", "architecture", "settings")}
    model = saved_model.from_record(file, fields, params)
    if tree is not None:
        _expect_usable(model, weights)
    return model


def _own_tree(file: pathlib.Path) -> Params | None:
    """The trees of a model whose tensors have names with slashes; None for published names.

    Raises:
        ValueError: a damaged file, or a name that is that of a branch too; names the file.
    """
    state = torch_checkpoints.read_safetensors(file)[0]
    if not any("/" in name for name in state):
        return None
    # Branches without a tensor, such as those of a model with nothing frozen, have no name.
    tree: dict[str, Any] = {"trainable": {}, "frozen": {}}
    for name, array in state.items():
        *branches, leaf = name.split("/")
        node = tree
        for branch in branches:
            node = node.setdefault(branch, {}) if isinstance(node, dict) else node
        if not isinstance(node, dict) or leaf in node:
            raise ValueError(
                f"{file}: expected names of tensors, found {printable(name)} within another one; "
                f"{_ADVICE}"
            )
        node[leaf] = array
    return tree


def _expect_usable(model: SavedModel, file: pathlib.Path) -> None:
    """Raises ValueError where tensors are not those that a model of its kind is made of."""
    if model.kind not in METHODS:
        raise ValueError(
            f"{file.with_name(CONFIG)}: a model of kind {printable(model.kind)}; this version runs "
            f"{', '.join(METHODS)}"
        )
    slide = jax.ShapeDtypeStruct((2, model.architecture.feature_dim), np.float32)
    method = METHODS[model.kind]
    try:
        if method.codings(model):  # no function of slides
            method.restore(model, None)
        else:
            jax.eval_shape(stablehlo.slide_function(model), slide)
    except Exception as error:  # whatever a layer raises for tensors that are not its own
        reason = on_one_line(str(error).strip().split("\n")[0][:200])
        raise ValueError(
            f"{file}: expected the tensors of a model of kind {model.kind!r}, found others "
            f"({type(error).__name__}: {reason}); {_ADVICE}"
        ) from None


def _params(config: dict[str, Any], state: dict[str, Any]) -> Params:
    """The trees of a model; raises ValueError for tensors of another kind."""
    pooling = config["architecture"].get("pooling")
    without_attention = pooling if pooling in ("mean", "max") else "mean"
    is_merged = torch_merged_layout.is_merged(state)
    if is_merged == (config["kind"] == "abmil"):
        found = "a merged" if is_merged else "an ABMIL"
        raise ValueError(f"expected a model of kind {config['kind']!r}, found {found} model")
    if not is_merged:
        return torch_names.abmil_from_torch(state, without_attention)[1]
    options = config["settings"].get("options")
    is_fixed = isinstance(options, dict) and options.get("mixing") == "fix"
    merged = torch_merged.merged_from_torch(
        state, without_attention, "fix" if is_fixed else "param"
    )
    if merged.kind != config["kind"]:
        raise ValueError(f"expected a model of kind {config['kind']!r}, found {merged.kind!r}")
    return {"trainable": merged.trainable, "frozen": merged.frozen}
