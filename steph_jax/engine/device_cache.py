"""The patches of a whole cohort on the devices: all on each, or a part on each."""

import functools
import sys
from collections.abc import Callable
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from steph_jax.data.bags import BagReader
from steph_jax.data.batches import ChunkGroup, ChunkPlan
from steph_jax.data.chunks import GroupShapes
from steph_jax.engine.placement import own_part, replicate, split, split_own


def nbytes(bags: BagReader) -> int:
    """Size of all patches of some bags."""
    return int(bags.num_patches.sum()) * bags.feature_dim * bags.dtype.itemsize


def part_nbytes(bags: BagReader, group_shapes: GroupShapes, num_devices: int) -> int:
    """What a device holds of the patches of some bags that are split over several."""
    rows = -(-int(bags.num_patches.sum()) // num_devices) + _longest(group_shapes)
    return rows * bags.feature_dim * bags.dtype.itemsize


class DeviceCache:
    """All patches of some bags on the devices, and groups of chunks cut from them.

    Args:
        bags: read once, in their order.
        group_shapes: shapes of the groups that will be asked for.
        mesh: the devices.
        is_split: whether each device gets a part of the patches, rather than all. It takes a
            collective then to make a group: all processes make the same, in the thread of the
            others.
        upload_bytes: the patches are uploaded in parts of this size.
    """

    def __init__(
        self,
        bags: BagReader,
        group_shapes: GroupShapes,
        mesh: Mesh,
        *,
        is_split: bool = False,
        upload_bytes: int = 64 << 20,
    ) -> None:
        self._mesh = mesh
        self.is_split = is_split
        self._first = np.cumsum([0, *bags.num_patches], dtype=np.int64)
        # A chunk is cut at its full length wherever it begins, so an array goes on after the last.
        longest = _longest(group_shapes)
        rows = int(self._first[-1])
        if rows + longest > np.iinfo(np.int32).max:
            raise ValueError(
                f"{rows + longest} patches are more than the index of a device array can "
                "count; --config.data.device_gb=0 reads them from memory or files for every step"
            )
        self._part = -(-rows // mesh.size)
        if is_split:
            self._patches = _upload_parts(bags, self._part, longest, upload_bytes, mesh)
        else:
            self._patches = _upload(bags, rows + longest, upload_bytes, mesh)

    def group(self, plan: ChunkPlan) -> ChunkGroup:
        """The group of some chunks, whose padding is patches of other bags."""
        start = np.where(plan.length > 0, self._first[plan.bag] + plan.start, 0).astype(np.int32)
        fields = (plan.length, plan.bag_slot, plan.chunk_index)
        length, bag_slot, chunk_index = split(self._mesh, fields)
        if self.is_split:
            first = replicate(self._mesh, start)
            features = _collector(self._mesh, plan.size, self._part)(self._patches, first)
        else:
            features = _cutter(self._mesh, plan.size)(self._patches, split(self._mesh, start))
        return ChunkGroup(features, length, bag_slot, chunk_index)


def _longest(group_shapes: GroupShapes) -> int:
    return max(length for _, length in group_shapes.pairs)


@functools.lru_cache(maxsize=16)
def _cutter(mesh: Mesh, size: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """(patches [rows, D], first rows [G]) -> [G, size, D], every device its share of G."""

    def cut(patches: jax.Array, first: jax.Array) -> jax.Array:
        return jax.vmap(lambda row: jax.lax.dynamic_slice_in_dim(patches, row, size))(first)

    axis = P(mesh.axis_names[0])
    cuts = jax.shard_map(cut, mesh=mesh, in_specs=(P(), axis), out_specs=axis, check_vma=False)
    return cast(Callable[[jax.Array, jax.Array], jax.Array], jax.jit(cuts))


@functools.lru_cache(maxsize=16)
def _collector(mesh: Mesh, size: int, part: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """(parts [devices, rows, D], first rows [G]) -> [G, size, D], every device its share of G.

    Each device cuts what begins in its part, and the sum over all devices has every chunk once.
    """
    axis = mesh.axis_names[0]

    def cut(parts: jax.Array, first: jax.Array) -> jax.Array:
        device = jax.lax.axis_index(axis)
        is_here = first // part == device
        rows = jnp.where(is_here, first - device * part, 0)
        chunks = jax.vmap(lambda row: jax.lax.dynamic_slice_in_dim(parts[0], row, size))(rows)
        chunks = jnp.where(is_here[:, None, None], chunks, jnp.zeros_like(chunks))
        return jax.lax.psum_scatter(chunks, axis, scatter_dimension=0, tiled=True)

    cuts = jax.shard_map(
        cut, mesh=mesh, in_specs=(P(axis), P()), out_specs=P(axis), check_vma=False
    )
    return cast(Callable[[jax.Array, jax.Array], jax.Array], jax.jit(cuts))


def _upload_parts(
    bags: BagReader, part: int, longest: int, upload_bytes: int, mesh: Mesh
) -> jax.Array:
    """Parts [devices, rows, D] of the patches of all bags, split over the devices.

    A part begins `part` rows after the one before, and goes on for at least `longest` rows into the
    next, so that it has the whole of every chunk that begins in it.
    """
    dim, dtype = bags.feature_dim, bags.dtype
    rows = part + longest
    step = min(rows, max(1, upload_bytes // (dim * dtype.itemsize * mesh.size)))
    steps = -(-rows // step)
    axis = P(mesh.axis_names[0])
    over_devices = NamedSharding(mesh, axis)

    @partial(jax.jit, out_shardings=over_devices)
    def empty() -> jax.Array:
        return jnp.zeros((mesh.size, steps * step, dim), dtype)

    @partial(jax.jit, donate_argnums=0, out_shardings=over_devices)
    @partial(jax.shard_map, mesh=mesh, in_specs=(axis, axis, P()), out_specs=axis, check_vma=False)
    def put(parts: jax.Array, block: jax.Array, at: jax.Array) -> jax.Array:
        start = (jnp.zeros_like(at), at, jnp.zeros_like(at))
        return jax.lax.dynamic_update_slice(parts, block[None], start)

    own = range(mesh.size)[own_part(mesh, mesh.size)]
    parts = empty()
    for number in tqdm(range(steps), desc="uploading features", disable=not sys.stderr.isatty()):
        at = number * step
        block = np.concatenate([_rows(bags, device * part + at, step) for device in own])
        parts = put(parts, split_own(mesh, block), replicate(mesh, np.int32(at)))
    return jax.block_until_ready(parts)


def _upload(bags: BagReader, rows: int, upload_bytes: int, mesh: Mesh) -> jax.Array:
    """The patches of all bags, one after the other, in at least so many rows, on every device.

    Each device is sent an equal share of the rows, in several steps, and gets the others' from
    these: a host reads no bag but those of its devices' shares.
    """
    dim, dtype = bags.feature_dim, bags.dtype
    each = -(-rows // mesh.size)
    step = min(each, max(1, upload_bytes // (dim * dtype.itemsize * mesh.size)))
    steps = -(-each // step)
    share = steps * step
    everywhere = NamedSharding(mesh, P())

    @partial(jax.jit, out_shardings=everywhere)
    def empty() -> jax.Array:
        return jnp.zeros((share * mesh.size, dim), dtype)

    @partial(jax.jit, donate_argnums=0, out_shardings=everywhere)
    def put(patches: jax.Array, parts: jax.Array, at: jax.Array) -> jax.Array:
        parts = jax.lax.with_sharding_constraint(parts, everywhere)
        for device in range(mesh.size):
            part = parts[device * step : (device + 1) * step]
            start = (device * share + at, jnp.zeros_like(at))
            patches = jax.lax.dynamic_update_slice(patches, part, start)
        return patches

    own = range(mesh.size)[own_part(mesh, mesh.size)]
    patches = empty()
    for number in tqdm(range(steps), desc="uploading features", disable=not sys.stderr.isatty()):
        at = number * step
        parts = np.concatenate([_rows(bags, device * share + at, step) for device in own])
        patches = put(patches, split_own(mesh, parts), np.int32(at))
    return cast(jax.Array, jax.block_until_ready(patches))


def _rows(bags: BagReader, at: int, number: int) -> np.ndarray:
    """Rows [number, D] of all bags, one after the other; zeros after the last."""
    rows = np.zeros((number, bags.feature_dim), bags.dtype)
    first = np.cumsum([0, *bags.num_patches])
    bag = int(np.searchsorted(first, at, side="right")) - 1
    while bag < len(bags.num_patches) and first[bag] < at + number:
        begin, end = max(at, first[bag]), min(at + number, first[bag + 1])
        if end > begin:
            bags.read(bag, int(begin - first[bag]), rows[begin - at : end - at])
        bag += 1
    return rows
