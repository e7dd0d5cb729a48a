"""Batches are the same whether patches stay on the devices or come from the host."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from steph_jax.data.bags import InMemoryBags
from steph_jax.data.batches import make_batch
from steph_jax.data.chunks import GroupShapes
from steph_jax.engine.device_cache import DeviceCache, nbytes, part_nbytes
from steph_jax.engine.loader import DeviceLoader, device_cache_bytes
from steph_jax.engine.placement import device_mesh

DIM = 8
GROUP_SHAPES = GroupShapes(((2, 16), (3, 5)))
NUM_PATCHES = (1, 40, 16, 5, 0, 23, 7)


def bags(dtype=np.float32):
    rng = np.random.default_rng(0)
    made = [rng.standard_normal((n, DIM)).astype(dtype) for n in NUM_PATCHES]
    return InMemoryBags.of(made, DIM, np.dtype(dtype))


def patches_by_bag(batch, num_devices):
    """The patches of every bag of a batch, joined from its groups, without padding."""
    index = np.asarray(batch.bags.index)
    per_device = len(index) // num_devices
    chunks = {}
    for group in batch.groups:
        features, length, bag_slot, chunk_index = (np.asarray(x) for x in group)
        share = len(length) // num_devices
        for row in np.flatnonzero(length):
            bag = int(index[row // share * per_device + bag_slot[row]])
            chunks.setdefault(bag, {})[int(chunk_index[row])] = features[row, : length[row]]
    return {bag: np.concatenate([parts[i] for i in sorted(parts)]) for bag, parts in chunks.items()}


def assert_patches(batch, store, chosen, num_devices):
    """Compares the patches of a batch with those of its bags."""
    patches = patches_by_bag(batch, num_devices)
    assert sorted(patches) == sorted(chosen)
    for bag, values in patches.items():
        expected = np.empty((NUM_PATCHES[bag], DIM), store.dtype)
        store.read(bag, 0, expected)
        np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("num_devices", [1, 2])
@pytest.mark.parametrize("cache_bytes", [0, 10**6])
def test_a_batch_holds_the_patches_of_its_bags(dtype, num_devices, cache_bytes):
    store = bags(dtype)
    mesh = device_mesh(jax.devices()[:num_devices])
    loader = DeviceLoader(store, GROUP_SHAPES, mesh, 6, cache_bytes)
    assert loader.uses_device_cache == bool(cache_bytes)
    chosen = [5, 0, 1, 3, 2]
    assert_patches(loader.batch(chosen, {}), store, chosen, num_devices)


@pytest.mark.parametrize("num_devices", [1, 2])
def test_device_cache_is_uploaded_in_parts(num_devices):
    store, mesh = bags(), device_mesh(jax.devices()[:num_devices])
    cache = DeviceCache(store, GROUP_SHAPES, mesh, upload_bytes=30 * store.dtype.itemsize)
    chosen = [5, 0, 1, 3, 2]
    batch = make_batch(store, GROUP_SHAPES, chosen, {}, 5, num_devices, cache.group)
    assert_patches(batch, store, chosen, num_devices)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("upload_bytes", [1 << 20, 200])
def test_patches_split_over_devices(dtype, upload_bytes):
    store, mesh = bags(dtype), device_mesh(jax.devices()[:2])
    cache = DeviceCache(store, GROUP_SHAPES, mesh, is_split=True, upload_bytes=upload_bytes)
    chosen = [5, 0, 1, 3, 2]
    batch = make_batch(store, GROUP_SHAPES, chosen, {}, 5, 2, cache.group)
    assert_patches(batch, store, chosen, 2)
    assert all(len(group.features.sharding.device_set) == 2 for group in batch.groups)


def test_cache_that_fits_no_device_is_split_over_them():
    shapes = GroupShapes(((2, 3),))
    store, mesh = bags(), device_mesh(jax.devices()[:2])
    part = part_nbytes(store, shapes, 2)
    assert part == (-(-sum(NUM_PATCHES) // 2) + 3) * DIM * 4
    assert part < nbytes(store)
    loader = DeviceLoader(store, shapes, mesh, 4, part)
    assert loader.uses_device_cache
    for batch, chosen in zip(loader.batches([[5, 0], [1, 3]], {}), ([5, 0], [1, 3]), strict=True):
        assert_patches(batch, store, chosen, 2)
    assert not DeviceLoader(store, shapes, mesh, 4, part - 1).uses_device_cache
    assert not DeviceLoader(
        store, shapes, device_mesh(jax.devices()[:1]), 4, part
    ).uses_device_cache


def test_device_cache_is_used_if_all_patches_fit():
    store, mesh = bags(), device_mesh(jax.devices()[:1])
    needed = nbytes(store)
    assert needed == sum(NUM_PATCHES) * DIM * 4
    assert DeviceLoader(store, GROUP_SHAPES, mesh, 4, needed).uses_device_cache
    assert not DeviceLoader(store, GROUP_SHAPES, mesh, 4, needed - 1).uses_device_cache


def test_cpu_reads_a_chunk_in_host_memory_in_place():
    store = InMemoryBags.of(
        [np.ones((n, 16), np.float32) for n in (40, 40)], 16, np.dtype(np.float32)
    )
    loader = DeviceLoader(store, GroupShapes(((1, 40),)), device_mesh(jax.devices()[:1]), 2)
    (group, _) = loader.batch([1, 0], {}).groups
    (shard,) = group.features.addressable_shards
    assert shard.data.unsafe_buffer_pointer() == store.bag(1).ctypes.data


def test_device_cache_is_filled_once():
    class Counted(InMemoryBags):
        reads = 0

        def read(self, index, start, out):
            self.reads += 1
            super().read(index, start, out)

    made = [np.ones((n, DIM), np.float32) for n in NUM_PATCHES]
    store = Counted.of(made, DIM, np.dtype(np.float32))
    loader = DeviceLoader(store, GROUP_SHAPES, device_mesh(), 4, 10**6)
    before = store.reads
    for batch in loader.batches([[0, 1], [2, 3]], {}):
        assert len(batch.groups)
    assert store.reads == before


def test_groups_of_a_large_batch_are_not_prefetched():
    class Counted(InMemoryBags):
        reads = 0

        def read(self, index, start, out):
            self.reads += 1
            super().read(index, start, out)

    made = [np.ones((16, DIM), np.float32) for _ in range(2)]
    store = Counted.of(made, DIM, np.dtype(np.float32))
    loader = DeviceLoader(store, GROUP_SHAPES, device_mesh(jax.devices()[:1]), 2)
    for max_bytes, reads in ((float("inf"), 2), (10, 4)):
        store.reads = 0
        (batch,) = loader.batches([[0, 1]], {}, max_bytes)
        for _ in range(2):
            assert [len(group.length) for group in batch.groups] == [2]
        assert store.reads == reads


def test_error_of_the_prefetcher_reaches_the_consumer():
    class Broken(InMemoryBags):
        def read(self, index, start, out):
            raise ValueError("slide S1 is broken")

    store = Broken.of([np.ones((3, DIM), np.float32)], DIM, np.dtype(np.float32))
    loader = DeviceLoader(store, GROUP_SHAPES, device_mesh(), 1)
    with pytest.raises(ValueError, match="slide S1 is broken"):
        list(loader.batches([[0]], {}))


def test_prefetcher_ends_with_its_consumer():
    loader = DeviceLoader(bags(), GROUP_SHAPES, device_mesh(), 2)
    batches = iter(loader.batches([[0], [1], [2], [3]], {}))
    next(batches)
    batches.close()
    assert not [t for t in threading.enumerate() if t.name == "prefetch"]


@pytest.mark.parametrize(("gigabytes", "expected"), [(-1.0, 0), (0.0, 0), (2.5, 2_500_000_000)])
def test_device_cache_size_on_a_cpu(gigabytes, expected):
    assert device_cache_bytes(gigabytes, jax.devices()[0]) == expected


def test_device_cache_size_is_half_of_a_gpu_by_default():
    class Gpu:
        platform = "gpu"

        def memory_stats(self):
            return {"bytes_limit": 60 << 30}

    default_gb = default.get_config().data.device_gb
    assert device_cache_bytes(default_gb, Gpu()) == 30 << 30


def test_negative_device_cache_size_is_refused():
    with pytest.raises(ValueError, match=r"data.device_gb is 0 or more, or -1 .*; found -3"):
        device_cache_bytes(-3, jax.devices()[0])
