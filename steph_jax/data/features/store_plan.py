"""What a packed store will hold, from the headers of the slides."""

import concurrent.futures
import os
import pathlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from steph_jax import __version__
from steph_jax.data.features.open import places
from steph_jax.data.features.slide import SlideHeader
from steph_jax.data.features.source import FeatureSource
from steph_jax.data.features.store import DATA, DTYPES, Index, Record

#: The float type of the files where they share one, float32 for float64 and for mixtures.
SAME = "source"

#: The header of a slide, and the name of the encoder that made it, "" where its file has none.
ScannedSlide = tuple[SlideHeader, str]


def one_line(error: Exception) -> str:
    """The message of an error on one line."""
    return " ".join(str(error).split())


def scan(
    source: FeatureSource, slide_ids: Sequence[str], workers: int, bad: dict[str, str]
) -> dict[str, ScannedSlide]:
    """The headers of the slides in sorted order; adds those that have none to `bad`."""
    ordered_ids = sorted(set(slide_ids))

    def read_header(slide_id: str) -> ScannedSlide | str:
        if source.missing([slide_id]):
            return f"{slide_id}: no features of this slide in {source.location}"
        try:
            return source.header(slide_id), source.encoder(slide_id)
        except (ValueError, OSError) as error:
            return one_line(error)

    with concurrent.futures.ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            results = dict(zip(ordered_ids, pool.map(read_header, ordered_ids), strict=True))
        except BaseException:
            source.give_up()
            pool.shutdown(cancel_futures=True)
            raise
    headers = {}
    for slide_id, value in results.items():
        if isinstance(value, str):
            bad[slide_id] = value
        else:
            headers[slide_id] = value
    return headers


def make_plan(
    source: FeatureSource, headers: dict[str, ScannedSlide], dtype: str, bad: dict[str, str]
) -> Index:
    """Which rows each slide gets; adds slides of another D than most have to `bad`.

    Args:
        source: where the slides are.
        headers: of the slides, in the order of their rows.
        dtype: one of `store.DTYPES`, or `SAME`.
        bad: why a slide cannot be packed, by slide id.

    Returns:
        the index that the store will have, without checksums.
    """
    dims = Counter(header.dim for header, _ in headers.values() if header.num_patches)
    dim = max(sorted(dims), key=lambda d: dims[d], default=0)
    slides, start, types = [], 0, set()
    for slide_id, (header, encoder) in headers.items():
        where = source.path_of(slide_id)
        if header.num_patches and header.dim != dim:
            bad[slide_id] = f"{where}: expected D = {dim}, as most slides have, found {header.dim}"
            continue
        try:
            stat = file_of(source, slide_id).stat()
        except OSError as error:
            bad[slide_id] = one_line(error)
            continue
        shape = [*([1] if header.leading else []), header.num_patches, header.dim]
        came_from = {
            "path": os.path.abspath(where),
            "shape": shape,
            "dtype": header.dtype.name,
            "size": stat.st_size,
            "mtime_ns": stat.st_mtime_ns,
        }
        if encoder:
            came_from["encoder"] = encoder
        slides.append(Record(slide_id, start, header.num_patches, "", came_from))
        start += header.num_patches
        if header.num_patches:
            types.add(header.dtype.name)
    if dtype == SAME:
        dtype = types.pop() if len(types) == 1 and types <= DTYPES.keys() else "float32"
    provenance = {
        "location": ",".join(os.path.abspath(place) for place in places(source.location)),
        "dataset_name": source.dataset_name,
        "steph_jax": __version__,
        "numpy": np.__version__,
    }
    return Index(dtype, dim, start, tuple(slides), {}, provenance)


def file_of(source: FeatureSource, slide_id: str) -> pathlib.Path:
    """The file that holds a slide: its own, or that of its whole source."""
    own = pathlib.Path(source.path_of(slide_id).removesuffix(f"[{slide_id}]"))
    return next((path for path in (own, own / "data.mdb", own / DATA) if path.is_file()), own)
