"""Where arrays lie: on all devices of a mesh, split over them, and back in this process.

The devices may be those of several hosts. Each of these then holds the rows of its own devices, and
neither uploading nor replicating makes the hosts wait for each other: a thread may do it while the
main thread computes. Only `fetch` does, and `jax.device_put` would, to compare what they upload.
"""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

AXIS = "devices"


def device_mesh(devices: Any = None) -> Mesh:
    """The one-axis mesh over some devices; by default all, those of one host after another's."""
    if devices is None:
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    mesh_devices = list(devices)
    return jax.make_mesh((len(mesh_devices),), (AXIS,), (AxisType.Auto,), devices=mesh_devices)


def own_part(mesh: Mesh, rows: int) -> slice:
    """Which of some rows, split over the mesh, are on devices of this process."""
    own = [i for i, d in enumerate(mesh.devices.flat) if d.process_index == jax.process_index()]
    each = rows // mesh.size
    return slice(own[0] * each, (own[-1] + 1) * each)


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Gives every device a copy of some parameters."""
    return place(tree, NamedSharding(mesh, P()))


def place(tree: Any, sharding: Sharding) -> Any:
    """Arrays that are the same in every process, on the devices of a sharding."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def put(array: Any) -> Any:
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            return array  # it came from there
        values = np.asarray(array)
        return jax.make_array_from_callback(values.shape, sharding, lambda at: values[at])

    return jax.tree.map(put, tree)


def split(mesh: Mesh, tree: Any) -> Any:
    """Arrays [rows, ...] that are the same in every process, split over the devices."""
    if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tree)):  # while it is traced
        return jax.device_put(tree, NamedSharding(mesh, P(AXIS)))
    return place(tree, NamedSharding(mesh, P(AXIS)))


def split_own(mesh: Mesh, tree: Any) -> Any:
    """Arrays [rows of this process, ...], each host's own, as arrays [rows, ...] over all."""
    sharding = NamedSharding(mesh, P(AXIS))
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    local_devices = sum(d.process_index == jax.process_index() for d in mesh.devices.flat)

    def put(array: np.ndarray) -> jax.Array:
        shape = (len(array) // local_devices * mesh.size, *array.shape[1:])
        return jax.make_array_from_process_local_data(sharding, array, shape)

    return jax.tree.map(put, tree)


def fetch(tree: Any) -> Any:
    """Arrays of the devices in the memory of every process; with several hosts, all call it."""
    arrays = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    split_arrays = [x for x in arrays if not (x.is_fully_addressable or x.is_fully_replicated)]
    if split_arrays:
        tree = _whole(cast(NamedSharding, split_arrays[0].sharding).mesh)(tree)
    return jax.device_get(tree)


@functools.lru_cache(maxsize=8)
def _whole(mesh: Mesh) -> Callable[[Any], Any]:
    """Gives every device all rows of split arrays."""
    everywhere: Callable[[Any], Any] = jax.jit(
        lambda tree: tree, out_shardings=NamedSharding(mesh, P())
    )
    return everywhere
