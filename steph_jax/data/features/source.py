"""Patch features of slides, from whatever files hold them.

    source = open.open_features("features/tcga_brca")  a folder, files, a .lmdb or a packed store
    source.num_patches(slide_id)                       from the header where the format has one
    source.read(slide_id, out=buffer)                  [N, D]

The slides of a patient are joined by `data.bags`.

Extensions identify formats, and a folder may mix them. Slide ids are file names without the
extension (they may hold dots themselves). A table may name slides by their files, with the
extension of the image or of the features and with folders before it (`batch_1/X.svs`): where there
is no slide of that name, it is `X`. See `slide` for what a file may hold.
"""

import abc
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import numpy.typing as npt

from steph_jax.data.features.coordinates import Coordinates
from steph_jax.data.features.slide import BadFeatures, SlideHeader, SlideReader, refuse_nonfinite
from steph_jax.data.features.slide_ids import (
    other_names,
    renaming_advice,
    resolve_slide_id,
    same_slides,
)
from steph_jax.messages import join_names


class EmptyBag(ValueError):
    """A patient without a single patch in any slide."""


class FeatureSource(abc.ABC):
    """Features of a set of slides. Reading is safe from several threads at once.

    A subclass lists its slides, locates and opens each, all by ids of its own. Callers
    may name slides as tables do, see `resolve_slide_id`.
    """

    def __init__(self, location: str, dataset_name: str, feature_dim: int | None) -> None:
        self.location = location
        self.dataset_name = dataset_name
        self.feature_dim = feature_dim
        self._headers: dict[str, SlideHeader] = {}

    @property
    @abc.abstractmethod
    def slide_ids(self) -> Collection[str]:
        """Ids of all slides, in sorted order."""

    @abc.abstractmethod
    def _path_of(self, slide_id: str) -> str:
        """Where one of `slide_ids` is."""

    @abc.abstractmethod
    def _open(self, slide_id: str) -> AbstractContextManager[SlideReader]:
        """Opens one of `slide_ids`."""

    def _encoder(self, slide_id: str) -> str:
        """Name of the encoder of one of `slide_ids`; "" where it is not known."""
        return ""

    def _coordinates(self, slide_id: str) -> Coordinates | None:
        """Where the patches of one of `slide_ids` lie; None where it is not known."""
        return None

    def path_of(self, slide_id: str) -> str:
        """Where the slide is, for messages.

        Raises:
            FileNotFoundError: the source has no such slide.
        """
        return self._path_of(self._own_id(slide_id))

    def encoder(self, slide_id: str) -> str:
        """Name of the encoder that made the features of a slide, where its file has one; else "".

        Raises:
            FileNotFoundError, BadFeatures: see `header`.
        """
        return self._encoder(self._own_id(slide_id))

    def coordinates(self, slide_id: str) -> Coordinates | None:
        """Where the patches of a slide lie, in the order of `read`; None where its file has none.

        Raises:
            FileNotFoundError, BadFeatures: see `header`; coordinates of another number of patches.
        """
        own = self._own_id(slide_id)
        coordinates = self._coordinates(own)
        if coordinates is not None and len(coordinates.xy) != self.num_patches(own):
            raise BadFeatures(
                f"{self._path_of(own)}: expected coordinates of {self.num_patches(own)} patches, "
                f"found {len(coordinates.xy)}; extract the slide again"
            )
        return coordinates

    def header(self, slide_id: str) -> SlideHeader:
        """N, D and the type of a slide, without reading it where its format has a header.

        Raises:
            FileNotFoundError: the source has no such slide.
            BadFeatures: the file cannot be used; see `slide`.
        """
        own = self._own_id(slide_id)
        header = self._headers.get(own)
        if header is None:
            with self._open(own) as reader:
                header = self._headers[own] = reader.header
        return header

    def num_patches(self, slide_id: str) -> int:
        """N of a slide; see `header`."""
        return self.header(slide_id).num_patches

    def dim(self, slide_id: str) -> int:
        """D of a slide, 0 where a file without patches does not have it; see `header`."""
        return self.header(slide_id).dim

    def read(
        self,
        slide_id: str,
        out: np.ndarray | None = None,
        *,
        dtype: npt.DTypeLike | None = None,
        check_finite: bool = False,
    ) -> np.ndarray:
        """Reads all patches of a slide.

        Args:
            slide_id: one of `slide_ids`.
            out: a C-contiguous buffer [at least N, D] of any float type to read into.
            dtype: float type of the result without `out`; by default that of the file.
            check_finite: refuse NaN and infinity.

        Returns:
            [N, D]; with `out`, its first N rows.

        Raises:
            FileNotFoundError: the source has no such slide.
            BadFeatures: the file cannot be used, or `check_finite` and it is not finite.
            ValueError: `out` does not fit.
        """
        own = self._own_id(slide_id)
        with self._open(own) as reader:
            stop = reader.header.num_patches
            return self._rows(own, reader, 0, stop, out, dtype, check_finite)

    def read_rows(
        self,
        slide_id: str,
        start: int,
        stop: int,
        out: np.ndarray | None = None,
        *,
        dtype: npt.DTypeLike | None = None,
        check_finite: bool = False,
    ) -> np.ndarray:
        """Reads patches start .. stop - 1 of a slide; see `read`.

        HDF5 and .npy files read nothing else, .npz files what comes before; .pt files and LMDBs
        are read wholly.

        Raises:
            ValueError: not 0 <= start <= stop <= N; else as `read`.
        """
        own = self._own_id(slide_id)
        with self._open(own) as reader:
            if not 0 <= start <= stop <= reader.header.num_patches:
                raise ValueError(
                    f"{self._path_of(own)}: expected rows within 0 .. "
                    f"{reader.header.num_patches}, found {start} .. {stop}"
                )
            return self._rows(own, reader, start, stop, out, dtype, check_finite)

    def missing(self, slide_ids: Iterable[str]) -> list[str]:
        """Those of `slide_ids` that the source lacks, in their order."""
        existing = self.slide_ids
        return [slide_id for slide_id in slide_ids if resolve_slide_id(slide_id, existing) is None]

    def give_up(self) -> None:  # noqa: B027
        """Ends what other threads are reading, where a source can; they get `BadFeatures`."""

    def require(self, slide_ids: Iterable[str]) -> None:
        """Demands that every one of `slide_ids` is there, and is another slide.

        Raises:
            FileNotFoundError: some are not; lists them.
            ValueError: two ids that mean one slide, see `resolve_slide_id`; lists them.
        """
        requested, existing = list(slide_ids), self.slide_ids
        missing = self.missing(requested)
        if missing:
            raise self._lacks(missing)
        twice = same_slides(requested, existing)
        if twice:
            raise ValueError(
                f"{self.location}: ids of the table that mean one slide: {join_names(twice)}; "
                "keep one row per slide"
            )

    def _lacks(self, missing: Sequence[str]) -> FileNotFoundError:
        names = other_names(missing, self.slide_ids)
        hint = f"; {renaming_advice(names)}" if names else ""
        return FileNotFoundError(
            f"{self.location}: no features of {len(missing)} slide(s), "
            f"of {len(self.slide_ids)} that it has: {join_names(missing)}{hint}"
        )

    def _own_id(self, slide_id: str) -> str:
        """The source's own id of a slide."""
        own = resolve_slide_id(slide_id, self.slide_ids)
        if own is None:
            raise self._lacks([slide_id])
        return own

    def _rows(
        self,
        slide_id: str,
        reader: SlideReader,
        start: int,
        stop: int,
        out: np.ndarray | None,
        dtype: npt.DTypeLike | None,
        check_finite: bool,
    ) -> np.ndarray:
        header, where = reader.header, self._path_of(slide_id)
        before = self._headers.setdefault(slide_id, header)
        if header != before:
            raise BadFeatures(
                f"{where}: changed while it was being read: had {before.num_patches} patches of "
                f"{before.dim} {before.dtype}, has {header.num_patches} of {header.dim} "
                f"{header.dtype}; start again once nothing writes to it"
            )
        rows = _buffer(stop - start, header, out, dtype, where)
        if rows.size:
            reader.copy(start, stop, rows)
        if check_finite:
            refuse_nonfinite(rows, where, start)
        return rows


def _buffer(
    num_patches: int,
    header: SlideHeader,
    out: np.ndarray | None,
    dtype: npt.DTypeLike | None,
    where: str,
) -> np.ndarray:
    """Rows to read into: the first of `out`, or new ones."""
    if out is None:
        float_type = header.dtype.newbyteorder("=") if dtype is None else np.dtype(dtype)
        return np.empty((num_patches, header.dim), float_type)
    if dtype is not None and np.dtype(dtype) != out.dtype:
        raise ValueError(f"{where}: expected a buffer of {np.dtype(dtype)}, found {out.dtype}")
    fits = out.ndim == 2 and len(out) >= num_patches and out.shape[1] == header.dim
    if num_patches and not (fits and out.flags.c_contiguous):
        raise ValueError(
            f"{where}: expected a C-contiguous buffer of at least {num_patches} x {header.dim}, "
            f"found {list(out.shape)} with strides {list(out.strides)}"
        )
    return out[:num_patches]
