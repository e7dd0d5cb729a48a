"""Where the patches of a packed store lie: coords.bin, and an entry of store.json for each slide.

    NAME.store/coords.bin       [patches, 2] float64, little-endian: row by row as features.bin;
                                zeros for slides whose files say nothing
    store.json, "coordinates"   by slide: sha256 of its rows, patch_size, unit

Programs from before coordinates were kept read such stores, and pass both over; stores from then
have neither.
"""

import concurrent.futures
import hashlib
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from absl import logging

from steph_jax.data.features.coordinates import MICROMETERS, PIXELS, Coordinates, expect_finite
from steph_jax.data.features.slide import BadFeatures
from steph_jax.data.features.source import FeatureSource

DATA = "coords.bin"
DTYPE = np.dtype("<f8")
_ROW_BYTES = 2 * DTYPE.itemsize
_FIELDS = {"sha256", "patch_size", "unit"}


def parse(value: Any) -> dict[str, dict[str, Any]]:
    """The entries of store.json, or ValueError."""
    if not isinstance(value, dict) or not all(map(_is_entry, value.values())):
        raise ValueError("coordinates have entries of the wrong type")
    return value


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, Mapping) or set(entry) != _FIELDS:
        return False
    size = entry["patch_size"]
    has_size = size is None or (isinstance(size, int | float) and 0 < size < np.inf)
    return isinstance(entry["sha256"], str) and has_size and entry["unit"] in (PIXELS, MICROMETERS)


def write(
    folder: pathlib.Path,
    source: FeatureSource,
    slides: Iterable[tuple[str, int]],
    rows: int,
    workers: int,
) -> dict[str, dict[str, Any]]:
    """Writes the coordinates of all slides that have some, and flushes them to the disk.

    A slide whose coordinates cannot be read is packed without, and named on the log.

    Args:
        folder: of the growing store.
        source: where the slides are.
        slides: id and first row of every slide.
        rows: of the store.
        workers: threads that read.

    Returns:
        the entries of store.json.

    Raises:
        OSError: the disk is full, or cannot be written.
    """

    def read(slide_id: str) -> Coordinates | str | None:
        try:
            return source.coordinates(slide_id)
        except (ValueError, OSError) as error:
            return " ".join(str(error).split())

    entries: dict[str, dict[str, Any]] = {}
    order = list(slides)
    (folder / DATA).unlink(missing_ok=True)
    with concurrent.futures.ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            for (slide_id, start), value in zip(
                order, pool.map(read, [slide_id for slide_id, _ in order]), strict=True
            ):
                if isinstance(value, str):
                    logging.warning("packed without coordinates: %s", value)
                elif value is not None:
                    data = _bytes(value)
                    _write_at(folder / DATA, start * _ROW_BYTES, data)
                    entries[slide_id] = {
                        "sha256": hashlib.sha256(data).hexdigest(),
                        "patch_size": value.patch_size,
                        "unit": value.unit,
                    }
        except BaseException:
            source.give_up()
            pool.shutdown(cancel_futures=True)
            raise
    if entries:
        with (folder / DATA).open("r+b") as file:
            file.truncate(rows * _ROW_BYTES)
            os.fsync(file.fileno())
    return entries


def _bytes(coordinates: Coordinates) -> bytes:
    return np.ascontiguousarray(coordinates.xy, DTYPE).tobytes()


def _write_at(path: pathlib.Path, offset: int, data: bytes) -> None:
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.seek(offset)
        file.write(data)


def read(
    folder: pathlib.Path, entry: Mapping[str, Any], start: int, num_patches: int, rows: int
) -> Coordinates:
    """The coordinates of a slide of a store.

    Args:
        folder: of the store.
        entry: of the slide, in store.json.
        start: its first row.
        num_patches: N.
        rows: of the store.

    Raises:
        BadFeatures: the file is not there, of another size, or not what was packed.
    """
    path = folder / DATA
    size = path.stat().st_size if path.is_file() else 0
    if size != rows * _ROW_BYTES:
        raise BadFeatures(
            f"{path}: expected {rows * _ROW_BYTES:,} bytes for coordinates of {rows} patches, "
            f"found {size:,}; copy the store again, or pack it again"
        )
    with path.open("rb") as file:
        file.seek(start * _ROW_BYTES)
        data = file.read(num_patches * _ROW_BYTES)
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise BadFeatures(
            f"{path}: its bytes do not have the checksum of store.json in rows {start} .. "
            f"{start + num_patches - 1}; copy the store again, or pack it again"
        )
    xy = np.frombuffer(data, DTYPE).reshape(-1, 2).astype(np.float64)
    expect_finite(xy, str(path))
    return Coordinates(xy, entry["patch_size"], entry["unit"])


def difference(store: FeatureSource, source: FeatureSource, slide_id: str) -> str | None:
    """How the coordinates of a slide of a store differ from those it came from, or None.

    Raises:
        ValueError, OSError: they cannot be read.
    """
    packed = store.coordinates(slide_id)
    if packed is None:
        return None
    origin = source.coordinates(slide_id)
    if origin is not None and _bytes(packed) == _bytes(origin):
        return None
    return (
        f"{source.path_of(slide_id)}: its coordinates are not what {store.location} was packed "
        "from; if the new ones are the right ones, pack them again"
    )
