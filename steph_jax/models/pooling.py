"""Attention pooling as an online softmax: summaries of parts of a bag that can be combined."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from steph_jax.models.layers import matmul

POOLINGS = ("gated", "plain", "mean", "max")


class Summary(NamedTuple):
    """What pooling needs to know of some patches of a bag; summaries of pieces can be combined.

    Attributes:
        peak: [...] the largest attention score (0 without attention; no gradient flows here).
        mass: [...] sum of exp(score - peak), or the number of patches without attention.
        embedding: [..., E] sum of exp(score - peak) h; the plain sum, or the maximum, of h
            without attention.
    """

    peak: jax.Array
    mass: jax.Array
    embedding: jax.Array


def summarize(pooling: str, h: jax.Array, scores: jax.Array | None, mask: jax.Array) -> Summary:
    """Summary of one piece of a bag.

    Args:
        pooling: one of `POOLINGS`.
        h: [N, E] embeddings.
        scores: [N] attention scores; None for mean and max pooling.
        mask: [N] True where there is a patch, False on padding.
    """
    zero = jnp.zeros((), h.dtype)
    if pooling == "max":
        lowest = jnp.asarray(-jnp.inf, h.dtype)
        embedding = jnp.max(h, axis=0, where=mask[:, None], initial=lowest)
        return Summary(zero, jnp.sum(mask, dtype=h.dtype), embedding)
    if scores is None:
        weights = mask.astype(h.dtype)
        peak = zero
    else:
        # An all-padding piece keeps a finite peak, so that no inf - inf appears below.
        lowest = jnp.asarray(jnp.finfo(h.dtype).min, h.dtype)
        peak = lax.stop_gradient(jnp.max(scores, where=mask, initial=lowest))
        weights = jnp.where(mask, jnp.exp(jnp.where(mask, scores - peak, zero)), zero)
    return Summary(peak, jnp.sum(weights), matmul(weights, h))


def empty_summary(pooling: str, num_bags: int, embed_dim: int, dtype: Any) -> Summary:
    """Summaries of bags of which no piece was seen yet: shapes [B], [B], [B, E]."""
    lowest = -jnp.inf if pooling == "max" else 0.0
    peak = jnp.finfo(dtype).min if pooling in ("gated", "plain") else 0.0
    return Summary(
        jnp.full(num_bags, peak, dtype),
        jnp.zeros(num_bags, dtype),
        jnp.full((num_bags, embed_dim), lowest, dtype),
    )


def join(pooling: str, bags: Summary, pieces: Summary, owner: jax.Array) -> Summary:
    """Adds the summaries of pieces to those of the bags that own them.

    Args:
        pooling: one of `POOLINGS`.
        bags: summaries of B bags so far.
        pieces: summaries of P pieces, with shapes [P], [P] and [P, E].
        owner: [P] index of the bag of each piece, in [0, B).
    """
    num_bags = bags.peak.shape[0]
    mass, embedding = pieces.mass, pieces.embedding
    if pooling == "max":
        return Summary(
            bags.peak,
            bags.mass + jax.ops.segment_sum(mass, owner, num_bags),
            jnp.maximum(bags.embedding, jax.ops.segment_max(embedding, owner, num_bags)),
        )
    old_mass, old_embedding, peak = bags.mass, bags.embedding, bags.peak
    if pooling in ("gated", "plain"):
        # The peak only keeps exp in range; it cancels in z, so no gradient flows through it.
        peak = jnp.maximum(bags.peak, jax.ops.segment_max(pieces.peak, owner, num_bags))
        peak = lax.stop_gradient(peak)
        shrink = jnp.exp(lax.stop_gradient(bags.peak) - peak)
        scale = jnp.exp(lax.stop_gradient(pieces.peak) - peak[owner])
        old_mass, old_embedding = shrink * old_mass, shrink[:, None] * old_embedding
        mass, embedding = scale * mass, scale[:, None] * embedding
    return Summary(
        peak,
        old_mass + jax.ops.segment_sum(mass, owner, num_bags),
        old_embedding + jax.ops.segment_sum(embedding, owner, num_bags),
    )


def pooled(pooling: str, bags: Summary) -> jax.Array:
    """z [B, E] of bags of which all pieces were joined; zeros for a bag without patches."""
    seen = bags.mass > 0
    if pooling == "max":
        return jnp.where(seen[:, None], bags.embedding, jnp.zeros((), bags.embedding.dtype))
    return bags.embedding / jnp.where(seen, bags.mass, jnp.ones((), bags.mass.dtype))[:, None]
