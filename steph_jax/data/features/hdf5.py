"""Patch features in HDF5, as TRIDENT, CLAM and the UNI2-h release write them.

This is the only home of h5py.
"""

import contextlib
import importlib
import importlib.util
import io
import math
import pathlib
from collections import deque
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np

from steph_jax.data.features import coordinates as places
from steph_jax.data.features import lookalikes
from steph_jax.data.features.hdf5_chunks import refuse_bombs
from steph_jax.data.features.slide import (
    BLOCK,
    BadFeatures,
    SlideHeader,
    SlideReader,
    check_size,
    convert,
    damage,
)

#: Attributes that name the encoder, and the one that names TRIDENT's folder of features.
_ENCODER_ATTRIBUTES = (
    *("encoder", "encoder_name", "patch_encoder", "patch_encoder_name"),
    *("extractor", "feature_extractor", "extractor_name", "tile_encoder", "model_name"),
    *("backbone", "foundation_model"),
)
_FOLDER_ATTRIBUTE, _FOLDER_PREFIX = "savetodir", "features_"
#: HDF5's numbers of compression filters that h5py itself may lack.
_FILTERS = {
    4: "szip",
    305: "LZO",
    307: "bzip2",
    32000: "LZF",
    32001: "Blosc",
    32004: "LZ4",
    32008: "Bitshuffle",
    32013: "ZFP",
    32015: "Zstandard",
    32017: "SZ",
    32026: "Blosc2",
}
#: Bytes of an attribute that is read.
_MAX_TEXT = 4096
#: Datasets that a message names, and links and levels of groups that are searched for them.
_MAX_NAMES, _MAX_LINKS, _MAX_DEPTH = 20, 1000, 16
#: Links to other places of the file that are followed one after the other.
_MAX_SOFT_LINKS = 16


@contextlib.contextmanager
def open_hdf5(path: pathlib.Path, name: str, feature_dim: int | None) -> Iterator[SlideReader]:
    """Opens the dataset `name`, any chunking and compression; see `open.open_file`."""
    with contextlib.ExitStack() as stack:
        with damage(path, "an HDF5 file"):
            # One pass over the chunks: caching them only costs. No lock: the folder may be
            # read-only, or on a network drive that has none.
            file = stack.enter_context(h5py.File(path, "r", locking=False, rdcc_nbytes=0))
            dataset = _hdf5_dataset(file, name, path)
            _load_filters(dataset, path)
            shape = (0,) if dataset.shape is None else dataset.shape
            header = SlideHeader.from_shape(shape, dataset.dtype, str(path), feature_dim)
            chunk_bytes = math.prod(dataset.chunks or ()) * dataset.dtype.itemsize
            check_size(max(header.nbytes, chunk_bytes), path.stat().st_size, str(path))

        def copy(start: int, stop: int, out: np.ndarray) -> None:
            with damage(path, "an HDF5 file"):
                _check_written(dataset, path)
                if chunk_bytes and dataset.chunks:
                    refuse_bombs(dataset, chunk_bytes, path)
                _copy_hdf5(dataset, header, start, stop, out, str(path))

        yield SlideReader(header, copy)


def _hdf5_dataset(file: h5py.File, name: str, path: pathlib.Path) -> Any:
    dataset = _object(file, name, path)
    if dataset is None and name == lookalikes.FEATURE_NAMES[0]:
        others = (_object(file, other, path) for other in lookalikes.FEATURE_NAMES[1:])
        dataset = next((other for other in others if other is not None), None)
    if not isinstance(dataset, h5py.Dataset):
        names = _hdf5_names(file)
        instead = lookalikes.without_features([text for text, _ in names])
        if names and instead:
            raise BadFeatures(
                f"{path}: no features here: {instead} ({_listed(names)}); {lookalikes.NAME_ANOTHER}"
            )
        raise BadFeatures(
            f"{path}: expected a dataset {name!r}, found {_listed(names) or 'none at all'}; "
            "name it by data.hdf5_dataset"
        )
    if _keeps_values_elsewhere(dataset):
        raise _elsewhere(path, name)
    return dataset


