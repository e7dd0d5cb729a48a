"""Batches of bags of any lengths, in a few fixed shapes.

A bag of N patches is cut into *pieces* of a few fixed lengths (a `Layout`), and pieces of one
length are stacked into *groups* of a fixed size: arrays [G, L, D] that a compiled program takes
without padding whole bags to a common length. Which bag a piece belongs to travels with it
(`Group.owner`), so short bags share a group and long ones span several. All shapes of a run come
from its layout, three at most, whatever the lengths.

Over several devices each bag goes to one device, the fullest bags first and each to the device
with the fewest patches so far; every device gets groups of the same shapes.
"""

import dataclasses
import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from steph_jax.data.bags import BagStore

# What a piece costs beside its patches, in patches, where it is weighed against padding: a piece of
# a merged model makes the parameters of its bag anew. A group costs a few calls, GROUP_COST of the
# largest group.
PIECE_COST = 96
GROUP_COST = 1 / 32


class Group(NamedTuple):
    """Pieces of one length, stacked; on several devices one share after the other.

    Attributes:
        features: [G, L, D] patch features; beyond `length` of a piece anything finite may stand.
        length: [G] int32, patches of each piece; 0 for a piece that only fills the group.
        owner: [G] int32, slot of the bag of each piece on its device.
        serial: [G] int32, number of the piece within its bag (random streams are named by it).
    """

    features: Any
    length: Any
    owner: Any
    serial: Any


class Pieces(NamedTuple):
    """Where the pieces of a group are cut from; arrays [G] as in `Group`.

    Attributes:
        size: patches of a piece in the group, L.
        bag: int32, the bag's number in the store.
        start: int32, the first patch of the piece in its bag.
        length, owner, serial: as in `Group`.
    """

    size: int
    bag: np.ndarray
    start: np.ndarray
    length: np.ndarray
    owner: np.ndarray
    serial: np.ndarray


class Slots(NamedTuple):
    """The bags of a batch; on several devices one share after the other.

    Attributes:
        index: [B] int32, bag number in the store; -1 for a slot without a bag.
        rank: [B] int32, place of the bag in the batch, which names its random streams.
        num_patches: [B] int32.
        labels: dict of arrays [B, ...], what the caller gave for every bag, zeros in empty slots.
    """

    index: Any
    rank: Any
    num_patches: Any
    labels: dict[str, Any]


class Batch(NamedTuple):
    """Some bags: their slots, and their patches in groups that can be gone through repeatedly."""

    slots: Slots
    groups: Sequence[Group]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Lengths of pieces, longest first, and how many make a group.

    Attributes:
        shapes: pairs (pieces per group G, patches per piece L).
    """

    shapes: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        lengths = [length for _, length in self.shapes]
        if not lengths or lengths != sorted(set(lengths), reverse=True) or lengths[-1] < 1:
            raise ValueError(f"a layout has distinct lengths, longest first, not {self.shapes}")

    def pieces(self, num_patches: int) -> list[tuple[int, int, int]]:
        """How one bag is cut: (shape number, first patch, patches) per piece, in order."""
        lengths = np.array([length for _, length in self.shapes])
        counts = _piece_counts(np.array([num_patches]), lengths)[:, 0]
        cut, start = [], 0
        for shape, count in enumerate(counts):
            for _ in range(count):
                taken = min(int(lengths[shape]), num_patches - start)
                cut.append((shape, start, taken))
                start += taken
        return cut


def _piece_counts(num_patches: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[shapes, n] pieces of each length for bags of the given sizes.

    As many whole pieces of each length as fit, longest first; the rest goes into one piece of the
    length whose padding is cheaper than cutting the rest further.
    """
    rest = np.asarray(num_patches, np.int64).copy()
    counts = np.zeros((len(lengths), len(rest)), np.int64)
    for i, length in enumerate(lengths):
        counts[i], rest = rest // length, rest % length
    counts[-1] += rest > 0
    for i in range(len(lengths) - 2, -1, -1):
        finer = counts[i + 1 :].T @ (lengths[i + 1 :] + PIECE_COST)
        rounded_up = (finer > 0) & (finer >= lengths[i] + PIECE_COST)
        counts[i] += rounded_up
        counts[i + 1 :, rounded_up] = 0
    return counts


