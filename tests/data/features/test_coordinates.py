"""Where patches lie: every format, the size of a patch, packed stores, and what is refused."""

import json
import pathlib
import pickle

import h5py
import numpy as np
import pytest

from steph_jax.data.features import coordinates, store_coordinates, store_writer
from steph_jax.data.features.coordinates import MICROMETERS, PIXELS
from steph_jax.data.features.open import open_features
from steph_jax.data.features.sandbox import IsolatedSource
from steph_jax.data.features.slide import BadFeatures
from steph_jax.data.features.store import StoreSource

FEATURES = np.arange(20, dtype=np.float32).reshape(5, 4)
XY = np.array([[0, 0], [512, 0], [1024, 0], [0, 512], [512, 512]])


def hdf5(path, xy=XY, attributes=(), file_attributes=(), name="coords"):
    with h5py.File(path, "w") as file:
        file["features"] = FEATURES
        if xy is not None:
            file[name] = xy
            file[name].attrs.update(dict(attributes))
        file.attrs.update(dict(file_attributes))


def coords_of(path):
    return open_features(path).coordinates(path.stem)


TRIDENT = {"patch_size": 256, "patch_size_level0": 500, "level0_magnification": 40, "overlap": 0}
CLAM = {"patch_size": 256, "downsample": np.array([4.0, 4.0]), "patch_level": 1, "name": "a"}


@pytest.mark.parametrize(
    ("attributes", "size"),
    [(TRIDENT, 500.0), (CLAM, 1024.0), ({}, 512.0), ({"patch_size": 256}, 512.0)],
    ids=["trident", "clam", "spacing", "size_at_an_unknown_level"],
)
def test_size_of_a_patch(tmp_path, attributes, size):
    hdf5(tmp_path / "a.h5", XY[None].astype(np.int32), attributes)
    read = coords_of(tmp_path / "a.h5")
    np.testing.assert_array_equal(read.xy, XY)
    assert (read.size, read.unit) == (size, PIXELS)


def test_micrometers_become_pixels(tmp_path):
    notes = {"unit": "um", "tile_size": 256.0, "extractor": "x"}
    hdf5(tmp_path / "a.h5", XY / 2, file_attributes=notes)
    read = coords_of(tmp_path / "a.h5")
    assert (read.unit, read.size) == (MICROMETERS, 256.0)
    pixels = read.in_pixels(0.5)
    np.testing.assert_array_equal(pixels.xy, XY)
    assert (pixels.unit, pixels.size) == (PIXELS, 512.0)


def test_spacing_is_that_of_most_patches():
    """Grids of two pieces of tissue have corners of their own; one patch lies alone."""
    grid = np.stack(np.meshgrid(np.arange(6), np.arange(5)), -1).reshape(-1, 2) * 224.0
    xy = np.concatenate([grid, grid + np.array([10_003, 57]), [[90_000, 90_000]], grid[:1]])
    assert coordinates.spacing(xy) == 224.0
    with pytest.raises(ValueError, match="single patch has no neighbor"):
        coordinates.spacing(np.zeros((3, 2)))


def test_every_format_has_coordinates(tmp_path):
    np.savez(tmp_path / "n.npz", features=FEATURES, coords=XY, patch_size_level0=300)
    np.savez_compressed(tmp_path / "f.npz", features=FEATURES, coords=np.asfortranarray(XY))
    content = {"features": FEATURES, "coords": XY, "patch_size_level0": 300}
    (tmp_path / "p.pt").write_bytes(pickle.dumps(content))
    np.save(tmp_path / "without.npy", FEATURES)
    hdf5(tmp_path / "silent.h5", None)
    source = open_features(tmp_path)
    for slide in ("n", "f", "p"):
        read = source.coordinates(slide)
        np.testing.assert_array_equal(read.xy, XY)
        assert read.patch_size == (None if slide == "f" else 300)
    assert source.coordinates("without") is None
    assert source.coordinates("silent") is None


