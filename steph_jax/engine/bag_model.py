"""What a model computes for the bags of a batch: the protocol that `step.forward` goes through.

A `BagModel` defines how patches are embedded, how the parameters of a bag follow from the mean of
its embeddings, and how its outputs follow from its pooled embedding. Pooling itself, and how bags
are cut into chunks, is the same for all of them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

from steph_jax.models.abmil import Architecture, Params


class BagMeans(NamedTuple):
    """Arguments of `BagModel.merge`: the B bags of a batch.

    Attributes:
        means: mean embeddings [B, embed_dims] of the patches, by name; {} without an embedding.
        num_bags: B.
        keys: [B] random keys, which switch dropout on; None for none.
    """

    means: dict[str, jax.Array]
    num_bags: int
    keys: jax.Array | None


class MergedModels(NamedTuple):
    """The merged parameters of the bags of a batch, or the coefficients they are made from.

    Attributes:
        encoder: input of `BagModel.encoder`; leaves [B, ...] if `BagModel.encoder_per_bag`.
        head: input of `BagModel.head`; leaves [B, ...].
        penalty: [B] regularizers to be added to the loss, weighted.
        aux: arrays [B, ...] to be reported (weights, regularizers); no gradient flows through.
    """

    encoder: Params
    head: Params
    penalty: jax.Array
    aux: dict[str, jax.Array]


class PooledBags(NamedTuple):
    """Arguments of `BagModel.head`: the B bags of a batch.

    Attributes:
        z: [B, E] pooled embeddings.
        merged: `MergedModels.head`.
        labels: arrays [B, ...] by name.
    """

    z: jax.Array
    merged: Params
    labels: dict[str, jax.Array]


class HeadOutputs(NamedTuple):
    """Outputs of the bags: logits [B, T]; penalty [B] and aux as in `MergedModels`."""

    logits: jax.Array
    penalty: jax.Array
    aux: dict[str, jax.Array]


class BagModel(Protocol):
    """All that differs between models.

    Attributes:
        architecture: of the ABMIL that encodes a bag.
        compute_dtype: of the operands of matrix products over patches; None for float32.
        has_encoder: whether patches are encoded and pooled; False where `embed` is all that reads
            them.
        encoder_per_bag: whether every bag has an encoder of its own.
        embed_parts: names in the trainable tree that `embed` uses; () if there is no embedding.
        embed_dims: sizes of what `embed` returns, by name.
    """

    def __hash__(self) -> int: ...

    @property
    def architecture(self) -> Architecture: ...

    @property
    def compute_dtype(self) -> Any: ...

    @property
    def has_encoder(self) -> bool: ...

    @property
    def encoder_per_bag(self) -> bool: ...

    @property
    def embed_parts(self) -> tuple[str, ...]: ...

    @property
    def embed_dims(self) -> dict[str, int]: ...

    def embed(self, trainable: Params, features: jax.Array) -> dict[str, jax.Array]:
        """Embeddings [..., embed_dims] of patches [..., D], whose means over bags `merge` gets."""

    def merge(self, trainable: Params, frozen: Params, bags: BagMeans) -> MergedModels:
        """Weights of the sources, or merged parameters, of bags from their mean embeddings."""

    def encoder(self, frozen: Params, merged: Params) -> Params:
        """feat_proj and attention_net from `MergedModels.encoder`.

        With an encoder per bag it gets the rows of the chunks of a group, and returns leaves
        [rows, ...], so that no more encoders than that are ever in memory.
        """

    def head(self, trainable: Params, frozen: Params, bags: PooledBags) -> HeadOutputs:
        """Logits of bags from their pooled embeddings."""


class SharedEncoder:
    """The base class of a `BagModel` with one encoder for all bags and without an embedding."""

    @property
    def has_encoder(self) -> bool:
        return True

    @property
    def encoder_per_bag(self) -> bool:
        return False

    @property
    def embed_parts(self) -> tuple[str, ...]:
        return ()

    @property
    def embed_dims(self) -> dict[str, int]:
        return {}

    def embed(self, trainable: Params, features: jax.Array) -> dict[str, jax.Array]:
        return {}


#: (logits [B, T], labels, mask [B]) -> the loss, a mean over the bags where the mask is True.
LossFunction = Callable[[jax.Array, dict[str, jax.Array], jax.Array], jax.Array]
