"""Every reader of files that others wrote, with sound files of each layout, to be mutated."""

import dataclasses
import hashlib
import io
import json
import pathlib
import pickle
import random
import tempfile
from collections import OrderedDict
from collections.abc import Callable

import h5py
import ml_dtypes
import numpy as np
from guarded_memory import GuardedStorages
from rebuilds import random_rebuilds
from torch_writer import View, pickled_tensor, stream_bytes, zip_bytes

from steph_jax.data.columns import Columns
from steph_jax.data.features import store, store_coordinates
from steph_jax.data.features.open import open_features
from steph_jax.data.splits import read_split
from steph_jax.data.tables import read_table
from steph_jax.data.torch_format import reader as torch_reader

N, D = 6, 8


@dataclasses.dataclass(frozen=True)
class Reader:
    """Something that reads files of others.

    Attributes:
        seeds: sound files, as bytes.
        place: puts bytes into a new folder, as the reader expects them; returns what to read.
        read: gives a value or raises the documented error.
        native: the C library that may end the process, or never come back, if one may.
        make: makes an input; by default one is a sound file with a few changes.
    """

    seeds: Callable[[], list[bytes]]
    place: Callable[[pathlib.Path, bytes], pathlib.Path]
    read: Callable[[pathlib.Path], object]
    native: str = ""
    make: Callable[[random.Random], bytes] | None = None


# What reads.


#: Where the reader of PyTorch files has its buffers while files are mutated.
STORAGES = GuardedStorages()


def tensors_in_bounds(path: pathlib.Path) -> None:
    """All entries of all tensors of a file, and that each of them lies in a buffer of the file."""
    value = torch_reader.load(path)
    assert isinstance(value, dict)
    for tensor in value.values():
        if isinstance(tensor, np.ndarray):
            np.array(tensor)
            assert STORAGES.hold(tensor), "a tensor beyond its storage"


def features(path: pathlib.Path) -> None:
    """All slides of a source, and that they are what their headers say."""
    source = open_features(path)
    for slide in list(source.slide_ids)[:3]:
        assert isinstance(source.encoder(slide), str)
        header = source.header(slide)
        rows = source.read(slide)
        assert rows.shape == (header.num_patches, header.dim)
        assert source.read(slide, dtype=np.float32).shape == rows.shape
        assert rows.dtype == header.dtype.newbyteorder("=")


def coordinates(path: pathlib.Path) -> None:
    """Where the patches of all slides of a source lie, and how large they are."""
    source = open_features(path)
    for slide in list(source.slide_ids)[:3]:
        places = source.coordinates(slide)
        if places is not None:
            assert places.xy.shape == (source.num_patches(slide), 2)
            assert np.isfinite(places.xy).all()
            assert places.patch_size is None or 0 < places.patch_size < np.inf


def checkpoint(path: pathlib.Path) -> None:
    """Conversion of a checkpoint, up to the moment when the model would be written."""
    from steph_jax.checkpoints import torch_import

    class Unwritten(torch_import.Pool):
        def add(self, name: str, model: object) -> None:
            assert name == "x"

    options = torch_import.ImportOptions(top_k=2)
    torch_import.convert(path, Unwritten(path.parent / "pool"), "x", options)


def model_record(path: pathlib.Path) -> None:
    """The record of a stored model."""
    from steph_jax.checkpoints import saved_model

    saved_model.load_header(path)


def table(path: pathlib.Path) -> None:
    """A survival table as training reads it."""
    read = read_table(path)
    assert len(read.patients) == len(read.time) == len(read.event) == len(read.slides)
    assert np.isfinite(read.time).all()


def checked_table(path: pathlib.Path) -> None:
    """A survival table as `check` reads it: whatever it holds, there are findings."""
    from steph_jax.checks import findings, tables

    _, results = tables.check_table(path, Columns())
    assert findings.report(results)


def split(path: pathlib.Path) -> None:
    """A split of patients."""
    read_split(path)


# Sound files.


def rows(dtype: object = np.float32) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((N, D)).astype(dtype)


