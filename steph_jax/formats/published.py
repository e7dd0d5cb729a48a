"""A model under the published names: .safetensors, or .pth, a PyTorch checkpoint.

{"model": state_dict} of a .pth is what the published classes load: ABMIL, STEPH, learned and
dynamic weights (the names are those of steph_jax/checkpoints/torch_names.py and torch_merged.py).
Models of other kinds are written to safetensors under the names of our own trees. Nothing is
rounded. `convert_torch_ckpt.py` reads both; what a file of a merged model does not say is given to
it as flags (`import_flags`).
"""

import pathlib
from collections.abc import Mapping

import jax
import numpy as np
from safetensors.numpy import save

from steph_jax import files
from steph_jax.checkpoints import torch_merged, torch_names
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.data.torch_format.writer import write_state_dict
from steph_jax.models import steph

#: How names of such files end.
ENDINGS = (".safetensors", ".pth")


def write(model: SavedModel, out: pathlib.Path) -> None:
    """Writes a model to a .safetensors or .pth file, whole or not at all.

    Raises:
        ValueError: another ending; a kind of model that has no published class, for .pth.
    """
    files.check_output(out)
    if out.suffix == ".pth":
        if "stack" in model.params.get("frozen", {}):
            raise ValueError(
                f"a model of kind {model.kind!r} as earlier versions stored it lacks the models "
                "that it merges, which the published class holds; train it again, or write it to a "
                ".safetensors file"
            )
        if not has_published_class(model):
            raise ValueError(
                f"a model of kind {model.kind!r} with these options has no published class to load "
                "it; write it to a .safetensors file instead"
            )
        write_state_dict(out, state_dict(model))
    elif out.suffix == ".safetensors":
        with files.whole(out) as temporary:
            temporary.write_bytes(save(state_dict(model), metadata={"kind": model.kind}))
    else:
        raise ValueError(f"{out}: expected a name that ends in .safetensors or .pth")


def state_dict(model: SavedModel) -> dict[str, np.ndarray]:
    """Contiguous arrays by name: published names where there are such, else those of the tree."""
    tensors: Mapping[str, np.ndarray]
    if model.kind == "abmil":
        tensors = torch_names.abmil_to_torch(model.params)
    elif has_published_class(model):
        options = _steph_options(model)
        tensors = torch_merged.merged_to_torch(
            model.params["trainable"],
            model.params["frozen"],
            options.merged,
            options.fixed_mixing,
            model.metadata["weights"] if model.kind == "fix" else (),
        )
    else:
        tensors = {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(model.params)
        }
    return {name: np.ascontiguousarray(array) for name, array in tensors.items()}


def import_flags(model: SavedModel) -> list[str]:
    """Flags of `convert_torch_ckpt.py` that make an exported merged model what it was."""
    options, settings = _steph_options(model), model.metadata
    flags = ["--sources", ",".join(settings["sources"])]
    if "dataset" in settings:
        flags += ["--dataset", settings["dataset"], "--fold", str(settings["fold"])]
    if model.kind == "steph":
        flags += ["--top-k", str(options.top_k), "--weight-output", options.weight_output]
        flags += ["--base", options.base, *(["--clamp"] if options.clamp else [])]
        flags += ["--mixing", "fix"] if options.mixing == "fix" else []
    if model.kind == "dynamic":
        flags += ["--weight-output", settings["weight_output"]]
    if model.architecture.pooling in ("mean", "max"):
        flags += ["--pooling", model.architecture.pooling]
    return flags


def has_published_class(model: SavedModel) -> bool:
    """Whether a published class loads it; merged models need the whole models they merge."""
    if _steph_options(model).mixing_output != "relu":  # ours alone
        return False
    return model.kind == "abmil" or (
        model.kind in ("steph", "learned", "dynamic", "fix") and "null" in model.params["frozen"]
    )


def _steph_options(model: SavedModel) -> steph.Options:
    """Options of a STEPH model; the defaults for methods without mixup."""
    return steph.Options(**(model.metadata.get("options", {}) if model.kind == "steph" else {}))
