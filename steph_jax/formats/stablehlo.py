"""A model as one StableHLO function of a slide's patches, which runs without this program.

    features [N, D] float32  ->  risk [], logits [T]

N is any number of patches from 1 on; parameters are constants of the function. The file is what
`jax.export` serializes: `jax.export.deserialize(file.read_bytes()).call(features)`.
"""

import importlib.util
import pathlib
from collections.abc import Callable, Sequence
from typing import cast

import jax
import jax.numpy as jnp
from jax import export

from steph_jax import files
from steph_jax.checkpoints.saved_model import SavedModel, stored_objective
from steph_jax.engine.bag_model import BagMeans, PooledBags
from steph_jax.methods.registry import find_method
from steph_jax.models.abmil import Abmil, Architecture, Params
from steph_jax.models.pooling import SoftmaxState, finalize

ENDING = ".stablehlo"
#: What a file runs on.
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def write(model: SavedModel, out: pathlib.Path) -> None:
    """Writes the function of a model of any kind, whole or not at all.

    Raises:
        ValueError: a package that is needed is not installed.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise ValueError(
            f"{out}: {ENDING} files need the package flatbuffers; "
            "pip install flatbuffers, or 'steph_jax[export]'"
        )
    function = jax.jit(slide_function(model))
    shape = export.symbolic_shape(f"N, {model.architecture.feature_dim}")
    features = jax.ShapeDtypeStruct(shape, jnp.float32)
    with files.whole(out) as temporary:
        exported = export.export(function, platforms=PLATFORMS)(features)
        temporary.write_bytes(exported.serialize())


def slide_function(model: SavedModel) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    """(features [N, D]) -> (risk [], logits [T]) of one bag, dropout off.

    Risk is higher for a shorter life (equation 7 of docs/method.md).
    """
    method = find_method(model.kind)
    bag_model, *trees = method.restore(model, None)
    trainable, frozen = jax.tree.map(jnp.asarray, trees)  # stored models hold numpy arrays
    output = stored_objective(model).output

    def function(features: jax.Array) -> tuple[jax.Array, jax.Array]:
        def represent(architecture: Architecture, encoders: Sequence[Params]) -> jax.Array:
            return jnp.stack([_pooled(architecture, e, features) for e in encoders])[None]

        means = {}
        if bag_model.embed_parts:
            embedded = bag_model.embed(trainable, features)
            means = {name: jnp.mean(rows, axis=0)[None] for name, rows in embedded.items()}
        merged = bag_model.merge(trainable, frozen, BagMeans(means, 1, None))
        z = jnp.zeros((1, bag_model.architecture.embed_dim))
        if bag_model.has_encoder:
            encoder = bag_model.encoder(frozen, merged.encoder)
            if bag_model.encoder_per_bag:
                encoder = jax.tree.map(lambda leaf: leaf[0], encoder)
            z = _pooled(bag_model.architecture, encoder, features)[None]
        labels = method.patient_inputs(model, represent)  # type: ignore[arg-type]
        bags = PooledBags(z, merged.head, dict(labels))  # type: ignore[arg-type]
        logits = bag_model.head(trainable, frozen, bags).logits
        return output.risk(logits)[0], logits[0]

    return function


def _pooled(architecture: Architecture, encoder: Params, features: jax.Array) -> jax.Array:
    """z [E] of one bag."""
    mask = jnp.ones(features.shape[:1], bool)
    abmil = Abmil(architecture)
    state = abmil.apply({"params": encoder}, features, mask, method="encode")
    return finalize(architecture.pooling, cast(SoftmaxState, state))
