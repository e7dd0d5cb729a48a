"""Patch features in an LMDB, as the published program packs them.

Key: slide id, UTF-8. Value: a pickled tensor [1, N, D]. `__keys__`: a pickled list of the file
names, with extension, that the values came from. Pickles are read by the restricted reader of
`torch_format`. Nothing is ever written, not even a lock file.

The only home of the optional package lmdb (`pip install 'steph_jax[lmdb]'`).
"""

import contextlib
import dataclasses
import os
import pathlib
import weakref
from collections.abc import Collection, Iterator
from typing import Any

from steph_jax.data.features import coordinates
from steph_jax.data.features.coordinates import Coordinates
from steph_jax.data.features.mapped_file import CHANGED, MappedFile
from steph_jax.data.features.slide import BadFeatures, SlideReader, content_kind, from_object
from steph_jax.data.features.source import FeatureSource
from steph_jax.data.torch_format import reader

_KEYS = b"__keys__"


@dataclasses.dataclass(frozen=True, eq=False)
class _Opened:
    """An LMDB that is open.

    Attributes:
        environment: of the package lmdb.
        file: that it maps.
    """

    environment: Any
    file: MappedFile


#: LMDB refuses to open a file twice in a process: sources of the same file share it.
_opened: weakref.WeakValueDictionary[str, _Opened] = weakref.WeakValueDictionary()


class LmdbSource(FeatureSource):
    """The slides of one LMDB, a folder with data.mdb or a single file."""

    def __init__(self, path: pathlib.Path, dataset_name: str, feature_dim: int | None) -> None:
        """Reads the names of the slides.

        Raises:
            ValueError: the package lmdb is not installed; the file is damaged or not an LMDB.
        """
        super().__init__(str(path), dataset_name, feature_dim)
        self._lmdb = _open_lmdb(path)
        with self._transaction() as transaction:
            self._keys = dict(sorted(_slide_keys(transaction, str(path)).items()))

    @property
    def slide_ids(self) -> Collection[str]:
        return self._keys.keys()

    def _path_of(self, slide_id: str) -> str:
        return f"{self.location}[{slide_id}]"

    def _coordinates(self, slide_id: str) -> Coordinates | None:
        with self._value(slide_id) as (value, _):
            return coordinates.from_object(value, self._path_of(slide_id))

    @contextlib.contextmanager
    def _open(self, slide_id: str) -> Iterator[SlideReader]:
        where = self._path_of(slide_id)
        with self._value(slide_id) as (value, size):
            yield from_object(value, where, self.dataset_name, self.feature_dim, size)

    @contextlib.contextmanager
    def _value(self, slide_id: str) -> Iterator[tuple[Any, int]]:
        """What is under the key of a slide, and the bytes that it takes there."""
        where = self._path_of(slide_id)
        with self._transaction() as transaction:
            pickled = transaction.get(self._keys[slide_id])
            if pickled is None:
                raise BadFeatures(
                    f"{where}: expected a value under a key that is there, found none; the LMDB is "
                    "damaged: copy it again"
                )
            yield reader.loads(pickled, where), len(pickled)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Any]:
        """A read; the values it gives are views of the mapped file and end with it."""
        import lmdb

        try:
            with (
                self._lmdb.file.reading(),
                self._lmdb.environment.begin(buffers=True) as transaction,
            ):
                yield transaction
        except lmdb.Error as error:
            raise BadFeatures(f"{self.location}: damaged LMDB, copy it again ({error})") from error


def _open_lmdb(path: pathlib.Path) -> _Opened:
    try:
        import lmdb
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{path}: reading an LMDB needs the package lmdb; "
            "install it by `pip install 'steph_jax[lmdb]'`"
        ) from error

    data = path / "data.mdb" if path.is_dir() else path
    if not data.is_file():
        raise BadFeatures(f"{path}: expected an LMDB, found a folder without data.mdb")
    name, size = os.path.realpath(data), data.stat().st_size
    opened = _opened.get(name)
    if opened is not None:
        return opened
    try:
        environment = lmdb.open(
            name, subdir=False, readonly=True, lock=False, create=False, map_size=max(size, 2**20)
        )
    except lmdb.Error as error:
        raise BadFeatures(
            f"{path}: expected an LMDB, found {content_kind(data)} ({error})"
        ) from error
    used = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if size < used:
        environment.close()
        raise BadFeatures(
            f"{path}: truncated LMDB: expected {used:,} bytes, found {size:,}; copy it again"
        )
    opened = _opened[name] = _Opened(environment, MappedFile(data, used, CHANGED, may_grow=True))
    return opened


def _slide_keys(transaction: Any, where: str) -> dict[str, bytes]:
    """The key of each slide id; a name of `__keys__` is a key without its extension, or as it is.

    Without `__keys__`, every key is a slide id.
    """
    keys = {bytes(key) for key in transaction.cursor().iternext(keys=True, values=False)}
    index = transaction.get(_KEYS)
    if index is None:
        return {key.decode(errors="replace"): key for key in keys}
    names = reader.loads(index, f"{where}[__keys__]")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadFeatures(f"{where}: expected a list of file names under __keys__")
    slides = {}
    for name in names:
        stem = pathlib.PurePath(name).stem
        for slide_id, key in ((stem, stem.encode()), (name, name.encode())):
            if key in keys:
                slides[slide_id] = key
                break
    return slides
