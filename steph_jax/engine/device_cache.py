"""The patches of a whole cohort on every device."""

import functools
import sys
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from steph_jax.data.bags import BagStore
from steph_jax.data.batches import Group, Layout, Pieces

#: What is uploaded at a time, in bytes.
_UPLOAD_BYTES = 64 << 20


def nbytes(bags: BagStore) -> int:
    """What all patches of some bags take."""
    return int(bags.num_patches.sum()) * bags.feature_dim * bags.dtype.itemsize


class ResidentPatches:
    """All patches of some bags in one array [rows, D] on every device, and groups cut from it.

    Args:
        bags: read once, in their order.
        layout: shapes of the groups that will be asked for.
        mesh: devices, each of which gets all patches.
    """

    def __init__(self, bags: BagStore, layout: Layout, mesh: Mesh) -> None:
        self._mesh = mesh
        self._split = NamedSharding(mesh, P(mesh.axis_names[0]))
        self._first = np.cumsum([0, *bags.num_patches], dtype=np.int64)
        # A piece is cut at its full length wherever it begins: the array goes on behind the last.
        longest = max(length for _, length in layout.shapes)
        rows = int(self._first[-1]) + longest
        if rows > np.iinfo(np.int32).max:
            raise ValueError(f"{rows} patches are more than a device array is addressed with")
        self._patches = _upload(bags, rows, NamedSharding(mesh, P()))

    def take(self, pieces: Pieces) -> Group:
        """The group of some pieces: what lies behind the end of a piece is other bags' patches."""
        first = np.where(pieces.length > 0, self._first[pieces.bag] + pieces.start, 0)
        meta = (first.astype(np.int32), pieces.length, pieces.owner, pieces.serial)
        first, length, owner, serial = jax.device_put(meta, self._split)
        features = _cut(self._mesh, pieces.size)(self._patches, first)
        return Group(features, length, owner, serial)


@functools.lru_cache(maxsize=16)
def _cut(mesh: Mesh, size: int):  # type: ignore[no-untyped-def]
    """(patches [rows, D], first rows [G]) -> [G, size, D], every device its share of G."""

    def cut(patches: jax.Array, first: jax.Array) -> jax.Array:
        return jax.vmap(lambda row: jax.lax.dynamic_slice_in_dim(patches, row, size))(first)

    axis = P(mesh.axis_names[0])
    return jax.jit(
        jax.shard_map(cut, mesh=mesh, in_specs=(P(), axis), out_specs=axis, check_vma=False)
    )


def _upload(bags: BagStore, rows: int, everywhere: NamedSharding) -> jax.Array:
    """The patches of all bags, one after the other, in at least so many rows."""
    dim, dtype = bags.feature_dim, bags.dtype
    step = max(1, _UPLOAD_BYTES // (dim * dtype.itemsize))
    steps = -(-rows // step)

    @partial(jax.jit, out_shardings=everywhere)
    def empty() -> jax.Array:
        return jnp.zeros((steps * step, dim), dtype)

    @partial(jax.jit, donate_argnums=0, out_shardings=everywhere)
    def put(patches: jax.Array, rows: jax.Array, at: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(patches, rows, at, axis=0)

    first = np.cumsum([0, *bags.num_patches])
    patches = empty()
    shown = tqdm(range(steps), desc="uploading features", disable=not sys.stderr.isatty())
    for at in (number * step for number in shown):
        chunk = np.zeros((step, dim), dtype)
        bag = int(np.searchsorted(first, at, side="right")) - 1
        while bag < len(bags.num_patches) and first[bag] < at + step:
            begin, end = max(at, first[bag]), min(at + step, first[bag + 1])
            if end > begin:
                bags.read(bag, int(begin - first[bag]), chunk[begin - at : end - at])
            bag += 1
        patches = put(patches, chunk, np.int32(at))
    return cast(jax.Array, jax.block_until_ready(patches))
