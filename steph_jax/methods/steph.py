"""STEPH as a method: hypernetworks embed, their weights merge, a new head predicts."""

import dataclasses
from typing import Any, cast

import jax

from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.engine.bag_model import BagMeans, HeadOutputs, MergedModels, PooledBags
from steph_jax.methods.abmil import apply_head, new_head, unpenalized, without_head
from steph_jax.methods.base import FoldSpec, LoadedModel, Method, as_numpy, with_trainable
from steph_jax.methods.sources import Merging, Regularizers, gather, members, output_of
from steph_jax.models import hypernetworks, steph, task_vectors
from steph_jax.models.abmil import Architecture, Params
from steph_jax.models.hypernetworks import Hypernetworks
from steph_jax.models.steph import Options as StephOptions
from steph_jax.models.steph import merge_regularizer, mix_regularizer


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of `steph` and `steph_target` (see `Method.options_type`).

    Attributes:
        steph: options of STEPH.
        merging: how task vectors are prepared; the rest of the section is for other methods.
        loss: weights of the regularizers.
    """

    steph: StephOptions = dataclasses.field(default_factory=StephOptions)
    merging: Merging = dataclasses.field(default_factory=Merging)
    loss: Regularizers = dataclasses.field(default_factory=Regularizers)


@dataclasses.dataclass(frozen=True)
class StephModel:
    """STEPH as a `BagModel`.

    Its frozen tree holds "stack", the parameters to be summed (`steph.merge_stack`), and "target",
    theta_t, for the tensors that are not merged. Its trainable tree holds the hypernetworks and,
    if it is retrained, "pred_head".

    Attributes:
        architecture: of the models that are merged.
        num_sources: S.
        options: of STEPH.
        merge_weight: of the merge regularizer in the loss.
        mix_weight: of the mix regularizer.
        compute_dtype: of products over patches; None for float32.
    """

    architecture: Architecture
    num_sources: int
    options: steph.Options
    merge_weight: float = 0.005
    mix_weight: float = 0.05
    compute_dtype: Any = None

    def __post_init__(self) -> None:
        self.options.check_sources(self.num_sources)

    @property
    def has_encoder(self) -> bool:
        return True

    @property
    def encoder_per_bag(self) -> bool:
        return self.options.merged != "pred_head"

    @property
    def embed_parts(self) -> tuple[str, ...]:
        own = ("mixing_embedding",) if self.options.mixing == "fnn" else ()
        return ("embedding", *own)

    @property
    def embed_dims(self) -> dict[str, int]:
        names = ("weights", "mixing") if self.options.mixing == "fnn" else ("weights",)
        return dict.fromkeys(names, hypernetworks.HIDDEN_DIM)

    @property
    def _hypernetworks(self) -> Hypernetworks:
        return Hypernetworks(
            self.num_sources,
            self.options.weight_output,
            self.options.mixing,
            self.options.fixed_mixing,
            compute_dtype=self.compute_dtype,
            mixing_output=self.options.mixing_output,
        )

    def embed(self, trainable: Params, features: jax.Array) -> dict[str, jax.Array]:
        embedded = self._hypernetworks.apply({"params": trainable}, features, method="embed")
        return cast(dict[str, jax.Array], embedded)

    def source_weights(
        self, trainable: Params, means: dict[str, jax.Array], keys: jax.Array | None
    ) -> steph.SourceWeights:
        """w, lambda and the selection of B bags from their mean embeddings."""

        both = self._hypernetworks.apply({"params": trainable}, means, keys)
        weights, ratios = cast(tuple[jax.Array, jax.Array], both)
        return steph.select(weights, ratios, self.options)

    def merge(self, trainable: Params, frozen: Params, bags: BagMeans) -> MergedModels:
        sources = self.source_weights(trainable, bags.means, bags.keys)
        coefficients = steph.coefficients(sources, self.options)
        encoder = {"coefficients": coefficients} if self.encoder_per_bag else {}
        merged_head = {name: x for name, x in frozen["stack"].items() if name == "pred_head"}
        head = task_vectors.weighted_sum(merged_head, coefficients)
        selected = sources.selected if self.options.top_k else None
        merge = merge_regularizer(sources.weights, selected)
        mix = mix_regularizer(sources.ratios, sources.selected)
        target_shares, source_shares = steph.shares(sources, self.options)
        aux = {
            "weight": sources.weights,
            "lambda": sources.ratios,
            "selected": sources.selected,
            "target": target_shares,
            "source": source_shares,
            "merge": merge,
            "mix": mix,
        }
        penalty = self.merge_weight * merge + self.mix_weight * mix
        return MergedModels(encoder, head, penalty, aux)

    def encoder(self, frozen: Params, merged_encoder: Params) -> Params:
        if not self.encoder_per_bag:
            return without_head(frozen["target"])
        stacked = without_head(frozen["stack"])
        return task_vectors.weighted_sum(stacked, merged_encoder["coefficients"])

    def head(self, trainable: Params, frozen: Params, bags: PooledBags) -> HeadOutputs:
        if "pred_head" in trainable:
            logits = apply_head(trainable["pred_head"], bags.z)
        elif "pred_head" in bags.merged:
            logits = jax.vmap(apply_head)(bags.merged["pred_head"], bags.z)
        else:
            logits = apply_head(frozen["target"]["pred_head"], bags.z)
        return unpenalized(logits)


def freeze(models: Params, options: steph.Options) -> Params:
    """The frozen tree as `StephModel` reads it, from the one that is stored.

    Args:
        models: "null" (theta_0), "target" (theta_t), "target_task_vector" (tau_t) and
            "task_vectors" (tau_s, leaves [S, ...]): ABMIL trees.
        options: which tensors are merged, onto which base.
    """
    base = models["null" if options.base == "null" else "target"]
    tau_t, taus = models["target_task_vector"], models["task_vectors"]
    return {
        "stack": steph.merge_stack(base, tau_t, taus, options.merged),
        "target": models["target"],
    }


def start(spec: FoldSpec[Options], pool: Pool) -> SavedModel:
    """Hypernetworks and a head of torch's default start, over the models of the pool.

    Raises:
        FileNotFoundError: the pool lacks a model; with how to make it.
        ValueError: options that do not fit the sources, or a head that does not fit the loss.
    """
    options = spec.options.steph
    gathered = gather(spec, pool, options.include_target, options.merged)
    options.check_sources(len(gathered.sources))
    architecture, sources = gathered.null.architecture, gathered.sources
    null, target = gathered.null.params, gathered.target.params
    output = output_of(gathered.target)
    frozen = {
        "null": null,
        "target": target,
        "target_task_vector": task_vectors.task_vector(target, null),
        "task_vectors": gathered.task_vectors,
    }
    trainable = hypernetworks.init(
        jax.random.key(spec.seed),
        architecture.feature_dim,
        len(sources),
        options.weight_output,
        options.mixing,
        options.fixed_mixing,
        options.initial_weight,
    )
    if options.retrained == "pred_head":
        if options.head_init == "target":
            trainable["pred_head"] = target["pred_head"]
        else:
            trainable["pred_head"] = new_head(spec.seed + 1, architecture, spec.num_outputs)
    if options.retrained != "pred_head" or options.head_init == "target":
        _check_head(spec, gathered.target, output)
    settings = {
        "dataset": spec.dataset,
        "fold": spec.fold,
        "sources": list(sources),
        "prepare": spec.options.merging.prepare,
        "options": steph.as_dict(options),
        "merge_weight": spec.options.loss.merge_weight,
        "mix_weight": spec.options.loss.mix_weight,
        "target_output": output,
    }
    params = {"trainable": as_numpy(trainable), "frozen": frozen}
    return SavedModel("steph", architecture, settings, params)


_OTHER_HEAD = (
    "use the loss.terms and bins that the pool was fitted with, or a new head "
    "(steph.retrained=pred_head, steph.head_init=new)"
)


def _check_head(spec: FoldSpec[Options], target: SavedModel, output: str) -> None:
    """Raises ValueError where the outputs of the target's head are not those of the run."""
    num_outputs = target.architecture.num_bins
    if (num_outputs, output) != (spec.num_outputs, spec.output):
        raise ValueError(
            f"{spec.dataset}, fold {spec.fold}: the head of the pool's models has {num_outputs} "
            f"outputs ({output}), the loss and the time bins of this run ask for "
            f"{spec.num_outputs} ({spec.output}); {_OTHER_HEAD}"
        )
    target_bins = target.metadata.get("bins")
    if (
        target_bins
        and spec.bins
        and target_bins["edges"] != spec.bins["edges"]
        and spec.num_outputs > 1
    ):
        raise ValueError(
            f"{spec.dataset}, fold {spec.fold}: the head of the pool's models was fitted on "
            f"{target_bins['kind']} time bins with edges at {_days(target_bins)}, this run has "
            f"{spec.bins['kind']} ones at {_days(spec.bins)}; {_OTHER_HEAD}"
        )


