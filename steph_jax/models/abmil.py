"""The base model: attention-based multiple-instance learning (ABMIL, Ilse et al. 2018).

Equations 1 to 5 of docs/method.md:

    h_n    = relu(W_f x_n + b_f)
    a_n    = w_c . (drop(tanh(W_a h_n + b_a)) * drop(sigmoid(W_b h_n + b_b))) + b_c
    z      = sum_n softmax(a)_n h_n
    logits = W_p z + b_p

Variants: plain attention `a_n = w_c . drop(tanh(W_a h_n + b_a)) + b_c`; `mean` and `max` pooling of
h; a projection of several linear layers, each followed by relu, with dropout after all but the
last.

The patches of a bag may arrive in chunks (`steph_jax.engine.step`), so the model is split where a
sum over patches stands: `Abmil.encode` makes the state of an online softmax (`models.pooling`) of
every chunk, `pooling.add_chunks` combines those of a bag, `pooling.finalize` ends in z, and
`Abmil.head` maps z to logits. `Abmil.__call__` does all of it for one bag.
"""

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from steph_jax.models.layers import Linear, dropout
from steph_jax.models.pooling import POOLINGS, SoftmaxState, chunk_state, finalize

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


class FeatureProjection(nn.Module):
    """Linear layers, each followed by relu, with dropout after every one but the last.

    Padding becomes 0 after every layer: whatever its value, its products and gradients are 0.
    """

    embed_dim: int
    num_layers: int
    dropout: float
    compute_dtype: Any = None

    def setup(self) -> None:
        self.layers = [Linear(self.embed_dim, self.compute_dtype) for _ in range(self.num_layers)]

    def __call__(
        self,
        x: Float[Array, "*chunks N D"],
        mask: Bool[Array, "*chunks N"],
        keys: Key[Array, "..."] | None,
    ) -> Float[Array, "*chunks N E"]:
        for i, layer in enumerate(self.layers):
            x = nn.relu(layer(x))
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

    def __call__(
        self, h: Float[Array, "*chunks N E"], keys: Key[Array, "..."] | None
    ) -> Float[Array, "*chunks N"]:
        activations = dropout(jnp.tanh(self.attention_a(h)), keys, self.dropout, site=0)
        if self.gated:
            gate = jax.nn.sigmoid(self.attention_b(h))
            activations = activations * dropout(gate, keys, self.dropout, site=1)
        return self.attention_c(activations)[..., 0]


class Abmil(nn.Module):
    """ABMIL over one bag of patches; equations 1 to 5 of docs/method.md.

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

    def patches(
        self,
        features: Float[Array, "*chunks N D"],
        mask: Bool[Array, "*chunks N"],
        keys: Key[Array, "..."] | None = None,
    ) -> tuple[Float[Array, "*chunks N E"], Float[Array, "*chunks N"] | None]:
        """Embeddings and attention scores of the patches of chunks.

        Args:
            features: [..., N, D].
            mask: [..., N] True where there is a patch, False on padding.
            keys: of dropout, as in `layers.dropout`: one, or one for each chunk; None for none.

        Returns:
            embeddings h [..., N, E], 0 on padding, and attention scores a [..., N] (None without
            attention).
        """
        h = self.feat_proj(features, mask, keys)
        return h, self.attention_net(h, keys) if self.architecture.has_attention else None

    def encode(
        self,
        features: Float[Array, "*chunks N D"],
        mask: Bool[Array, "*chunks N"],
        keys: Key[Array, "..."] | None = None,
    ) -> SoftmaxState:
        """The states of chunks [...], from their patches; arguments as in `patches`."""
        h, scores = self.patches(features, mask, keys)
        state = partial(chunk_state, self.architecture.pooling)
        for _ in features.shape[:-2]:
            state = jax.vmap(state, (0, None if scores is None else 0, 0))
        return state(h, scores, mask)

    def head(self, z: Float[Array, "*bags E"]) -> Float[Array, "*bags T"]:
        """Logits [..., T] of pooled embeddings [..., E]."""
        return self.pred_head(z)

    def __call__(
        self,
        features: Float[Array, "N D"],
        mask: Bool[Array, " N"],
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, " T"], Float[Array, " N"]]:
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
        h, scores = self.patches(features, mask, key)
        z = finalize(pooling, chunk_state(pooling, h, scores, mask))
        flat = jnp.zeros(h.shape[0], h.dtype) if scores is None else scores
        return self.head(z), jax.nn.softmax(flat, where=mask)


@partial(jax.jit, static_argnums=1)  # without it, every layer is compiled to be run once
def init(key: Key[Array, ""], architecture: Architecture) -> Params:
    """Random float32 parameters of an ABMIL model, as torch would start it.

    Args:
        key: random key.
        architecture: dimensions and variant.

    Returns:
        nested dict of float32 arrays.
    """
    features = jnp.zeros((1, architecture.feature_dim), jnp.float32)
    return Abmil(architecture).init(key, features, jnp.ones(1, bool))["params"]
