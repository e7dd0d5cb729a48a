"""How a batch of bags goes through a model: a few compiled stages over groups of chunks.

A batch (`data.batches`) holds bags of any lengths, cut into chunks that are stacked into groups of
a few shapes. What a model computes over the patches of a bag are sums (a mean of embeddings, a
softmax-weighted mean), so a forward pass is

    embed    per group   totals[bag] += sum_n embed(x_n)           hypernetworks only
    merge    once        of every bag, from its mean embedding: coefficients or parameters
    pool     per group   online softmax of the bag += that of the chunk, by the parameters that
                         `BagModel.encoder` makes of the coefficients (in STEPH, their weighted sum)
    head     once        logits and penalties of the batch

`forward` is plain Python over these stages, each compiled once per shape of a group; no bag is
padded to another's length, and a bag's result does not depend on the others in its batch. It is
differentiated from outside (`gradients`): JAX then runs the same stages backwards, compiled too.
For that a stage stores its matrix products (`_keep_products`); features and parameters are not.

The optimizer is in `training.epoch`, the loss is made by `evaluation.evaluator.loss_function`.

Several devices, of one host or several (`placement`): groups and everything per bag are split along
their leading axis over a mesh of one axis; each device has whole bags. Parameters of the stages per
group are copied to every device once (`_copies`), so that their gradients are summed over devices
once, not group by group.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from steph_jax.data.batches import Batch, BatchBags, ChunkGroup
from steph_jax.engine.bag_model import (
    BagMeans,
    BagModel,
    HeadOutputs,
    LossFunction,
    MergedModels,
    PooledBags,
)
from steph_jax.engine.placement import AXIS, split
from steph_jax.models.abmil import Abmil, Params
from steph_jax.models.pooling import SoftmaxState, add_chunks, empty_state, finalize

#: Sums over the chunks of B bags: totals [B, embed_dims] by name, and the online softmax.
Sums = tuple[dict[str, jax.Array], SoftmaxState]


class Outputs(NamedTuple):
    """Outputs of a pass over a batch, per slot.

    Attributes:
        logits: [B, T].
        aux: arrays [B, ...] that the model reports (weights, regularizers).
        loss: the training loss of the batch (None in evaluation).
    """

    logits: jax.Array
    aux: dict[str, jax.Array]
    loss: jax.Array | None = None


def forward(
    model: BagModel,
    mesh: Mesh,
    trainable: Params,
    frozen: Params,
    batch: Batch,
    key: jax.Array | None = None,
    start: Sums | None = None,
) -> HeadOutputs:
    """Outputs of the bags of a batch, by slot.

    Args:
        model: what is computed.
        mesh: devices that share the batch.
        trainable, frozen: parameters, as the model names them.
        batch: bags; one pass over its groups or, with an embedding, two.
        key: random key of dropout; None for none.
        start: `empty_sums`, made here by default.
    """
    bags: BatchBags = split(mesh, batch.bags)
    totals, state = start or _start(model, mesh, trainable, frozen, batch)
    if model.embed_parts:
        parts = _copies(mesh, {name: trainable[name] for name in model.embed_parts})
        for group in batch.groups:
            totals = embed_chunks(model, mesh, parts, totals, group)
    merged = merge_bags(model, mesh, trainable, frozen, totals, bags, key)
    for group in batch.groups if model.has_encoder else ():
        state = pool_chunks(model, mesh, frozen, merged.encoder, state, group, bags.position, key)
    out = head_bags(model, trainable, frozen, merged.head, state, bags)
    return HeadOutputs(out.logits, merged.penalty + out.penalty, merged.aux | out.aux)


def evaluate(
    model: BagModel, mesh: Mesh, trainable: Params, frozen: Params, batch: Batch
) -> Outputs:
    """Logits and reports of a batch, dropout off; arguments as in `forward`."""
    out = forward(model, mesh, trainable, frozen, batch)
    return Outputs(out.logits, out.aux)


def gradients(
    model: BagModel,
    loss: LossFunction,
    mesh: Mesh,
    trainable: Params,
    frozen: Params,
    batch: Batch,
    key: jax.Array | None,
) -> tuple[Params, Outputs]:
    """Gradients of the loss of a batch by the trainable parameters.

    Args:
        model, mesh, trainable, frozen: as in `forward`.
        loss: of a batch; penalties of the model are added to it.
        batch: bags; its groups are read once and stay in memory during the call.
        key: random key of the step; None trains without dropout.

    Returns:
        a tree like `trainable`, and the outputs of the forward pass.
    """
    batch = batch._replace(groups=list(batch.groups))
    whole = _gradients_at_once if len(batch.groups) == 1 else _gradients
    return whole(model, loss, mesh, trainable, frozen, batch, key)


def _gradients(
    model: BagModel,
    loss: LossFunction,
    mesh: Mesh,
    trainable: Params,
    frozen: Params,
    batch: Batch,
    key: jax.Array | None,
) -> tuple[Params, Outputs]:
    def batch_loss(trainable: Params, start: Sums) -> tuple[jax.Array, HeadOutputs]:
        totals, state = start
        state = state._replace(max=jax.lax.stop_gradient(state.max))  # as of all later states
        out = forward(model, mesh, trainable, frozen, batch, key, (totals, state))
        return _loss(loss, out.logits, out.penalty, batch.bags), out

    # Differentiated by the empty sums too, so that the first group is compiled like the others.
    both = jax.value_and_grad(batch_loss, argnums=(0, 1), has_aux=True)
    start = _start(model, mesh, trainable, frozen, batch)
    (value, out), (gradient, _) = both(trainable, start)
    return gradient, Outputs(out.logits, out.aux, value)


#: For batches of a single group, whose stages would take as long to call as to compute. It is
#: compiled once per shape of a group.
_gradients_at_once = jax.jit(_gradients, static_argnums=(0, 1, 2))


# --- stages ---------------------------------------------------------------------------------------


def _on_each_device(mesh: Mesh, *specs: P) -> Callable[..., Any]:
    """Decorates a function that every device applies to its share; all outputs are split."""
    return partial(jax.shard_map, mesh=mesh, in_specs=specs, out_specs=P(AXIS), check_vma=False)


def _keep_products(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with only its matrix products stored for the backward pass.

    All elementwise results are computed again from them: cheaper than to write and read them.
    """
    return jax.checkpoint(function, policy=jax.checkpoint_policies.dots_saveable)