def _object(file: h5py.File, name: str, path: pathlib.Path) -> Any:
    """What `name` leads to within the file; None where there is nothing.

    Every link is examined before it is followed: to follow one into another file opens that file,
    whatever it is, and a pipe would never answer.

    Raises:
        BadFeatures: it leads to another file.
    """
    group, parts, soft_links = file["/"], deque(name.split("/")), 0
    while parts:
        part = parts.popleft()
        if part in ("", "."):
            continue
        encoded = part.encode("utf-8", "surrogateescape")
        if not isinstance(group, h5py.Group) or not group.id.links.exists(encoded):
            return None
        kind = group.id.links.get_info(encoded).type
        if kind == h5py.h5l.TYPE_HARD:
            group = group[part]
        elif kind == h5py.h5l.TYPE_SOFT:
            target = group.id.links.get_val(encoded).decode("utf-8", "surrogateescape")
            parts.extendleft(reversed(target.split("/")))
            group = file["/"] if target.startswith("/") else group
            soft_links += 1
            if soft_links > _MAX_SOFT_LINKS or len(parts) > _MAX_LINKS:
                return None
        else:
            raise _elsewhere(path, name)
    return group


def _keeps_values_elsewhere(dataset: Any) -> bool:
    return bool(dataset.is_virtual or dataset.external)


def _elsewhere(path: pathlib.Path, name: str) -> BadFeatures:
    return BadFeatures(f"{path}: {name!r} keeps its values in other files; copy them in")


def encoder(path: pathlib.Path, name: str) -> str:
    """The encoder's name from the attributes of the dataset `name` or the file; "" without any.

    Most programs write it as it is (STAMP: `extractor`); TRIDENT writes the folder,
    features_ENCODER. Read apart from the features, because it is text in a heap, which libhdf5 is
    weakest at where it is damaged.

    Raises:
        BadFeatures: see `open.open_file`.
    """
    with damage(path, "an HDF5 file"), h5py.File(path, "r", locking=False) as file:
        dataset = _hdf5_dataset(file, name, path)
        for owner in (dataset, dataset.parent, file):
            for attribute in _ENCODER_ATTRIBUTES:
                if text := _text(owner.attrs, attribute):
                    return text
        folder = pathlib.PurePath(_text(dataset.attrs, _FOLDER_ATTRIBUTE)).name
        folder = folder.removeprefix("slide_")
        return folder.removeprefix(_FOLDER_PREFIX) if folder.startswith(_FOLDER_PREFIX) else ""


def coordinates(path: pathlib.Path) -> places.Coordinates | None:
    """Where the patches of a file lie; None where it does not say.

    Raises:
        BadFeatures: coordinates that cannot be used; see `open.open_file`.
    """
    with damage(path, "an HDF5 file"), h5py.File(path, "r", locking=False) as file:
        arrays = ((name, _object(file, name, path)) for name in lookalikes.COORDINATE_NAMES)
        name, dataset = next(
            ((n, array) for n, array in arrays if isinstance(array, h5py.Dataset)), ("", None)
        )
        if dataset is None:
            return None
        if _keeps_values_elsewhere(dataset):
            raise _elsewhere(path, name)
        places.check_shape(dataset.shape or (0,), dataset.dtype, str(path))
        chunk_bytes = math.prod(dataset.chunks or ()) * dataset.dtype.itemsize
        check_size(max(dataset.nbytes, chunk_bytes), path.stat().st_size, str(path))
        _load_filters(dataset, path)
        _check_written(dataset, path)
        if chunk_bytes:
            refuse_bombs(dataset, chunk_bytes, path)
        notes: dict[str, Any] = {}
        for owner in (file.attrs, dataset.attrs):
            notes |= {n: owner[n] for n in places.SIZE_NAMES if _is_small_number(owner, n)}
        units = (_text(owner, places.UNIT_NAME) for owner in (dataset.attrs, file.attrs))
        notes[places.UNIT_NAME] = next(filter(None, units), "")
        values = dataset[...] if dataset.size else np.empty((0, 2))
        return places.from_values(values, notes, str(path))


def _is_small_number(attributes: Any, name: str) -> bool:
    if name not in attributes:
        return False
    attribute = attributes.get_id(name)
    return attribute.dtype.kind in "iuf" and attribute.get_storage_size() <= _MAX_TEXT


def _text(attributes: Any, name: str) -> str:
    """A short attribute of text; "" for anything else."""
    if name not in attributes:
        return ""
    attribute = attributes.get_id(name)
    if attribute.shape != () or attribute.get_storage_size() > _MAX_TEXT:
        return ""
    value = attributes[name]
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return text.strip() if isinstance(text, str) and len(text) <= _MAX_TEXT else ""


