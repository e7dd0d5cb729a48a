"""Patches of one slide before they are read, whatever the format of their file.

What is inside a file is [N, D] or [1, N, D], in float16, bfloat16, float32 or float64:
`SlideHeader.from_shape` is the only place that decides this. `SlideReader` adds the function that
copies rows.
Sizes are read from headers and held against the size of the file before anything is allocated.
"""

import contextlib
import dataclasses
import math
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from steph_jax.data.features import lookalikes
from steph_jax.data.torch_format import reader

#: Features may take this many times the size of their file, and this many bytes more.
MAX_EXPANSION, EXPANSION_SLACK = 8, 64 * 2**20
#: Rows are converted from one type to another in pieces of this many bytes.
BLOCK = 4 * 2**20
#: What the libraries behind the formats raise on a damaged file.
_DAMAGE = (
    OSError,
    EOFError,
    RuntimeError,
    KeyError,
    TypeError,
    ValueError,
    OverflowError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_FLOATS = (np.dtype(np.float16), _BFLOAT16, np.dtype(np.float32), np.dtype(np.float64))


class BadFeatures(ValueError):
    """Features that cannot be used; the message names the file, what was expected and found."""


@dataclasses.dataclass(frozen=True)
class SlideHeader:
    """Patches of one slide, before they are read.

    Attributes:
        num_patches: N, zero or more.
        dim: D; 0 where a file without patches does not have it.
        dtype: one of float16, bfloat16, float32 and float64, in the byte order of the file.
        leading: whether the array is [1, N, D] and not [N, D].
    """

    num_patches: int
    dim: int
    dtype: np.dtype[Any]
    leading: bool = False

    @classmethod
    def from_shape(
        cls, shape: tuple[int, ...], dtype: np.dtype[Any], where: str, feature_dim: int | None
    ) -> "SlideHeader":
        """Reads [N, D] or [1, N, D] from a shape; an empty array of any rank has no patches.

        Two-byte opaque values are bfloat16: this is how numpy and h5py write them.

        Raises:
            BadFeatures: another rank or type; D other than `feature_dim` (None: any).
        """
        opaque = dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None
        floats = _BFLOAT16 if opaque else dtype
        if floats.newbyteorder("=") not in _FLOATS:
            kind = lookalikes.kind_of_shape(shape, dtype)
            if kind:
                raise BadFeatures(
                    f"{where}: no features here: {kind} {list(shape)} {dtype}; "
                    f"{lookalikes.NAME_ANOTHER}"
                )
            raise BadFeatures(
                f"{where}: expected features in float16, bfloat16, float32 or float64, "
                f"found {dtype}; convert them, or name another array by data.hdf5_dataset"
            )
        empty = math.prod(shape) == 0
        leading = len(shape) == 3 and shape[0] == 1
        if not (len(shape) == 2 or leading or (empty and len(shape) == 1)):
            raise BadFeatures(
                f"{where}: expected features of shape [patches, dimensions] or "
                f"[1, patches, dimensions], found {_shape_text(shape, floats)}"
            )
        num_patches, dim = (0, 0) if len(shape) == 1 else shape[-2:]
        if num_patches and not dim:
            raise BadFeatures(f"{where}: {num_patches} patches of 0 dimensions; extract them again")
        if feature_dim is not None and dim and dim != feature_dim:
            advice = "were they made by another encoder than the model's?"
            if num_patches == feature_dim:
                advice = f"the array seems transposed: write it as [{dim}, {num_patches}]"
            elif dim in (2, 4):
                advice = lookalikes.dim_advice(dim)
            raise BadFeatures(
                f"{where}: expected features of {feature_dim} dimensions, found {dim}; {advice}"
            )
        return cls(int(num_patches), int(dim), floats, leading)

    @property
    def nbytes(self) -> int:
        return self.num_patches * self.dim * self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        return self.dim * self.dtype.itemsize


def _shape_text(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    kind = lookalikes.kind_of_shape(shape, dtype)
    return f"{list(shape)}, {kind}" if kind else str(list(shape))


@dataclasses.dataclass(frozen=True)
class SlideReader:
    """An opened slide: `copy(start, stop, out)` writes rows to `out` [stop - start, D].

    Rows are converted to the type of `out`, which is C-contiguous.
    """

    header: SlideHeader
    copy: Callable[[int, int, np.ndarray], None]


def from_object(
    value: Any, where: str, dataset_name: str, feature_dim: int | None, size: int
) -> SlideReader:
    """Patches of what a pickle of `size` bytes held.

    Args:
        value: a value of `torch_format`: an array, or a dict with an array under `dataset_name`.
    """
    if isinstance(value, Mapping):
        value = value[member(list(value), dataset_name, where)]
    reader.refuse_foreign(value, where)
    if not isinstance(value, np.ndarray):
        raise BadFeatures(
            f"{where}: expected a tensor, an array, or a dict with one under "
            f"{dataset_name!r}, found {type(value).__name__}"
        )
    patches = from_array(value, where, feature_dim)
    check_size(patches.header.nbytes, size, where)
    return patches


def from_array(array: np.ndarray, where: str, feature_dim: int | None) -> SlideReader:
    """Patches of an array in memory or mapped to it, [N, D] or [1, N, D]."""
    header = SlideHeader.from_shape(array.shape, array.dtype, where, feature_dim)
    rows = array[0] if header.leading else array
    if rows.dtype.kind == "V":
        rows = rows.view(_BFLOAT16)

    def copy(start: int, stop: int, out: np.ndarray) -> None:
        convert(rows[start:stop], out, where)

    return SlideReader(header, copy)


def member(names: list[Any], requested: str, where: str) -> Any:
    """The name asked for among those of a file, its synonym, or the only one there is."""
    if requested in names:
        return requested
    other = lookalikes.synonym(requested, names)
    if other is not None:
        return other
    instead = lookalikes.without_features(names)
    if names and instead:
        raise BadFeatures(f"{where}: no features here: {instead}; {lookalikes.NAME_ANOTHER}")
    if len(names) == 1:
        return names[0]
    names_text = ", ".join(repr(name) for name in names[:20])
    raise BadFeatures(
        f"{where}: expected an array {requested!r}, found {names_text or 'none at all'}; "
        "name it by data.hdf5_dataset"
    )


def convert(rows: np.ndarray, out: np.ndarray, where: str) -> None:
    """Copies `rows` to `out`, another float type; what does not fit into it is `BadFeatures`."""
    try:
        with np.errstate(over="raise", invalid="ignore"):
            np.copyto(out, rows, casting="unsafe")
    except FloatingPointError:
        raise BadFeatures(
            f"{where}: values beyond the range of {out.dtype}; read it as float32 or bfloat16"
        ) from None


def check_size(nbytes: int, size: int, where: str) -> None:
    """Refuses `nbytes` of features that a file of `size` bytes cannot hold."""
    if nbytes > MAX_EXPANSION * size + EXPANSION_SLACK:
        raise BadFeatures(
            f"{where}: its header claims {nbytes:,} bytes of features, its size is {size:,}; "
            "the file is damaged or incomplete: copy it again"
        )


@contextlib.contextmanager
def damage(path: pathlib.Path, expected: str) -> Iterator[None]:
    """Says what a file is that the library behind its format cannot read."""
    try:
        yield
    except (BadFeatures, FileNotFoundError, PermissionError):
        raise
    except _DAMAGE as error:
        raise BadFeatures(
            f"{path}: expected {expected}, found {content_kind(path)} ({error})"
        ) from error


def content_kind(path: pathlib.Path) -> str:
    """The kind of a file by its first bytes, and what to do, for a message."""
    with path.open("rb") as file:
        head = file.read(512)
    text = head.lstrip().lower()
    if not head:
        return "an empty file: copy or download it again"
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer: run `git lfs pull`"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "an HTML page: the download failed, download it again"
    kinds = {
        b"\x89HDF": "HDF5",
        b"PK\x03\x04": "zip",
        b"\x93NUMPY": ".npy",
        b"\x80": "pickle",
        b"\x1f\x8b": "gzip",
    }
    for magic, kind in kinds.items():
        if head.startswith(magic):
            return f"a {kind} file, damaged, truncated or under a wrong extension"
    return "something else: copy or download it again"


def refuse_nonfinite(rows: np.ndarray, where: str, start: int) -> None:
    """Refuses NaN and infinity in `rows`, which begin with patch `start` of the slide.

    Works in pieces that stay in the processor's cache.
    """
    step = max(1, 2**19 // max(1, rows.shape[1] * rows.itemsize))
    for first in range(0, len(rows), step):
        piece = rows[first : first + step]
        if not _all_finite(piece):
            bad = ~np.isfinite(piece).all(axis=1)
            row = start + first + int(np.argmax(bad))
            raise BadFeatures(
                f"{where}: NaN or infinity in the features, first in patch {row} "
                "(counted from 0); extract the slide again"
            )


def _all_finite(values: np.ndarray) -> bool:
    """Two-byte floats by their exponent bits: numpy is ten times slower on them."""
    exponent = {np.dtype(np.float16): 0x7C00, np.dtype(ml_dtypes.bfloat16): 0x7F80}
    mask = exponent.get(values.dtype)
    if mask is None:
        return bool(np.isfinite(values).all())
    return bool((values.view(np.uint16) & np.uint16(mask)).max() < mask)