def in_file(suffix: str) -> Callable[[pathlib.Path, bytes], pathlib.Path]:
    def place(folder: pathlib.Path, data: bytes) -> pathlib.Path:
        path = folder / f"input{suffix}"
        path.write_bytes(data)
        return path

    return place


def contents_of(suffix: str, *writers: Callable[[pathlib.Path], object]) -> list[bytes]:
    """The files that some writers write."""
    contents = []
    with tempfile.TemporaryDirectory() as folder:
        for number, write in enumerate(writers):
            path = pathlib.Path(folder) / f"{number}{suffix}"
            write(path)
            contents.append(path.read_bytes())
    return contents


def hdf5_files() -> list[bytes]:
    def trident(path: pathlib.Path) -> None:
        with h5py.File(path, "w") as file:
            dataset = file.create_dataset(
                "features", data=rows(), maxshape=(None, D), chunks=(1, D), dtype="f4"
            )
            dataset.attrs.update(encoder="uni_v2", savetodir="x/features_uni_v2", mpp=0.5)
            file["coords"] = np.zeros((N, 2), np.int64)

    def release(path: pathlib.Path) -> None:
        with h5py.File(path, "w") as file:
            file["features"] = rows(np.float16)[None]

    def zipped(path: pathlib.Path) -> None:
        with h5py.File(path, "w", libver="latest") as file:
            options = {"compression": "gzip", "shuffle": True, "fletcher32": True}
            file.create_dataset("features", data=rows(np.float64), chunks=(4, D), **options)

    return contents_of(".h5", trident, release, zipped)


def numpy_archives() -> list[bytes]:
    return contents_of(
        ".npz",
        lambda path: np.savez(path, features=rows(), coords=np.zeros((N, 2))),
        lambda path: np.savez_compressed(path, np.asfortranarray(rows(np.float64))),
    )


def numpy_arrays() -> list[bytes]:
    arrays = [rows(), rows(np.float16)[None], np.asfortranarray(rows(">f8")), np.zeros((0, D))]
    contents = []
    for array in arrays:
        file = io.BytesIO()
        np.save(file, array)
        contents.append(file.getvalue())
    return contents


def tensors(write: Callable[[object], bytes]) -> list[bytes]:
    base = rows()
    values = [
        base,
        View(base, (D, N), (1, D)),
        {"features": View(base, (3, D), (D, 1), offset=D), "coords": View(base)},
        {"features": rows(ml_dtypes.bfloat16)[None]},
    ]
    return [write(value) for value in values]


def rebuilt_tensors() -> list[bytes]:
    return [write({"1": View(rows(), (3, D), (D, 1), D)}) for write in (zip_bytes, stream_bytes)]


def pickled() -> list[bytes]:
    arrays = [pickle.dumps(rows(), protocol) for protocol in (2, 4, 5)]
    return [*arrays, pickled_tensor(rows()[None]), pickle.dumps({"features": rows(np.float16)})]


def states(write: Callable[[object], bytes]) -> list[bytes]:
    """Checkpoints of an ABMIL and of a STEPH model with the names of the published program."""
    e, a, t = 5, 3, 4
    shapes = {
        "feat_proj.0": (e, D),
        "attention_net.attention_a.0": (a, e),
        "attention_net.attention_b.0": (a, e),
        "attention_net.attention_c": (1, a),
        "pred_head": (t, e),
    }
    h = 512
    layers = {"regulate_layer_emb.0": (h, D), "regulate_layer_prj.0": (h, h)}
    layers |= {"regulate_layer_prj.3": (2, h), "vecmix_layer.0": (h, h), "vecmix_layer.3": (2, h)}

    def state(shapes: dict[str, tuple[int, int]]) -> OrderedDict[str, View]:
        tensors = OrderedDict()
        for name, (rows_, columns) in shapes.items():
            one = np.ones(1, np.float32)  # one value, repeated by its strides, keeps files small
            tensors[f"{name}.weight"] = View(one, (rows_, columns), (0, 0))
            tensors[f"{name}.bias"] = View(one, (rows_,), (0,))
        return tensors

    model = state(shapes)
    model["feat_proj.0.weight"] = View(np.tile(rows()[0], (2 * h, 1)), (e, D), (2 * D, 1))
    encoder = {name.replace(".", "_"): v for name, v in model.items() if "pred_head" not in name}
    merged = state(layers | {"pred_head": shapes["pred_head"]})
    for name, value in model.items():
        merged |= {f"null_model.{name}": value, f"target_model.{name}": value}
    for prefix in ("task_vectors.0", "task_vectors.1", "target_task_vector"):
        merged |= {f"{prefix}.{name}": value for name, value in encoder.items()}
    optimizer = {"state": {0: {"step": 3, "lr": 1e-4}}, "param_groups": [{"params": [0]}]}
    return [write({"model": model, "epoch": 19, "optimizer": optimizer}), write({"model": merged})]


