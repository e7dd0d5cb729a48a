"""The bags of a cohort: which slides each patient has, and their patches in memory."""

import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np
from absl import logging
from tqdm import tqdm

from steph_jax.data.features import kinds
from steph_jax.data.features.source import EmptyBag, FeatureSource, read_bag
from steph_jax.messages import listed

#: What XLA asks of host memory that it is to read in place, in bytes.
_ALIGNMENT = 64


class MemoryBags:
    """Bags in memory, one after the other in one array; a `batches.BagStore`.

    They are made empty, and filled through `bag`.

    Args:
        num_patches: patches of every bag.
        feature_dim: D.
        dtype: float type the features are kept in.
    """

    def __init__(
        self, num_patches: Sequence[int] | np.ndarray, feature_dim: int, dtype: np.dtype
    ) -> None:
        self.num_patches = np.asarray(num_patches, np.int64)
        self.feature_dim = feature_dim
        self.dtype = np.dtype(dtype)
        self._first = np.cumsum([0, *self.num_patches])
        self._patches = _aligned((int(self._first[-1]), feature_dim), self.dtype)

    @classmethod
    def of(cls, bags: Sequence[np.ndarray], feature_dim: int, dtype: np.dtype) -> Self:
        """Copies of some bags [N, D]."""
        made = cls([len(bag) for bag in bags], feature_dim, dtype)
        for index, bag in enumerate(bags):
            made.bag(index)[:] = bag
        return made

    def bag(self, index: int) -> np.ndarray:
        """The patches [N, D] of a bag, in place."""
        return self._patches[self._first[index] : self._first[index + 1]]

    def expect(self, order: Sequence[int]) -> None:
        """Nothing is to be prepared: all bags are in memory (see `cache.Bags`)."""

    def read(self, index: int, start: int, out: np.ndarray) -> None:
        """Copies patches [start, start + len(out)) of bag `index` into `out` [n, D]."""
        out[:] = self.bag(index)[start : start + len(out)]

    def lend(self, index: int, start: int, size: int) -> np.ndarray | None:
        """See `batches.BagStore`: other bags follow, but behind the last one there is nothing."""
        begin = int(self._first[index]) + start
        if begin + size > len(self._patches):
            return None
        rows = self._patches[begin : begin + size]
        rows.flags.writeable = False
        return rows


