"""Chunks of HDF5 datasets that unpack to more than they are, found before libhdf5 unpacks them.

libhdf5 inflates a chunk to its end, however long that is, and only then compares sizes: 2 MB took
2 GB.
"""

import pathlib
import zlib
from typing import Any

import h5py

from steph_jax.data.features.slide import EXPANSION_SLACK, MAX_EXPANSION, BadFeatures

#: Deflate makes at most so many bytes of one.
_DEFLATE_RATIO = 1032
_DEFLATE, _FLETCHER32, _CHECKSUM_BYTES = h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32, 4


def refuse_bombs(dataset: Any, nbytes: int, path: pathlib.Path) -> None:
    """Refuses deflated chunks that unpack to more than the bytes of a chunk.

    Only those are unpacked here, too, that could take more memory than any file may: few or none,
    unless nearly all of a file is in a few chunks.

    Args:
        dataset: opened.
        nbytes: of a chunk, unpacked.
        path: of the file.

    Raises:
        BadFeatures: there is such a chunk.
    """
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    allowed = MAX_EXPANSION * path.stat().st_size + EXPANSION_SLACK
    if _DEFLATE not in filters:
        return
    if filters.count(_DEFLATE) > 1:
        raise BadFeatures(f"{path}: values that are compressed twice; write them again")
    if dataset.id.get_storage_size() * _DEFLATE_RATIO <= allowed:
        return
    suspects: list[tuple[int, ...]] = []

    def note(chunk: Any) -> None:
        if chunk.size * _DEFLATE_RATIO > allowed:
            suspects.append(chunk.chunk_offset)

    dataset.id.chunk_iter(note)
    for place in suspects:
        skipped, raw = dataset.id.read_direct_chunk(place)
        if not _fits(raw, filters, skipped, nbytes):
            raise BadFeatures(
                f"{path}: expected chunks of {nbytes:,} bytes, found one that unpacks to another "
                "size; the file is damaged: copy it again, or extract the slide again"
            )


def _fits(raw: bytes, filters: list[int], skipped: int, nbytes: int) -> bool:
    """Whether a chunk inflates to `nbytes`; filters apply in reverse order when it is read."""
    for number in reversed(range(len(filters))):
        if skipped >> number & 1:
            continue
        if filters[number] == _DEFLATE:
            stream = zlib.decompressobj()
            return len(stream.decompress(raw, nbytes + 1)) == nbytes and stream.eof
        if filters[number] != _FLETCHER32:
            return False  # deflated data are not compressed again
        raw = raw[:-_CHECKSUM_BYTES]
    return True
