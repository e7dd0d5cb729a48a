"""How a batch of bags goes through a model: a few compiled phases over groups of pieces.

A batch (`data.batches`) holds bags of any lengths, cut into pieces that are stacked into groups of
a few shapes. What a model computes over the patches of a bag are sums (a mean of embeddings, a
softmax-weighted mean), so a forward pass is

    embed    per group   totals[bag] += sum_n embed(x_n)           hypernetworks only
    merge    once        parameters of every bag from its mean embedding
    attend   per group   summary[bag] joins the piece's attention summary
    head     once        logits, loss and penalties of the batch

and a backward pass goes through the same phases from last to first, each with the residuals that
its forward kept. Every phase is compiled once per shape of a group; no bag is padded to another's
length, and a bag's result does not depend on the others in its batch.

Several devices: groups, slots and everything per bag are split along their leading axis over a mesh
of one axis by `jax.shard_map`; each device sees whole bags, and gradients are averaged by `pmean`.
"""

import functools
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from steph_jax import abmil
from steph_jax.abmil import Abmil, Architecture, Params, Summary
from steph_jax.data.batches import Batch, Group, Slots

AXIS = "devices"


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
        """Embeddings [N, embed_dims] of patches [N, D], whose means over bags `merge` gets."""

    def merge(
        self,
        trainable: Params,
        frozen: Params,
        means: dict[str, jax.Array],
        num_bags: int,
        keys: jax.Array | None,
    ) -> Merged:
        """Parameters of B bags from their mean embeddings; `keys` [B] switch dropout on."""

    def encoder(self, frozen: Params, merged_encoder: Params) -> Params:
        """feat_proj and attention_net from rows of `Merged.encoder`; leaves [rows, ...] per bag.

        It is called for the pieces of a group, so that no more encoders than that are ever held.
        """

    def head(
        self,
        trainable: Params,
        frozen: Params,
        merged_head: Params,
        z: jax.Array,
        labels: dict[str, jax.Array],
    ) -> Headed:
        """Logits of B bags from their pooled embeddings z [B, E]."""


#: (logits [B, T], labels, mask [B]) -> the loss, a mean over the bags where the mask is True.
LossFunction = Callable[[jax.Array, dict[str, jax.Array], jax.Array], jax.Array]


def device_mesh(devices: Iterable[jax.Device] | None = None) -> Mesh:
    """The one-axis mesh over some devices; all local ones by default."""
    chosen = list(jax.local_devices() if devices is None else devices)
    return jax.make_mesh((len(chosen),), (AXIS,), (AxisType.Auto,), devices=chosen)


def bag_keys(key: jax.Array, rank: jax.Array) -> jax.Array:
    """A random key per bag, by its place in the batch: the same wherever its patches lie."""
    return jax.vmap(partial(jax.random.fold_in, key))(rank)


def _embed_group(
    method: Method, trainable: Params, totals: dict[str, jax.Array], group: Group
) -> dict[str, jax.Array]:
    """Adds the embeddings of the patches of a group to the totals [B, ...] of their bags."""

    def piece(features: jax.Array, length: jax.Array) -> dict[str, jax.Array]:
        mask = jnp.arange(features.shape[0], dtype=jnp.int32) < length
        embedded = method.embed(trainable, features)
        return jax.tree.map(lambda y: jnp.sum(y, axis=0, where=mask[:, None]), embedded)

    sums = jax.vmap(piece)(group.features, group.length)
    return jax.tree.map(
        lambda total, s: total + jax.ops.segment_sum(s, group.owner, total.shape[0]), totals, sums
    )


