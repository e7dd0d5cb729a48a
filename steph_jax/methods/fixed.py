"""`fix` and `average`: task vectors summed with constant weights (equation 15 of docs/method.md).

    theta = theta_0 + sum_s w_s tau_s,   w_s = 0.3 (or as given), or 1 / S;   pred_head is theta_t's

The result is one ABMIL model, and is stored as such; its outputs mean what theta_t's do, whatever
the loss of the run.
"""

import dataclasses
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.methods import abmil
from steph_jax.methods.base import FoldSpec, LoadedModel, Method, as_numpy
from steph_jax.methods.learned import LearnedModel
from steph_jax.methods.sources import (
    Merging,
    coefficients,
    encoder_stack,
    frozen_models,
    gather,
    members,
    metadata_of,
    own_outputs,
)
from steph_jax.models import task_vectors

DEFAULT_WEIGHT = 0.3


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of `fix` and `average` (see `Method.options_type`)."""

    merging: Merging = dataclasses.field(default_factory=Merging)


def given_weights(spec: FoldSpec[Options], num_sources: int) -> np.ndarray:
    """w [S] of the config.

    Raises:
        ValueError: their number is not that of the sources, or float32 cannot hold them.
    """
    weights = spec.options.merging.weights or (DEFAULT_WEIGHT,) * num_sources
    if len(weights) != num_sources:
        raise ValueError(
            f"merging.weights gives one weight per source, the target included: expected "
            f"{num_sources}, found {len(weights)}; () gives {DEFAULT_WEIGHT} to each"
        )
    with np.errstate(over="ignore"):
        rounded = np.asarray(weights, np.float32)
    if not np.isfinite(rounded).all():
        raise ValueError(
            "merging.weights: expected numbers within the range of float32 (3.4e+38), found "
            f"{max(weights, key=abs):.4g}"
        )
    return rounded


def equal_weights(spec: FoldSpec[Options], num_sources: int) -> np.ndarray:
    """1 / S each."""
    return np.full(num_sources, 1 / num_sources, np.float32)


def start(spec: FoldSpec[Options], pool: Pool, equal: bool) -> SavedModel:
    """The merged model, which is not trained."""
    gathered = gather(spec, pool, spec.options.merging.include_target, "mil_encoder")
    outputs = own_outputs(spec, gathered.target, "target's model")
    weigh = equal_weights if equal else given_weights
    weights = weigh(spec, len(gathered.sources))
    encoder = task_vectors.weighted_sum(
        encoder_stack(frozen_models(gathered)), coefficients(jnp.asarray(weights))
    )
    params = as_numpy(encoder) | {"pred_head": gathered.target.params["pred_head"]}
    settings = metadata_of(spec, gathered) | outputs | {"weights": weights.tolist()}
    return SavedModel("abmil", gathered.target.architecture, settings, params)


def restore(model: SavedModel, compute_dtype: Any) -> LoadedModel:
    """A merged model, or one that was imported with the models that it merges (kind "fix")."""
    if model.kind == "abmil":
        return abmil.restore(model, compute_dtype)
    frozen = model.params["frozen"]
    trainable = {
        "weights": np.asarray(model.metadata["weights"], np.float32),
        "pred_head": frozen["target"]["pred_head"],
    }
    bag_model = LearnedModel(model.architecture, compute_dtype, merge_weight=0.0)
    return LoadedModel(bag_model, trainable, {"stack": encoder_stack(frozen)})


def _method(name: str, equal: bool) -> Method:
    return Method(
        name,
        partial(start, equal=equal),
        restore,
        abmil.METHOD.store,
        Options,
        trains=False,
        members=members,
        uses_task_vectors=True,
        uses_sources=True,
    )


FIX = _method("fix", equal=False)
AVERAGE = _method("average", equal=True)