def test_lmdb_with_coordinates(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    environment = lmdb.open(str(tmp_path / "x.lmdb"), map_size=2**20)
    with environment, environment.begin(write=True) as transaction:
        transaction.put(b"a", pickle.dumps({"features": FEATURES, "coords": XY}))
        transaction.put(b"b", pickle.dumps(FEATURES))
    source = open_features(tmp_path / "x.lmdb")
    np.testing.assert_array_equal(source.coordinates("a").xy, XY)
    assert source.coordinates("b") is None


@pytest.mark.parametrize(
    ("xy", "message"),
    [
        (XY[:3], "expected coordinates of 5 patches, found 3"),
        (XY.T, r"expected coordinates \[patches, 2\] in numbers, found \[2, 5\]"),
        (XY.astype("S4"), r"expected coordinates \[patches, 2\] in numbers"),
        (np.where(XY == 512, np.nan, XY), "NaN, infinity or numbers beyond"),
        (XY * 2.0**60, "NaN, infinity or numbers beyond"),
    ],
    ids=["number", "shape", "type", "nan", "huge"],
)
def test_bad_coordinates_are_named(tmp_path, xy, message):
    hdf5(tmp_path / "a.h5", xy)
    with pytest.raises(BadFeatures, match=rf"a\.h5: {message}"):
        coords_of(tmp_path / "a.h5")


def test_coordinates_of_other_files_are_refused(tmp_path):
    hdf5(tmp_path / "other.h5")
    hdf5(tmp_path / "a.h5", None)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["coords"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "coords")
    with pytest.raises(BadFeatures, match="keeps its values in other files"):
        coords_of(tmp_path / "a.h5")


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "features"
    path.mkdir()
    hdf5(path / "a.h5", XY, TRIDENT)
    hdf5(path / "b.h5", None)
    hdf5(path / "c.h5", XY / 2 + 0.125, file_attributes={"unit": "um", "tile_size": 256.0})
    hdf5(path / "d.h5", XY[:2])
    return path


def pack(folder: pathlib.Path) -> StoreSource:
    source = open_features(folder)
    out = folder.with_name("x.store")
    store_writer.pack(source, list(source.slide_ids), out)
    store = open_features(out)
    assert isinstance(store, StoreSource)
    return store


def test_store_keeps_coordinates(folder):
    store = pack(folder)
    for slide in ("a", "c"):
        packed, origin = store.coordinates(slide), open_features(folder).coordinates(slide)
        np.testing.assert_array_equal(packed.xy, origin.xy)
        assert (packed.patch_size, packed.unit) == (origin.patch_size, origin.unit)
    # d has coordinates that are not those of its patches: its features are packed all the same.
    assert store.coordinates("b") is None
    assert store.coordinates("d") is None
    assert store.num_patches("d") == 5
    assert store_writer.verify(store, open_features(folder)) == {}


def test_child_process_sends_coordinates(folder):
    with IsolatedSource(folder) as source:
        sent, origin = source.coordinates("c"), open_features(folder).coordinates("c")
        np.testing.assert_array_equal(sent.xy, origin.xy)
        assert (sent.patch_size, sent.unit) == (256.0, MICROMETERS)
        assert source.coordinates("b") is None
        with pytest.raises(BadFeatures, match="found 2"):
            source.coordinates("d")


def test_store_and_programs_of_before(folder):
    """What is new is in a file and an entry that older programs do not look at."""
    store = pack(folder)
    path = pathlib.Path(store.location)
    index = json.loads((path / "store.json").read_text())
    assert index["version"] == 1
    assert set(index["slides"][0]) == {"slide_id", "start", "num_patches", "sha256", "source"}
    del index["coordinates"]
    (path / "store.json").write_text(json.dumps(index))
    (path / store_coordinates.DATA).unlink()
    old = open_features(path)
    assert old.coordinates("a") is None
    np.testing.assert_array_equal(old.read("a"), FEATURES)


def test_store_without_any_coordinates_has_no_file(folder):
    for name in "acd":
        (folder / f"{name}.h5").unlink()
    store = pack(folder)
    assert not (pathlib.Path(store.location) / store_coordinates.DATA).exists()
    assert store.index.coordinates == {}


def test_damaged_coordinates_of_a_store_are_found(folder):
    store = pack(folder)
    data = pathlib.Path(store.location) / store_coordinates.DATA
    content = bytearray(data.read_bytes())
    assert len(content) == 20 * 16
    content[17] ^= 1
    data.write_bytes(content)
    with pytest.raises(BadFeatures, match=r"checksum of store\.json"):
        store.coordinates("a")
    assert set(store_writer.verify(store, None)) == {"a"}
    data.write_bytes(content[:-1])
    with pytest.raises(BadFeatures, match="expected 320 bytes"):
        store.coordinates("c")
    np.testing.assert_array_equal(store.read("a"), FEATURES)  # training needs no coordinates
    index = json.loads((data.parent / "store.json").read_text())
    index["coordinates"]["a"]["unit"] = "miles"
    (data.parent / "store.json").write_text(json.dumps(index))
    with pytest.raises(BadFeatures, match="coordinates have entries of the wrong type"):
        open_features(data.parent)


def test_changed_coordinates_of_the_source_are_found(folder):
    store = pack(folder)
    hdf5(folder / "a.h5", XY + 1, TRIDENT)
    problems = store_writer.verify(store, open_features(folder))
    assert set(problems) == {"a"}
    assert "its coordinates are not what" in problems["a"]
