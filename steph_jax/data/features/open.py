"""Opens files of patch features, whose extension names the format, and folders of such files."""

import os
import pathlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

from steph_jax.data.features import coordinates as patch_places
from steph_jax.data.features import hdf5, npy
from steph_jax.data.features.coordinates import Coordinates
from steph_jax.data.features.mapped_file import CHANGED, MappedFile
from steph_jax.data.features.slide import BadFeatures, SlideReader, from_object
from steph_jax.data.features.source import FeatureSource
from steph_jax.data.torch_format import reader
from steph_jax.messages import join_names

#: Extensions by format, lower case.
HDF5, NPY, NPZ, TORCH = (".h5", ".hdf5"), (".npy",), (".npz",), (".pt", ".pth")
EXTENSIONS = HDF5 + NPY + NPZ + TORCH
#: Levels of folders that are searched, and names of files that do not identify their slide.
_MAX_DEPTH = 2
#: So many folders with a file of one and the same name are folders of slides.
_FOLDERS_OF_SLIDES = 3
_GENERIC_NAMES = ("features", "feats", "feat", "embeddings")


def open_file(
    path: pathlib.Path, dataset_name: str, feature_dim: int | None
) -> AbstractContextManager[SlideReader]:
    """Opens a file of features by its extension.

    Args:
        path: a file with one of `EXTENSIONS`.
        dataset_name: the HDF5 dataset, the member of an .npz, the key of a dict in a .pt.
        feature_dim: D that is demanded; None takes any.

    Raises:
        BadFeatures: damaged, of another kind than the extension, without that dataset, of
            another rank, type or D. (ValueError of `torch_format` for a damaged .pt.)
        FileNotFoundError: a link to nothing.
    """
    _refuse_broken_link(path)
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
    """Name of the encoder that made the features of a file, where it has one; else "".

    Raises:
        BadFeatures: see `open_file`.
    """
    return hdf5.encoder(path, dataset_name) if path.suffix.lower() in HDF5 else ""


def coordinates(path: pathlib.Path) -> Coordinates | None:
    """Where the patches of a file of features, or of patches alone, lie; None where it is silent.

    Raises:
        BadFeatures: see `open_file`; coordinates that cannot be used.
    """
    _refuse_broken_link(path)
    extension = path.suffix.lower()
    if extension in HDF5:
        return hdf5.coordinates(path)
    if extension in NPZ:
        return npy.coordinates(path)
    if extension in TORCH:
        with MappedFile(path, path.stat().st_size, CHANGED).reading():
            return patch_places.from_object(reader.load(path), str(path))
    return None


@contextmanager
def _open_torch(path: pathlib.Path, name: str, feature_dim: int | None) -> Iterator[SlideReader]:
    size = path.stat().st_size
    with MappedFile(path, size, CHANGED).reading():
        yield from_object(reader.load(path), str(path), name, feature_dim, size)


def _refuse_broken_link(path: pathlib.Path) -> None:
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(
            f"{path}: a link to {os.readlink(path)}, which is not there; fetch that file, or "
            "correct the link"
        )


