"""`learned`: one trained weight per source and a new head; `ties`, `iso_c` and `iso_cts` prepare
the task vectors first (equations 15 to 22 of docs/method.md).

    theta = theta_0 + sum_s w_s tau_s,   w_s trained from 1 / S
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.engine.bag_model import BagMeans, MergedModels
from steph_jax.methods import sources
from steph_jax.methods.abmil import AbmilModel, new_head
from steph_jax.methods.base import FoldSpec, LoadedModel, Method, with_trainable
from steph_jax.methods.sources import MergeRegularizer, Merging
from steph_jax.models import task_vectors
from steph_jax.models.abmil import Params
from steph_jax.models.steph import merge_regularizer


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of `learned`, `ties`, `iso_c` and `iso_cts` (see `Method.options_type`)."""

    merging: Merging = dataclasses.field(default_factory=Merging)
    loss: MergeRegularizer = dataclasses.field(default_factory=MergeRegularizer)


@dataclasses.dataclass(frozen=True)
class LearnedModel(AbmilModel):
    """Trained weights as a `BagModel`: one merged encoder for all bags, then as ABMIL.

    Its frozen tree holds "stack", [theta_0, tau_1 .. tau_S] of the encoder; its trainable tree
    "weights" [S] and "pred_head".

    Attributes:
        merge_weight: of the merge regularizer in the loss.
    """

    merge_weight: float = 0.005

    def merge(self, trainable: Params, frozen: Params, bags: BagMeans) -> MergedModels:
        w = trainable["weights"]
        encoder = task_vectors.weighted_sum(frozen["stack"], sources.coefficients(w))
        weights = jnp.broadcast_to(w, (bags.num_bags, *w.shape))
        regularizer = merge_regularizer(weights, selected=None)
        aux = {
            "weight": weights,
            "selected": jnp.ones(weights.shape, bool),
            "source": weights,
            "merge": regularizer,
        }
        return MergedModels(encoder, {}, self.merge_weight * regularizer, aux)


def start(spec: FoldSpec[Options], pool: Pool) -> SavedModel:
    """Equal weights and a new head over the models of the pool."""
    gathered = sources.gather(spec, pool, spec.options.merging.include_target, "mil_encoder")
    num_sources = len(gathered.sources)
    architecture = gathered.null.architecture
    trainable = {
        "weights": np.full(num_sources, 1 / num_sources, np.float32),
        "pred_head": new_head(spec.seed + 1, architecture, spec.num_outputs),
    }
    settings = sources.metadata_of(spec, gathered) | {
        "merge_weight": spec.options.loss.merge_weight
    }
    params = {"trainable": trainable, "frozen": sources.frozen_models(gathered)}
    return SavedModel("learned", architecture, settings, params)


def restore(model: SavedModel, compute_dtype: Any) -> LoadedModel:
    """The method over the stack of its stored models."""
    bag_model = LearnedModel(model.architecture, compute_dtype, model.metadata["merge_weight"])
    stack = sources.encoder_stack(model.params["frozen"])
    return LoadedModel(bag_model, model.params["trainable"], {"stack": stack})


def _with_preparation(prepare: str) -> Method:
    """`learned` over task vectors prepared as `models.preparation` does by that name."""

    def start_prepared(spec: FoldSpec[Options], pool: Pool) -> SavedModel:
        merging = spec.options.merging
        if merging.prepare not in ("none", prepare):
            raise ValueError(
                f"method {prepare} prepares the task vectors in its own way, and merging.prepare "
                f"asks for {merging.prepare}; use --config.method=learned with that, or "
                "--config.merging.prepare=none"
            )
        options = dataclasses.replace(
            spec.options, merging=dataclasses.replace(merging, prepare=prepare)
        )
        return start(dataclasses.replace(spec, options=options), pool)

    return dataclasses.replace(METHOD, name=prepare, start=start_prepared)


METHOD = Method(
    "learned",
    start,
    restore,
    with_trainable,
    Options,
    members=sources.members,
    uses_task_vectors=True,
    uses_sources=True,
)
TIES = _with_preparation("ties")
ISO_C = _with_preparation("iso_c")
ISO_CTS = _with_preparation("iso_cts")
