"""A file of patch features, its format told by its extension, and folders of such files."""

import os
import pathlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from steph_jax.data.features import hdf5, npy
from steph_jax.data.features import open as feature_files
from steph_jax.data.features.mapped_file import CHANGED, MappedFile
from steph_jax.data.features.slide import BadFeatures, Patches, from_object
from steph_jax.data.features.source import FeatureSource
from steph_jax.data.torch_format import reader

#: Extensions by format, lower case.
HDF5, NPY, NPZ, TORCH = (".h5", ".hdf5"), (".npy",), (".npz",), (".pt", ".pth")
EXTENSIONS = HDF5 + NPY + NPZ + TORCH


def open_file(
    path: pathlib.Path, dataset_name: str, feature_dim: int | None
) -> AbstractContextManager[Patches]:
    """Opens a file of features by its extension.

    Args:
        path: a file with one of `EXTENSIONS`.
        dataset_name: the HDF5 dataset, the member of an .npz, the key of a dict in a .pt.
        feature_dim: D that is demanded; None takes any.

    Raises:
        BadFeatures: damaged, of another kind than the extension says, without that dataset, of
            another rank, type or D. (ValueError of `torch_format` for a damaged .pt.)
    """
    extension = path.suffix.lower()
    if extension in HDF5:
        return hdf5.open_hdf5(path, dataset_name, feature_dim)
    if extension in NPY:
        return npy.open_npy(path, feature_dim)
    if extension in NPZ:
        return npy.open_npz(path, dataset_name, feature_dim)
    if extension in TORCH:
        return _open_torch(path, dataset_name, feature_dim)
    raise BadFeatures(f"{path}: expected one of {', '.join(EXTENSIONS)}, found {extension!r}")


def encoder(path: pathlib.Path, dataset_name: str) -> str:
    """Name of the encoder that made the features of a file, where it says; else "".

    Raises:
        BadFeatures: see `open_file`.
    """
    return hdf5.encoder(path, dataset_name) if path.suffix.lower() in HDF5 else ""


@contextmanager
def _open_torch(path: pathlib.Path, name: str, feature_dim: int | None) -> Iterator[Patches]:
    size = path.stat().st_size
    with MappedFile(path, size, CHANGED).reading():
        yield from_object(reader.load(path), str(path), name, feature_dim, size)


def require_file(path: pathlib.Path) -> None:
    """Refuses what is not a file with one of `EXTENSIONS`."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a file of features")
    if path.suffix.lower() not in EXTENSIONS:
        raise BadFeatures(
            f"{path}: expected one of {', '.join(EXTENSIONS)}, "
            f"found {path.suffix or 'no extension'}"
        )


def in_folder(folder: pathlib.Path) -> list[pathlib.Path]:
    """Files of features in a folder; where there are none, says which of its folders have some."""
    files = list(_files_in(folder))
    if files:
        return files
    below = [child.name for child in sorted(folder.iterdir()) if child.is_dir()]
    hint = [name for name in below if next(_files_in(folder / name), None)]
    advice = f"; its folder(s) {', '.join(hint)} have some, name one of them" if hint else ""
    raise FileNotFoundError(
        f"{folder}: expected files of features ({', '.join(EXTENSIONS)}), found none{advice}"
    )


def _files_in(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            extension = os.path.splitext(entry.name)[1].lower()
            hidden = entry.name.startswith(".")
            if extension in EXTENSIONS and not hidden and entry.is_file():
                yield folder / entry.name


Location = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class FileSource(FeatureSource):
    """A file for each slide."""

    def __init__(
        self,
        location: str,
        files: Iterable[pathlib.Path],
        dataset_name: str,
        feature_dim: int | None,
    ) -> None:
        super().__init__(location, dataset_name, feature_dim)
        self._files: dict[str, pathlib.Path] = {}
        twice = []
        for path in sorted(files):
            if path.stem in self._files:
                twice.append(f"{self._files[path.stem]} and {path.name}")
            self._files[path.stem] = path
        if twice:
            raise ValueError(
                f"{location}: {len(twice)} slide(s) are there more than once, keep one file of "
                f"each: {', '.join(twice[:10])}"
            )

    @property
    def slide_ids(self) -> Collection[str]:
        return self._files.keys()

    def _path_of(self, slide_id: str) -> str:
        return str(self._files[slide_id])

    def _encoder(self, slide_id: str) -> str:
        return feature_files.encoder(self._files[slide_id], self.dataset_name)

    def _open(self, slide_id: str) -> AbstractContextManager[Patches]:
        return feature_files.open_file(self._files[slide_id], self.dataset_name, self.feature_dim)


def open_features(
    location: Location, *, dataset_name: str = "features", feature_dim: int | None = None
) -> FeatureSource:
    """Opens features wherever they are.

    Args:
        location: a folder of files (any mixture of `feature_files.EXTENSIONS`, hidden files are
            passed over), one such file, a list of them, a .lmdb (a folder or one file), or a
            packed store.
        dataset_name: the HDF5 dataset, the member of an .npz or the key of a dict that holds the
            features.
        feature_dim: D that every slide must have, checked as each is opened; None takes any.

    Raises:
        FileNotFoundError: there is nothing, or nothing of a known kind.
        ValueError: a slide that two files claim; a .lmdb that is damaged, or the package lmdb
            is not installed.
    """
    if not isinstance(location, str | os.PathLike):
        files = [pathlib.Path(path) for path in location]
        for path in files:
            feature_files.require_file(path)
        return FileSource(f"{len(files)} files", files, dataset_name, feature_dim)
    path = pathlib.Path(location)
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such file or folder; expected a folder of feature files "
            f"({', '.join(feature_files.EXTENSIONS)}), a .lmdb or a packed store"
        )
    # What a folder holds tells more than its name.
    is_store = (path / "store.json").is_file()
    if not is_store and (path.suffix.lower() == ".lmdb" or (path / "data.mdb").is_file()):
        from steph_jax.data.features import lmdb_source

        return lmdb_source.LmdbSource(path, dataset_name, feature_dim)
    if is_store or path.suffix.lower() in (".store", ".partial"):
        from steph_jax.data.features import store

        return store.StoreSource(path, dataset_name, feature_dim)
    if path.is_file():
        feature_files.require_file(path)
        return FileSource(str(path), [path], dataset_name, feature_dim)
    return FileSource(str(path), feature_files.in_folder(path), dataset_name, feature_dim)
