"""A file of patch features, its format told by its extension, and folders of such files."""

import os
import pathlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from steph_jax.data import hdf5_files, numpy_files, torch_files
from steph_jax.data.patches import BadFeatures, Patches, from_object

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
            another rank, type or D. (ValueError of `torch_files` for a damaged .pt.)
    """
    extension = path.suffix.lower()
    if extension in HDF5:
        return hdf5_files.open_hdf5(path, dataset_name, feature_dim)
    if extension in NPY:
        return numpy_files.open_npy(path, feature_dim)
    if extension in NPZ:
        return numpy_files.open_npz(path, dataset_name, feature_dim)
    if extension in TORCH:
        return _open_torch(path, dataset_name, feature_dim)
    raise BadFeatures(f"{path}: expected one of {', '.join(EXTENSIONS)}, found {extension!r}")


def encoder(path: pathlib.Path, dataset_name: str) -> str:
    """Name of the encoder that made the features of a file, where it says; else "".

    Raises:
        BadFeatures: see `open_file`.
    """
    return hdf5_files.encoder(path, dataset_name) if path.suffix.lower() in HDF5 else ""


@contextmanager
def _open_torch(path: pathlib.Path, name: str, feature_dim: int | None) -> Iterator[Patches]:
    value = torch_files.load(path)
    yield from_object(value, str(path), name, feature_dim, path.stat().st_size)


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
