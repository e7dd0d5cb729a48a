"""What a packed store will hold, from the headers of the slides."""

import concurrent.futures
import os
import pathlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from steph_jax import __version__
from steph_jax.data.features.open import places
from steph_jax.data.features.slide import Layout
from steph_jax.data.features.source import FeatureSource
from steph_jax.data.features.store import DATA, DTYPES, Index, Record

#: The float type of the files where they share one, float32 for float64 and for mixtures.
SAME = "source"

#: The layout of a slide, and the name of the encoder that made it, "" where its file does not say.
Header = tuple[Layout, str]


def one_line(error: Exception) -> str:
    """The message of an error on one line."""
    return " ".join(str(error).split())


def scan(
    source: FeatureSource, slide_ids: Sequence[str], workers: int, bad: dict[str, str]
) -> dict[str, Header]:
    """The headers of the slides in sorted order; adds those that have none to `bad`."""
    chosen = sorted(set(slide_ids))

    def header(slide_id: str) -> Header | str:
        if source.missing([slide_id]):
            return f"{slide_id}: no features of this slide in {source.location}"
        try:
            return source.layout(slide_id), source.encoder(slide_id)
        except (ValueError, OSError) as error:
            return one_line(error)

    with concurrent.futures.ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            found = dict(zip(chosen, pool.map(header, chosen), strict=True))
        except BaseException:
            source.give_up()
            pool.shutdown(cancel_futures=True)
            raise
    headers = {}
    for slide_id, value in found.items():
        if isinstance(value, str):
            bad[slide_id] = value
        else:
            headers[slide_id] = value
    return headers


def make_plan(
    source: FeatureSource, headers: dict[str, Header], dtype: str, bad: dict[str, str]
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
    dims = Counter(layout.dim for layout, _ in headers.values() if layout.num_patches)
    dim = max(sorted(dims), key=lambda d: dims[d], default=0)
    slides, start, types = [], 0, set()
    for slide_id, (layout, encoder) in headers.items():
        where = source.path_of(slide_id)
        if layout.num_patches and layout.dim != dim:
            bad[slide_id] = f"{where}: expected D = {dim}, as most slides have, found {layout.dim}"
            continue
        try:
            stat = file_of(source, slide_id).stat()
        except OSError as error:
            bad[slide_id] = one_line(error)
            continue
        shape = [*([1] if layout.leading else []), layout.num_patches, layout.dim]
        came_from = {
            "path": os.path.abspath(where),
            "shape": shape,
            "dtype": layout.dtype.name,
            "size": stat.st_size,
            "mtime_ns": stat.st_mtime_ns,
        }
        if encoder:
            came_from["encoder"] = encoder
        slides.append(Record(slide_id, start, layout.num_patches, "", came_from))
        start += layout.num_patches
        if layout.num_patches:
            types.add(layout.dtype.name)
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
