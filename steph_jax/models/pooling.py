"""Pooling of the patches of a bag as an online softmax: chunk by chunk, in any order.

    z = sum_n softmax(a)_n h_n = (sum_n exp(a_n - m) h_n) / (sum_n exp(a_n - m)),   m = max_n a_n

Numerator, denominator and m of parts of a bag (`SoftmaxState`) are combined by scaling each part to
the common m (Milakov and Gimelshein 2018, arXiv 1805.02867). Mean and max pooling of h fit the same
three numbers.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32

from steph_jax.models.layers import matmul

POOLINGS = ("gated", "plain", "mean", "max")


class SoftmaxState(NamedTuple):
    """The pooled sums of some patches of a bag.

    Attributes:
        max: [...] m, the largest attention score (0 without attention; no gradient flows here).
        denominator: [...] sum of exp(score - m), or the number of patches without attention.
        numerator: [..., E] sum of exp(score - m) h; the plain sum, or the maximum, of h without
            attention.
    """

    max: Float[Array, "*bags"]
    denominator: Float[Array, "*bags"]
    numerator: Float[Array, "*bags E"]


def chunk_state(
    pooling: str,
    h: Float[Array, "N E"],
    scores: Float[Array, " N"] | None,
    mask: Bool[Array, " N"],
) -> SoftmaxState:
    """The state of one chunk of a bag.

    Args:
        pooling: one of `POOLINGS`.
        h: [N, E] embeddings.
        scores: [N] attention scores; None for mean and max pooling.
        mask: [N] True where there is a patch, False on padding.
    """
    zero = jnp.zeros((), h.dtype)
    if pooling == "max":
        lowest = jnp.asarray(-jnp.inf, h.dtype)
        numerator = jnp.max(h, axis=0, where=mask[:, None], initial=lowest)
        return SoftmaxState(zero, jnp.sum(mask, dtype=h.dtype), numerator)
    if scores is None:
        weights = mask.astype(h.dtype)
        largest = zero
    else:
        # An all-padding chunk keeps a finite maximum, so that no inf - inf appears below.
        lowest = jnp.asarray(jnp.finfo(h.dtype).min, h.dtype)
        largest = lax.stop_gradient(jnp.max(scores, where=mask, initial=lowest))
        weights = jnp.where(mask, jnp.exp(jnp.where(mask, scores - largest, zero)), zero)
    return SoftmaxState(largest, jnp.sum(weights), matmul(weights, h))


def empty_state(pooling: str, shape: tuple[int, ...], embed_dim: int, dtype: Any) -> SoftmaxState:
    """States of bags without any patch so far: shapes `shape`, `shape` and [*shape, E]."""
    lowest = -jnp.inf if pooling == "max" else 0.0
    largest = jnp.finfo(dtype).min if pooling in ("gated", "plain") else 0.0
    return SoftmaxState(
        jnp.full(shape, largest, dtype),
        jnp.zeros(shape, dtype),
        jnp.full((*shape, embed_dim), lowest, dtype),
    )


def add_chunks(
    pooling: str, bags: SoftmaxState, chunks: SoftmaxState, bag_slot: Int32[Array, " G"]
) -> SoftmaxState:
    """The states of bags with those of some of their chunks added.

    Args:
        pooling: one of `POOLINGS`.
        bags: states of B bags so far: [B], [B] and [B, E].
        chunks: states of G chunks: [G], [G] and [G, E].
        bag_slot: [G] index of the bag of each chunk, in [0, B).
    """
    num_bags = bags.max.shape[0]
    denominator, numerator = chunks.denominator, chunks.numerator
    if pooling == "max":
        return SoftmaxState(
            bags.max,
            bags.denominator + jax.ops.segment_sum(denominator, bag_slot, num_bags),
            jnp.maximum(bags.numerator, jax.ops.segment_max(numerator, bag_slot, num_bags)),
        )
    old_denominator, old_numerator, largest = bags.denominator, bags.numerator, bags.max
    if pooling in ("gated", "plain"):
        # The maximum only keeps exp in range; it cancels in z, so no gradient flows through it.
        largest = jnp.maximum(bags.max, jax.ops.segment_max(chunks.max, bag_slot, num_bags))
        largest = lax.stop_gradient(largest)
        shrink = jnp.exp(lax.stop_gradient(bags.max) - largest)
        scale = jnp.exp(lax.stop_gradient(chunks.max) - largest[bag_slot])
        old_denominator, old_numerator = shrink * old_denominator, shrink[:, None] * old_numerator
        denominator, numerator = scale * denominator, scale[:, None] * numerator
    return SoftmaxState(
        largest,
        old_denominator + jax.ops.segment_sum(denominator, bag_slot, num_bags),
        old_numerator + jax.ops.segment_sum(numerator, bag_slot, num_bags),
    )


def finalize(pooling: str, bags: SoftmaxState) -> Float[Array, "*bags E"]:
    """z [..., E] of bags [...] to whose states all chunks were added; 0 for one without patches."""
    has_patches = bags.denominator > 0
    if pooling == "max":
        zero = jnp.zeros((), bags.numerator.dtype)
        return jnp.where(has_patches[..., None], bags.numerator, zero)
    one = jnp.ones((), bags.denominator.dtype)
    return bags.numerator / jnp.where(has_patches, bags.denominator, one)[..., None]
