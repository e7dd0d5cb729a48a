"""Writes a model under the published names, for other programs.

    python -m steph_jax.export --checkpoint W/fold_0 --out model.safetensors
    python -m steph_jax.export --checkpoint pool/tcga_brca-fold_0 --out model.pth

The ending of `--out` chooses: .safetensors, or .pth, a PyTorch checkpoint {"model": state_dict}
that the published classes load (ABMIL and STEPH; steph_jax/checkpoints/torch_names.py has the
names).
Models of other kinds are written to safetensors under the names of our own trees. Nothing is
rounded.
"""

import pathlib
from collections.abc import Mapping

import jax
import numpy as np
from absl import flags
from safetensors.numpy import save

from steph_jax import cli, files, run_directory
from steph_jax.checkpoints import saved_model, torch_names
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.data.torch_format.writer import write_state_dict


def main() -> int:
    """The entry point."""
    path = pathlib.Path(flags.FLAGS.checkpoint)
    model = saved_model.load_model(run_directory.model_directory(path))
    out = pathlib.Path(flags.FLAGS.out)
    export(model, out)
    print(f"{model.kind} model of {path} written to {out}")
    return 0


def export(model: SavedModel, out: pathlib.Path) -> None:
    """Writes a model to a .safetensors or .pth file, whole or not at all.

    Raises:
        ValueError: another ending; a kind of model that has no published class, for .pth.
    """
    files.check_output(out)
    if out.suffix == ".pth":
        if model.kind not in ("abmil", "steph"):
            raise ValueError(
                f"a model of kind {model.kind!r} has no published class to load it; write it to a "
                ".safetensors file instead"
            )
        write_state_dict(out, state_dict(model))
    elif out.suffix == ".safetensors":
        with files.whole(out) as temporary:
            temporary.write_bytes(save(state_dict(model), metadata={"kind": model.kind}))
    else:
        raise ValueError(f"{out}: expected a name that ends in .safetensors or .pth")


def state_dict(model: SavedModel) -> dict[str, np.ndarray]:
    """Contiguous arrays by name: published names where there are such, else those of the tree."""
    named: Mapping[str, np.ndarray]
    if model.kind == "abmil":
        named = torch_names.abmil_to_torch(model.params)
    elif model.kind == "steph":
        named = torch_names.steph_to_torch(
            model.params["trainable"],
            model.params["frozen"],
            model.settings["options"]["fixed_mixing"],
        )
    else:
        named = {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(model.params)
        }
    return {name: np.ascontiguousarray(array) for name, array in named.items()}


if __name__ == "__main__":
    flags.DEFINE_string("checkpoint", None, "A fold's directory or a model of a pool.")
    flags.DEFINE_string("out", None, "A .safetensors or .pth file.")
    cli.app_run(main, required=("checkpoint", "out"))
