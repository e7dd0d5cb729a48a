"""One pass over streamed values before training, which finds all bad slides at once.

Bags that fit into memory are checked as they are read. In bags that a cache streams, a NaN or a
damaged chunk would otherwise come up in the middle of an epoch.
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from steph_jax.data.bags import BagReader, ConcatBags, OnDiskBags
from steph_jax.data.cache import CachedBags
from steph_jax.data.features.source import FeatureSource
from steph_jax.data.features.store import StoreSource
from steph_jax.data.features.store_plan import file_of

#: Bytes that are read at a time.
_BUFFER_BYTES = 1 << 26

Progress = Callable[[], object]


def unchecked(bags: BagReader) -> list[CachedBags]:
    """The bags whose values are unchecked: streamed, and not from a packed store.

    The values of a store were checked when it was packed.
    """
    parts = bags.parts if isinstance(bags, ConcatBags) else [bags]
    return [
        part
        for part in parts
        if isinstance(part, CachedBags) and not isinstance(part.source, StoreSource)
    ]


def fingerprint(parts: Sequence[OnDiskBags]) -> str:
    """SHA-256 of the slides of some bags, their dtype, and sizes and times of their files."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part.dtype}\n".encode())
        for slide in (slide for patient_slides in part.slides for slide in patient_slides):
            stat = file_of(part.source, slide).stat()
            where = part.source.path_of(slide)
            digest.update(f"{where}\t{stat.st_size}\t{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def bad_slides(
    bags: CachedBags, patients: Sequence[int], progress: Progress = lambda: None
) -> list[str]:
    """Reads some bags, into their cache as far as it goes; returns what is wrong with bad slides.

    Args:
        bags: of a cohort.
        patients: numbers of the bags to be read.
        progress: called after each of them.
    """
    row_bytes = max(1, bags.feature_dim * bags.dtype.itemsize)
    buffer = np.empty((max(1, _BUFFER_BYTES // row_bytes), bags.feature_dim), bags.dtype)
    problems = []
    bags.announce(patients)
    for index in patients:
        try:
            for start, stop in _spans(int(bags.num_patches[index]), len(buffer)):
                bags.read(index, start, buffer[: stop - start])
        except (ValueError, OSError) as error:
            # The bag is joined of slides, and the first bad one hides the rest.
            slides = [_problem(bags.source, slide, buffer) for slide in bags.slides[index]]
            problems += [problem for problem in slides if problem] or [str(error)]
        progress()
    return problems


def _problem(source: FeatureSource, slide: str, buffer: np.ndarray) -> str:
    """What is wrong with the values of a slide; "" if nothing is."""
    try:
        for start, stop in _spans(source.num_patches(slide), len(buffer)):
            source.read_rows(slide, start, stop, buffer[: stop - start], check_finite=True)
    except (ValueError, OSError) as error:
        return str(error)
    return ""


def _spans(num_patches: int, size: int) -> list[tuple[int, int]]:
    """(first, last + 1) of consecutive parts of some patches, `size` in each."""
    return [(i, min(num_patches, i + size)) for i in range(0, num_patches, size)]
