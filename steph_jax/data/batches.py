"""Batches of bags of any lengths, in a few fixed shapes.

A bag of N patches is cut into *chunks* of a few fixed lengths, and chunks of one length are stacked
into *groups* of a fixed size: arrays [G, L, D] that a compiled program takes without padding whole
bags to a common length. Every chunk carries the number of its bag (`ChunkGroup.bag_slot`), so short
bags share a group and long ones span several. A run has at most three shapes of groups
(`data.chunks`), whatever the lengths of its bags.

Over several devices each bag goes to one device, the fullest bags first and each to the device
with the fewest patches so far; every device gets groups of the same shapes.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, overload

import numpy as np

from steph_jax.data.bags import BagReader
from steph_jax.data.chunks import GroupShapes


class ChunkGroup(NamedTuple):
    """Chunks of one length, stacked; with several devices, the share of one after the other's.

    Attributes:
        features: [G, L, D] patch features; past `length` of a chunk, padding of any finite value.
        length: [G] int32, patches of each chunk; 0 for a chunk that only fills the group.
        bag_slot: [G] int32, slot of the bag of each chunk on its device.
        chunk_index: [G] int32, number of the chunk within its bag, which enters its random key.
    """

    features: Any
    length: Any
    bag_slot: Any
    chunk_index: Any


class ChunkPlan(NamedTuple):
    """Where the chunks of a group are cut from; arrays [G] as in `ChunkGroup`.

    Attributes:
        size: patches of a chunk in the group, L.
        bag: int32, the bag's number in the cohort.
        start: int32, the first patch of the chunk in its bag.
        length, bag_slot, chunk_index: as in `ChunkGroup`.
    """

    size: int
    bag: np.ndarray
    start: np.ndarray
    length: np.ndarray
    bag_slot: np.ndarray
    chunk_index: np.ndarray

    def rows(self, part: slice) -> "ChunkPlan":
        """The plan of a part of its chunks."""
        return ChunkPlan(self.size, *(field[part] for field in self[1:]))


class BatchBags(NamedTuple):
    """The bags of a batch, by slot; with several devices, the share of one after the other's.

    Attributes:
        index: [B] int32, number of the bag in the cohort; -1 for a slot without a bag.
        position: [B] int32, position of the bag in the batch, which enters its random key.
        num_patches: [B] int32.
        labels: arrays [B, ...] by name, the caller's labels of every bag; zeros in empty slots.
    """

    index: Any
    position: Any
    num_patches: Any
    labels: dict[str, Any]


class Batch(NamedTuple):
    """Some bags, and their patches in groups, over which one may iterate repeatedly."""

    bags: BatchBags
    groups: Sequence[ChunkGroup]


def assign(num_patches: Sequence[int], num_devices: int, slots_per_device: int) -> list[list[int]]:
    """Which bags each device takes: largest first, each to the device with the fewest patches.

    Args:
        num_patches: patches of the bags of a batch.
        num_devices: devices that share the batch.
        slots_per_device: bags a device can take at most.

    Returns:
        for each device, positions in `num_patches`, in their order there.
    """
    if len(num_patches) > num_devices * slots_per_device:
        raise ValueError(
            f"{len(num_patches)} bags do not fit {num_devices} devices of {slots_per_device} slots"
        )
    load = [(0, device) for device in range(num_devices)]
    shares: list[list[int]] = [[] for _ in range(num_devices)]
    for bag in sorted(range(len(num_patches)), key=lambda i: -num_patches[i]):
        patches, device = heapq.heappop(load)
        shares[device].append(bag)
        if len(shares[device]) < slots_per_device:
            heapq.heappush(load, (patches + num_patches[bag], device))
    return [sorted(share) for share in shares]


def slots_for(batch_size: int, num_devices: int) -> int:
    """Slots per device: the even share, half as many again where devices even out their patches."""
    if num_devices == 1:
        return batch_size
    return min(batch_size, -(-3 * batch_size // (2 * num_devices)))


def bags_for(num_slots: int, num_devices: int) -> int:
    """Bags per batch at which devices of so many slots can still even out their patches."""
    return num_slots if num_devices == 1 else max(1, 2 * num_slots * num_devices // 3)


def read_chunks(bags: BagReader, plan: ChunkPlan) -> ChunkGroup:
    """A group in host memory: copied from the bags or, a single chunk, a view of their memory."""
    if len(plan.bag) == 1 and plan.length[0]:
        rows = bags.view(int(plan.bag[0]), int(plan.start[0]), plan.size)
        if rows is not None:
            return ChunkGroup(rows[None], plan.length, plan.bag_slot, plan.chunk_index)
    features = np.empty((len(plan.bag), plan.size, bags.feature_dim), bags.dtype)
    for row, (bag, start, length) in enumerate(zip(plan.bag, plan.start, plan.length, strict=True)):
        if length:
            bags.read(int(bag), int(start), features[row, :length])
        features[row, length:] = 0
    return ChunkGroup(features, plan.length, plan.bag_slot, plan.chunk_index)


class ChunkGroups(Sequence[ChunkGroup]):
    """The groups of a batch, each made when it is indexed.

    Args:
        num_patches: [n] patches of every bag.
        group_shapes: how bags are cut.
        shares: for each device, the numbers of its bags in the order of its slots.
        make_group: makes a group from where its chunks are.
    """

    def __init__(
        self,
        num_patches: np.ndarray,
        group_shapes: GroupShapes,
        shares: Sequence[Sequence[int]],
        make_group: Callable[[ChunkPlan], ChunkGroup],
    ):
        self._make_group = make_group
        # chunks[shape][device]: (bag, start, length, slot, chunk_index)
        chunks: list[list[list[tuple[int, int, int, int, int]]]]
        chunks = [[[] for _ in shares] for _ in group_shapes.pairs]
        for device, share in enumerate(shares):
            for slot, bag in enumerate(share):
                bag_chunks = group_shapes.cut(int(num_patches[bag]))
                for chunk_index, (shape, start, length) in enumerate(bag_chunks):
                    chunks[shape][device].append((bag, start, length, slot, chunk_index))
        self._plans: list[ChunkPlan] = []
        for (per_group, size), device_chunks in zip(group_shapes.pairs, chunks, strict=True):
            for first in range(0, max(len(share) for share in device_chunks), per_group):
                fields = np.zeros((5, len(shares), per_group), np.int32)
                for device, share_chunks in enumerate(device_chunks):
                    rows = share_chunks[first : first + per_group]
                    fields[:, device, : len(rows)] = np.array(rows, np.int32).reshape(-1, 5).T
                self._plans.append(ChunkPlan(size, *fields.reshape(5, -1)))

    def __len__(self) -> int:
        return len(self._plans)

    @overload
    def __getitem__(self, number: int) -> ChunkGroup: ...

    @overload
    def __getitem__(self, number: slice) -> list[ChunkGroup]: ...

    def __getitem__(self, number: int | slice) -> ChunkGroup | list[ChunkGroup]:
        if isinstance(number, slice):
            return [self._make_group(plan) for plan in self._plans[number]]
        return self._make_group(self._plans[number])

    @property
    def padded_patches(self) -> int:
        """Patches in all groups, padding included."""
        return sum(plan.size * len(plan.bag) for plan in self._plans)


def make_batch(
    bags: BagReader,
    group_shapes: GroupShapes,
    indices: Sequence[int],
    labels: dict[str, np.ndarray],
    num_slots: int,
    num_devices: int = 1,
    make_group: Callable[[ChunkPlan], ChunkGroup] | None = None,
) -> Batch:
    """A batch of some bags of a cohort.

    Args:
        bags: of the cohort.
        group_shapes: how bags are cut.
        indices: numbers of the bags of the batch, in its order.
        labels: arrays [n, ...] over all bags of the cohort, of which the batch takes its rows.
        num_slots: slots per device.
        num_devices: devices that share the batch.
        make_group: makes a group from where its chunks are; by default in host memory.
    """
    sizes = [int(bags.num_patches[i]) for i in indices]
    shares = assign(sizes, num_devices, num_slots)
    index = np.full(num_devices * num_slots, -1, np.int32)
    position = np.zeros_like(index)
    for device, share in enumerate(shares):
        at = slice(device * num_slots, device * num_slots + len(share))
        index[at] = [indices[i] for i in share]
        position[at] = share
    filled = index >= 0
    rows = {
        name: np.where(
            filled.reshape(-1, *[1] * (values.ndim - 1)), values[index], np.zeros((), values.dtype)
        )
        for name, values in labels.items()
    }
    patches = np.where(filled, bags.num_patches[index], 0).astype(np.int32)
    device_bags = [[indices[i] for i in share] for share in shares]
    make_group = make_group or partial(read_chunks, bags)
    groups = ChunkGroups(bags.num_patches, group_shapes, device_bags, make_group)
    return Batch(BatchBags(index, position, patches, rows), groups)


def epoch_order(
    indices: Sequence[int] | np.ndarray, batch_size: int, seed: int, epoch: int
) -> Iterator[list[int]]:
    """The batches of one training epoch: drawn without replacement, an incomplete one dropped.

    The order depends on the seed and the epoch alone, so that an interrupted run repeats it.
    """
    order = np.random.default_rng([seed, epoch]).permutation(np.asarray(indices))
    for first in range(0, len(order) - batch_size + 1, batch_size):
        yield order[first : first + batch_size].tolist()
