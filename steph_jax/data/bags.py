"""The bags of a cohort: which slides each patient has, and their patches in memory."""

import sys
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from steph_jax.data.features import EmptyBag, FeatureSource, read_bag
from steph_jax.labels import listed


class MemoryBags:
    """Bags read once and kept in memory; a `batches.BagStore`.

    Attributes:
        num_patches: [n] patches of every bag.
        feature_dim: D.
        dtype: float type the features are kept in.
    """

    def __init__(self, bags: Sequence[np.ndarray], feature_dim: int, dtype: np.dtype) -> None:
        self.num_patches = np.array([len(bag) for bag in bags], np.int64)
        self.feature_dim = feature_dim
        self.dtype = dtype
        self._bags = list(bags)

    def expect(self, order: Sequence[int]) -> None:
        """Nothing is to be prepared: all bags are in memory (see `cache.Bags`)."""

    def read(self, index: int, start: int, out: np.ndarray) -> None:
        """Copies patches [start, start + len(out)) of bag `index` into `out` [n, D]."""
        out[:] = self._bags[index][start : start + len(out)]


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
        self._starts = []
        dims = set()
        for of_patient in self.slides:
            layouts = [source.layout(slide) for slide in of_patient]
            dims |= {layout.dim for layout in layouts if layout.num_patches}
            self._starts.append(np.cumsum([0, *(layout.num_patches for layout in layouts)]))
        if len(dims) > 1:
            raise ValueError(f"features differ in size: found D = {sorted(dims)}")
        self.num_patches = np.array([starts[-1] for starts in self._starts], np.int64)
        self.feature_dim = dims.pop() if dims else 0
        self.dtype = np.dtype(dtype)

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
    shown = tqdm(slides, desc="reading features", unit="patient", disable=not sys.stderr.isatty())
    bags = [read_bag(source, of_patient, dtype=dtype, check_finite=True) for of_patient in shown]
    dims = {bag.shape[1] for bag in bags}
    if len(dims) > 1:
        raise ValueError(f"features differ in size between patients: found D = {sorted(dims)}")
    return MemoryBags(bags, dims.pop(), np.dtype(dtype))
