"""Bags in memory, and streamed within a bounded cache, prefetched or not: the same numbers."""

import pathlib
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from itertools import chain

import numpy as np
import pytest

from steph_jax.data import cache
from steph_jax.data.bags import BagReader, InMemoryBags, OnDiskBags, load_bags
from steph_jax.data.batches import epoch_order
from steph_jax.data.cache import CachedBags, open_bags
from steph_jax.data.features.open import open_features
from steph_jax.data.features.source import EmptyBag, FeatureSource

D, NUM_PATIENTS, BATCH = 8, 24, 4
FLOAT32 = np.dtype(np.float32)


@pytest.fixture
def source(tmp_path: pathlib.Path) -> FeatureSource:
    """Two slides a patient."""
    rng = np.random.default_rng(0)
    for slide in range(2 * NUM_PATIENTS):
        rows = rng.standard_normal((int(rng.integers(1, 40)), D), dtype=np.float32)
        np.save(tmp_path / f"{slide:02}.npy", rows)
    return open_features(tmp_path)


PATIENTS = [f"P{i}" for i in range(NUM_PATIENTS)]
SLIDES = [[f"{2 * i:02}", f"{2 * i + 1:02}"] for i in range(NUM_PATIENTS)]


@pytest.fixture
def whole(source: FeatureSource) -> InMemoryBags:
    return load_bags(source, PATIENTS, SLIDES, FLOAT32)


def test_bags_in_memory_are_the_slides_joined(tmp_path: pathlib.Path, whole: InMemoryBags) -> None:
    for index, slides in enumerate(SLIDES):
        expected = np.concatenate([np.load(tmp_path / f"{slide}.npy") for slide in slides])
        np.testing.assert_array_equal(whole.bag(index), expected)


def test_slides_without_patches_add_nothing(tmp_path: pathlib.Path) -> None:
    rows = np.arange(4 * D, dtype=np.float16).reshape(4, D)
    np.save(tmp_path / "a.npy", rows)
    np.save(tmp_path / "b.npy", rows[:0])
    np.save(tmp_path / "c.npy", np.array([], np.float32))
    source = open_features(tmp_path)
    bags = load_bags(source, ["P"], [["c", "b", "a"]], FLOAT32)
    np.testing.assert_array_equal(bags.bag(0), rows.astype(np.float32))
    with pytest.raises(EmptyBag, match="1 patients have no patch in any of their slides: Q"):
        load_bags(source, ["P", "Q"], [["a"], ["b", "c"]], FLOAT32)


@pytest.fixture
def counted(source: FeatureSource, monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """Patches that were read from files, by bag."""
    rows: Counter[int] = Counter()
    inner = OnDiskBags.read

    def read(self: OnDiskBags, index: int, start: int, out: np.ndarray) -> None:
        rows[index] += len(out)
        inner(self, index, start, out)

    monkeypatch.setattr(OnDiskBags, "read", read)
    return rows


def chunks(num_patches: int) -> Iterator[tuple[int, int]]:
    """(first patch, patches) of a bag that is read by sevens."""
    for start in range(0, num_patches, 7):
        yield start, min(7, num_patches - start)


def assert_same(bags: BagReader, whole: InMemoryBags, order: list[int]) -> None:
    """Reads bags in an order, in chunks, and compares them."""
    for index in order:
        for start, number in chunks(int(whole.num_patches[index])):
            values, expected = np.empty((2, number, D), np.float32)
            bags.read(index, start, values)
            whole.read(index, start, expected)
            np.testing.assert_array_equal(values, expected)


def total_bytes(whole: InMemoryBags) -> int:
    return int(whole.num_patches.sum()) * D * 4


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.9])
@pytest.mark.parametrize("announced", [True, False])
def test_streamed_bags_equal_those_in_memory(
    source: FeatureSource, whole: InMemoryBags, share: float, announced: bool
) -> None:
    limit = int(share * total_bytes(whole))
    bags = CachedBags(source, SLIDES, FLOAT32, limit, BATCH)
    np.testing.assert_array_equal(bags.num_patches, whole.num_patches)
    for epoch in range(3):
        order = list(chain(*epoch_order(range(NUM_PATIENTS), BATCH, 0, epoch)))
        if announced:
            bags.announce(order)
        for batch in range(0, len(order), BATCH):
            assert_same(bags, whole, order[batch : batch + BATCH])
            assert bags.cached_bytes <= limit