def _copy_hdf5(
    dataset: Any, header: SlideHeader, start: int, stop: int, out: np.ndarray, location: str
) -> None:
    """Copies rows; numpy converts them, piece by piece: HDF5 is slower at that."""

    def rows(first: int, last: int) -> tuple[int | slice, ...]:
        return (0, slice(first, last)) if header.leading else (slice(first, last),)

    if dataset.dtype == out.dtype:
        dataset.read_direct(out, rows(start, stop))
        return
    step = max(1, BLOCK // header.row_bytes)
    if dataset.chunks:
        chunk_rows = dataset.chunks[-2]
        step = math.ceil(step / chunk_rows) * chunk_rows
    raw = np.empty((min(step, stop - start), header.dim), dataset.dtype)
    for first in range(start, stop, step):
        last = min(first + step, stop)
        piece = raw[: last - first]
        dataset.read_direct(piece, rows(first, last))
        convert(piece.view(header.dtype), out[first - start : last - start], location)


def _load_filters(dataset: Any, path: pathlib.Path) -> None:
    """Makes the filters that a dataset was compressed with known to h5py.

    Raises:
        BadFeatures: one is not installed; names it.
    """
    plan = dataset.id.get_create_plist()
    numbers = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
    if all(map(h5py.h5z.filter_avail, numbers)):
        return
    # The package registers its filters when it is imported.
    installed = importlib.util.find_spec("hdf5plugin") is not None
    if installed:
        importlib.import_module("hdf5plugin")
    missing = [number for number in numbers if not h5py.h5z.filter_avail(number)]
    if missing:
        names = ", ".join(f"{_FILTERS.get(n, 'unknown')} (number {n})" for n in missing)
        advice = (
            "which hdf5plugin lacks too: write the features again without it"
            if installed
            else "which is not installed: `pip install hdf5plugin`"
        )
        raise BadFeatures(f"{path}: compressed with the HDF5 filter {names}, {advice}")


def _listed(names: list[tuple[str, object]]) -> str:
    return ", ".join(f"{name!r} {shape}" for name, shape in names)


def _hdf5_names(file: h5py.File) -> list[tuple[str, object]]:
    """The first datasets of a file with their shapes; links are not followed out of it."""
    names: list[tuple[str, object]] = []
    groups = deque([("", file["/"], 0)])
    visited, links = {_address(file["/"])}, 0
    while groups and links < _MAX_LINKS:
        prefix, group, depth = groups.popleft()
        children: list[bytes] = []

        def note(child: bytes, children: list[bytes] = children, num: int = links) -> bool | None:
            children.append(child)
            return True if num + len(children) >= _MAX_LINKS else None

        group.id.links.iterate(note)
        links += len(children)
        for child in children:
            if group.id.links.get_info(child).type != h5py.h5l.TYPE_HARD:
                continue
            name = child.decode("utf-8", "replace")
            item = group[child]
            address = _address(item)
            if address in visited:
                continue
            visited.add(address)
            if isinstance(item, h5py.Dataset):
                shape = (
                    "in other files" if _keeps_values_elsewhere(item) else list(item.shape or ())
                )
                names.append((prefix + name, shape))
                if len(names) == _MAX_NAMES:
                    return names
            elif isinstance(item, h5py.Group) and depth < _MAX_DEPTH:
                groups.append((f"{prefix}{name}/", item, depth + 1))
    return names


def _address(item: Any) -> int:
    """Where an object lies in its file."""
    address: int = h5py.h5o.get_info(item.id).addr
    return address


def _check_written(dataset: Any, path: pathlib.Path) -> None:
    """Refuses a dataset that was laid out and never filled: HDF5 would read it as zeros."""
    if not dataset.size:
        return
    if dataset.chunks is None:
        expected, stored_bytes = dataset.nbytes, dataset.id.get_storage_size()
    else:
        pairs = zip(dataset.shape, dataset.chunks, strict=True)
        expected = math.prod(math.ceil(size / chunk) for size, chunk in pairs)
        stored_bytes = dataset.id.get_num_chunks()
    if stored_bytes < expected:
        raise BadFeatures(
            f"{path}: expected {expected} written {'chunks' if dataset.chunks else 'bytes'}, "
            f"found {stored_bytes}; the program that wrote it was interrupted: extract the slide "
            "again"
        )


def write_hdf5(
    path: pathlib.Path, features: np.ndarray, coords: np.ndarray, made_by: str = ""
) -> None:
    """Writes `features` [N, D] and `coords` [N, 2] as CLAM lays them out, 32 rows to a chunk.

    Args:
        path: the file.
        features: of the patches.
        coords: of the patches.
        made_by: name of the encoder, kept as an attribute; "" for none.
    """
    # In memory first: where a disk refuses a write, libhdf5 prints pages of its own.
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        for name, array in (("features", features), ("coords", coords)):
            chunks = (min(32, len(array)), array.shape[1]) if len(array) else None
            file.create_dataset(name, data=array, chunks=chunks)
        if made_by:
            file["features"].attrs[_ENCODER_ATTRIBUTES[0]] = made_by
    path.write_bytes(image.getvalue())
