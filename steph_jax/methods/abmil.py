"""The cancer-specific model: one ABMIL, every tensor trained (equations 1 to 5 of
docs/method.md)."""

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
from absl import logging

from steph_jax import locks
from steph_jax.checkpoints.pool import NULL, Pool, member_name
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.engine.bag_model import (
    BagMeans,
    HeadOutputs,
    MergedModels,
    PooledBags,
    SharedEncoder,
)
from steph_jax.methods.base import FoldSpec, LoadedModel, Method, as_numpy
from steph_jax.models import abmil
from steph_jax.models.abmil import Architecture, Params
from steph_jax.models.layers import Linear

#: Seconds to wait for another run that makes the null model of the same pool.
_NULL_SECONDS = 600.0


@dataclasses.dataclass(frozen=True)
class AbmilModel(SharedEncoder):
    """ABMIL as a `BagModel`: one encoder for all bags.

    Attributes:
        architecture: dimensions and variant.
        compute_dtype: of products over patches; None for float32.
    """

    architecture: Architecture
    compute_dtype: Any = None

    def merge(self, trainable: Params, frozen: Params, bags: BagMeans) -> MergedModels:
        head = trainable["pred_head"]
        return MergedModels(
            without_head(trainable), {}, jnp.zeros(bags.num_bags, head["bias"].dtype), {}
        )

    def encoder(self, frozen: Params, merged_encoder: Params) -> Params:
        return merged_encoder

    def head(self, trainable: Params, frozen: Params, bags: PooledBags) -> HeadOutputs:
        return unpenalized(apply_head(trainable["pred_head"], bags.z))


def without_head(theta: Params) -> Params:
    """feat_proj and attention_net of an ABMIL tree."""
    return {name: tree for name, tree in theta.items() if name != "pred_head"}


def apply_head(head: Params, z: jax.Array) -> jax.Array:
    """Logits [..., T] of pooled embeddings [..., E] by one pred_head."""
    return cast(jax.Array, Linear(head["bias"].shape[-1]).apply({"params": head}, z))


def unpenalized(logits: jax.Array) -> HeadOutputs:
    """Outputs [B, T] with nothing to be added to the loss."""
    return HeadOutputs(logits, jnp.zeros(len(logits), logits.dtype), {})


def new_head(seed: int, architecture: Architecture, num_outputs: int) -> Params:
    """A pred_head of torch's default start with some number of outputs."""
    narrow = dataclasses.replace(architecture, feature_dim=1, num_bins=num_outputs)
    return as_numpy(abmil.init(jax.random.key(seed), narrow)["pred_head"])


def null_model(pool: Pool, architecture: Architecture, seed: int) -> SavedModel:
    """theta_0: the pool's, or a new one from the seed where the pool has none."""
    if pool.has_null():
        null = pool.null()
        _warn_of_unused_architecture(null.architecture, architecture)
        return null
    params = as_numpy(abmil.init(jax.random.key(seed), architecture))
    return SavedModel("abmil", architecture, {"role": "null", "seed": seed}, params)


@functools.cache  # once for all folds
def _warn_of_unused_architecture(used: Architecture, configured: Architecture) -> None:
    """Warns where a pool's null model has another architecture than config.model."""
    differences = [
        f"{field.name} {getattr(used, field.name)}, not {getattr(configured, field.name)}"
        for field in dataclasses.fields(Architecture)
        if field.name != "num_bins" and getattr(used, field.name) != getattr(configured, field.name)
    ]
    if differences:
        logging.warning(
            "the architecture is that of the pool's null model, config.model is not used: %s",
            "; ".join(differences),
        )


def start(spec: FoldSpec[object], pool: Pool) -> SavedModel:
    """The untrained model: theta_0, with a head of the right size."""
    null = null_model(pool, spec.architecture, spec.seed)
    return with_outputs(null, spec)


def with_outputs(model: SavedModel, spec: FoldSpec[object], keep_head: bool = True) -> SavedModel:
    """An ABMIL model for a target and fold, with a new head if its own has another size.

    Args:
        model: whose training goes on.
        spec: of the fold.
        keep_head: whether its head is used, if it has the size.
    """
    params = model.params
    architecture = model.architecture
    if architecture.num_bins != spec.num_outputs or not keep_head:
        params = params | {"pred_head": new_head(spec.seed, architecture, spec.num_outputs)}
        architecture = dataclasses.replace(architecture, num_bins=spec.num_outputs)
    settings = {"dataset": spec.dataset, "fold": spec.fold}
    return SavedModel("abmil", architecture, settings, params)


def add_null(pool: Pool, architecture: Architecture, seed: int) -> None:
    """Adds the null model to a pool that has none, before anything is trained from it.

    Runs that start a pool at the same time wait for each other here, so that all of them start from
    the same null model.
    """
    pool.root.mkdir(parents=True, exist_ok=True)
    busy = f"{pool.root}: another run has been making the null model; give the same command again"
    with locks.hold(pool.root / ".null.lock", busy, wait=_NULL_SECONDS):
        if not pool.has_null():
            pool.add(NULL, null_model(pool, architecture, seed))


def add_to_pool(pool: Pool, model: SavedModel) -> None:
    """Adds a model to the pool whose null model it was trained from."""
    settings = model.metadata
    pool.add(member_name(settings["dataset"], settings["fold"]), model)


def restore(model: SavedModel, compute_dtype: Any) -> LoadedModel:
    """Every tensor is trainable."""
    return LoadedModel(AbmilModel(model.architecture, compute_dtype), model.params, {})


METHOD = Method(
    "abmil",
    start,
    restore,
    lambda model, trainable: dataclasses.replace(model, params=as_numpy(trainable)),
)
