"""How the patches of a cohort's bags are read: a bag is a patient's slides, joined.

Whatever reads bags takes a `BagReader`: `InMemoryBags` and `OnDiskBags` here, and
`cache.CachedBags` between the two. `cache.open_bags` chooses one by the memory that a run may take.
"""

import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np
from absl import logging
from tqdm import tqdm

from steph_jax.data.features import lookalikes
from steph_jax.data.features.source import EmptyBag, FeatureSource
from steph_jax.messages import join_names

#: What XLA asks of host memory that it is to read in place, in bytes.
_ALIGNMENT = 64


class BagReader(Protocol):
    """The bags of a cohort, wherever their patches are.

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

    def view(self, index: int, start: int, size: int) -> np.ndarray | None:
        """A read-only view of rows [size, D] that begin with patch `start` of a bag.

        It may go on with patches of other bags. None where the patches have to be read.
        """

    def announce(self, order: Sequence[int]) -> None:
        """Announces the bags that will be read next, in order, in place of an earlier `order`."""


class InMemoryBags:
    """A `BagReader` of bags in memory, one after the other in one array.

    The array is allocated empty, and filled through `bag`.

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
        copies = cls([len(bag) for bag in bags], feature_dim, dtype)
        for index, bag in enumerate(bags):
            copies.bag(index)[:] = bag
        return copies

    def bag(self, index: int) -> np.ndarray:
        """The patches [N, D] of a bag, in place."""
        return self._patches[self._first[index] : self._first[index + 1]]

    def announce(self, order: Sequence[int]) -> None:
        """Does nothing: all bags are in memory."""

    def read(self, index: int, start: int, out: np.ndarray) -> None:
        """Copies patches [start, start + len(out)) of bag `index` into `out` [n, D]."""
        out[:] = self.bag(index)[start : start + len(out)]

    def view(self, index: int, start: int, size: int) -> np.ndarray | None:
        """See `BagReader`; None where the array ends before the view would."""
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


class OnDiskBags:
    """A `BagReader` that reads every chunk from its files when it is asked for, and keeps nothing.

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
        source.require(slide for patient_slides in slides for slide in patient_slides)
        self.source = source
        self.slides = [list(patient_slides) for patient_slides in slides]
        self._starts = [
            np.cumsum([0, *(source.num_patches(slide) for slide in patient_slides)])
            for patient_slides in self.slides
        ]
        self.num_patches = np.array([starts[-1] for starts in self._starts], np.int64)
        self.feature_dim = shared_dim(source, slides)
        warn_about_empty(source, slides)
        self.dtype = np.dtype(dtype)

    def view(self, index: int, start: int, size: int) -> np.ndarray | None:
        """None: nothing is in memory; see `BagReader`."""
        return None

    def announce(self, order: Sequence[int]) -> None:
        """Does nothing: patches are read when they are asked for."""

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


def check_not_empty(
    source: FeatureSource, patients: Sequence[str], slides: Sequence[Sequence[str]]
) -> None:
    """Checks that every slide has features, and every patient a patch.

    Raises:
        FileNotFoundError, EmptyBag: see `load_bags`.
    """
    source.require(slide for patient_slides in slides for slide in patient_slides)
    empty = [
        patient
        for patient, patient_slides in zip(patients, slides, strict=True)
        if not any(source.num_patches(slide) for slide in patient_slides)
    ]
    if empty:
        raise EmptyBag(
            f"{len(empty)} patients have no patch in any of their slides: {join_names(empty)}; "
            "extract their features again, or take them out of the table and the splits"
        )


def shared_dim(source: FeatureSource, slides: Sequence[Sequence[str]]) -> int:
    """D of all slides that have patches; 0 where none has.

    Raises:
        ValueError: they differ; names a file of every size.
    """
    slides_by_dim = defaultdict(list)
    for slide in (slide for patient_slides in slides for slide in patient_slides):
        if source.num_patches(slide):
            slides_by_dim[source.dim(slide)].append(slide)
    if len(slides_by_dim) > 1:
        shapes = [(source.num_patches(s), d) for d, names in slides_by_dim.items() for s in names]
        if lookalikes.seem_transposed(shapes):
            raise ValueError(f"{source.location}: {lookalikes.transposed_text(shapes)}")
        dims = "; ".join(
            f"D = {dim} in {len(names)} slide(s), {source.path_of(names[0])} among them"
            for dim, names in sorted(slides_by_dim.items())
        )
        raise ValueError(f"features differ in size: {dims}; extract all with one encoder")
    return next(iter(slides_by_dim), 0)


def warn_about_empty(source: FeatureSource, slides: Sequence[Sequence[str]]) -> None:
    """Logs the slides without patches of patients who have other slides with some."""
    empty = [
        source.path_of(slide)
        for patient_slides in slides
        if any(source.num_patches(slide) for slide in patient_slides)
        for slide in patient_slides
        if not source.num_patches(slide)
    ]
    if empty:
        logging.warning(
            "slides without patches (%d), the others of their patients are used: %s",
            len(empty),
            join_names(empty),
        )


def load_bags(
    source: FeatureSource,
    patients: Sequence[str],
    slides: Sequence[Sequence[str]],
    dtype: np.dtype,
) -> InMemoryBags:
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
    check_not_empty(source, patients, slides)
    files = OnDiskBags(source, slides, dtype)
    bags = InMemoryBags(files.num_patches, files.feature_dim, files.dtype)
    progress = tqdm(
        range(len(slides)), desc="reading features", unit="patient", disable=not sys.stderr.isatty()
    )
    for index in progress:
        files.read(index, 0, bags.bag(index))
    return bags


class ConcatBags:
    """A `BagReader` of the bags of several cohorts, one cohort after the other.

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

    def __init__(self, parts: Sequence[BagReader]) -> None:
        dims = {part.feature_dim for part in parts}
        if len(dims) > 1:
            raise ValueError(f"features differ in size between cohorts: found D = {sorted(dims)}")
        self.num_patches = np.concatenate([part.num_patches for part in parts])
        self.feature_dim = dims.pop()
        self.dtype = parts[0].dtype
        self.parts = list(parts)
        self._starts = np.cumsum([0, *(len(part.num_patches) for part in parts)])

    def announce(self, order: Sequence[int]) -> None:
        """Announces to every part its bags of `order`; see `BagReader`."""
        places = [self._place(index) for index in order]
        for number, part in enumerate(self.parts):
            part.announce([inner for part_number, inner in places if part_number == number])

    def read(self, index: int, start: int, out: np.ndarray) -> None:
        """Copies patches [start, start + len(out)) of bag `index` into `out` [n, D]."""
        part, inner = self._place(index)
        self.parts[part].read(inner, start, out)

    def view(self, index: int, start: int, size: int) -> np.ndarray | None:
        """The view of the part that has the bag; see `BagReader`."""
        part, inner = self._place(index)
        return self.parts[part].view(inner, start, size)

    def _place(self, index: int) -> tuple[int, int]:
        """The number of the part that has a bag, and the bag's number there."""
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return part, int(index - self._starts[part])
