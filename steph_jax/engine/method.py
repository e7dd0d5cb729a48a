"""What a method computes for the bags of a batch, and what is done with a group of their pieces.

A method (`Method`) says how patches are embedded, how the parameters of a bag follow from its mean
embedding, and how its outputs follow from its pooled embedding. The functions here apply it to one
group of pieces, as one device sees it; `program` compiles them and chains them over a batch.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp

from steph_jax.data.batches import Group
from steph_jax.models.abmil import Abmil, Architecture, Params
from steph_jax.models.pooling import Summary, join, summarize


class Merged(NamedTuple):
    """What the parameters of the bags of a batch follow from.

    Attributes:
        encoder: what `Method.encoder` makes feat_proj and attention_net of; leaves [B, ...] if
            `Method.encoder_per_bag`.
        head: whatever `Method.head` wants of it; leaves [B, ...] where they differ by bag.
        penalty: [B] regularizers to be added to the loss, weighted.
        record: arrays [B, ...] to be reported (weights, regularizers), without gradient.
    """

    encoder: Params
    head: Params
    penalty: jax.Array
    record: dict[str, jax.Array]


class Headed(NamedTuple):
    """Outputs of the bags of a batch: logits [B, T], penalty [B] and record as in `Merged`."""

    logits: jax.Array
    penalty: jax.Array
    record: dict[str, jax.Array]


class Embedded(NamedTuple):
    """What `Method.merge` knows of the B bags of a batch.

    Attributes:
        means: mean embeddings [B, embed_dims] of the patches, by name; {} without an embedding.
        num_bags: B.
        keys: [B] random keys, which switch dropout on; None for none.
    """

    means: dict[str, jax.Array]
    num_bags: int
    keys: jax.Array | None


class Pooled(NamedTuple):
    """What `Method.head` knows of the B bags of a batch.

    Attributes:
        z: [B, E] pooled embeddings.
        merged: `Merged.head`.
        labels: arrays [B, ...] by name.
    """

    z: jax.Array
    merged: Params
    labels: dict[str, jax.Array]


class Method(Protocol):
    """What a method must say; everything else is the same for all of them.

    Attributes:
        architecture: of the ABMIL that encodes a bag.
        compute_dtype: of the operands of matrix products over patches; None for float32.
        encoder_per_bag: whether every bag has an encoder of its own.
        embed_parts: names in the trainable tree of what `embed` uses; () if there is no embedding.
        embed_dims: sizes of what `embed` returns, by name.
    """

    def __hash__(self) -> int: ...

    @property
    def architecture(self) -> Architecture: ...

    @property
    def compute_dtype(self) -> Any: ...

    @property
    def encoder_per_bag(self) -> bool: ...

    @property
    def embed_parts(self) -> tuple[str, ...]: ...

    @property
    def embed_dims(self) -> dict[str, int]: ...

    def embed(self, trainable: Params, features: jax.Array) -> dict[str, jax.Array]:
        """Embeddings [..., embed_dims] of patches [..., D], whose means over bags `merge` gets."""

    def merge(self, trainable: Params, frozen: Params, bags: Embedded) -> Merged:
        """Parameters of bags from their mean embeddings."""

    def encoder(self, frozen: Params, merged_encoder: Params) -> Params:
        """feat_proj and attention_net from rows of `Merged.encoder`; leaves [rows, ...] per bag.

        It is called for the pieces of a group, so that no more encoders than that are ever held.
        """

    def head(self, trainable: Params, frozen: Params, bags: Pooled) -> Headed:
        """Logits of bags from their pooled embeddings."""


#: (logits [B, T], labels, mask [B]) -> the loss, a mean over the bags where the mask is True.
LossFunction = Callable[[jax.Array, dict[str, jax.Array], jax.Array], jax.Array]


def bag_keys(key: jax.Array, rank: jax.Array) -> jax.Array:
    """A random key per bag, by its place in the batch: the same wherever its patches lie."""
    return jax.vmap(partial(jax.random.fold_in, key))(rank)


def _mask(group: Group) -> jax.Array:
    """[G, L] True where a piece has a patch, False on padding."""
    place = jnp.arange(group.features.shape[1], dtype=jnp.int32)
    return place[None] < group.length[:, None]


def embed_group(
    method: Method, trainable: Params, totals: dict[str, jax.Array], group: Group
) -> dict[str, jax.Array]:
    """Adds the embeddings of the patches of a group to the totals [B, ...] of their bags."""

    mask = _mask(group)
    embedded = method.embed(trainable, group.features)
    sums = jax.tree.map(lambda y: jnp.sum(y, axis=1, where=mask[..., None]), embedded)
    return jax.tree.map(
        lambda total, s: total + jax.ops.segment_sum(s, group.owner, total.shape[0]), totals, sums
    )


def attend_group(
    method: Method,
    encoder: Params,
    bags: Summary,
    group: Group,
    keys: jax.Array | None,
) -> Summary:
    """Joins the summaries of the pieces of a group to those of their bags.

    `encoder` has a leading axis [G] where every bag has one of its own.
    """
    model = Abmil(method.architecture, method.compute_dtype)
    pooling = method.architecture.pooling

    mask = _mask(group)

    def instances(
        encoder: Params, features: jax.Array, keys: jax.Array | None, mask: jax.Array
    ) -> tuple[jax.Array, jax.Array | None]:
        found = model.apply({"params": encoder}, features, keys, mask, method="instances")
        return cast(tuple[jax.Array, jax.Array | None], found)

    if method.encoder_per_bag:
        each = jax.vmap(instances, in_axes=(0, 0, None if keys is None else 0, 0))
        h, scores = each(encoder, group.features, keys, mask)
    else:
        h, scores = instances(encoder, group.features, keys, mask)
    summaries = jax.vmap(partial(summarize, pooling), (0, None if scores is None else 0, 0))
    pieces = summaries(h, scores, mask)
    return join(pooling, bags, pieces, group.owner)


def piece_keys(key: jax.Array | None, rank: jax.Array, group: Group) -> jax.Array | None:
    """[G] random keys, by the bag's place in the batch and the piece's number in the bag."""
    if key is None:
        return None
    return jax.vmap(jax.random.fold_in)(bag_keys(key, rank[group.owner]), group.serial)


def encoders(method: Method, frozen: Params, merged: Params, owner: jax.Array) -> Params:
    """The encoders of the pieces of a group, or the one of all bags."""
    if method.encoder_per_bag:
        merged = jax.tree.map(lambda x: x[owner], merged)
    return method.encoder(frozen, merged)