def _days(bins: dict[str, Any]) -> str:
    edges = [f"{edge:g}" for edge in bins["edges"]]
    return f"{', '.join(edges if len(edges) < 8 else [*edges[:3], '...', edges[-1]])} days"


def restore(model: SavedModel, compute_dtype: Any) -> LoadedModel:
    """The method with the stack of task vectors that its options ask for."""
    options = steph.Options(**model.metadata["options"])
    bag_model = StephModel(
        model.architecture,
        len(model.metadata["sources"]),
        options,
        model.metadata.get("merge_weight", 0.0),
        model.metadata.get("mix_weight", 0.0),
        compute_dtype,
    )
    return LoadedModel(
        bag_model, model.params["trainable"], freeze(model.params["frozen"], options)
    )


def weights_can_collapse(model: SavedModel) -> bool:
    """Whether weights of 0 stay and leave the null encoder (`Method.weights_can_collapse`)."""
    options = steph.Options(**model.metadata["options"])
    return (
        options.weight_output == "relu" and options.base == "null" and options.merged != "pred_head"
    )


def raise_weights(spec: FoldSpec[Any], least: float) -> FoldSpec[Any]:
    """The same with a `steph.initial_weight` of at least that (see `Method.raise_weights`)."""
    section = spec.options.steph
    raised = dataclasses.replace(section, initial_weight=max(section.initial_weight, least))
    return dataclasses.replace(spec, options=dataclasses.replace(spec.options, steph=raised))


METHOD = Method(
    "steph",
    start,
    restore,
    with_trainable,
    Options,
    members=members,
    weights_can_collapse=weights_can_collapse,
    raise_weights=raise_weights,
    uses_task_vectors=True,
    uses_sources=True,
)
