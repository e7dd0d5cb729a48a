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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from steph_jax.data.batches import Batch, Group, Slots
from steph_jax.engine import method as phases
from steph_jax.engine.method import Embedded, Headed, LossFunction, Merged, Method, Pooled
from steph_jax.models import pooling
from steph_jax.models.abmil import Params
from steph_jax.models.pooling import Summary

AXIS = "devices"


def device_mesh(devices: Iterable[jax.Device] | None = None) -> Mesh:
    """The one-axis mesh over some devices; all local ones by default."""
    chosen = list(jax.local_devices() if devices is None else devices)
    return jax.make_mesh((len(chosen),), (AXIS,), (AxisType.Auto,), devices=chosen)


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


def _few_residuals(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, of which only the products are kept for the way back.

    What follows from them entry by entry is computed again, which is cheaper than to write and
    read it.
    """
    return jax.checkpoint(function, policy=jax.checkpoint_policies.dots_saveable)


def _vjp(function: Callable[..., Any], inputs: Any, *primals: Any) -> tuple[Any, Any]:
    """`jax.vjp` of a phase whose residuals can leave a compiled function.

    `inputs` that are residuals too, features and models foremost, would be returned as copies: an
    empty array with the number of the input in its shape stands for each.

    Returns:
        the outputs, and what `_pull` pulls a cotangent through.
    """
    outputs, pull = jax.vjp(function, *primals)
    number = {id(x): n for n, x in enumerate(jax.tree.leaves(inputs))}
    return outputs, jax.tree.map(
        lambda x: jnp.zeros((1, 0, number[id(x)])) if id(x) in number else x[None], pull
    )


def _pull(pull: Any, inputs: Any, cotangent: Any) -> Any:
    """The cotangents of the primals of a phase, from what `_vjp` returned and its inputs."""
    given = jax.tree.leaves(inputs)
    return jax.tree.map(lambda x: x[0] if x.size else given[x.shape[2]], pull)(cotangent)


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
        self._embed_back = share(self._embed_backward, split, split, split, split, donate=(0,))
        self._merge = jax.jit(self._merge_bags, out_shardings=Merged(*merged))
        self._merge_vjp = jax.jit(self._merge_with_vjp, out_shardings=(Merged(*merged), None))
        self._merge_back = jax.jit(lambda pull, cotangent: pull(cotangent))
        self._attend = share(self._attend_forward, whole, encoder, split, split, donate=(2,))
        self._attend_vjp = share(self._attend_with_vjp, whole, encoder, split, split, split, whole)
        self._attend_back = share(
            self._attend_backward, split, split, split, whole, encoder, split, donate=(0,)
        )
        self._head = jax.jit(self._head_outputs)
        self._head_grad = jax.jit(self._head_gradients)
        self._add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b))
        self._average = jax.jit(
            jax.shard_map(
                self._average_shares, mesh=mesh, in_specs=P(AXIS), out_specs=P(), check_vma=False
            )
        )

    def replicate(self, tree: Any) -> Any:
        """Gives every device a copy of some parameters."""
        return jax.device_put(tree, self._replicated)

    def place_slots(self, slots: Slots) -> Slots:
        """Transfers the slots of a batch to the devices."""
        return jax.device_put(slots, self._split)

    # --- the phases, as seen by one device --------------------------------------------------

    def _empty_bags(self, dtype_of: jax.Array) -> tuple[dict[str, jax.Array], Summary]:
        num = self.num_slots * self.mesh.size
        a, dtype = self.method.architecture, dtype_of.dtype
        totals = {name: jnp.zeros((num, d), dtype) for name, d in self.method.embed_dims.items()}
        return totals, pooling.empty_summary(a.pooling, num, a.embed_dim, dtype)

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
        return phases.embed_group(self.method, parts, totals, group)

    def _embed_with_vjp(
        self, parts: Params, totals: dict[str, jax.Array], group: Group
    ) -> tuple[dict[str, jax.Array], Any]:
        @_few_residuals
        def embed(parts: Params) -> dict[str, jax.Array]:
            return phases.embed_group(self.method, parts, totals, group)

        return _vjp(embed, group, parts)

    def _embed_backward(
        self, gradient: Params, pull: Any, cotangent: Params, group: Group
    ) -> Params:
        (more,) = _pull(pull, group, cotangent)
        return jax.tree.map(lambda g, m: g + m[None], gradient, more)

    def _attend_forward(
        self, frozen: Params, encoder: Params, bags: Summary, group: Group
    ) -> Summary:
        encoders = phases.encoders(self.method, frozen, encoder, group.owner)
        return phases.attend_group(self.method, encoders, bags, group, None)

    def _attend_with_vjp(
        self,
        frozen: Params,
        encoder: Params,
        bags: Summary,
        group: Group,
        slots: Slots,
        key: jax.Array | None,
    ) -> tuple[Summary, Any]:
        keys = phases.piece_keys(key, slots.rank, group)

        @_few_residuals
        def attend_with(encoders: Params, bags: Summary) -> Summary:
            return phases.attend_group(self.method, encoders, bags, group, keys)

        def attend(encoder: Params, bags: Summary) -> Summary:
            # Merged models are residuals as they are; the products of `_few_residuals` are copied.
            return attend_with(phases.encoders(self.method, frozen, encoder, group.owner), bags)

        return _vjp(attend, (frozen, encoder, group), encoder, bags)

    def _attend_backward(
        self,
        gradient: Params,
        pull: Any,
        cotangent: Summary,
        frozen: Params,
        encoder: Params,
        group: Group,
    ) -> tuple[Params, Summary]:
        more, cotangent = _pull(pull, (frozen, encoder, group), cotangent)
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
        keys = None if key is None else phases.bag_keys(key, slots.rank)
        return self.method.merge(trainable, frozen, Embedded(means, len(slots.rank), keys))

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
        z = pooling.pooled(self.method.architecture.pooling, bags)
        return self.method.head(trainable, frozen, Pooled(z, merged.head, slots.labels))

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
        for group in reversed(groups):
            encoder_bar, bags_bar = self._attend_back(
                encoder_bar, attend_pulls.pop(), bags_bar, frozen, merged.encoder, group
            )
        if shared:
            encoder_bar = self._average(encoder_bar)
        through_merge, totals_bar = self._merge_back(
            merge_pull, (encoder_bar, head_bar, penalty_bar)
        )
        gradient = self._add(direct, through_merge)
        if parts:
            parts_bar = self._zeros(parts, True)
            for group in reversed(groups):
                parts_bar = self._embed_back(parts_bar, embed_pulls.pop(), totals_bar, group)
            direct_parts = {name: gradient[name] for name in parts}
            gradient = gradient | self._add(direct_parts, self._average(parts_bar))
        return gradient, Outputs(out.logits, merged.record | out.record, loss)
