"""STEPH: per bag, a sparse sum of mixed task vectors (arXiv 2603.10526).

Equation 12 of docs/method.md:

    theta(X) = theta_0 + sum_{s in K} w_s [ lambda_s tau_t + (1 - lambda_s) tau_s ]

w and lambda come from the hypernetworks, K are the k sources with the largest w. Written as
coefficients over one stack of trees, theta(X) = [1, c_t, c] . [theta_0, tau_t, tau_1 .. tau_S] is
one small product, whatever the sparsity (equation 13). Only the encoder is merged by default;
pred_head is new.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from steph_jax.models import task_vectors
from steph_jax.models.abmil import Params
from steph_jax.models.hypernetworks import MIXING_OUTPUTS, MIXINGS, WEIGHT_OUTPUTS


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"steph.{name} is one of {', '.join(known)}, not {value!r}")


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of STEPH; the defaults are the paper's.

    Attributes:
        top_k: k, how many sources are kept; 0 keeps all.
        weight_output: function of MLP_w's output: "relu", "softplus" or "sigmoid".
        clamp: w is clamped to [0, 1] in the sum, and so is lambda, which can leave (0, 1] where
            mixing is "param" or "fix". The regularizers see it as it was, and sources
            that tie at 1 are selected in the order they had before (as recorded of the published
            program; the lowest index decides between equal w only).
        mixing: where lambda comes from: "nn", "fnn", "param" or "fix" (`hypernetworks`).
        mixing_output: function of MLP_m's output: "relu" (published), or "softplus" (ours), with
            which lambda is never exactly 1, so that no source is a copy of the target for ever.
        fixed_mixing: lambda per source, in the order of the sources, for "fix".
        base: the parameters to which the sum is added: "null" (theta_0) or "target" (theta_t).
        include_target: whether the target is one of the sources.
        merged: tensors that are merged: "mil_encoder", "pred_head" or "all"; the rest are the
            target's.
        retrained: "pred_head" (a new head is trained) or "none" (it stays merged or the target's).
        initial_weight: added to the start of the output biases of MLP_w. Around 0, the merge
            regularizer can push all w below 0 in the first epochs, and relu passes no gradient
            to bring them back; 0.3 prevents it.
        head_init: the new head starts at random ("new") or as the target's ("target").
    """

    top_k: int = 5
    weight_output: str = "relu"
    clamp: bool = False
    mixing: str = "nn"
    mixing_output: str = "relu"
    fixed_mixing: tuple[float, ...] = ()
    base: str = "null"
    include_target: bool = False
    merged: str = "mil_encoder"
    retrained: str = "pred_head"
    head_init: str = "new"
    initial_weight: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "fixed_mixing", tuple(float(x) for x in self.fixed_mixing))
        _one_of("weight_output", self.weight_output, tuple(WEIGHT_OUTPUTS))
        _one_of("mixing", self.mixing, MIXINGS)
        _one_of("mixing_output", self.mixing_output, tuple(MIXING_OUTPUTS))
        _one_of("base", self.base, ("null", "target"))
        _one_of("merged", self.merged, tuple(task_vectors.PARTS))
        _one_of("retrained", self.retrained, ("pred_head", "none"))
        _one_of("head_init", self.head_init, ("new", "target"))
        if self.top_k < 0:
            raise ValueError(f"steph.top_k is a number of sources or 0 for all, not {self.top_k}")

    def check_sources(self, num_sources: int) -> None:
        """Raises ValueError where these options do not fit a number of sources."""
        if num_sources < 1:
            raise ValueError("no source model is left to merge; name some in `sources`")
        if self.top_k > num_sources:
            raise ValueError(
                f"steph.top_k = {self.top_k} is larger than the number of sources, {num_sources}; "
                "lower it, or 0 for all sources"
            )
        if self.mixing == "fix" and len(self.fixed_mixing) != num_sources:
            raise ValueError(
                "steph.fixed_mixing gives one lambda per source: expected "
                f"{num_sources}, found {len(self.fixed_mixing)}"
            )


class SourceWeights(NamedTuple):
    """Outputs of the hypernetworks for B bags.

    Attributes:
        weights: w [B, S] as MLP_w gives it, before any clamp.
        ratios: lambda [B, S].
        selected: [B, S] True for the k sources that are summed.
    """

    weights: Float[Array, "B S"]
    ratios: Float[Array, "B S"]
    selected: Bool[Array, "B S"]


