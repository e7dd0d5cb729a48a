"""Bags of a cohort that may be larger than memory, from any reader, within a bounded cache.

A fixed part of the bags stays in memory; threads that know the order of the epoch stream the
others. Of a cohort of twice the cache, an epoch then reads little more than half. A cache of the
bags that were read last would read nearly all: every patient comes once an epoch in a new order,
so what was just read is what is needed last.

The order of an epoch is a function of the seed and the epoch's number (`batches.epoch_order`), and
the dropout of an update one of the seed and the update's number. The number of finished epochs,
which every checkpoint holds, is therefore the whole state of the pipeline: a run that goes on sees
the same bags in the same order. The cache decides when a bag is read, and not which.

Not grain: its worker processes copy each array of tens of megabytes once more, and each would need
a cache of its own; its threads work as these do, but keep no bags in memory. Reading is a copy from
a mapped file, or time within HDF5, which releases the interpreter's lock, so two threads are
enough; benchmarks/read.py measures how long training waits.
"""

import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Sequence

import numpy as np
from absl import logging

from steph_jax.data.bags import BagReader, OnDiskBags, check_not_empty, load_bags
from steph_jax.data.features.source import FeatureSource
from steph_jax.data.memory import memory_limit

#: Threads that prefetch.
_THREADS = 2
#: Seconds after which a thread that waits for memory checks whether its bags are still in use.
_POLL_SECONDS = 0.5
#: The streamed bags may take as much as so many batches of mean size, and a quarter of the cache.
_BATCHES_AHEAD = 4


class _Bag:
    """A bag in memory, or on its way there.

    Attributes:
        patches: [N, D]; None until it is read.
        pending: patches of it that will still be read, by the order that was announced.
    """

    def __init__(self, pending: int) -> None:
        self.patches: np.ndarray | None = None
        self.pending = pending


