"""Packed store: the patch features of a cohort in one flat file made for training.

    NAME.store/features.bin     [patches, D] in float32, bfloat16 or float16, little-endian: the
                                slides one after the other in sorted order
    NAME.store/store.json       which rows are which slide's, their checksums, where they came from
    NAME.store/coords.bin       where patches lie, if that is known (`store_coordinates`)

A slide is a run of rows, so that reading it is one copy from the mapped file: no chunks, no
conversion, no lock. `numpy.memmap("features.bin", dtype).reshape(-1, D)` is all that another
program needs. A store is written by `store_writer`; it has its name only once it is complete.

A flat file is mapped and not read: on the machines where this was measured (benchmarks/read.py) a
copy from the mapping takes the time of a copy within memory, `preadv` up to four times that.
"""

import contextlib
import dataclasses
import hashlib
import json
import mmap
import pathlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from steph_jax.data.features import store_coordinates
from steph_jax.data.features.coordinates import Coordinates
from steph_jax.data.features.mapped_file import MappedFile
from steph_jax.data.features.slide import BadFeatures, SlideHeader, SlideReader, convert
from steph_jax.data.features.source import FeatureSource

DATA, INDEX = "features.bin", "store.json"
#: What `store_writer` adds to the name of a store that is not finished.
UNFINISHED = ".partial"
FORMAT, VERSION = "steph_jax packed store", 1
#: Mapped pages are handed back once so many bytes of them were read.
HELD_BYTES = 1 << 29
DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype("<f2"),
}