@partial(jax.jit, static_argnums=3)  # one program, not one for each tensor and source
def merge_stack(
    base: Params, target_task_vector: Params, source_task_vectors: Params, merged: str
) -> Params:
    """The stack [theta_0 or theta_t, tau_t, tau_1 .. tau_S] of the merged tensors.

    Args:
        base: ABMIL tree to which the sum is added.
        target_task_vector: tau_t, an ABMIL tree.
        source_task_vectors: ABMIL tree with leaves [S, ...].
        merged: which parts, a name in `task_vectors.PARTS`.

    Returns:
        leaves [S + 2, ...].
    """
    return jax.tree.map(
        lambda b, t, s: jnp.concatenate([b[None], t[None], s]),
        task_vectors.parts_of(base, merged),
        task_vectors.parts_of(target_task_vector, merged),
        task_vectors.parts_of(source_task_vectors, merged),
    )


def select(
    weights: Float[Array, "B S"], ratios: Float[Array, "*bags S"], options: Options
) -> SourceWeights:
    """The sources that are summed, from w [B, S] and lambda [B, S] or [S]."""
    selected = task_vectors.select_top_k(weights, options.top_k)
    return SourceWeights(weights, jnp.broadcast_to(ratios, weights.shape), selected)


def coefficients(sources: SourceWeights, options: Options) -> Float[Array, "B stack"]:
    """[1, c_t, c] of B bags, over the stack that `merge_stack` returns: [B, S + 2].

    theta(X) of equation 12 is `task_vectors.weighted_sum` of stack and coefficients.

    Args:
        sources: weights, ratios and selection of B bags.
        options: whether weights and ratios are clamped.
    """
    target, source = shares(sources, options)
    c_target = jnp.sum(target, axis=1, keepdims=True)
    return jnp.concatenate([jnp.ones_like(c_target), c_target, source], axis=1)


def shares(
    sources: SourceWeights, options: Options
) -> tuple[Float[Array, "B S"], Float[Array, "B S"]]:
    """What each source adds to theta(X): (w lambda of tau_t, w (1 - lambda) of tau_s), [B, S] each.

    0 outside of K; w and lambda after the clamp. Where lambda is 1, a source adds to the target's
    own task vector alone, whatever its w.
    """
    weights, ratios = sources.weights, sources.ratios
    if options.clamp:
        weights, ratios = jnp.clip(weights, 0, 1), jnp.clip(ratios, 0, 1)
    return task_vectors.mixup_coefficients(weights, ratios, sources.selected)


def as_dict(options: Options) -> dict[str, Any]:
    """JSON-able form of the options, for the metadata of a model."""
    return dataclasses.asdict(options) | {"fixed_mixing": list(options.fixed_mixing)}


def merge_regularizer(
    w: Float[Array, "*bags S"], selected: Bool[Array, "*bags S"] | None
) -> Float[Array, "*bags"]:
    """merge = logsumexp(w)^2 + mean_{s in K} w_s per bag (equation 25 of docs/method.md).

    The mean is there only where sources are selected. Rules that sum all of them (k = 0, `learned`,
    `dynamic`) are penalized by logsumexp(w)^2 alone, as in the published program.

    Args:
        w: [..., S] weights as the hypernetwork gives them, before any clamp.
        selected: [..., S] True for the sources K that are kept, at least one per bag; None where
            none are selected.

    Returns:
        [...].
    """
    squared = jax.nn.logsumexp(w, axis=-1) ** 2
    return squared if selected is None else squared + _mean_selected(w, selected)


def mix_regularizer(
    mixing_ratio: Float[Array, "*bags S"], selected: Bool[Array, "*bags S"]
) -> Float[Array, "*bags"]:
    """mix = mean_{s in K} lambda_s^2 per bag (equation 26 of docs/method.md).

    Args:
        mixing_ratio: [..., S] lambda.
        selected: [..., S] True for the sources K that are kept; at least one per bag.

    Returns:
        [...].
    """
    return _mean_selected(mixing_ratio**2, selected)


def _mean_selected(
    values: Float[Array, "*bags S"], selected: Bool[Array, "*bags S"]
) -> Float[Array, "*bags"]:
    """Mean of `values` [..., S] over the selected sources."""
    masked = jnp.where(selected, values, jnp.zeros_like(values))
    return jnp.sum(masked, axis=-1) / jnp.sum(selected, axis=-1, dtype=values.dtype)
