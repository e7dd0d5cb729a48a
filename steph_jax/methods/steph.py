"""STEPH as a method: hypernetworks embed, their weights merge, a new head predicts (SPEC 2)."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from steph_jax import hypernetworks, steph, task_vectors
from steph_jax.abmil import Architecture, Params
from steph_jax.hypernetworks import Hypernetworks
from steph_jax.losses import merge_regularizer, mix_regularizer
from steph_jax.methods.abmil import apply_head
from steph_jax.program import Headed, Merged


@dataclasses.dataclass(frozen=True)
class StephMethod:
    """STEPH as a `program.Method`.

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
    options: steph.Options = steph.Options()
    merge_weight: float = 0.005
    mix_weight: float = 0.05
    compute_dtype: Any = None

    def __post_init__(self) -> None:
        self.options.check_sources(self.num_sources)

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
        )

    def embed(self, trainable: Params, features: jax.Array) -> dict[str, jax.Array]:
        return self._hypernetworks.apply({"params": trainable}, features, method="embed")

    def source_weights(
        self, trainable: Params, means: dict[str, jax.Array], keys: jax.Array | None
    ) -> steph.SourceWeights:
        """w, lambda and the selection of B bags from their mean embeddings."""

        def one(
            means: dict[str, jax.Array], key: jax.Array | None
        ) -> tuple[jax.Array, jax.Array | None]:
            rngs = None if key is None else {"dropout": key}
            return self._hypernetworks.apply(
                {"params": trainable}, means, key is not None, rngs=rngs
            )

        weights, ratios = jax.vmap(one, in_axes=(0, None if keys is None else 0))(means, keys)
        return steph.select(weights, ratios, self.options)

    def merge(
        self,
        trainable: Params,
        frozen: Params,
        means: dict[str, jax.Array],
        num_bags: int,
        keys: jax.Array | None,
    ) -> Merged:
        sources = self.source_weights(trainable, means, keys)
        merged = steph.merge(frozen["stack"], sources, self.options)
        target = frozen["target"]
        encoder = {name: merged.get(name, target[name]) for name in target if name != "pred_head"}
        head = {name: tree for name, tree in merged.items() if name == "pred_head"}
        merge = merge_regularizer(sources.weights, sources.selected)
        mix = mix_regularizer(sources.ratios, sources.selected)
        record = {
            "weight": sources.weights,
            "lambda": sources.ratios,
            "selected": sources.selected,
            "merge": merge,
            "mix": mix,
        }
        penalty = self.merge_weight * merge + self.mix_weight * mix
        return Merged(encoder, head, penalty, record)

    def head(
        self,
        trainable: Params,
        frozen: Params,
        merged_head: Params,
        z: jax.Array,
        labels: dict[str, jax.Array],
    ) -> Headed:
        apply = partial(apply_head, self.architecture)
        if "pred_head" in trainable:
            logits = apply(trainable["pred_head"], z)
        elif "pred_head" in merged_head:
            logits = jax.vmap(apply)(merged_head["pred_head"], z)
        else:
            logits = apply(frozen["target"]["pred_head"], z)
        return Headed(logits, jnp.zeros(len(z), z.dtype), {})

    def init(self, key: jax.Array, target: Params) -> Params:
        """Trainable parameters to start from.

        Args:
            key: random key.
            target: theta_t, whose head is taken for `head_init = "target"`.
        """
        options = self.options
        trainable = hypernetworks.init(
            key,
            self.architecture.feature_dim,
            self.num_sources,
            options.weight_output,
            options.mixing,
            options.fixed_mixing,
        )
        if options.retrained == "pred_head":
            if options.head_init == "target":
                trainable["pred_head"] = target["pred_head"]
            else:
                trainable["pred_head"] = new_head(jax.random.fold_in(key, 1), self.architecture)
        return trainable


def new_head(key: jax.Array, architecture: Architecture) -> Params:
    """A pred_head of torch's default start."""
    from steph_jax import abmil

    return abmil.init(key, dataclasses.replace(architecture, feature_dim=1))["pred_head"]


def freeze(null: Params, target: Params, sources: list[Params], options: steph.Options) -> Params:
    """The frozen tree of STEPH, as `StephMethod` reads it, from whole models.

    Args:
        null: theta_0.
        target: theta_t.
        sources: theta_s, in the order of the weights.
        options: which tensors are merged, onto which base.
    """
    taus = task_vectors.stack([task_vectors.task_vector(s, null) for s in sources])
    tau_t = task_vectors.task_vector(target, null)
    base = null if options.base == "null" else target
    return {"stack": steph.merge_stack(base, tau_t, taus, options.merged), "target": target}
