"""The base model: attention-based multiple-instance learning (ABMIL, Ilse et al. 2018).

    h_n    = relu(W_f x_n + b_f)
    a_n    = w_c . (drop(tanh(W_a h_n + b_a)) * drop(sigmoid(W_b h_n + b_b))) + b_c
    z      = sum_n softmax(a)_n h_n
    logits = W_p z + b_p

Variants: plain attention `a_n = w_c . drop(tanh(W_a h_n + b_a)) + b_c`; `mean` and `max` pooling of
h; a projection of several linear layers, each followed by relu, with dropout after all but the
last.

The patches of a bag may arrive in pieces (`steph_jax.program`), so the model is split where a sum
over patches stands: `Abmil.instances` works patch by patch, `summarize` turns the patches of one
piece into a `Summary`, `join` adds the summaries of pieces to those of their bags, `pooled` ends in
z, and `Abmil.head` maps z to logits. `Abmil.__call__` does all of it for one whole bag.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from steph_jax.products import matmul

POOLINGS = ("gated", "plain", "mean", "max")

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Dimensions and variant of an ABMIL model; what two models must share to be merged.

    Attributes:
        feature_dim: D, size of a patch feature.
        embed_dim: E, size of a patch embedding.
        attention_dim: A, size of the attention branches; 0 for mean and max pooling.
        num_bins: T, outputs of pred_head.
        pooling: one of `POOLINGS`; "gated" and "plain" are the two kinds of attention.
        num_layers: linear layers of the feature projection.
        dropout: rate, in training only.
    """

    feature_dim: int = 1536
    embed_dim: int = 512
    attention_dim: int = 384
    num_bins: int = 32
    pooling: str = "gated"
    num_layers: int = 1
    dropout: float = 0.25

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling is one of {', '.join(POOLINGS)}, not {self.pooling!r}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout is a rate in [0, 1), not {self.dropout}")
        if self.pooling in ("mean", "max") and self.attention_dim:
            object.__setattr__(self, "attention_dim", 0)
        sizes = ("feature_dim", "embed_dim", "num_bins", "num_layers")
        for name in (*sizes, "attention_dim") if self.has_attention else sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, not {getattr(self, name)}")

    @property
    def has_attention(self) -> bool:
        return self.pooling in ("gated", "plain")


def dropout(x: jax.Array, keys: jax.Array | None, rate: float, site: int = 0) -> jax.Array:
    """Zeroes entries of `x` with probability `rate` and scales the rest by 1 / (1 - rate).

    Random words are hashes of the place of an entry under its key (`random_words`): they cost a few
    integer operations within the loop that applies them, where `jax.random` writes and reads
    arrays, a fifth of a training step on a CPU.

    Args:
        x: [..., rows, columns], or any shape for a single key.
        keys: one random key, or one for each of the leading entries of `x` ([G] for [G, N, A]); of
            bags or pieces, whose masks then depend on nothing else in the batch. None: `x` as it
            is.
        rate: in [0, 1).
        site: which of the dropouts of a model that share their keys this is.
    """
    if keys is None or rate == 0.0:
        return x
    words = random_words(keys, x.shape[keys.ndim :], site)
    keep = words >= jnp.uint32(round(rate * 2**32))
    return jnp.where(keep, x * jnp.asarray(1.0 / (1.0 - rate), x.dtype), jnp.zeros((), x.dtype))


def random_words(keys: jax.Array, shape: tuple[int, ...], site: int = 0) -> jax.Array:
    """Random uint32 [*keys.shape, *shape]: an entry's number, mixed with a 64-bit seed of its key.

    Mixed by the finalizer of MurmurHash3 (Appleby), in which every bit of the input reaches every
    bit of the output; the second half of the seed comes in half way, so that two keys share no run
    of words. Enough for dropout masks; not for what needs more than 2^32 entries a key.
    """

    def seed_of(key: jax.Array) -> jax.Array:
        return jax.random.bits(jax.random.fold_in(key, site), (2,), jnp.uint32)

    for _ in range(keys.ndim):
        seed_of = jax.vmap(seed_of)
    seed = seed_of(keys).reshape(*keys.shape, *(1 for _ in shape), 2)
    number = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        number += lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
        stride *= shape[axis]
    x = jnp.expand_dims(number, tuple(range(keys.ndim))) + seed[..., 0]
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x ^= seed[..., 1]
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def uniform_fan_in(key: jax.Array, shape: tuple[int, ...], fan_in: int, dtype: Any) -> jax.Array:
    """torch's default start of a linear layer: uniform in +-1/sqrt(fan_in)."""
    bound = 1.0 / math.sqrt(fan_in)
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class Linear(nn.Module):
    """`x W + b`, started as torch starts its linear layers (weights and bias alike).

    Attributes:
        features: size of the output.
        compute_dtype: of the operands of the matrix product (None: as they come). Products are
            accumulated, and returned, in the parameters' own type.
    """

    features: int
    compute_dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        fan_in = x.shape[-1]
        kernel = self.param(
            "kernel", lambda k: uniform_fan_in(k, (fan_in, self.features), fan_in, jnp.float32)
        )
        bias = self.param(
            "bias", lambda k: uniform_fan_in(k, (self.features,), fan_in, jnp.float32)
        )
        return matmul(x, kernel, self.compute_dtype) + jnp.broadcast_to(
            bias, (*x.shape[:-1], self.features)
        )


