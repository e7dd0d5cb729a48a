"""One pass over values that are streamed, before they are trained on: all bad slides at once.

Bags that are read into memory are looked at as they come there. Those that a cache streams would
show a NaN or a damaged chunk in the middle of an epoch.
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from steph_jax.data.bags import Bags, JoinedBags, LazyBags
from steph_jax.data.cache import CachedBags
from steph_jax.data.features.source import FeatureSource
from steph_jax.data.features.store import StoreSource
from steph_jax.data.features.store_plan import file_of

#: Bytes that are read at a time.
_PIECE_BYTES = 1 << 26

Progress = Callable[[], object]


def unchecked(bags: Bags) -> list[CachedBags]:
    """The bags whose values are unchecked: streamed, and not from a packed store.

    The values of a store were checked when it was packed.
    """
    parts = bags.parts if isinstance(bags, JoinedBags) else [bags]
    return [
        part
        for part in parts
        if isinstance(part, CachedBags) and not isinstance(part.source, StoreSource)
    ]


def fingerprint(parts: Sequence[LazyBags]) -> str:
    """SHA-256 of which slides some bags have, in which dtype, and of sizes and times of files."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part.dtype}\n".encode())
        for slide in (slide for of_patient in part.slides for slide in of_patient):
            stat = file_of(part.source, slide).stat()
            where = part.source.path_of(slide)
            digest.update(f"{where}\t{stat.st_size}\t{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def bad_slides(bags: CachedBags, progress: Progress = lambda: None) -> list[str]:
    """Reads all bags, into their cache as far as it goes; says what is wrong with each bad slide.

    Args:
        bags: to be read.
        progress: called after each of them.
    """
    row_bytes = max(1, bags.feature_dim * bags.dtype.itemsize)
    buffer = np.empty((max(1, _PIECE_BYTES // row_bytes), bags.feature_dim), bags.dtype)
    problems = []
    bags.expect(range(len(bags.num_patches)))
    for index, num_patches in enumerate(bags.num_patches):
        try:
            for start, stop in _pieces(int(num_patches), len(buffer)):
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
        for start, stop in _pieces(source.num_patches(slide), len(buffer)):
            source.read_rows(slide, start, stop, buffer[: stop - start], check_finite=True)
    except (ValueError, OSError) as error:
        return str(error)
    return ""


def _pieces(num_patches: int, size: int) -> list[tuple[int, int]]:
    """Where to start and stop, in order to go through some patches."""
    return [(i, min(num_patches, i + size)) for i in range(0, num_patches, size)]
