"""`dynamic`: a hypernetwork weighs the task vectors of all sources for every bag.

theta(X) = theta_0 + sum_s w_s(X) tau_s,   w from the hypernetwork of STEPH (equations 10 and 15)
"""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp

from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.engine.bag_model import BagMeans, HeadOutputs, MergedModels, PooledBags
from steph_jax.methods import sources
from steph_jax.methods.abmil import apply_head, new_head, unpenalized
from steph_jax.methods.base import FoldSpec, LoadedModel, Method, as_numpy, with_trainable
from steph_jax.methods.sources import MergeRegularizer, Merging
from steph_jax.methods.steph import raise_weights
from steph_jax.models import hypernetworks, task_vectors
from steph_jax.models.abmil import Architecture, Params
from steph_jax.models.hypernetworks import Hypernetworks
from steph_jax.models.steph import Options as StephOptions
from steph_jax.models.steph import merge_regularizer


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of `dynamic` (see `Method.options_type`).

    Attributes:
        merging: the target among the sources, and how task vectors are prepared.
        steph: its hypernetwork is STEPH's; `weight_output` and `initial_weight` are read.
        loss: weight of the merge regularizer.
    """

    merging: Merging = dataclasses.field(default_factory=Merging)
    steph: StephOptions = dataclasses.field(default_factory=StephOptions)
    loss: MergeRegularizer = dataclasses.field(default_factory=MergeRegularizer)


@dataclasses.dataclass(frozen=True)
class DynamicModel:
    """Weights from a hypernetwork as a `BagModel`: an encoder for every bag.

    Its frozen tree holds "stack", [theta_0, tau_1 .. tau_S] of the encoder; its trainable tree the
    hypernetwork and "pred_head".

    Attributes:
        architecture: of the models that are merged.
        num_sources: S.
        weight_output: function of the hypernetwork's output, as in `steph.Options`.
        merge_weight: of the merge regularizer in the loss.
        compute_dtype: of products over patches; None for float32.
    """

    architecture: Architecture
    num_sources: int
    weight_output: str = "relu"
    merge_weight: float = 0.005
    compute_dtype: Any = None

    @property
    def has_encoder(self) -> bool:
        return True

    @property
    def encoder_per_bag(self) -> bool:
        return True

    @property
    def embed_parts(self) -> tuple[str, ...]:
        return ("embedding",)

    @property
    def embed_dims(self) -> dict[str, int]:
        return {"weights": hypernetworks.HIDDEN_DIM}

    @property
    def _hypernetwork(self) -> Hypernetworks:
        return Hypernetworks(
            self.num_sources, self.weight_output, "", compute_dtype=self.compute_dtype
        )

    def embed(self, trainable: Params, features: jax.Array) -> dict[str, jax.Array]:
        embedded = self._hypernetwork.apply({"params": trainable}, features, method="embed")
        return cast(dict[str, jax.Array], embedded)

    def merge(self, trainable: Params, frozen: Params, bags: BagMeans) -> MergedModels:
        both = self._hypernetwork.apply({"params": trainable}, bags.means, bags.keys)
        weights, _ = cast(tuple[jax.Array, None], both)
        regularizer = merge_regularizer(weights, selected=None)
        aux = {
            "weight": weights,
            "selected": jnp.ones(weights.shape, bool),
            "source": weights,
            "merge": regularizer,
        }
        encoder = {"coefficients": sources.coefficients(weights)}
        return MergedModels(encoder, {}, self.merge_weight * regularizer, aux)

    def encoder(self, frozen: Params, merged_encoder: Params) -> Params:
        return task_vectors.weighted_sum(frozen["stack"], merged_encoder["coefficients"])

    def head(self, trainable: Params, frozen: Params, bags: PooledBags) -> HeadOutputs:
        return unpenalized(apply_head(trainable["pred_head"], bags.z))


def start(spec: FoldSpec[Options], pool: Pool) -> SavedModel:
    """A hypernetwork and a head of torch's default start over the models of the pool."""
    gathered = sources.gather(spec, pool, spec.options.merging.include_target, "mil_encoder")
    num_sources = len(gathered.sources)
    architecture = gathered.null.architecture
    weight_output = spec.options.steph.weight_output
    trainable = hypernetworks.init(
        jax.random.key(spec.seed),
        architecture.feature_dim,
        num_sources,
        weight_output,
        mixing="",
        initial_weight=spec.options.steph.initial_weight,
    )
    trainable["pred_head"] = new_head(spec.seed + 1, architecture, spec.num_outputs)
    settings = sources.metadata_of(spec, gathered) | {
        "merge_weight": spec.options.loss.merge_weight,
        "weight_output": weight_output,
    }
    params = {
        "trainable": as_numpy(trainable),
        "frozen": sources.frozen_models(gathered),
    }
    return SavedModel("dynamic", architecture, settings, params)


def restore(model: SavedModel, compute_dtype: Any) -> LoadedModel:
    """The method over the stack of its stored models."""
    settings = model.metadata
    bag_model = DynamicModel(
        model.architecture,
        len(settings["sources"]),
        settings["weight_output"],
        settings["merge_weight"],
        compute_dtype,
    )
    stack = sources.encoder_stack(model.params["frozen"])
    return LoadedModel(bag_model, model.params["trainable"], {"stack": stack})


def weights_can_collapse(model: SavedModel) -> bool:
    """Whether weights of 0 would stay (`Method.weights_can_collapse`)."""
    return bool(model.metadata["weight_output"] == "relu")


METHOD = Method(
    "dynamic",
    start,
    restore,
    with_trainable,
    Options,
    members=sources.members,
    weights_can_collapse=weights_can_collapse,
    raise_weights=raise_weights,
    uses_task_vectors=True,
    uses_sources=True,
)