def in_lmdb(folder: pathlib.Path, data: bytes) -> pathlib.Path:
    """An LMDB whose value of a slide, or of the names of its slides, is `data`."""
    import lmdb

    path = folder / "input.lmdb"
    options = {"subdir": False, "sync": False, "lock": False, "map_size": 2**20}
    with (
        lmdb.open(str(path), **options) as environment,
        environment.begin(write=True) as transaction,
    ):
        is_names = b"s.1" in data[:40]
        transaction.put(b"s.1", pickle.dumps(rows()) if is_names else data)
        transaction.put(b"__keys__", data if is_names else pickle.dumps(["s.1.pt"]))
    return path


PLACES = np.stack([np.arange(N), np.arange(N) % 2], axis=1) * 256


def hdf5_places() -> list[bytes]:
    def trident(path: pathlib.Path) -> None:
        with h5py.File(path, "w") as file:
            file["features"] = rows()
            file["coords"] = PLACES[None]
            file["coords"].attrs.update({"patch_size_level0": 512, "name": "a", "overlap": 0})

    def clam(path: pathlib.Path) -> None:
        with h5py.File(path, "w") as file:
            file["features"] = rows()
            file.create_dataset("coords", data=PLACES, chunks=(1, 2), maxshape=(None, 2))
            file["coords"].attrs.update({"patch_size": 256, "downsample": np.array([2.0, 2.0])})

    def stamp(path: pathlib.Path) -> None:
        with h5py.File(path, "w") as file:
            file["feats"] = rows()
            file.create_dataset("coords", data=PLACES / 2, compression="gzip")
            file.attrs.update({"unit": "um", "tile_size": 256.0})

    return contents_of(".h5", trident, clam, stamp)


def npz_places() -> list[bytes]:
    arrays = {"features": rows(), "coords": PLACES, "patch_size_level0": np.int64(512)}
    return contents_of(
        ".npz", lambda p: np.savez(p, **arrays), lambda p: np.savez_compressed(p, **arrays)
    )


def torch_places() -> list[bytes]:
    content = {"features": rows(), "coords": PLACES, "patch_size_level0": 512}
    return [zip_bytes(content), stream_bytes(content), pickle.dumps(content)]


def lmdb_values() -> list[bytes]:
    return [*pickled(), *tensors(stream_bytes), pickle.dumps(["s.1.pt", "t.pt"])]


def lmdb_files() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = in_lmdb(pathlib.Path(folder), pickled_tensor(rows()[None]))
        return [path.read_bytes()]


def in_store(folder: pathlib.Path, data: bytes) -> pathlib.Path:
    path = folder / "input.store"
    path.mkdir()
    (path / store.DATA).write_bytes(rows().tobytes())
    (path / store.INDEX).write_bytes(data)
    return path


def in_store_with_places(folder: pathlib.Path, data: bytes) -> pathlib.Path:
    path = in_store(folder, data)
    (path / store_coordinates.DATA).write_bytes(PLACES.astype("<f8").tobytes())
    return path


