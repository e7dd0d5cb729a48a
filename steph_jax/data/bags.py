"""The bags of a cohort: which slides each patient has, and their patches in memory."""

import sys
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from steph_jax.data.features import EmptyBag, FeatureSource, read_bag


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

    def read(self, index: int, start: int, out: np.ndarray) -> None:
        """Copies patches [start, start + len(out)) of bag `index` into `out` [n, D]."""
        out[:] = self._bags[index][start : start + len(out)]


def load_bags(
    source: FeatureSource, slides: Sequence[Sequence[str]], dtype: np.dtype, what: str
) -> MemoryBags:
    """Reads all bags of some patients.

    Args:
        source: where the features are.
        slides: the slides of each patient.
        dtype: float type to keep them in.
        what: what is being read, for the progress bar.

    Raises:
        FileNotFoundError: if any slide has no features; lists them.
        EmptyBag: for a patient without any patch.
        ValueError: for NaN or infinity, or features of different sizes.
    """
    source.require(slide for of_patient in slides for slide in of_patient)
    bags = []
    for of_patient in tqdm(
        slides, desc=f"reading {what}", unit="patient", disable=not sys.stderr.isatty()
    ):
        bags.append(read_bag(source, of_patient, dtype=dtype, check_finite=True))
    dims = {bag.shape[1] for bag in bags}
    if len(dims) > 1:
        raise ValueError(f"features of {what} differ in size: found D = {sorted(dims)}")
    return MemoryBags(bags, dims.pop(), np.dtype(dtype))


__all__ = ["EmptyBag", "MemoryBags", "load_bags"]