@partial(jax.jit, static_argnums=(0, 1))
def embed_chunks(
    model: BagModel, mesh: Mesh, parts: Params, totals: dict[str, jax.Array], group: ChunkGroup
) -> dict[str, jax.Array]:
    """totals[bag] + sum_n embed(x_n) over the patches of a group.

    Args:
        parts: `BagModel.embed_parts` of the trainable tree, as `_copies` leaves them.
        totals: [B, embed_dims] by name.
    """

    @_on_each_device(mesh, P(AXIS), P(AXIS), P(AXIS))
    @_keep_products
    def embed(
        parts: Params, totals: dict[str, jax.Array], group: ChunkGroup
    ) -> dict[str, jax.Array]:
        mask = _mask(group)[..., None]

        def add(total: jax.Array, embedded: jax.Array) -> jax.Array:
            sums = jnp.sum(embedded, axis=1, where=mask)
            return total + jax.ops.segment_sum(sums, group.bag_slot, total.shape[0])

        return jax.tree.map(add, totals, model.embed(parts, group.features))

    return embed(parts, totals, group)


@partial(jax.jit, static_argnums=(0, 1))
def merge_bags(
    model: BagModel,
    mesh: Mesh,
    trainable: Params,
    frozen: Params,
    totals: dict[str, jax.Array],
    bags: BatchBags,
    key: jax.Array | None,
) -> MergedModels:
    """Parameters of the bags from the totals of their patches' embeddings."""
    count = jnp.maximum(bags.num_patches, 1)
    means = jax.tree.map(lambda total: total / count.astype(total.dtype)[:, None], totals)
    keys = None if key is None else _bag_keys(key, bags.position)
    merged = model.merge(trainable, frozen, BagMeans(means, len(bags.position), keys))
    if not model.encoder_per_bag:
        merged = merged._replace(encoder=_copies(mesh, merged.encoder))
    merged = merged._replace(aux=jax.lax.stop_gradient(merged.aux))
    return cast(MergedModels, _split(mesh, merged))


