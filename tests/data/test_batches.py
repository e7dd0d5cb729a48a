"""Bags cut into chunks and joined again."""

import itertools

import numpy as np
import pytest

from steph_jax.data.bags import InMemoryBags
from steph_jax.data.batches import (
    ChunkPlan,
    assign,
    epoch_order,
    make_batch,
    read_chunks,
    slots_for,
)
from steph_jax.data.chunks import GroupShapes, choose_group_shapes


def bags_of(sizes, dim=3):
    rng = np.random.default_rng(1)
    arrays = [rng.normal(size=(n, dim)).astype(np.float32) for n in sizes]
    return arrays, InMemoryBags.of(arrays, dim, np.dtype(np.float32))


@pytest.mark.parametrize("shapes", [((2, 7),), ((1, 50), (3, 8)), ((1, 64), (2, 16), (5, 4))])
@pytest.mark.parametrize("num_devices", [1, 3])
def test_a_batch_holds_every_patch_of_its_bags_once(shapes, num_devices):
    sizes = [5, 70, 1, 64, 33, 8, 200, 16]
    arrays, bags = bags_of(sizes)
    chosen = [6, 0, 3, 1, 4]
    labels = {"event": np.arange(8), "curve": np.arange(16.0).reshape(8, 2)}
    batch = make_batch(bags, GroupShapes(shapes), chosen, labels, 5, num_devices)
    bag_chunks = {bag: {} for bag in chosen}
    for group in batch.groups:
        per_device = len(group.length) // num_devices
        for row, (length, bag_slot, chunk_index) in enumerate(
            zip(group.length, group.bag_slot, group.chunk_index, strict=True)
        ):
            if len(group.length) > 1:  # a single chunk may be a view, without padding
                assert not group.features[row, length:].any()
            if length:
                slot = row // per_device * 5 + bag_slot
                bag_chunks[int(batch.bags.index[slot])][int(chunk_index)] = group.features[
                    row, :length
                ]
    for bag in chosen:
        chunks = bag_chunks[bag]
        assert sorted(chunks) == list(range(len(chunks)))
        np.testing.assert_array_equal(
            np.concatenate([chunks[i] for i in range(len(chunks))]), arrays[bag]
        )
    assert [len(g.length) for g in batch.groups[1:]] == [len(g.length) for g in batch.groups][1:]
    filled = batch.bags.index >= 0
    np.testing.assert_array_equal(batch.bags.labels["event"][filled], batch.bags.index[filled])
    np.testing.assert_array_equal(batch.bags.labels["curve"][~filled], 0)
    assert [chosen[r] for r in batch.bags.position[filled]] == batch.bags.index[filled].tolist()
    np.testing.assert_array_equal(
        batch.bags.num_patches[filled], np.array(sizes)[batch.bags.index[filled]]
    )


def test_single_chunk_is_a_view_except_at_the_end_of_memory():
    arrays, bags = bags_of([5, 6])
    only = np.zeros(1, np.int32)
    chunk = ChunkPlan(8, only, only + 2, only + 3, only, only)
    view = read_chunks(bags, chunk).features
    assert np.shares_memory(view, bags.bag(0))
    assert np.shares_memory(view, bags.bag(1))
    np.testing.assert_array_equal(view[0, :3], arrays[0][2:])
    last = read_chunks(bags, chunk._replace(bag=only + 1)).features
    assert not np.shares_memory(last, bags.bag(1))
    np.testing.assert_array_equal(last[0, :3], arrays[1][2:5])
    assert not last[0, 3:].any()


def test_group_shapes_are_few_and_pad_little_on_tcga_lengths():
    rng = np.random.default_rng(0)
    sizes = np.clip(rng.lognormal(np.log(6000), 0.8, 500), 300, 60_000).astype(int)
    group_shapes = choose_group_shapes(sizes, 16, 4096)
    assert len(group_shapes.pairs) <= 3
    assert choose_group_shapes(sizes[::-1], 16, 4096) == group_shapes
    bags = InMemoryBags.of([np.empty((n, 0), np.float32) for n in sizes], 0, np.dtype(np.float32))
    real = padded = 0
    for chosen in epoch_order(range(500), 16, seed=3, epoch=0):
        real += sizes[chosen].sum()
        padded += make_batch(bags, group_shapes, chosen, {}, 16).groups.padded_patches
    assert (padded - real) / padded < 0.08


@pytest.mark.parametrize("size", [1, 76, 1000, 4000, 16_000, 100_000])
def test_padding_of_bags_of_one_length(size):
    group_shapes = choose_group_shapes(np.full(40, size), 16, 4096)
    padded = sum(group_shapes.pairs[shape][1] for shape, _, _ in group_shapes.cut(size))
    assert padded <= 1.01 * size


def test_group_shapes_cut_any_bag():
    group_shapes = GroupShapes(((1, 100), (2, 30), (4, 7)))
    for size in range(1, 400):
        chunks = group_shapes.cut(size)
        assert [start for _, start, _ in chunks] == list(
            itertools.accumulate((length for *_, length in chunks), initial=0)
        )[:-1]
        assert sum(length for *_, length in chunks) == size
        assert all(length <= group_shapes.pairs[shape][1] for shape, _, length in chunks)


def test_group_shapes_refuse_lengths_out_of_order():
    with pytest.raises(ValueError, match="longest first"):
        GroupShapes(((1, 10), (1, 20)))


def test_devices_share_patches_and_not_slides():
    rng = np.random.default_rng(5)
    for num_devices in (2, 4, 8):
        count = 16 * num_devices
        sizes = np.clip(rng.lognormal(np.log(6000), 0.8, count), 300, 60_000).astype(int)
        shares = assign(sizes.tolist(), num_devices, slots_for(count, num_devices))
        assert sorted(itertools.chain(*shares)) == list(range(count))
        load = np.array([sizes[share].sum() for share in shares])
        assert load.max() / load.mean() < 1.05


def test_more_bags_than_slots_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        assign([1, 2, 3], 1, 2)


def test_an_epoch_draws_without_replacement_and_drops_the_rest():
    batches = list(epoch_order(range(100, 139), 16, seed=1, epoch=4))
    drawn = [bag for batch in batches for bag in batch]
    assert len(batches) == 2
    assert len(set(drawn)) == 32
    assert set(drawn) <= set(range(100, 139))
    assert batches == list(epoch_order(range(100, 139), 16, seed=1, epoch=4))
    assert batches != list(epoch_order(range(100, 139), 16, seed=1, epoch=5))
    assert batches != list(epoch_order(range(100, 139), 16, seed=2, epoch=4))