def choose_layout(num_patches: np.ndarray, batch_size: int, patches_per_group: int) -> Layout:
    """The layout of at most three lengths that wastes least on batches of these bags.

    Waste is counted on random batches: padded patches, plus what pieces and groups cost beside
    their patches.

    Args:
        num_patches: [n] patches of the bags.
        batch_size: bags in a batch.
        patches_per_group: size of a group at most, but for one piece.
    """
    sizes = np.sort(np.asarray(num_patches, np.int64))  # the order of patients changes nothing
    sizes = sizes[sizes > 0]
    if not len(sizes):
        raise ValueError("no bag has any patch")
    rng = np.random.default_rng(0)
    batches = rng.choice(sizes, (64, batch_size))
    longest = int(sizes.max())
    usual = [int(q) for q in np.quantile(sizes, [0.1, 0.5, 0.9])]
    equal_parts = [-(-longest // parts) for parts in range(1, 65)]
    sizes_tried = {_multiple_of_8(n) if n < longest else n for n in usual}
    sizes_tried |= set([n for n in equal_parts if n <= patches_per_group][:1])
    sizes_tried |= {2**i for i in range(5, 20)}
    candidates = sorted(n for n in sizes_tried if n <= min(longest, patches_per_group))
    best: tuple[float, Layout] | None = None
    for number in (1, 2, 3):
        for chosen in itertools.combinations(reversed(candidates), number):
            lengths = np.array(chosen)
            counts = _piece_counts(batches.ravel(), lengths).reshape(number, *batches.shape).sum(2)
            fitted = [
                _fit_group(count, int(length), patches_per_group)
                for count, length in zip(counts, lengths, strict=True)
            ]
            cost = sum(c for c, _ in fitted)
            if best is None or cost < best[0]:
                shapes = tuple((g, int(n)) for (_, g), n in zip(fitted, lengths, strict=True))
                best = cost, Layout(shapes)
    assert best is not None
    return best[1]


def _multiple_of_8(number: int) -> int:
    return -(-number // 8) * 8


def _fit_group(counts: np.ndarray, length: int, patches_per_group: int) -> tuple[float, int]:
    """(mean cost, pieces per group) of the best group size for pieces counted per batch."""
    most = max(1, patches_per_group // length)
    mean = max(1.0, float(counts.mean()))
    sizes = {min(most, max(1, round(mean / parts))) for parts in (0.75, 1, 1.5, 2, 3, 4, 6, 8)}
    fits = []
    for per_group in sorted(sizes | {most if most <= mean else 1}):
        groups = -(-counts // per_group)
        cost = groups * (per_group * (length + PIECE_COST) + GROUP_COST * patches_per_group)
        fits.append((float(cost.mean()), per_group))
    return min(fits)


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
    """Bags of a batch that leave devices of so many slots room to even out their patches."""
    return num_slots if num_devices == 1 else max(1, 2 * num_slots * num_devices // 3)


def read_pieces(store: BagStore, pieces: Pieces) -> Group:
    """The group of some pieces in host memory, read from a store or, a single piece, lent by it."""
    if len(pieces.bag) == 1 and pieces.length[0]:
        rows = store.lend(int(pieces.bag[0]), int(pieces.start[0]), pieces.size)
        if rows is not None:
            return Group(rows[None], pieces.length, pieces.owner, pieces.serial)
    features = np.empty((len(pieces.bag), pieces.size, store.feature_dim), store.dtype)
    for row, (bag, start, length) in enumerate(
        zip(pieces.bag, pieces.start, pieces.length, strict=True)
    ):
        if length:
            store.read(int(bag), int(start), features[row, :length])
        features[row, length:] = 0
    return Group(features, pieces.length, pieces.owner, pieces.serial)


class Groups(Sequence[Group]):
    """The groups of a batch, made as they are asked for.

    Args:
        num_patches: [n] patches of every bag.
        layout: the shapes.
        shares: for each device, the numbers of its bags in the order of its slots.
        take: makes a group of its pieces.
    """

    def __init__(
        self,
        num_patches: np.ndarray,
        layout: Layout,
        shares: Sequence[Sequence[int]],
        take: Callable[[Pieces], Group],
    ):
        self._take = take
        # cut[shape][device]: (bag, start, length, slot, serial)
        cut: list[list[list[tuple[int, int, int, int, int]]]]
        cut = [[[] for _ in shares] for _ in layout.shapes]
        for device, share in enumerate(shares):
            for slot, bag in enumerate(share):
                of_bag = layout.pieces(int(num_patches[bag]))
                for serial, (shape, start, taken) in enumerate(of_bag):
                    cut[shape][device].append((bag, start, taken, slot, serial))
        self._plan: list[Pieces] = []
        for (per_group, length), of_shape in zip(layout.shapes, cut, strict=True):
            for first in range(0, max(len(pieces) for pieces in of_shape), per_group):
                meta = np.zeros((5, len(shares), per_group), np.int32)
                for device, pieces in enumerate(of_shape):
                    chosen = pieces[first : first + per_group]
                    meta[:, device, : len(chosen)] = np.array(chosen, np.int32).reshape(-1, 5).T
                self._plan.append(Pieces(length, *meta.reshape(5, -1)))

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, number):  # type: ignore[no-untyped-def]
        return self._take(self._plan[number])

    @property
    def padded_patches(self) -> int:
        """Patches in all groups, padding included."""
        return sum(pieces.size * len(pieces.bag) for pieces in self._plan)


def make_batch(
    store: BagStore,
    layout: Layout,
    bags: Sequence[int],
    labels: dict[str, np.ndarray],
    num_slots: int,
    num_devices: int = 1,
    take: Callable[[Pieces], Group] | None = None,
) -> Batch:
    """A batch of some bags of a store.

    Args:
        store: where the patches are.
        layout: shapes of the groups.
        bags: numbers of the bags in the store, in the order of the batch.
        labels: arrays [n, ...] over all bags of the store, of which the batch takes its rows.
        num_slots: slots per device.
        num_devices: devices that share the batch.
        take: makes a group of its pieces; by default in host memory, from the store.
    """
    sizes = [int(store.num_patches[bag]) for bag in bags]
    shares = assign(sizes, num_devices, num_slots)
    index = np.full(num_devices * num_slots, -1, np.int32)
    rank = np.zeros_like(index)
    for device, share in enumerate(shares):
        at = slice(device * num_slots, device * num_slots + len(share))
        index[at] = [bags[i] for i in share]
        rank[at] = share
    filled = index >= 0
    rows = {
        name: np.where(
            filled.reshape(-1, *[1] * (values.ndim - 1)), values[index], np.zeros((), values.dtype)
        )
        for name, values in labels.items()
    }
    patches = np.where(filled, store.num_patches[index], 0).astype(np.int32)
    chosen = [[bags[i] for i in share] for share in shares]
    groups = Groups(store.num_patches, layout, chosen, take or partial(read_pieces, store))
    return Batch(Slots(index, rank, patches, rows), groups)


def epoch_order(
    bags: Sequence[int] | np.ndarray, batch_size: int, seed: int, epoch: int
) -> Iterator[list[int]]:
    """The batches of one training epoch: drawn without replacement, an incomplete one dropped.

    The order depends on the seed and the epoch alone, so an interrupted run finds it again.
    """
    order = np.random.default_rng([seed, epoch]).permutation(np.asarray(bags))
    for first in range(0, len(order) - batch_size + 1, batch_size):
        yield order[first : first + batch_size].tolist()