class CachedBags(OnDiskBags):
    """A `BagReader` that keeps a fixed part of the bags in memory and streams the others.

    Safe from several threads at once. Where there is no memory left for a bag, its chunks are read
    past the cache. Values are checked to be finite whenever a bag is read.

    Args:
        source: where the features are.
        slides: the slides of each patient, joined along patches in this order.
        dtype: float type of the patches, in memory and as they are read.
        cache_bytes: the most that bags in memory may take.
        batch_size: bags in a batch, which bounds how far to prefetch.

    Raises:
        as `OnDiskBags`.
    """

    def __init__(
        self,
        source: FeatureSource,
        slides: Sequence[Sequence[str]],
        dtype: np.dtype,
        cache_bytes: int,
        batch_size: int,
    ) -> None:
        super().__init__(source, slides, dtype)
        self._nbytes = self.num_patches * self.feature_dim * self.dtype.itemsize
        mean = int(self._nbytes.mean()) if len(self._nbytes) else 0
        self._stream_bytes = min(cache_bytes // 4, _BATCHES_AHEAD * batch_size * mean)
        self._permanent = _permanent_bags(self._nbytes, cache_bytes - self._stream_bytes)
        self._changed = threading.Condition()
        self._permanent_bags: dict[int, _Bag] = {}
        self._streamed_bags: OrderedDict[int, _Bag] = OrderedDict()
        self._upcoming: deque[int] = deque()
        self._threads = 0

    @property
    def cached_bytes(self) -> int:
        """Size of the bags in memory, those that are being read included."""
        with self._changed:
            return int(sum(self._nbytes[i] for i in (*self._permanent_bags, *self._streamed_bags)))

    def announce(self, order: Sequence[int]) -> None:
        """See `BagReader`; streamed bags that are not in `order` may be dropped from memory."""
        with self._changed:
            self._upcoming = deque(int(index) for index in order)
            for index, bag in self._streamed_bags.items():
                bag.pending = 0
                if index in self._upcoming:
                    self._upcoming.remove(index)
                    bag.pending = int(self.num_patches[index])
            while self._threads < _THREADS:
                self._threads += 1
                arguments = (weakref.ref(self), self._changed)
                threading.Thread(target=_prefetch, args=arguments, daemon=True).start()
            self._changed.notify_all()

    def read(self, index: int, start: int, out: np.ndarray) -> None:
        """Copies patches [start, start + len(out)) of bag `index` into `out` [n, D]."""
        patches = self._patches(index, start)
        if patches is None:
            super().read(index, start, out)
            return
        out[:] = patches[start : start + len(out)]
        with self._changed:
            bag = self._streamed_bags.get(index)
            if bag is not None:
                bag.pending -= len(out)
                self._changed.notify_all()

    def _patches(self, index: int, start: int) -> np.ndarray | None:
        """The bag, from memory or read now; None where no memory is left for it."""
        with self._changed:
            while True:
                bag = self._permanent_bags.get(index) or self._streamed_bags.get(index)
                if bag is None:
                    if index in self._upcoming:  # the threads have not come so far
                        self._upcoming.remove(index)
                    bag = self._claim(index, start)
                    if bag is None:
                        return None
                    break
                if bag.patches is not None:
                    return bag.patches
                self._changed.wait()
        return self._fill(index, bag)

    def _claim(self, index: int, start: int) -> _Bag | None:
        """Makes space for a bag, which the caller fills; called with the lock held.

        None where there is not enough: other bags that take it will still be read.
        """
        bag = _Bag(int(self.num_patches[index]) - start)
        if index in self._permanent:
            self._permanent_bags[index] = bag
            return bag
        size = int(self._nbytes[index])
        total = int(sum(self._nbytes[i] for i in self._streamed_bags))
        droppable = [
            i for i, b in self._streamed_bags.items() if b.pending <= 0 and b.patches is not None
        ]
        for other in droppable:
            if total + size <= self._stream_bytes:
                break
            del self._streamed_bags[other]
            total -= int(self._nbytes[other])
        if total + size > self._stream_bytes:
            return None
        self._streamed_bags[index] = bag
        return bag

    def _fill(self, index: int, bag: _Bag) -> np.ndarray:
        """Reads a bag whose space is claimed; the space is given back if that fails."""
        patches = None
        try:
            patches = np.empty((int(self.num_patches[index]), self.feature_dim), self.dtype)
            super().read(index, 0, patches)
            bag.patches = patches
        finally:
            with self._changed:
                if bag.patches is None:
                    for bags in (self._permanent_bags, self._streamed_bags):
                        bags.pop(index, None)
                self._changed.notify_all()
        return patches

    def _next(self) -> tuple[int, _Bag] | None:
        """Claims space for the next upcoming bag that is not in memory; None if there is none."""
        while self._upcoming:
            index = self._upcoming[0]
            if index in self._streamed_bags:
                self._streamed_bags[index].pending += int(self.num_patches[index])
            elif index not in self._permanent_bags and (
                index in self._permanent or self._nbytes[index] <= self._stream_bytes
            ):
                bag = self._claim(index, 0)
                if bag is None:
                    return None
                self._upcoming.popleft()
                return index, bag
            self._upcoming.popleft()
        return None


def _prefetch(reference: "weakref.ref[CachedBags]", changed: threading.Condition) -> None:
    """Reads upcoming bags, until none is left or the `CachedBags` are not in use any more."""
    while True:
        with changed:
            bags = reference()
            if bags is None:
                return
            claimed = bags._next()
            if claimed is None:
                if not bags._upcoming:
                    bags._threads -= 1
                    return
                del bags  # a waiting thread must not be what keeps them in use
                changed.wait(_POLL_SECONDS)
                continue
        try:
            bags._fill(*claimed)
        except (ValueError, OSError) as error:
            # The consumer will read the bag again, and gets the error.
            logging.debug("prefetching: %s", error)
        del bags, claimed


def _permanent_bags(nbytes: np.ndarray, space: int) -> frozenset[int]:
    """Bags that stay in memory: from a fixed random order, each that still fits."""
    bags = []
    for index in np.random.default_rng(0).permutation(len(nbytes)):
        if nbytes[index] <= space:
            bags.append(int(index))
            space -= int(nbytes[index])
    return frozenset(bags)


def open_bags(
    source: FeatureSource,
    patients: Sequence[str],
    slides: Sequence[Sequence[str]],
    dtype: np.dtype,
    cache_gb: float,
    batch_size: int,
    other_bytes: int = 0,
    at_once: bool = True,
) -> BagReader:
    """The bags of some patients: all in memory where they fit into the cache, else streamed.

    Args:
        source: where the features are.
        patients: ids.
        slides: the slides of each patient.
        dtype: float type of the patches in memory.
        cache_gb: 10^9 bytes that they may take; 0 = a quarter of what this process may use.
        batch_size: bags in a batch.
        other_bytes: `total_bytes` of other bags, which share the cache in proportion.
        at_once: whether bags that all fit are read here; else each is read when it is needed, and
            then stays, as on one of several hosts, which needs some of them.

    Raises:
        FileNotFoundError: if any slide has no features; lists them.
        EmptyBag: for patients without any patch; lists them.
        ValueError: features that cannot be used. NaN and infinity are found at once where all
            bags fit, else when their bag is read.
    """
    if cache_gb < 0:
        raise ValueError(f"data.cache_gb is 0 (a quarter of the memory) or more; found {cache_gb}")
    cache_bytes = int(cache_gb * 1e9) or memory_limit() // 4
    check_not_empty(source, patients, slides)
    size = total_bytes(source, slides, dtype)
    cache_bytes = cache_bytes * size // max(1, size + other_bytes)
    if size <= cache_bytes:
        if at_once:
            return load_bags(source, patients, slides, dtype)
        return CachedBags(source, slides, dtype, cache_bytes, batch_size)
    logging.info(
        "features take %.1f GB and the cache (data.cache_gb) %.1f GB: streaming what does not fit",
        size / 1e9,
        cache_bytes / 1e9,
    )
    return CachedBags(source, slides, dtype, cache_bytes, batch_size)


def total_bytes(source: FeatureSource, slides: Sequence[Sequence[str]], dtype: np.dtype) -> int:
    """Size of all patches of some patients in memory.

    Raises:
        FileNotFoundError: if any slide has no features; lists them.
    """
    source.require(slide for patient_slides in slides for slide in patient_slides)
    values = sum(
        header.num_patches * header.dim
        for patient_slides in slides
        for header in map(source.header, patient_slides)
    )
    return values * np.dtype(dtype).itemsize
