"""Patch features in .npy and .npz files, mapped or streamed, nothing ever unpickled."""

import contextlib
import math
import pathlib
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from steph_jax.data.features import lookalikes
from steph_jax.data.features.coordinates import SIZE_NAMES, Coordinates, from_values
from steph_jax.data.features.mapped_file import CHANGED, MappedFile
from steph_jax.data.features.slide import (
    BLOCK,
    BadFeatures,
    SlideHeader,
    SlideReader,
    check_size,
    convert,
    damage,
    from_array,
    member,
)


@contextlib.contextmanager
def open_npy(path: pathlib.Path, feature_dim: int | None) -> Iterator[SlideReader]:
    """Maps a .npy array into memory; see `open.open_file`."""
    with damage(path, "a .npy array"):
        with path.open("rb") as file:
            shape, dtype, order = _npy_header(file, str(path))
            offset = file.tell()
        header = SlideHeader.from_shape(shape, dtype, str(path), feature_dim)
        size = path.stat().st_size
        data_bytes = size - offset
        if header.nbytes > data_bytes:
            raise BadFeatures(
                f"{path}: expected {header.nbytes:,} bytes for {list(shape)} {dtype}, found "
                f"{data_bytes:,}; the file is truncated: copy it again"
            )
        if header.nbytes:
            array = np.asarray(np.memmap(path, dtype, "r", offset, shape, order))
        else:
            array = np.empty(shape, dtype)
    with MappedFile(path, size, CHANGED).reading():
        yield from_array(array, str(path), feature_dim)


@contextlib.contextmanager
def open_npz(path: pathlib.Path, name: str, feature_dim: int | None) -> Iterator[SlideReader]:
    """Opens the array `name` of an archive, compressed or not; see `open.open_file`."""
    with contextlib.ExitStack() as stack:
        with damage(path, "an .npz archive"):
            archive = stack.enter_context(zipfile.ZipFile(path))
            names = [item[:-4] for item in archive.namelist() if item.endswith(".npy")]
            stream = stack.enter_context(archive.open(f"{member(names, name, str(path))}.npy"))
            shape, dtype, order = _npy_header(stream, str(path))
            header = SlideHeader.from_shape(shape, dtype, str(path), feature_dim)
            check_size(header.nbytes, path.stat().st_size, str(path))
            offset = stream.tell()

        def copy(start: int, stop: int, out: np.ndarray) -> None:
            with damage(path, "an .npz archive"):
                if order == "F":
                    stream.seek(offset)
                    values = np.frombuffer(_exactly(stream, header.nbytes, path), header.dtype)
                    convert(values.reshape(header.dim, -1).T[start:stop], out, str(path))
                    return
                stream.seek(offset + start * header.row_bytes)
                step = max(1, BLOCK // header.row_bytes)
                for first in range(start, stop, step):
                    last = min(first + step, stop)
                    data = _exactly(stream, (last - first) * header.row_bytes, path)
                    rows = np.frombuffer(data, header.dtype).reshape(last - first, -1)
                    convert(rows, out[first - start : last - start], str(path))

        yield SlideReader(header, copy)


def coordinates(path: pathlib.Path) -> Coordinates | None:
    """Where the patches of an archive lie; None where it does not say.

    Raises:
        BadFeatures: coordinates that cannot be used; see `open.open_file`.
    """
    with damage(path, "an .npz archive"), zipfile.ZipFile(path) as archive:
        names = {item[:-4] for item in archive.namelist() if item.endswith(".npy")}
        name = next((name for name in lookalikes.COORDINATE_NAMES if name in names), None)
        if name is None:
            return None
        notes = {n: _small_array(archive, n, path) for n in names.intersection(SIZE_NAMES)}
        return from_values(_small_array(archive, name, path), notes, str(path))


def _small_array(archive: zipfile.ZipFile, name: str, path: pathlib.Path) -> np.ndarray:
    """An array of numbers of an archive, read at once."""
    with archive.open(f"{name}.npy") as stream:
        shape, dtype, order = _npy_header(stream, str(path))
        if dtype.kind not in "iuf":
            raise BadFeatures(f"{path}: expected numbers in {name!r}, found {dtype}")
        nbytes = math.prod(shape) * dtype.itemsize
        check_size(nbytes, path.stat().st_size, str(path))
        data = _exactly(stream, nbytes, path)
        return np.frombuffer(data, dtype).reshape(shape, order=order)


def _npy_header(file: Any, where: str) -> tuple[tuple[int, ...], np.dtype[Any], Any]:
    """Shape, type and order ("C" or "F") of a .npy stream, which is left at its first value.

    The header is matched, not evaluated.
    """
    magic = file.read(8)
    if len(magic) < 8 or not magic.startswith(b"\x93NUMPY") or magic[6] not in (1, 2, 3):
        raise ValueError("no .npy header")
    length = int.from_bytes(file.read(2 if magic[6] == 1 else 4), "little")
    header = file.read(min(length, 2**16)).decode("latin1")
    descr = re.search(r"""["']descr["']\s*:\s*["']([<>|=]?[a-zA-Z]\d*)["']""", header)
    order = re.search(r"""["']fortran_order["']\s*:\s*(True|False)""", header)
    shape = re.search(r"""["']shape["']\s*:\s*\(([\d\s,]*)\)""", header)
    if len(header) < length or not (descr and order and shape):
        raise BadFeatures(f"{where}: expected a .npy array of floats, found {header.strip()[:200]}")
    sizes = tuple(int(size) for size in shape[1].replace(",", " ").split())
    return sizes, np.dtype(descr[1]), "F" if order[1] == "True" else "C"


def _exactly(file: Any, size: int, path: pathlib.Path) -> bytes:
    data: bytes = file.read(size)
    if len(data) < size:
        raise BadFeatures(f"{path}: expected {size} more bytes, found {len(data)}; copy it again")
    return data