class FeatureProjection(nn.Module):
    """Linear layers, each followed by relu, with dropout after every one but the last.

    What stands on padding becomes 0 after every layer: however large it is, neither a product nor a
    gradient of it is anything but 0.
    """

    embed_dim: int
    num_layers: int
    dropout: float
    compute_dtype: Any = None

    def setup(self) -> None:
        self.layers = [Linear(self.embed_dim, self.compute_dtype) for _ in range(self.num_layers)]

    def __call__(
        self, x: jax.Array, keys: jax.Array | None, mask: jax.Array | None = None
    ) -> jax.Array:
        for i, layer in enumerate(self.layers):
            x = nn.relu(layer(x))
            if mask is not None:
                x = jnp.where(mask[..., None], x, jnp.zeros((), x.dtype))
            if i + 1 < self.num_layers:  # sites 0 and 1 are those of the attention
                x = dropout(x, keys, self.dropout, site=2 + i)
        return x


class AttentionNet(nn.Module):
    """Scores of instances before the softmax: gated or plain attention."""

    attention_dim: int
    gated: bool
    dropout: float
    compute_dtype: Any = None

    def setup(self) -> None:
        self.attention_a = Linear(self.attention_dim, self.compute_dtype)
        if self.gated:
            self.attention_b = Linear(self.attention_dim, self.compute_dtype)
        self.attention_c = Linear(1, self.compute_dtype)

    def __call__(self, h: jax.Array, keys: jax.Array | None) -> jax.Array:
        activations = dropout(jnp.tanh(self.attention_a(h)), keys, self.dropout, site=0)
        if self.gated:
            gate = jax.nn.sigmoid(self.attention_b(h))
            activations = activations * dropout(gate, keys, self.dropout, site=1)
        return self.attention_c(activations)[..., 0]


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


class Abmil(nn.Module):
    """ABMIL over one bag of patches; SPEC names the equations at the head of this module.

    Attributes:
        architecture: dimensions and variant.
        compute_dtype: of the operands of matrix products (None: the parameters' type).
    """

    architecture: Architecture
    compute_dtype: Any = None

    def setup(self) -> None:
        a = self.architecture
        self.feat_proj = FeatureProjection(a.embed_dim, a.num_layers, a.dropout, self.compute_dtype)
        if a.has_attention:
            self.attention_net = AttentionNet(
                a.attention_dim, a.pooling == "gated", a.dropout, self.compute_dtype
            )
        self.pred_head = Linear(a.num_bins)

    def instances(
        self,
        features: jax.Array,
        keys: jax.Array | None = None,
        mask: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """What the model computes patch by patch.

        Args:
            features: [..., N, D].
            keys: of dropout, as in `dropout`: one, or one for each of the leading entries.
            mask: [..., N] True where there is a patch, False on padding; None for patches alone.

        Returns:
            embeddings [..., N, E], 0 on padding, and attention scores [..., N] (None without
            attention).
        """
        h = self.feat_proj(features, keys, mask)
        return h, self.attention_net(h, keys) if self.architecture.has_attention else None

    def head(self, z: jax.Array) -> jax.Array:
        """Logits [..., T] of pooled embeddings [..., E]."""
        return self.pred_head(z)

    def __call__(
        self, features: jax.Array, mask: jax.Array, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Logits and attention of one bag.

        Args:
            features: [N, D] patch features.
            mask: [N] True where there is a patch, False on padding.
            key: random key of dropout; None for none.

        Returns:
            logits [T], and attention [N] (softmax over the patches, 0 on padding; uniform for mean
            pooling, and for max pooling, where no weight is defined).
        """
        pooling = self.architecture.pooling
        h, scores = self.instances(features, key, mask)
        piece = jax.tree.map(lambda x: x[None], summarize(pooling, h, scores, mask))
        z = pooled(pooling, piece)[0]
        flat = jnp.zeros(h.shape[0], h.dtype) if scores is None else scores
        return self.head(z), jax.nn.softmax(flat, where=mask)


def init(key: jax.Array, architecture: Architecture) -> Params:
    """Random float32 parameters of an ABMIL model, as torch would start it.

    Args:
        key: random key.
        architecture: dimensions and variant.

    Returns:
        nested dict of float32 arrays.
    """
    features = jnp.zeros((1, architecture.feature_dim), jnp.float32)
    return Abmil(architecture).init(key, features, jnp.ones(1, bool))["params"]
