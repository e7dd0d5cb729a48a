"""ROUPKT as a method: frozen sources represent the bag, a router weighs experts.

The representations are computed once per cohort (`frozen_encoders`) and reach the head as an array
of every patient; what is trained is a router, which is an ABMIL, the experts and the head.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.engine.bag_model import BagMeans, HeadOutputs, MergedModels, PooledBags
from steph_jax.methods.abmil import AbmilModel, apply_head
from steph_jax.methods.base import (
    FoldSpec,
    LoadedModel,
    Method,
    Represent,
    as_numpy,
    with_trainable,
)
from steph_jax.methods.sources import members, source_models, source_names
from steph_jax.models import roupkt, task_vectors
from steph_jax.models.abmil import Params
from steph_jax.models.layers import matmul
from steph_jax.models.roupkt import Options as RoupktOptions

#: Name of the representations z [n, S, E] among the labels of a batch.
REPRESENTATIONS = "representations"


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of `roupkt` (see `Method.options_type`)."""

    roupkt: RoupktOptions = dataclasses.field(default_factory=RoupktOptions)


@dataclasses.dataclass(frozen=True)
class RoupktModel(AbmilModel):
    """ROUPKT as a `BagModel`: the encoder of a bag is the router's.

    Its trainable tree is that of `roupkt.init`; its frozen tree is empty.

    Attributes:
        options: of ROUPKT.
    """

    options: roupkt.Options = dataclasses.field(default_factory=roupkt.Options)

    def merge(self, trainable: Params, frozen: Params, bags: BagMeans) -> MergedModels:
        dtype = trainable["gate"]["kernel"].dtype
        return MergedModels(trainable["router"], {}, jnp.zeros(bags.num_bags, dtype), {})

    def head(self, trainable: Params, frozen: Params, bags: PooledBags) -> HeadOutputs:
        routing = roupkt.route(matmul(bags.z, trainable["gate"]["kernel"]), self.options.top_k)
        mixed = roupkt.mixture(trainable.get("experts", {}), bags.labels[REPRESENTATIONS], routing)
        penalty = self.options.balance_weight * routing.balance + self.options.z_weight * routing.z
        aux = {
            "weight": routing.probabilities,
            "selected": routing.selected,
            "source": jnp.where(routing.selected, routing.probabilities, 0.0),
            "balance": routing.balance,
            "z": routing.z,
        }
        return HeadOutputs(apply_head(trainable["pred_head"], mixed), penalty, aux)


def start(spec: FoldSpec[Options], pool: Pool) -> SavedModel:
    """A router, experts and a head of torch's default start, over the models of the pool.

    The frozen tree of the stored model holds "sources", the encoders with leaves [S, ...].
    """
    options = spec.options.roupkt
    null = pool.null()
    target = pool.member(spec.dataset, spec.fold)
    sources = source_names(spec, pool, options.include_target)
    options.check_sources(len(sources))
    encoders = [
        task_vectors.parts_of(model.params, "mil_encoder")
        for model in source_models(spec, pool, sources, target)
    ]
    key = jax.random.key(spec.seed)
    trainable = roupkt.init(key, null.architecture, len(sources), spec.num_outputs, options.expert)
    settings = {
        "dataset": spec.dataset,
        "fold": spec.fold,
        "sources": list(sources),
        "options": dataclasses.asdict(options),
    }
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *encoders)
    params = {"trainable": as_numpy(trainable), "frozen": {"sources": stacked}}
    return SavedModel("roupkt", null.architecture, settings, params)


def restore(model: SavedModel, compute_dtype: Any) -> LoadedModel:
    """The method; its frozen models are seen through `inputs` only."""
    options = roupkt.Options(**model.metadata["options"])
    bag_model = RoupktModel(model.architecture, compute_dtype, options)
    return LoadedModel(bag_model, model.params["trainable"], {})


def inputs(model: SavedModel, represent: Represent) -> dict[str, np.ndarray]:
    """What the sources make of every patient: z [n, S, E]."""
    stacked = model.params["frozen"]["sources"]
    num_sources = len(model.metadata["sources"])
    encoders = [jax.tree.map(lambda x, s=s: x[s], stacked) for s in range(num_sources)]
    return {REPRESENTATIONS: represent(model.architecture, encoders)}


METHOD = Method(
    "roupkt",
    start,
    restore,
    with_trainable,
    Options,
    members=members,
    uses_sources=True,
    inputs=inputs,
)