def store_places() -> list[bytes]:
    digests = [
        hashlib.sha256(PLACES[part].astype("<f8").tobytes()).hexdigest()
        for part in (slice(0, 4), slice(4, 6))
    ]
    value = json.loads(store_headers()[0])
    value["coordinates"] = {
        "a": {"sha256": digests[0], "patch_size": 512.0, "unit": "px"},
        "b": {"sha256": digests[1], "patch_size": None, "unit": "um"},
    }
    return [json.dumps(value).encode()]


def store_headers() -> list[bytes]:
    source = {"path": "a.h5", "shape": [4, D], "dtype": "float32", "size": 9, "mtime_ns": 1}
    slides = (store.Record("a", 0, 4, "0" * 64, source), store.Record("b", 4, 2, "1" * 64, source))
    index = store.Index("float32", D, N, slides, {"c": "unreadable"}, {"location": "a"})
    return [index.to_json().encode()]


def in_model(folder: pathlib.Path, data: bytes) -> pathlib.Path:
    path = folder / "model"
    path.mkdir()
    (path / "model.json").write_bytes(data)
    return path


def model_records() -> list[bytes]:
    sizes = {"feature_dim": D, "embed_dim": 5, "attention_dim": 3, "num_bins": 4}
    architecture = sizes | {"pooling": "gated", "num_layers": 1, "dropout": 0.25}
    record = {"format": 1, "kind": "abmil", "architecture": architecture, "settings": {"fold": 0}}
    return [json.dumps(record | {"params": {"pred_head": {"bias": ["float32", [4]]}}}).encode()]


def csv_tables() -> list[bytes]:
    lines = ["patient_id,pathology_id,project,t,e"]
    lines += [f"TCGA-{i:02},TCGA-{i:02}-DX1,x,{100.5 * i},{i % 2}" for i in range(8)]
    quoted = '"patient_id","pathology_id","t","e"\r\n"é, 1","s 1","1e3","1"\r\n'
    return ["\n".join(lines).encode(), b"\xef\xbb\xbf" + quoted.encode()]


def csv_splits() -> list[bytes]:
    lines = [f"{i},TCGA-{i:02},{'' if i else 'TCGA-80'},TCGA-9{i}" for i in range(5)]
    return ["\n".join([",train,test,val", *lines]).encode(), b"train,test\na,b\nc,"]


READERS = {
    "checkpoint, zip": Reader(lambda: states(zip_bytes), in_file(".pth"), checkpoint),
    "checkpoint, legacy": Reader(lambda: states(stream_bytes), in_file(".pth"), checkpoint),
    ".pt, zip": Reader(lambda: tensors(zip_bytes), in_file(".pt"), features),
    ".pt, legacy": Reader(lambda: tensors(stream_bytes), in_file(".pt"), features),
    ".pt, pickle": Reader(pickled, in_file(".pt"), features),
    "tensors, bounds": Reader(
        rebuilt_tensors, in_file(".pt"), tensors_in_bounds, make=random_rebuilds
    ),
    ".npy": Reader(numpy_arrays, in_file(".npy"), features),
    ".npz": Reader(numpy_archives, in_file(".npz"), features),
    "LMDB values": Reader(lmdb_values, in_lmdb, features),
    "LMDB files": Reader(lmdb_files, in_file(".lmdb"), features, "LMDB"),
    "HDF5": Reader(hdf5_files, in_file(".h5"), features, "libhdf5"),
    "packed store": Reader(store_headers, in_store, features),
    "coordinates, HDF5": Reader(hdf5_places, in_file(".h5"), coordinates, "libhdf5"),
    "coordinates, .npz": Reader(npz_places, in_file(".npz"), coordinates),
    "coordinates, .pt": Reader(torch_places, in_file(".pt"), coordinates),
    "coordinates, packed store": Reader(store_places, in_store_with_places, coordinates),
    "survival table": Reader(csv_tables, in_file(".csv"), table),
    "survival table, check": Reader(csv_tables, in_file(".csv"), checked_table),
    "split": Reader(csv_splits, in_file("_0.csv"), split),
    "model.json": Reader(model_records, in_model, model_record),
}
