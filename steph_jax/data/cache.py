"""Bags of a cohort that may be larger than memory, from any reader, within a bounded cache.

Training goes through all patients once an epoch, in an order that differs from epoch to epoch. A
cache that keeps what was read last then keeps what is needed last; so here a part of the bags is
fixed at the start and stays in memory, and the others are streamed every epoch by threads that know
what comes next. For a cohort of twice the cache this reads little more than half of it an epoch,
where a cache of the last ones would read nearly all.

The order of an epoch is a function of the seed and the epoch's number (`batches.epoch_order`), and
the dropout of an update one of the seed and the update's number. The number of finished epochs,
which every checkpoint holds, is therefore the whole state of the pipeline: a run that goes on sees
the same bags in the same order. What the cache holds changes when a bag is read, never what.

Not grain: its workers are processes, which hand over each array of tens of megabytes by a copy,
and they would hold a cache each; its threads do what these do, but know nothing of bags that stay
in memory. Reading is a copy from a mapped file (or time within HDF5), which leaves the interpreter
to others, so two threads are enough; benchmarks/read.py measures what is left of waiting.
"""

import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Sequence

import numpy as np
from absl import logging

from steph_jax.data.bags import Bags, LazyBags, load_bags, refuse_empty
from steph_jax.data.features.source import FeatureSource
from steph_jax.data.memory import memory_limit

#: Threads that read ahead.
_THREADS = 2
#: Seconds after which a thread that waits for room looks whether its bags are still in use.
_PATIENCE = 0.5
#: Batches of the usual size that the streamed bags may take in the cache, but at most a quarter.
_BATCHES_AHEAD = 4


class _Bag:
    """A bag in memory, or on its way there.

    Attributes:
        patches: [N, D]; None until it is read.
        pending: patches of it that are still expected to be asked for.
    """

    def __init__(self, pending: int) -> None:
        self.patches: np.ndarray | None = None
        self.pending = pending


