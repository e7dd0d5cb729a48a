"""Batches are the same whether patches stay on the devices or come from the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from steph_jax.data.bags import MemoryBags
from steph_jax.data.batches import Layout
from steph_jax.engine import device_cache
from steph_jax.engine import loader as feeding
from steph_jax.engine.loader import Feed
from steph_jax.engine.step import device_mesh

DIM = 8
LAYOUT = Layout(((2, 16), (3, 5)))
NUM_PATCHES = (1, 40, 16, 5, 0, 23, 7)


def bags(dtype=np.float32):
    rng = np.random.default_rng(0)
    made = [rng.standard_normal((n, DIM)).astype(dtype) for n in NUM_PATCHES]
    return MemoryBags.of(made, DIM, np.dtype(dtype))


def patches_by_bag(batch, num_devices):
    """The real patches of every bag of a batch, put together from its groups."""
    index = np.asarray(batch.slots.index)
    per_device = len(index) // num_devices
    found = {}
    for group in batch.groups:
        features, length, owner, serial = (np.asarray(x) for x in group)
        share = len(length) // num_devices
        for row in np.flatnonzero(length):
            bag = int(index[row // share * per_device + owner[row]])
            found.setdefault(bag, {})[int(serial[row])] = features[row, : length[row]]
    return {
        bag: np.concatenate([pieces[i] for i in sorted(pieces)]) for bag, pieces in found.items()
    }


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("num_devices", [1, 2])
@pytest.mark.parametrize("resident_bytes", [0, 10**6])
def test_a_batch_holds_the_patches_of_its_bags(dtype, num_devices, resident_bytes, monkeypatch):
    monkeypatch.setattr(device_cache, "_UPLOAD_BYTES", 30 * np.dtype(dtype).itemsize)
    store = bags(dtype)
    mesh = device_mesh(jax.devices()[:num_devices])
    feed = Feed(store, LAYOUT, mesh, 6, resident_bytes)
    assert feed.is_resident == bool(resident_bytes)
    chosen = [5, 0, 1, 3, 2]
    found = patches_by_bag(feed.batch(chosen, {}), num_devices)
    assert sorted(found) == sorted(chosen)
    for bag, patches in found.items():
        expected = np.empty((NUM_PATCHES[bag], DIM), store.dtype)
        store.read(bag, 0, expected)
        np.testing.assert_array_equal(patches, expected)


def test_patches_stay_on_the_devices_only_if_all_fit():
    store, mesh = bags(), device_mesh(jax.devices()[:1])
    needed = device_cache.nbytes(store)
    assert needed == sum(NUM_PATCHES) * DIM * 4
    assert Feed(store, LAYOUT, mesh, 4, needed).is_resident
    assert not Feed(store, LAYOUT, mesh, 4, needed - 1).is_resident


def test_a_piece_in_host_memory_is_used_there_by_a_cpu():
    store = MemoryBags.of(
        [np.ones((n, 16), np.float32) for n in (40, 40)], 16, np.dtype(np.float32)
    )
    feed = Feed(store, Layout(((1, 40),)), device_mesh(jax.devices()[:1]), 2)
    (group, _) = feed.batch([1, 0], {}).groups
    (shard,) = group.features.addressable_shards
    assert shard.data.unsafe_buffer_pointer() == store.bag(1).ctypes.data


def test_nothing_is_read_from_the_host_once_patches_are_on_the_devices():
    class Counted(MemoryBags):
        reads = 0

        def read(self, index, start, out):
            self.reads += 1
            super().read(index, start, out)

    made = [np.ones((n, DIM), np.float32) for n in NUM_PATCHES]
    store = Counted.of(made, DIM, np.dtype(np.float32))
    feed = Feed(store, LAYOUT, device_mesh(), 4, 10**6)
    before = store.reads
    for batch in feed.ahead([[0, 1], [2, 3]], {}):
        assert len(batch.groups)
    assert store.reads == before


def test_what_is_read_ahead_is_held_unless_it_is_too_large():
    class Counted(MemoryBags):
        reads = 0

        def read(self, index, start, out):
            self.reads += 1
            super().read(index, start, out)

    made = [np.ones((16, DIM), np.float32) for _ in range(2)]
    store = Counted.of(made, DIM, np.dtype(np.float32))
    feed = Feed(store, LAYOUT, device_mesh(jax.devices()[:1]), 2)
    for held_bytes, reads in ((float("inf"), 2), (10, 4)):
        store.reads = 0
        (batch,) = feed.ahead([[0, 1]], {}, held_bytes)
        for _ in range(2):
            assert [len(group.length) for group in batch.groups] == [2]
        assert store.reads == reads


def test_an_error_of_the_reading_thread_reaches_the_consumer():
    class Broken(MemoryBags):
        def read(self, index, start, out):
            raise ValueError("slide S1 is broken")

    store = Broken.of([np.ones((3, DIM), np.float32)], DIM, np.dtype(np.float32))
    feed = Feed(store, LAYOUT, device_mesh(), 1)
    with pytest.raises(ValueError, match="slide S1 is broken"):
        list(feed.ahead([[0]], {}))


def test_a_consumer_that_stops_early_ends_the_thread():
    feed = Feed(bags(), LAYOUT, device_mesh(), 2)
    ahead = iter(feed.ahead([[0], [1], [2], [3]], {}))
    next(ahead)
    ahead.close()
    assert not [t for t in feeding.threading.enumerate() if t.name == "read-ahead"]


@pytest.mark.parametrize(("gigabytes", "expected"), [(-1.0, 0), (0.0, 0), (2.5, 2_500_000_000)])
def test_the_budget_on_a_cpu(gigabytes, expected):
    assert feeding.resident_bytes(gigabytes, jax.devices()[0]) == expected


def test_half_of_a_gpu_is_the_default_budget():
    class Gpu:
        platform = "gpu"

        def memory_stats(self):
            return {"bytes_limit": 60 << 30}

    default_gb = default.get_config().data.device_gb
    assert feeding.resident_bytes(default_gb, Gpu()) == 30 << 30


def test_a_negative_budget_is_refused():
    with pytest.raises(ValueError, match=r"data.device_gb is 0 or more, or -1 .*; found -3"):
        feeding.resident_bytes(-3, jax.devices()[0])