@partial(jax.jit, static_argnums=(0, 1))
def pool_chunks(
    model: BagModel,
    mesh: Mesh,
    frozen: Params,
    encoder: Params,
    state: SoftmaxState,
    group: ChunkGroup,
    position: jax.Array,
    key: jax.Array | None,
) -> SoftmaxState:
    """The states of the bags after the chunks of a group.

    Args:
        encoder: `MergedModels.encoder`, as `merge_bags` returns it.
        state: [B, ...].
        position: [B] as in `BatchBags`.
        key: as in `forward`.
    """
    abmil = Abmil(model.architecture, model.compute_dtype)
    pooling = model.architecture.pooling

    @_on_each_device(mesh, P(), P(AXIS), P(AXIS), P(AXIS), P(AXIS), P())
    def pool(
        frozen: Params,
        encoder: Params,
        state: SoftmaxState,
        group: ChunkGroup,
        position: jax.Array,
        key: jax.Array | None,
    ) -> SoftmaxState:
        keys = None if key is None else _chunk_keys(key, position, group)

        def encode(encoder: Params, *chunks: Any) -> SoftmaxState:
            states = abmil.apply({"params": encoder}, *chunks, method="encode")
            return cast(SoftmaxState, states)

        @_keep_products
        def add(encoders: Params, state: SoftmaxState) -> SoftmaxState:
            chunks = group.features, _mask(group), keys
            each = jax.vmap(encode) if model.encoder_per_bag else encode
            return add_chunks(pooling, state, each(encoders, *chunks), group.bag_slot)

        if model.encoder_per_bag:
            encoder = jax.tree.map(lambda x: x[group.bag_slot], encoder)
        # Outside of `_keep_products`: merging a model again would cost more than storing it.
        return cast(SoftmaxState, add(model.encoder(frozen, encoder), state))

    return cast(SoftmaxState, pool(frozen, encoder, state, group, position, key))


@partial(jax.jit, static_argnums=0)
def head_bags(
    model: BagModel,
    trainable: Params,
    frozen: Params,
    merged: Params,
    state: SoftmaxState,
    bags: BatchBags,
) -> HeadOutputs:
    """Outputs of the bags from their states."""
    z = finalize(model.architecture.pooling, state)
    out = model.head(trainable, frozen, PooledBags(z, merged, bags.labels))
    return out._replace(aux=jax.lax.stop_gradient(out.aux))


@partial(jax.jit, static_argnums=0)
def _loss(loss: LossFunction, logits: jax.Array, penalty: jax.Array, bags: BatchBags) -> jax.Array:
    """The loss of a batch and the mean penalty of its bags; empty slots do not count."""
    filled = bags.index >= 0
    return loss(logits, bags.labels, filled) + jnp.mean(penalty, where=filled)


def _start(model: BagModel, mesh: Mesh, trainable: Params, frozen: Params, batch: Batch) -> Sums:
    dtype = jax.tree.leaves((trainable, frozen))[0].dtype
    return empty_sums(model, mesh, len(batch.bags.index), dtype)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def empty_sums(model: BagModel, mesh: Mesh, num_bags: int, dtype: Any) -> Sums:
    """The sums before the first chunk."""
    a = model.architecture
    totals = {name: jnp.zeros((num_bags, d), dtype) for name, d in model.embed_dims.items()}
    state = empty_state(a.pooling, (num_bags,), a.embed_dim, dtype)
    return cast(Sums, _split(mesh, (totals, state)))


@partial(jax.jit, static_argnums=0)
def _copies(mesh: Mesh, tree: Params) -> Params:
    """Each array [n, ...] as [devices * n, ...], split over the devices: to every one its copy.

    Backwards, the sum of the gradients of all devices.
    """
    if mesh.size == 1:
        return tree
    whole = jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, P()))
    copies = jax.tree.map(lambda x: jnp.concatenate([x] * mesh.size), whole)
    return cast(Params, _split(mesh, copies))


def _split(mesh: Mesh, tree: Any) -> Any:
    """The arrays, split over the devices along their leading axis."""
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, P(AXIS)))


def _mask(group: ChunkGroup) -> jax.Array:
    """[G, L] True where a chunk has a patch, False on padding."""
    patch = jnp.arange(group.features.shape[1], dtype=jnp.int32)
    return patch[None] < group.length[:, None]


def _bag_keys(key: jax.Array, position: jax.Array) -> jax.Array:
    """A random key per bag, by its position in the batch, whichever device has it."""
    return jax.vmap(partial(jax.random.fold_in, key))(position)


def _chunk_keys(key: jax.Array, position: jax.Array, group: ChunkGroup) -> jax.Array:
    """[G] random keys, by the bag's position in the batch and the chunk's number in the bag."""
    return jax.vmap(jax.random.fold_in)(_bag_keys(key, position[group.bag_slot]), group.chunk_index)