class CachedBags(LazyBags):
    """Bags of which a fixed part stays in memory and the rest is streamed; a `Bags`.

    Safe from several threads at once. A bag that finds no room is read piece by piece, past the
    cache. Values are checked to be finite whenever a bag is read.

    Args:
        source: where the features are.
        slides: the slides of each patient, joined along patches in this order.
        dtype: float type that patches are kept and handed out in.
        cache_bytes: the most that bags in memory may take.
        batch_size: bags in a batch, which says how far to read ahead.

    Raises:
        as `LazyBags`.
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
        usual = int(self._nbytes.mean()) if len(self._nbytes) else 0
        self._room = min(cache_bytes // 4, _BATCHES_AHEAD * batch_size * usual)
        self._resident = _chosen(self._nbytes, cache_bytes - self._room)
        self._changed = threading.Condition()
        self._kept: dict[int, _Bag] = {}
        self._streamed: OrderedDict[int, _Bag] = OrderedDict()
        self._expected: deque[int] = deque()
        self._threads = 0

    @property
    def held_bytes(self) -> int:
        """What the bags in memory take now, those on their way included."""
        with self._changed:
            return int(sum(self._nbytes[i] for i in (*self._kept, *self._streamed)))

    def expect(self, order: Sequence[int]) -> None:
        """See `Bags`; streamed bags that are in memory and not in `order` may go."""
        with self._changed:
            self._expected = deque(int(index) for index in order)
            for index, bag in self._streamed.items():
                bag.pending = 0
                if index in self._expected:
                    self._expected.remove(index)
                    bag.pending = int(self.num_patches[index])
            while self._threads < _THREADS:
                self._threads += 1
                given = (weakref.ref(self), self._changed)
                threading.Thread(target=_read_ahead, args=given, daemon=True).start()
            self._changed.notify_all()

    def read(self, index: int, start: int, out: np.ndarray) -> None:
        """Copies patches [start, start + len(out)) of bag `index` into `out` [n, D]."""
        patches = self._patches(index, start)
        if patches is None:
            super().read(index, start, out)
            return
        out[:] = patches[start : start + len(out)]
        with self._changed:
            bag = self._streamed.get(index)
            if bag is not None:
                bag.pending -= len(out)
                self._changed.notify_all()

    def _patches(self, index: int, start: int) -> np.ndarray | None:
        """The bag, from memory or read now; None where there is no room for it."""
        with self._changed:
            while True:
                bag = self._kept.get(index) or self._streamed.get(index)
                if bag is None:
                    if index in self._expected:  # the reading ahead has not come so far
                        self._expected.remove(index)
                    bag = self._claim(index, start)
                    if bag is None:
                        return None
                    break
                if bag.patches is not None:
                    return bag.patches
                self._changed.wait()
        return self._fill(index, bag)

    def _claim(self, index: int, start: int) -> _Bag | None:
        """Makes room for a bag, to be filled by the caller, who holds the lock."""
        bag = _Bag(int(self.num_patches[index]) - start)
        if index in self._resident:
            self._kept[index] = bag
            return bag
        size = int(self._nbytes[index])
        held = int(sum(self._nbytes[i] for i in self._streamed))
        spent = [i for i, b in self._streamed.items() if b.pending <= 0 and b.patches is not None]
        for other in spent:
            if held + size <= self._room:
                break
            del self._streamed[other]
            held -= int(self._nbytes[other])
        if held + size > self._room:
            return None
        self._streamed[index] = bag
        return bag

    def _fill(self, index: int, bag: _Bag) -> np.ndarray:
        """Reads a claimed bag; one that cannot be read is given up again."""
        patches = None
        try:
            patches = np.empty((int(self.num_patches[index]), self.feature_dim), self.dtype)
            super().read(index, 0, patches)
            bag.patches = patches
        finally:
            with self._changed:
                if bag.patches is None:
                    for bags in (self._kept, self._streamed):
                        bags.pop(index, None)
                self._changed.notify_all()
        return patches

    def _next(self) -> tuple[int, _Bag] | None:
        """The next expected bag that is not in memory, claimed; None if there is no room yet."""
        while self._expected:
            index = self._expected[0]
            if index in self._streamed:
                self._streamed[index].pending += int(self.num_patches[index])
            elif index not in self._kept and (
                index in self._resident or self._nbytes[index] <= self._room
            ):
                bag = self._claim(index, 0)
                if bag is None:
                    return None
                self._expected.popleft()
                return index, bag
            self._expected.popleft()
        return None


def _read_ahead(reference: "weakref.ref[CachedBags]", changed: threading.Condition) -> None:
    """Reads what some bags expect, until none is left or nobody holds the bags any more."""
    while True:
        with changed:
            bags = reference()
            if bags is None:
                return
            claimed = bags._next()
            if claimed is None:
                if not bags._expected:
                    bags._threads -= 1
                    return
                del bags  # whoever waits for room must not be the last to hold them
                changed.wait(_PATIENCE)
                continue
        try:
            bags._fill(*claimed)
        except (ValueError, OSError) as error:
            # Whoever asks for the bag reads it anew, and is told.
            logging.debug("reading ahead: %s", error)
        del bags, claimed


def _chosen(nbytes: np.ndarray, room: int) -> frozenset[int]:
    """Bags that stay in memory: in an order drawn once, each that still fits."""
    chosen = []
    for index in np.random.default_rng(0).permutation(len(nbytes)):
        if nbytes[index] <= room:
            chosen.append(int(index))
            room -= int(nbytes[index])
    return frozenset(chosen)


def open_bags(
    source: FeatureSource,
    patients: Sequence[str],
    slides: Sequence[Sequence[str]],
    dtype: np.dtype,
    cache_gb: float,
    batch_size: int,
    beside: int = 0,
) -> Bags:
    """The bags of some patients: all in memory where they fit into the cache, else streamed.

    Args:
        source: where the features are.
        patients: ids.
        slides: the slides of each patient.
        dtype: float type to keep them in.
        cache_gb: 10^9 bytes that they may take; 0 = a quarter of what this process may use.
        batch_size: bags in a batch.
        beside: `needed_bytes` of other bags, which have their part of the same cache.

    Raises:
        FileNotFoundError: if any slide has no features; lists them.
        EmptyBag: for patients without any patch; lists them.
        ValueError: features that cannot be used. NaN and infinity are found at once where all
            bags fit, else when their bag is read.
    """
    if cache_gb < 0:
        raise ValueError(f"data.cache_gb is 0 (a quarter of the memory) or more; found {cache_gb}")
    cache_bytes = int(cache_gb * 1e9) or memory_limit() // 4
    refuse_empty(source, patients, slides)
    needed = needed_bytes(source, slides, dtype)
    cache_bytes = cache_bytes * needed // max(1, needed + beside)
    if needed <= cache_bytes:
        return load_bags(source, patients, slides, dtype)
    logging.info(
        "features take %.1f GB and the cache (data.cache_gb) %.1f GB: streaming what does not fit",
        needed / 1e9,
        cache_bytes / 1e9,
    )
    return CachedBags(source, slides, dtype, cache_bytes, batch_size)


def needed_bytes(source: FeatureSource, slides: Sequence[Sequence[str]], dtype: np.dtype) -> int:
    """What all patches of some patients take in memory.

    Raises:
        FileNotFoundError: if any slide has no features; lists them.
    """
    source.require(slide for of_patient in slides for slide in of_patient)
    values = sum(
        header.num_patches * header.dim
        for of_patient in slides
        for header in map(source.header, of_patient)
    )
    return values * np.dtype(dtype).itemsize