def test_reads_stay_within_the_bound(
    source: FeatureSource, whole: InMemoryBags, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bags that are being read count."""
    limit = total_bytes(whole) // 3
    bags = CachedBags(source, SLIDES, FLOAT32, limit, BATCH)
    inner, held = OnDiskBags.read, []

    def read(self: OnDiskBags, index: int, start: int, out: np.ndarray) -> None:
        held.append(bags.cached_bytes)
        inner(self, index, start, out)

    monkeypatch.setattr(OnDiskBags, "read", read)
    order = list(chain(*epoch_order(range(NUM_PATIENTS), BATCH, 0, 0)))
    bags.announce([*order, *order])
    assert_same(bags, whole, order)
    assert limit / 2 < max(held) <= limit


def test_prefetching_ends_at_the_bound(
    source: FeatureSource, whole: InMemoryBags, counted: Counter[int]
) -> None:
    """However many bags are announced: nothing is consumed, and the threads wait."""
    limit = total_bytes(whole) // 3
    bags = CachedBags(source, SLIDES, FLOAT32, limit, BATCH)
    others = set(threading.enumerate())
    bags.announce(range(NUM_PATIENTS))
    threads = set(threading.enumerate()) - others
    assert_same(bags, whole, [0])
    bags.announce([])
    for thread in threads:
        thread.join()
    consumed = int(whole.num_patches[0])
    assert sum(counted.values()) - consumed <= limit // (4 * D)


def test_cache_is_freed_while_bags_are_prefetched(
    source: FeatureSource, whole: InMemoryBags
) -> None:
    """A training that ends early leaves announced bags behind, and no thread with its cache."""
    bags = CachedBags(source, SLIDES, FLOAT32, total_bytes(whole) // 3, BATCH)
    held, others = weakref.ref(bags), set(threading.enumerate())
    bags.announce(range(NUM_PATIENTS))
    threads = set(threading.enumerate()) - others
    assert threads
    del bags
    for thread in threads:
        thread.join()
    assert held() is None


def test_cohorts_share_a_cache_by_size(source: FeatureSource, whole: InMemoryBags) -> None:
    """Two halves of the patients: both in memory, or both streamed, within one bound."""
    halves = [(PATIENTS[part], SLIDES[part]) for part in (slice(0, 9), slice(9, None))]
    needed = [cache.total_bytes(source, slides, FLOAT32) for _, slides in halves]
    assert sum(needed) == total_bytes(whole)

    def opened(cache_bytes: int) -> list[BagReader]:
        return [
            open_bags(source, patients, slides, FLOAT32, cache_bytes / 1e9, BATCH, other)
            for (patients, slides), other in zip(halves, reversed(needed), strict=True)
        ]

    assert all(isinstance(bags, InMemoryBags) for bags in opened(sum(needed) + 1))
    limit = sum(needed) // 2
    streamed = opened(limit)
    held = 0
    for bags, (patients, _) in zip(streamed, halves, strict=True):
        assert isinstance(bags, CachedBags)
        out = np.empty((int(bags.num_patches.max()), D), np.float32)
        for index in range(len(patients)):
            bags.read(index, 0, out[: bags.num_patches[index]])
        held += bags.cached_bytes
    assert 0 < held <= limit


def test_permanent_bags_are_read_once(
    source: FeatureSource, whole: InMemoryBags, counted: Counter[int]
) -> None:
    bags = CachedBags(source, SLIDES, FLOAT32, total_bytes(whole) // 2, BATCH)
    epochs = 4
    orders = [
        list(chain(*epoch_order(range(NUM_PATIENTS), BATCH, 0, epoch))) for epoch in range(epochs)
    ]
    for order, following in zip(orders, [*orders[1:], []], strict=True):
        bags.announce([*order, *following])
        assert_same(bags, whole, order)
    read = sum(counted.values()) / whole.num_patches.sum()
    once = [index for index in range(NUM_PATIENTS) if counted[index] == whole.num_patches[index]]
    permanent = whole.num_patches[once].sum() / whole.num_patches.sum()
    assert permanent > 0.3
    assert read <= permanent + epochs * (1 - permanent)


def test_chunks_of_several_bags_in_turn(source: FeatureSource, whole: InMemoryBags) -> None:
    bags = CachedBags(source, SLIDES, FLOAT32, total_bytes(whole) // 3, BATCH)
    order = list(range(NUM_PATIENTS))
    bags.announce(order)
    for first in range(0, NUM_PATIENTS, BATCH):
        batch = order[first : first + BATCH]
        cut = [(i, *chunk) for i in batch for chunk in chunks(int(whole.num_patches[i]))]
        for index, start, number in sorted(cut, key=lambda chunk: chunk[1]):
            values, expected = np.empty((2, number, D), np.float32)
            bags.read(index, start, values)
            whole.read(index, start, expected)
            np.testing.assert_array_equal(values, expected)


def test_announced_order_may_change_or_be_ignored(
    source: FeatureSource, whole: InMemoryBags
) -> None:
    bags = CachedBags(source, SLIDES, FLOAT32, total_bytes(whole) // 2, BATCH)
    bags.announce(range(NUM_PATIENTS))
    assert_same(bags, whole, [23, 3, 3, 11])
    bags.announce([5, 5, 6])
    assert_same(bags, whole, [6, 5, 7, 5])
    bags.announce([])
    assert_same(bags, whole, list(range(NUM_PATIENTS)))


def test_many_readers(source: FeatureSource, whole: InMemoryBags) -> None:
    bags = CachedBags(source, SLIDES, FLOAT32, total_bytes(whole) // 2, BATCH)
    bags.announce(range(NUM_PATIENTS))
    failures: list[BaseException] = []

    def reader(seed: int) -> None:
        try:
            assert_same(bags, whole, np.random.default_rng(seed).permutation(NUM_PATIENTS).tolist())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=reader, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_error_of_a_bad_bag_reaches_every_reader(
    source: FeatureSource, whole: InMemoryBags
) -> None:
    path = pathlib.Path(source.path_of("11"))
    rows = np.load(path)
    rows[0, 3] = np.inf
    np.save(path, rows)
    bags = CachedBags(source, SLIDES, FLOAT32, total_bytes(whole) // 2, BATCH)
    bags.announce(range(NUM_PATIENTS))
    assert_same(bags, whole, [0, 1, 2, 3, 4])
    out = np.empty((int(whole.num_patches[5]), D), np.float32)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"11\.npy: NaN or infinity in the features"):
            bags.read(5, 0, out)
    assert_same(bags, whole, list(range(6, NUM_PATIENTS)))


@pytest.mark.parametrize("gigabytes", [0.0, 1e-6])
def test_empty_slides_among_others_are_named(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, gigabytes: float
) -> None:
    for name, rows in (("a", 3), ("empty", 0), ("b", 2)):
        np.save(tmp_path / f"{name}.npy", np.ones((rows, D), np.float32))
    source = open_features(tmp_path)
    with caplog.at_level("WARNING"):
        open_bags(source, ["P", "Q"], [["a", "empty"], ["b"]], FLOAT32, gigabytes, 1)
    assert "slides without patches (1)" in caplog.text
    assert str(tmp_path / "empty.npy") in caplog.text


def test_open_bags_chooses_by_size(source: FeatureSource, whole: InMemoryBags) -> None:
    gigabytes = total_bytes(whole) / 1e9

    def opened(cache_gb: float) -> BagReader:
        return open_bags(source, PATIENTS, SLIDES, FLOAT32, cache_gb, BATCH)

    assert isinstance(opened(0), InMemoryBags)
    assert isinstance(opened(gigabytes * 1.001), InMemoryBags)
    assert isinstance(opened(gigabytes / 2), CachedBags)
    with pytest.raises(ValueError, match=r"data.cache_gb is 0 .* or more; found -1"):
        opened(-1)


@pytest.mark.parametrize("cache_gb", [0.0, 1e-8])
def test_patients_without_patches(
    source: FeatureSource, tmp_path: pathlib.Path, cache_gb: float
) -> None:
    np.save(tmp_path / "none.npy", np.empty((0, D), np.float32))
    refilled = open_features(tmp_path)
    with pytest.raises(EmptyBag, match="1 patients have no patch in any of their slides: B;"):
        open_bags(refilled, ["A", "B"], [["01"], ["none"]], FLOAT32, cache_gb, BATCH)