def _aligned(shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    """An array whose memory a CPU device can use without a copy."""
    size = shape[0] * shape[1] * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    skipped = -memory.ctypes.data % _ALIGNMENT
    return memory[skipped : skipped + size].view(dtype).reshape(shape)


class LazyBags:
    """Bags read piece by piece as they are asked for; a `batches.BagStore` that keeps nothing.

    Attributes:
        source: where the features are.
        slides: the slides of each patient.

    Args:
        source: where the features are.
        slides: the slides of each patient, joined along patches in this order.
        dtype: float type that patches are handed out in.

    Raises:
        FileNotFoundError: if any slide has no features; lists them.
        ValueError: for a file that cannot be used, or features of different sizes.
    """

    def __init__(
        self, source: FeatureSource, slides: Sequence[Sequence[str]], dtype: np.dtype
    ) -> None:
        source.require(slide for of_patient in slides for slide in of_patient)
        self.source = source
        self.slides = [list(of_patient) for of_patient in slides]
        self._starts = [
            np.cumsum([0, *(source.num_patches(slide) for slide in of_patient)])
            for of_patient in self.slides
        ]
        self.num_patches = np.array([starts[-1] for starts in self._starts], np.int64)
        self.feature_dim = shared_dim(source, slides)
        warn_of_empty(source, slides)
        self.dtype = np.dtype(dtype)

    def lend(self, index: int, start: int, size: int) -> np.ndarray | None:
        """Nothing is in memory to be lent; see `batches.BagStore`."""
        return None

    def expect(self, order: Sequence[int]) -> None:
        """Nothing is prepared: patches are read as they are asked for (see `cache.Bags`)."""

    def read(self, index: int, start: int, out: np.ndarray) -> None:
        """Copies patches [start, start + len(out)) of bag `index` into `out` [n, D]."""
        starts, done = self._starts[index], 0
        first = int(np.searchsorted(starts, start, side="right")) - 1
        for i in range(first, len(self.slides[index])):
            if done == len(out):
                return
            begin = start + done - int(starts[i])
            end = min(int(starts[i + 1] - starts[i]), begin + len(out) - done)
            if end > begin:
                rows = out[done : done + end - begin]
                self.source.read_rows(self.slides[index][i], begin, end, rows, check_finite=True)
                done += end - begin


def refuse_empty(
    source: FeatureSource, patients: Sequence[str], slides: Sequence[Sequence[str]]
) -> None:
    """Refuses patients without any patch, and slides without features; lists them.

    Raises:
        FileNotFoundError, EmptyBag: see `load_bags`.
    """
    source.require(slide for of_patient in slides for slide in of_patient)
    empty = [
        patient
        for patient, of_patient in zip(patients, slides, strict=True)
        if not any(source.num_patches(slide) for slide in of_patient)
    ]
    if empty:
        raise EmptyBag(
            f"{len(empty)} patients have no patch in any of their slides: {listed(empty)}; "
            "extract their features again, or take them out of the table and the splits"
        )


def shared_dim(source: FeatureSource, slides: Sequence[Sequence[str]]) -> int:
    """D of all slides that have patches; 0 where none has.

    Raises:
        ValueError: they differ; names a file of every size.
    """
    of_dim = defaultdict(list)
    for slide in (slide for of_patient in slides for slide in of_patient):
        if source.num_patches(slide):
            of_dim[source.dim(slide)].append(slide)
    if len(of_dim) > 1:
        shapes = [(source.num_patches(s), d) for d, names in of_dim.items() for s in names]
        if kinds.seem_transposed(shapes):
            raise ValueError(f"{source.location}: {kinds.transposed_text(shapes)}")
        found = "; ".join(
            f"D = {dim} in {len(of)} slide(s), {source.path_of(of[0])} among them"
            for dim, of in sorted(of_dim.items())
        )
        raise ValueError(f"features differ in size: {found}; extract all with one encoder")
    return next(iter(of_dim), 0)


def warn_of_empty(source: FeatureSource, slides: Sequence[Sequence[str]]) -> None:
    """Says on the log which slides have no patches, beside others of the same patient."""
    empty = [
        source.path_of(slide)
        for of_patient in slides
        if any(source.num_patches(slide) for slide in of_patient)
        for slide in of_patient
        if not source.num_patches(slide)
    ]
    if empty:
        logging.warning(
            "slides without patches (%d), the others of their patients are used: %s",
            len(empty),
            listed(empty),
        )


def load_bags(
    source: FeatureSource,
    patients: Sequence[str],
    slides: Sequence[Sequence[str]],
    dtype: np.dtype,
) -> MemoryBags:
    """Reads all bags of some patients into memory.

    Args:
        source: where the features are.
        patients: ids.
        slides: the slides of each patient.
        dtype: float type to keep them in.

    Raises:
        FileNotFoundError: if any slide has no features; lists them.
        EmptyBag: for patients without any patch; lists them.
        ValueError: for NaN or infinity, or features of different sizes.
    """
    refuse_empty(source, patients, slides)
    warn_of_empty(source, slides)
    sizes = [sum(map(source.num_patches, of_patient)) for of_patient in slides]
    bags = MemoryBags(sizes, shared_dim(source, slides), np.dtype(dtype))
    shown = tqdm(slides, desc="reading features", unit="patient", disable=not sys.stderr.isatty())
    for index, of_patient in enumerate(shown):
        read_bag(source, of_patient, bags.bag(index), check_finite=True)
    return bags


class BagStore(Protocol):
    """Where bags are read from.

    Attributes:
        num_patches: [n] patches of every bag.
        feature_dim: D.
        dtype: float type of the features.
    """

    num_patches: np.ndarray
    feature_dim: int
    dtype: np.dtype

    def read(self, index: int, start: int, out: np.ndarray) -> None:
        """Copies patches [start, start + len(out)) of a bag into `out` [n, D]."""

    def lend(self, index: int, start: int, size: int) -> np.ndarray | None:
        """Rows [size, D] that begin with patch `start` of a bag, where they lie in memory.

        Behind the bag's last patch other bags' patches may stand. They cannot be written to. None
        where the patches have to be read.
        """


class Bags(BagStore, Protocol):
    """Bags that can be told what will be read next."""

    def expect(self, order: Sequence[int]) -> None:
        """Says which bags are going to be read, in their order; replaces what was said before."""


class JoinedBags:
    """The bags of several cohorts, one cohort after the other; a `cache.Bags`.

    Attributes:
        num_patches: [n] patches of every bag.
        feature_dim: D.
        dtype: float type of the features.
        parts: bags of each cohort.

    Args:
        parts: bags of each cohort.

    Raises:
        ValueError: their features differ in size.
    """

    def __init__(self, parts: Sequence[Bags]) -> None:
        dims = {part.feature_dim for part in parts}
        if len(dims) > 1:
            raise ValueError(f"features differ in size between cohorts: found D = {sorted(dims)}")
        self.num_patches = np.concatenate([part.num_patches for part in parts])
        self.feature_dim = dims.pop()
        self.dtype = parts[0].dtype
        self.parts = list(parts)
        self._starts = np.cumsum([0, *(len(part.num_patches) for part in parts)])

    def expect(self, order: Sequence[int]) -> None:
        """Tells every part which of its bags are going to be read; see `cache.Bags`."""
        owners = [self._owner(index) for index in order]
        for number, part in enumerate(self.parts):
            part.expect([inner for owner, inner in owners if owner == number])

    def read(self, index: int, start: int, out: np.ndarray) -> None:
        """Copies patches [start, start + len(out)) of bag `index` into `out` [n, D]."""
        owner, inner = self._owner(index)
        self.parts[owner].read(inner, start, out)

    def lend(self, index: int, start: int, size: int) -> np.ndarray | None:
        """What the part lends that holds the bag; see `batches.BagStore`."""
        owner, inner = self._owner(index)
        return self.parts[owner].lend(inner, start, size)

    def _owner(self, index: int) -> tuple[int, int]:
        """The part that holds a bag, and the bag's number there."""
        owner = int(np.searchsorted(self._starts, index, side="right")) - 1
        return owner, int(index - self._starts[owner])
