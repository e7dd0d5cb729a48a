"""Bags cut into pieces and put together again."""

import itertools

import numpy as np
import pytest

from steph_jax.data.bags import MemoryBags
from steph_jax.data.batches import (
    Layout,
    Pieces,
    assign,
    choose_layout,
    epoch_order,
    make_batch,
    read_pieces,
    slots_for,
)


def store_of(sizes, dim=3):
    rng = np.random.default_rng(1)
    bags = [rng.normal(size=(n, dim)).astype(np.float32) for n in sizes]
    return bags, MemoryBags.of(bags, dim, np.dtype(np.float32))


@pytest.mark.parametrize("shapes", [((2, 7),), ((1, 50), (3, 8)), ((1, 64), (2, 16), (5, 4))])
@pytest.mark.parametrize("num_devices", [1, 3])
def test_a_batch_holds_every_patch_of_its_bags_once(shapes, num_devices):
    sizes = [5, 70, 1, 64, 33, 8, 200, 16]
    bags, store = store_of(sizes)
    chosen = [6, 0, 3, 1, 4]
    labels = {"event": np.arange(8), "curve": np.arange(16.0).reshape(8, 2)}
    batch = make_batch(store, Layout(shapes), chosen, labels, 5, num_devices)
    found = {bag: {} for bag in chosen}
    for group in batch.groups:
        per_device = len(group.length) // num_devices
        for row, (length, owner, serial) in enumerate(
            zip(group.length, group.owner, group.serial, strict=True)
        ):
            if len(group.length) > 1:  # a single piece may be lent, with what lies behind it
                assert not group.features[row, length:].any()
            if length:
                slot = row // per_device * 5 + owner
                found[int(batch.slots.index[slot])][int(serial)] = group.features[row, :length]
    for bag in chosen:
        pieces = found[bag]
        assert sorted(pieces) == list(range(len(pieces)))
        np.testing.assert_array_equal(
            np.concatenate([pieces[i] for i in range(len(pieces))]), bags[bag]
        )
    filled = batch.slots.index >= 0
    np.testing.assert_array_equal(batch.slots.labels["event"][filled], batch.slots.index[filled])
    np.testing.assert_array_equal(batch.slots.labels["curve"][~filled], 0)
    assert [chosen[r] for r in batch.slots.rank[filled]] == batch.slots.index[filled].tolist()
    np.testing.assert_array_equal(
        batch.slots.num_patches[filled], np.array(sizes)[batch.slots.index[filled]]
    )


def test_a_single_piece_is_lent_where_it_lies_and_read_at_the_end_of_the_store():
    bags, store = store_of([5, 6])
    only = np.zeros(1, np.int32)
    piece = Pieces(8, only, only + 2, only + 3, only, only)
    lent = read_pieces(store, piece).features
    assert np.shares_memory(lent, store.bag(0))
    assert np.shares_memory(lent, store.bag(1))
    np.testing.assert_array_equal(lent[0, :3], bags[0][2:])
    last = read_pieces(store, piece._replace(bag=only + 1)).features
    assert not np.shares_memory(last, store.bag(1))
    np.testing.assert_array_equal(last[0, :3], bags[1][2:5])
    assert not last[0, 3:].any()


def test_layouts_have_few_shapes_and_little_padding_on_slides_like_those_of_tcga():
    rng = np.random.default_rng(0)
    sizes = np.clip(rng.lognormal(np.log(6000), 0.8, 500), 300, 60_000).astype(int)
    layout = choose_layout(sizes, 16, 4096)
    assert len(layout.shapes) <= 3
    assert choose_layout(sizes[::-1], 16, 4096) == layout
    store = MemoryBags.of([np.empty((n, 0), np.float32) for n in sizes], 0, np.dtype(np.float32))
    real = padded = 0
    for chosen in epoch_order(range(500), 16, seed=3, epoch=0):
        real += sizes[chosen].sum()
        padded += make_batch(store, layout, chosen, {}, 16).groups.padded_patches
    assert (padded - real) / padded < 0.08


@pytest.mark.parametrize("size", [1, 76, 1000, 4000, 16_000, 100_000])
def test_bags_of_one_length_are_hardly_padded(size):
    layout = choose_layout(np.full(40, size), 16, 4096)
    padded = sum(layout.shapes[shape][1] for shape, _, _ in layout.pieces(size))
    assert padded <= 1.01 * size


def test_a_layout_cuts_any_bag():
    layout = Layout(((1, 100), (2, 30), (4, 7)))
    for size in range(1, 400):
        pieces = layout.pieces(size)
        assert [start for _, start, _ in pieces] == list(
            itertools.accumulate((taken for *_, taken in pieces), initial=0)
        )[:-1]
        assert sum(taken for *_, taken in pieces) == size
        assert all(taken <= layout.shapes[shape][1] for shape, _, taken in pieces)


def test_a_layout_refuses_lengths_out_of_order():
    with pytest.raises(ValueError, match="longest first"):
        Layout(((1, 10), (1, 20)))


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