def _attend_group(
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

    def piece(
        encoder: Params, features: jax.Array, length: jax.Array, key: jax.Array | None
    ) -> Summary:
        mask = jnp.arange(features.shape[0], dtype=jnp.int32) < length
        rngs = None if key is None else {"dropout": key}
        h, scores = cast(
            tuple[jax.Array, jax.Array | None],
            model.apply(
                {"params": encoder}, features, key is not None, method="instances", rngs=rngs
            ),
        )
        return abmil.summarize(pooling, h, scores, mask)

    axes = (0 if method.encoder_per_bag else None, 0, 0, None if keys is None else 0)
    pieces = jax.vmap(piece, in_axes=axes)(encoder, group.features, group.length, keys)
    return abmil.join(pooling, bags, pieces, group.owner)


def _piece_keys(key: jax.Array | None, rank: jax.Array, group: Group) -> jax.Array | None:
    """[G] random keys, by the bag's place in the batch and the piece's number in the bag."""
    if key is None:
        return None
    return jax.vmap(jax.random.fold_in)(bag_keys(key, rank[group.owner]), group.serial)


def _encoders(method: Method, frozen: Params, merged: Params, owner: jax.Array) -> Params:
    """The encoders of the pieces of a group, or the one of all bags."""
    if method.encoder_per_bag:
        merged = jax.tree.map(lambda x: x[owner], merged)
    return method.encoder(frozen, merged)


class Outputs(NamedTuple):
    """What a pass over a batch gives, per slot.

    Attributes:
        logits: [B, T].
        record: what the method reported, arrays [B, ...].
        loss: the training loss of the batch (None in evaluation).
    """

    logits: jax.Array
    record: dict[str, jax.Array]
    loss: jax.Array | None


@functools.lru_cache(maxsize=8)
def program_of(method: Method, loss: LossFunction | None, mesh: Mesh, num_slots: int) -> "Program":
    """The program of these arguments, compiled once for all folds that share them."""
    return Program(method, loss, mesh, num_slots)


class Program:
    """The compiled phases of a method on a mesh of devices.

    Args:
        method: what is computed.
        loss: the loss of a batch; None for evaluation alone.
        mesh: devices that share every batch.
        num_slots: bags per device and batch.
    """

    def __init__(
        self, method: Method, loss: LossFunction | None, mesh: Mesh, num_slots: int
    ) -> None:
        self.method = method
        self.mesh = mesh
        self.num_slots = num_slots
        self._loss = loss
        self._split = NamedSharding(mesh, P(AXIS))
        self._replicated = NamedSharding(mesh, P())
        encoder = P(AXIS) if method.encoder_per_bag else P()

        def share(function: Callable[..., Any], *specs: P, donate: tuple[int, ...] = ()) -> Any:
            mapped = jax.shard_map(
                function, mesh=mesh, in_specs=specs, out_specs=P(AXIS), check_vma=False
            )
            return jax.jit(mapped, donate_argnums=donate)

        encoder_at = self._split if method.encoder_per_bag else self._replicated
        merged: Any = (encoder_at, self._split, self._split, self._split)
        split, whole = P(AXIS), P()
        self._empty = jax.jit(self._empty_bags, out_shardings=self._split)
        self._zeros = jax.jit(self._zero_gradients, out_shardings=self._split, static_argnums=1)
        self._embed = share(self._embed_forward, whole, split, split, donate=(1,))
        self._embed_vjp = share(self._embed_with_vjp, whole, split, split)
        self._embed_back = share(self._embed_backward, split, split, split, donate=(0,))
        self._merge = jax.jit(self._merge_bags, out_shardings=Merged(*merged))
        self._merge_vjp = jax.jit(self._merge_with_vjp, out_shardings=(Merged(*merged), None))
        self._merge_back = jax.jit(lambda pull, cotangent: pull(cotangent))
        self._attend = share(self._attend_forward, whole, encoder, split, split, donate=(2,))
        self._attend_vjp = share(self._attend_with_vjp, whole, encoder, split, split, split, whole)
        self._attend_back = share(self._attend_backward, split, split, split, donate=(0,))
        self._head = jax.jit(self._head_outputs)
        self._head_grad = jax.jit(self._head_gradients)
        self._add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b))
        self._average = jax.jit(
            jax.shard_map(
                self._average_shares, mesh=mesh, in_specs=P(AXIS), out_specs=P(), check_vma=False
            )
        )

    def training_shapes(self) -> int:
        """Shapes of groups for which the training phase over patches was compiled."""
        return int(self._attend_vjp._cache_size())

    def replicate(self, tree: Any) -> Any:
        """Gives every device a copy of some parameters."""
        return jax.device_put(tree, self._replicated)

    def place(self, group: Group) -> Group:
        """Transfers a group to the devices."""
        return jax.device_put(group, self._split)

    def place_slots(self, slots: Slots) -> Slots:
        """Transfers the slots of a batch to the devices."""
        return jax.device_put(slots, self._split)

    # --- the phases, as seen by one device --------------------------------------------------

    def _empty_bags(self, dtype_of: jax.Array) -> tuple[dict[str, jax.Array], Summary]:
        num = self.num_slots * self.mesh.size
        a, dtype = self.method.architecture, dtype_of.dtype
        totals = {name: jnp.zeros((num, d), dtype) for name, d in self.method.embed_dims.items()}
        return totals, abmil.empty_summary(a.pooling, num, a.embed_dim, dtype)

    def _zero_gradients(self, tree: Params, per_device: bool) -> Params:
        lead = (self.mesh.size,) if per_device else ()
        return jax.tree.map(lambda x: jnp.zeros((*lead, *x.shape), x.dtype), tree)

    def _average_shares(self, shares: Params) -> Params:
        # A device's share of the gradient of the batch mean, times the number of devices, is the
        # gradient of that device's own mean.
        return jax.tree.map(lambda x: jax.lax.pmean(x[0] * self.mesh.size, AXIS), shares)

    def _embed_forward(
        self, parts: Params, totals: dict[str, jax.Array], group: Group
    ) -> dict[str, jax.Array]:
        return _embed_group(self.method, parts, totals, group)

    def _embed_with_vjp(
        self, parts: Params, totals: dict[str, jax.Array], group: Group
    ) -> tuple[dict[str, jax.Array], Any]:
        totals, pull = jax.vjp(lambda p: _embed_group(self.method, p, totals, group), parts)
        return totals, jax.tree.map(lambda x: x[None], pull)

    def _embed_backward(self, gradient: Params, pull: Any, cotangent: Params) -> Params:
        (more,) = jax.tree.map(lambda x: x[0], pull)(cotangent)
        return jax.tree.map(lambda g, m: g + m[None], gradient, more)

    def _attend_forward(
        self, frozen: Params, encoder: Params, bags: Summary, group: Group
    ) -> Summary:
        encoders = _encoders(self.method, frozen, encoder, group.owner)
        return _attend_group(self.method, encoders, bags, group, None)

    def _attend_with_vjp(
        self,
        frozen: Params,
        encoder: Params,
        bags: Summary,
        group: Group,
        slots: Slots,
        key: jax.Array | None,
    ) -> tuple[Summary, Any]:
        keys = _piece_keys(key, slots.rank, group)

        def attend(encoder: Params, bags: Summary) -> Summary:
            encoders = _encoders(self.method, frozen, encoder, group.owner)
            return _attend_group(self.method, encoders, bags, group, keys)

        bags, pull = jax.vjp(attend, encoder, bags)
        return bags, jax.tree.map(lambda x: x[None], pull)

    def _attend_backward(
        self, gradient: Params, pull: Any, cotangent: Summary
    ) -> tuple[Params, Summary]:
        more, cotangent = jax.tree.map(lambda x: x[0], pull)(cotangent)
        if not self.method.encoder_per_bag:
            more = jax.tree.map(lambda m: m[None], more)
        return jax.tree.map(jnp.add, gradient, more), cotangent

    # --- the phases over the whole batch ------------------------------------------------------

    def _merge_bags(
        self,
        trainable: Params,
        frozen: Params,
        totals: dict[str, jax.Array],
        slots: Slots,
        key: jax.Array | None,
    ) -> Merged:
        count = jnp.maximum(slots.num_patches, 1)
        means = jax.tree.map(lambda t: t / count.astype(t.dtype)[:, None], totals)
        keys = None if key is None else bag_keys(key, slots.rank)
        return self.method.merge(trainable, frozen, means, len(slots.rank), keys)

    def _merge_with_vjp(
        self,
        trainable: Params,
        frozen: Params,
        totals: dict[str, jax.Array],
        slots: Slots,
        key: jax.Array | None,
    ) -> tuple[Merged, Any]:
        def differentiable(trainable: Params, totals: dict[str, jax.Array]) -> Any:
            m = self._merge_bags(trainable, frozen, totals, slots, key)
            return (m.encoder, m.head, m.penalty), m.record

        (encoder, head, penalty), pull, record = jax.vjp(
            differentiable, trainable, totals, has_aux=True
        )
        return Merged(encoder, head, penalty, record), pull

    def _head_outputs(
        self, trainable: Params, frozen: Params, merged: Merged, bags: Summary, slots: Slots
    ) -> Headed:
        z = abmil.pooled(self.method.architecture.pooling, bags)
        return self.method.head(trainable, frozen, merged.head, z, slots.labels)

    def _head_gradients(
        self, trainable: Params, frozen: Params, merged: Merged, bags: Summary, slots: Slots
    ) -> Any:
        assert self._loss is not None
        filled = slots.index >= 0

        def loss(
            trainable: Params, head: Params, penalty: jax.Array, bags: Summary
        ) -> tuple[jax.Array, Headed]:
            assert self._loss is not None
            out = self._head_outputs(trainable, frozen, merged._replace(head=head), bags, slots)
            value = self._loss(out.logits, slots.labels, filled)
            return value + jnp.mean(penalty + out.penalty, where=filled), out

        return jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True)(
            trainable, merged.head, merged.penalty, bags
        )

    # --- whole passes -----------------------------------------------------------------------

    def evaluate(self, trainable: Params, frozen: Params, batch: Batch) -> Outputs:
        """Logits and reports of a batch, dropout off."""
        method, slots = self.method, self.place_slots(batch.slots)
        totals, bags = self._empty(jax.tree.leaves((trainable, frozen))[0])
        if method.embed_parts:
            parts = {name: trainable[name] for name in method.embed_parts}
            for group in batch.groups:
                totals = self._embed(parts, totals, group)
        merged = self._merge(trainable, frozen, totals, slots, None)
        for group in batch.groups:
            bags = self._attend(frozen, merged.encoder, bags, group)
        out = self._head(trainable, frozen, merged, bags, slots)
        return Outputs(out.logits, merged.record | out.record, None)

    def gradients(
        self, trainable: Params, frozen: Params, batch: Batch, key: jax.Array | None
    ) -> tuple[Params, Outputs]:
        """Gradients of the loss of a batch by the trainable parameters.

        Args:
            trainable, frozen: parameters, as the method knows them.
            batch: bags; its groups are read once and kept for the duration of the call.
            key: random key of the step; None trains without dropout.

        Returns:
            a tree like `trainable`, and the outputs of the forward pass.
        """
        method, slots = self.method, self.place_slots(batch.slots)
        groups = list(batch.groups)
        totals, bags = self._empty(jax.tree.leaves((trainable, frozen))[0])
        parts = {name: trainable[name] for name in method.embed_parts}
        embed_pulls, attend_pulls = [], []
        if parts:
            for group in groups:
                totals, pull = self._embed_vjp(parts, totals, group)
                embed_pulls.append(pull)
        merged, merge_pull = self._merge_vjp(trainable, frozen, totals, slots, key)
        for group in groups:
            bags, pull = self._attend_vjp(frozen, merged.encoder, bags, group, slots, key)
            attend_pulls.append(pull)
        (loss, out), (direct, head_bar, penalty_bar, bags_bar) = self._head_grad(
            trainable, frozen, merged, bags, slots
        )

        shared = not method.encoder_per_bag
        encoder_bar = self._zeros(merged.encoder, shared)
        while attend_pulls:
            encoder_bar, bags_bar = self._attend_back(encoder_bar, attend_pulls.pop(), bags_bar)
        if shared:
            encoder_bar = self._average(encoder_bar)
        through_merge, totals_bar = self._merge_back(
            merge_pull, (encoder_bar, head_bar, penalty_bar)
        )
        gradient = self._add(direct, through_merge)
        if parts:
            parts_bar = self._zeros(parts, True)
            while embed_pulls:
                parts_bar = self._embed_back(parts_bar, embed_pulls.pop(), totals_bar)
            direct_parts = {name: gradient[name] for name in parts}
            gradient = gradient | self._add(direct_parts, self._average(parts_bar))
        return gradient, Outputs(out.logits, merged.record | out.record, loss)