@dataclasses.dataclass(frozen=True)
class Record:
    """A slide of a store.

    Attributes:
        slide_id: its id.
        start: its first row in the store.
        num_patches: N, its rows.
        sha256: of its bytes in the store; "" before they are written.
        source: where it came from: path, shape, dtype, and size and mtime_ns of that file.
    """

    slide_id: str
    start: int
    num_patches: int
    sha256: str
    source: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Index:
    """The content of store.json.

    Attributes:
        dtype: one of `DTYPES`.
        feature_dim: D.
        rows: of features.bin.
        slides: in the order of their rows.
        skipped: what was left out, and why, by slide id.
        provenance: location and dataset name of the source, versions, when packing began.
        coordinates: what `store_coordinates` notes of slides, by slide id.
    """

    dtype: str
    feature_dim: int
    rows: int
    slides: tuple[Record, ...]
    skipped: dict[str, str]
    provenance: dict[str, Any]
    coordinates: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Size of features.bin."""
        return self.rows * self.feature_dim * DTYPES[self.dtype].itemsize

    def to_json(self) -> str:
        """The text of store.json; the last entry marks it as complete."""
        head = {"format": FORMAT, "version": VERSION}
        slides = [dataclasses.asdict(record) for record in self.slides]
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return json.dumps(head | fields | {"slides": slides, "finished": True}, indent=0) + "\n"


def read_index(path: pathlib.Path) -> Index:
    """Reads store.json and holds it against the size of features.bin.

    Args:
        path: the store's directory.

    Raises:
        FileNotFoundError: there is no such store, or one that is not finished.
        BadFeatures: it is damaged.
    """
    file, data = path / INDEX, path / DATA
    if path.name.endswith(UNFINISHED):
        raise FileNotFoundError(
            f"{path}: a store whose packing was interrupted; give the command of "
            "steph_jax.pack again, it goes on where it stopped"
        )
    for part in (file, data):
        if not part.is_file():
            raise FileNotFoundError(
                f"{path}: expected a packed store with {INDEX} and {DATA}, found no {part.name}; "
                "copy the whole directory, or pack it again"
            )
    try:
        index = _parse(json.loads(file.read_bytes()))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadFeatures(
            f"{file}: expected the index of a packed store, found something else "
            f"({type(error).__name__}: {error}); copy it again, or pack the features again"
        ) from error
    size = data.stat().st_size
    if size != index.nbytes:
        raise BadFeatures(
            f"{data}: expected {index.nbytes:,} bytes for [{index.rows}, {index.feature_dim}] "
            f"{index.dtype}, found {size:,}; copy it again, or pack the features again"
        )
    return index


def _parse(value: Any) -> Index:
    """The index in a JSON value, or ValueError, TypeError or KeyError."""
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise ValueError(f"no entry 'format': {FORMAT!r}")
    if value["version"] != VERSION:
        raise ValueError(f"version {VERSION} is known here, not {value['version']!r}")
    if value["finished"] is not True:
        raise ValueError("it is not finished")
    if value["dtype"] not in DTYPES:
        raise ValueError(f"dtype is one of {', '.join(DTYPES)}, not {value['dtype']!r}")
    for name in ("skipped", "provenance"):
        if not isinstance(value[name], dict):
            raise ValueError(f"{name} is no object")
    slides = tuple(_record(item) for item in value["slides"])
    index = Index(
        value["dtype"],
        _size(value["feature_dim"], "feature_dim"),
        _size(value["rows"], "rows"),
        slides,
        value["skipped"],
        value["provenance"],
        store_coordinates.parse(value.get("coordinates", {})),
    )
    end, names = 0, set()
    for record in slides:
        if record.slide_id in names:
            raise ValueError(f"slide {record.slide_id!r} is there twice")
        if record.start < end or record.start + record.num_patches > index.rows:
            raise ValueError(f"rows of slide {record.slide_id!r} overlap or lie outside")
        end = record.start + record.num_patches
        names.add(record.slide_id)
    return index


def _record(item: Any) -> Record:
    if not isinstance(item, Mapping):
        raise TypeError("a slide is no object")
    record = Record(**item)
    texts, source = (record.slide_id, record.sha256), record.source
    if not all(isinstance(text, str) for text in texts) or not isinstance(source, dict):
        raise TypeError("a slide has entries of the wrong type")
    _size(record.start, "start")
    _size(record.num_patches, "num_patches")
    return record


def _size(value: Any, name: str) -> int:
    if type(value) is not int or not 0 <= value < 2**53:
        raise ValueError(f"{name} is no size: {value!r}")
    return value


def raw(rows: np.ndarray) -> memoryview:
    """The bytes of C-contiguous rows, in their memory."""
    return rows.reshape(-1).view(np.uint8).data


def checksum(rows: np.ndarray) -> str:
    """SHA-256 of the bytes of rows."""
    return hashlib.sha256(raw(rows)).hexdigest()


class StoreSource(FeatureSource):
    """The slides of a packed store.

    Attributes:
        index: the content of its store.json.
    """

    def __init__(self, path: pathlib.Path, dataset_name: str, feature_dim: int | None) -> None:
        """Reads the index and maps the features.

        Raises:
            FileNotFoundError, BadFeatures: see `read_index`.
        """
        super().__init__(str(path), dataset_name, feature_dim)
        self.index = read_index(path)
        self._data = path / DATA
        self._records = {record.slide_id: record for record in sorted_by_id(self.index)}
        dtype, shape = DTYPES[self.index.dtype], (self.index.rows, self.index.feature_dim)
        changed = "the store was changed while it was in use: copy it again, or pack it again"
        self._file = MappedFile(self._data, self.index.nbytes, changed)
        self._mapping: mmap.mmap | None = None
        self._seen_bytes = 0
        self._features: np.ndarray = (
            np.empty(shape, dtype) if not self.index.nbytes else self._map()
        )

    def _map(self) -> np.ndarray:
        with open(self._data, "rb") as file:
            self._mapping = mmap.mmap(file.fileno(), self.index.nbytes, access=mmap.ACCESS_READ)
        shape = (self.index.rows, self.index.feature_dim)
        return np.ndarray(shape, DTYPES[self.index.dtype], self._mapping)

    def _saw(self, nbytes: int) -> None:
        """Now and then hands back the mapped pages that were read; the system's cache keeps them.

        They count as memory of the process for as long as they are mapped.
        """
        self._seen_bytes += nbytes
        if self._seen_bytes > HELD_BYTES and self._mapping and hasattr(mmap, "MADV_DONTNEED"):
            self._seen_bytes = 0
            self._mapping.madvise(mmap.MADV_DONTNEED)

    @property
    def slide_ids(self) -> Collection[str]:
        return self._records.keys()

    def _path_of(self, slide_id: str) -> str:
        return f"{self.location}[{slide_id}]"

    def _encoder(self, slide_id: str) -> str:
        return str(self._records[slide_id].source.get("encoder", ""))

    def _coordinates(self, slide_id: str) -> Coordinates | None:
        entry, record = self.index.coordinates.get(slide_id), self._records[slide_id]
        if entry is None:
            return None
        place = (record.start, record.num_patches, self.index.rows)
        return store_coordinates.read(self._data.parent, entry, *place)

    def reading(self) -> contextlib.AbstractContextManager[None]:
        """Where what is `mapped` may be read; see `MappedFile.reading`."""
        return self._file.reading()

    def mapped(self, slide_id: str) -> np.ndarray:
        """[N, D] of a slide as the file holds it, mapped and not read; see `reading`."""
        record = self._records[slide_id]
        return self._features[record.start : record.start + record.num_patches]

    @contextlib.contextmanager
    def _open(self, slide_id: str) -> Iterator[SlideReader]:
        rows, where = self.mapped(slide_id), self._path_of(slide_id)
        header = SlideHeader.from_shape(rows.shape, rows.dtype, where, self.feature_dim)

        def copy(start: int, stop: int, out: np.ndarray) -> None:
            with self.reading():
                convert(rows[start:stop], out, where)
            self._saw(rows[start:stop].nbytes)

        yield SlideReader(header, copy)


def sorted_by_id(index: Index) -> list[Record]:
    """The slides of an index by their ids."""
    return sorted(index.slides, key=lambda record: record.slide_id)