def require_file(path: pathlib.Path) -> None:
    """Refuses what is not a file with one of `EXTENSIONS`."""
    _refuse_broken_link(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a file of features")
    if path.suffix.lower() not in EXTENSIONS:
        raise BadFeatures(
            f"{path}: expected one of {', '.join(EXTENSIONS)}, "
            f"found {path.suffix or 'no extension'}"
        )


def slides_in(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Files of features by slide: those of a folder, or where it has none, of the folders in it.

    Folders may be of projects (`TCGA-GBM/X.h5`) or of slides (`X/X.h5`, or `X/features.h5`, where
    the slide has the name of the folder).

    Raises:
        FileNotFoundError: there are none.
        ValueError: a slide that two files claim.
    """
    files = list(_files_in(folder))
    if files:
        return _by_name(files, str(folder))
    below = _files_below(folder, _MAX_DEPTH)
    if not below:
        raise FileNotFoundError(
            f"{folder}: expected files of features ({', '.join(EXTENSIONS)}), found none, nor in "
            "its folders"
        )
    files_per_folder = Counter(path.parent for path in below)
    one_name = len(below) >= _FOLDERS_OF_SLIDES and len({path.stem for path in below}) == 1
    files_of: dict[str, list[pathlib.Path]] = defaultdict(list)
    for path in below:
        says_nothing = one_name or path.stem.lower() in _GENERIC_NAMES
        by_folder = says_nothing and files_per_folder[path.parent] == 1
        files_of[path.parent.name if by_folder else path.stem].append(path)
    several = [paths for paths in files_of.values() if len(paths) > 1]
    if several:
        folders = sorted({str(path.parent.relative_to(folder)) for path in several[0]})
        raise ValueError(
            f"{folder}: {len(several)} slide(s) are in several of its folders "
            f"({join_names(folders)}); name one of them"
        )
    return {slide: paths[0] for slide, paths in sorted(files_of.items())}


def _files_below(folder: pathlib.Path, depth: int) -> list[pathlib.Path]:
    """Files of features in the folders of a folder, `depth` levels deep."""
    files = []
    for child in sorted(folder.iterdir()):
        if child.is_dir() and not child.name.startswith("."):
            files += list(_files_in(child))
            files += _files_below(child, depth - 1) if depth > 1 else []
    return files


def _by_name(files: Iterable[pathlib.Path], location: str) -> dict[str, pathlib.Path]:
    """Files by slide, which is their name without the extension.

    Raises:
        ValueError: a slide that two files claim.
    """
    slides: dict[str, pathlib.Path] = {}
    twice = []
    for path in sorted(files):
        if path.stem in slides:
            twice.append(f"{slides[path.stem]} and {path.name}")
        slides[path.stem] = path
    if twice:
        raise ValueError(
            f"{location}: {len(twice)} slide(s) are there more than once, keep one file of each: "
            f"{join_names(twice)}"
        )
    return slides


def _files_in(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            extension = os.path.splitext(entry.name)[1].lower()
            hidden = entry.name.startswith(".")
            # A link to nothing is a slide too: the error of its reader names it.
            is_slide = entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
            if extension in EXTENSIONS and not hidden and is_slide:
                yield folder / entry.name


Location = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def places(location: Location) -> list[pathlib.Path]:
    """The folders and files that a location names: several are given one by one, or with commas."""
    if not isinstance(location, str | os.PathLike):
        return [pathlib.Path(path) for path in location]
    text = os.fspath(location)
    if "," not in text or os.path.lexists(text):
        return [pathlib.Path(text)]
    return [pathlib.Path(part.strip()) for part in text.split(",") if part.strip()]


def exists(location: Location) -> bool:
    """Whether there is something at every place that a location names."""
    return all(path.exists() for path in places(location))


class FileSource(FeatureSource):
    """A file for each slide."""

    def __init__(
        self,
        location: str,
        files: Mapping[str, pathlib.Path],
        dataset_name: str,
        feature_dim: int | None,
    ) -> None:
        super().__init__(location, dataset_name, feature_dim)
        self._files = dict(files)

    @property
    def slide_ids(self) -> Collection[str]:
        return self._files.keys()

    def _path_of(self, slide_id: str) -> str:
        return str(self._files[slide_id])

    def _encoder(self, slide_id: str) -> str:
        return encoder(self._files[slide_id], self.dataset_name)

    def _coordinates(self, slide_id: str) -> Coordinates | None:
        return coordinates(self._files[slide_id])

    def _open(self, slide_id: str) -> AbstractContextManager[SlideReader]:
        return open_file(self._files[slide_id], self.dataset_name, self.feature_dim)


class JoinedSource(FeatureSource):
    """The slides of several sources, each of them in one."""

    def __init__(self, parts: Sequence[FeatureSource]) -> None:
        """Joins sources.

        Raises:
            ValueError: slides that two of them have.
        """
        first = parts[0]
        location = ",".join(part.location for part in parts)
        super().__init__(location, first.dataset_name, first.feature_dim)
        self._owners: dict[str, FeatureSource] = {}
        twice = []
        for part in parts:
            twice += [slide for slide in part.slide_ids if slide in self._owners]
            self._owners |= dict.fromkeys(part.slide_ids, part)
        if twice:
            raise ValueError(
                f"{location}: {len(twice)} slide(s) are in several of these places, name one of "
                f"them: {join_names(sorted(twice))}"
            )
        self._owners = dict(sorted(self._owners.items()))

    @property
    def slide_ids(self) -> Collection[str]:
        return self._owners.keys()

    def _path_of(self, slide_id: str) -> str:
        return self._owners[slide_id].path_of(slide_id)

    def _encoder(self, slide_id: str) -> str:
        return self._owners[slide_id].encoder(slide_id)

    def _coordinates(self, slide_id: str) -> Coordinates | None:
        return self._owners[slide_id].coordinates(slide_id)

    def _open(self, slide_id: str) -> AbstractContextManager[SlideReader]:
        return self._owners[slide_id]._open(slide_id)


def open_features(
    location: Location, *, dataset_name: str = "features", feature_dim: int | None = None
) -> FeatureSource:
    """Opens features wherever they are.

    Args:
        location: a folder of files (any mixture of `EXTENSIONS`, hidden files are
            passed over) or of such folders (`slides_in`), one such file, a .lmdb (a folder or one
            file), a packed store, or several of these in a list or with commas between them.
        dataset_name: the HDF5 dataset, the member of an .npz or the key of a dict that holds the
            features; where it is `features`, `feats` is taken in its place.
        feature_dim: D that every slide must have, checked as each is opened; None takes any.

    Raises:
        FileNotFoundError: there is nothing, or nothing of a known kind.
        ValueError: a slide that two files claim; a .lmdb that is damaged, or the package lmdb
            is not installed.
    """
    paths = places(location)
    if len(paths) > 1 and all(p.suffix.lower() in EXTENSIONS and not p.is_dir() for p in paths):
        for path in paths:
            require_file(path)
        where = f"{len(paths)} files"
        return FileSource(where, _by_name(paths, where), dataset_name, feature_dim)
    parts = [_open_place(path, dataset_name, feature_dim) for path in paths]
    return parts[0] if len(parts) == 1 else JoinedSource(parts)


def _open_place(path: pathlib.Path, dataset_name: str, feature_dim: int | None) -> FeatureSource:
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such file or folder; expected a folder of feature files "
            f"({', '.join(EXTENSIONS)}), a .lmdb or a packed store"
        )
    # The content of a folder is a better guide than its name.
    is_store = (path / "store.json").is_file()
    if not is_store and (path.suffix.lower() == ".lmdb" or (path / "data.mdb").is_file()):
        from steph_jax.data.features import lmdb_source

        return lmdb_source.LmdbSource(path, dataset_name, feature_dim)
    if is_store or path.suffix.lower() in (".store", ".partial"):
        from steph_jax.data.features import store

        return store.StoreSource(path, dataset_name, feature_dim)
    if path.is_file():
        require_file(path)
        return FileSource(str(path), {path.stem: path}, dataset_name, feature_dim)
    return FileSource(str(path), slides_in(path), dataset_name, feature_dim)
