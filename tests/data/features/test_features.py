"""Every layout of patch features, written here as its own program writes it."""

import contextlib
import pathlib
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable

import h5py
import ml_dtypes
import numpy as np
import pytest

from steph_jax.data.features import hdf5, store_writer
from steph_jax.data.features import slide as patches
from steph_jax.data.features.open import open_features
from steph_jax.data.features.sandbox import IsolatedSource
from steph_jax.data.features.slide import BadFeatures
from steph_jax.data.features.source import FeatureSource

N, D = 70, 48
FLOATS = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)


def values(num_patches: int = N, dim: int = D, dtype: object = np.float32) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((num_patches, dim)).astype(dtype)


def write_trident(path: pathlib.Path, features: np.ndarray, **options: object) -> None:
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset(
            "features",
            shape=features.shape,
            maxshape=(None, *features.shape[1:]),
            chunks=(1, *features.shape[1:]),
            dtype=features.dtype,
            **options,
        )
        dataset[:] = features
        dataset.attrs.update(name="slide", encoder="uni_v2", level0_width=100_000, mpp=0.5)
        coords = file.create_dataset("coords", data=np.zeros((len(features), 2), np.int64))
        coords.attrs["patch_size_level0"] = 512


def write_clam(path: pathlib.Path, features: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        for name, array in (("features", features), ("coords", np.zeros((len(features), 2), "i4"))):
            shape = array.shape
            dataset = file.create_dataset(
                name, shape, array.dtype, maxshape=(None, shape[1]), chunks=(32, shape[1])
            )
            dataset[:] = array


def write_uni2h(path: pathlib.Path, features: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=features[None])
        file.create_dataset("coords", data=np.zeros((1, len(features), 2), np.int64))


def write_uni2h_chunked(path: pathlib.Path, features: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=features[None], chunks=(1, 7, 11), compression="gzip")


def write_gzip(path: pathlib.Path, features: np.ndarray) -> None:
    write_trident(path, features, compression="gzip", shuffle=True)


def write_contiguous(path: pathlib.Path, features: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file["features"] = features


def write_big_endian(path: pathlib.Path, features: np.ndarray) -> None:
    write_contiguous(path, features.astype(features.dtype.newbyteorder(">")))


def write_npy(path: pathlib.Path, features: np.ndarray) -> None:
    np.save(path, features)


def write_npy_batch(path: pathlib.Path, features: np.ndarray) -> None:
    np.save(path, features[None])


def write_npy_fortran(path: pathlib.Path, features: np.ndarray) -> None:
    np.save(path, np.asfortranarray(features))


def write_npy_version_2(path: pathlib.Path, features: np.ndarray) -> None:
    with path.open("wb") as file:
        np.lib.format.write_array(file, features, version=(2, 0))


def write_npz(path: pathlib.Path, features: np.ndarray) -> None:
    np.savez(path, features=features, coords=np.zeros((len(features), 2)))


def write_npz_compressed(path: pathlib.Path, features: np.ndarray) -> None:
    np.savez_compressed(path, features[None])


def write_npz_fortran(path: pathlib.Path, features: np.ndarray) -> None:
    np.savez(path, features=np.asfortranarray(features))


LAYOUTS: dict[Callable[[pathlib.Path, np.ndarray], None], str] = {
    write_trident: ".h5",
    write_clam: ".h5",
    write_uni2h: ".h5",
    write_uni2h_chunked: ".hdf5",
    write_gzip: ".H5",
    write_contiguous: ".h5",
    write_big_endian: ".h5",
    write_npy: ".npy",
    write_npy_batch: ".npy",
    write_npy_fortran: ".npy",
    write_npy_version_2: ".npy",
    write_npz: ".npz",
    write_npz_compressed: ".npz",
    write_npz_fortran: ".npz",
}


def slide(folder: pathlib.Path, write: Callable[..., None], features: np.ndarray) -> FeatureSource:
    write(folder / f"slide.1{LAYOUTS[write]}", features)
    return open_features(folder)


def assert_reads(source: FeatureSource, slide_id: str, expected: np.ndarray) -> None:
    """All that a source promises of one slide."""
    num_patches, dim = expected.shape
    assert (source.num_patches(slide_id), source.dim(slide_id)) == (num_patches, dim)
    actual = source.read(slide_id, check_finite=True)
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)
    wide = source.read(slide_id, dtype=np.float64)
    assert wide.dtype == np.float64
    np.testing.assert_array_equal(wide, expected.astype(np.float64))
    buffer = np.full((num_patches + 3, dim), 7, np.float32)
    rows = source.read(slide_id, out=buffer)
    assert rows.base is buffer
    np.testing.assert_array_equal(rows, expected.astype(np.float32))
    assert (buffer[num_patches:] == 7).all()
    third, half = num_patches // 3, num_patches // 2
    np.testing.assert_array_equal(source.read_rows(slide_id, third, half), expected[third:half])
    assert source.read_rows(slide_id, half, half).shape == (0, dim)


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("write", LAYOUTS, ids=lambda write: write.__name__)
def test_every_layout_and_type(tmp_path, write, dtype):
    if write is write_big_endian and dtype is ml_dtypes.bfloat16:
        pytest.skip("bfloat16 has no byte order")
    expected = values(dtype=dtype)
    assert_reads(slide(tmp_path, write, expected), "slide.1", expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_conversion_in_many_pieces(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(hdf5, "BLOCK", 1000)
    expected = values(dtype=dtype)
    for write in (write_trident, write_clam, write_uni2h_chunked, write_contiguous):
        rows = slide(tmp_path, write, expected).read_rows("slide.1", 5, 66, dtype=np.float32)
        np.testing.assert_array_equal(rows, expected[5:66].astype(np.float32))
        (tmp_path / f"slide.1{LAYOUTS[write]}").unlink()


@pytest.mark.parametrize("write", [write_trident, write_contiguous, write_npy, write_npz])
def test_slide_without_patches(tmp_path, write):
    source = slide(tmp_path, write, values(0))
    assert (source.num_patches("slide.1"), source.dim("slide.1")) == (0, D)
    assert source.read("slide.1", check_finite=True).shape == (0, D)
    assert source.read("slide.1", out=np.empty((2, 99), np.float32)).shape == (0, 99)


def test_slide_without_patches_or_dimension(tmp_path):
    np.save(tmp_path / "a.npy", np.array([], np.float32))
    source = open_features(tmp_path, feature_dim=D)
    assert (source.num_patches("a"), source.dim("a")) == (0, 0)


def test_folder_of_mixed_formats(tmp_path):
    for name in ("TCGA-1.DX1.A-B.h5", "._b.h5", "notes.txt"):
        write_trident(tmp_path / name, values())
    write_npy(tmp_path / "c.npy", values())
    (tmp_path / "d.pt").mkdir()
    source = open_features(tmp_path)
    assert list(source.slide_ids) == ["TCGA-1.DX1.A-B", "c"]
    assert source.path_of("c") == str(tmp_path / "c.npy")
    assert source.missing(["x", "c", "y"]) == ["x", "y"]
    with pytest.raises(FileNotFoundError, match=r"no features of 2 slide\(s\).*: x, y"):
        source.require(["x", "c", "y"])
    with pytest.raises(FileNotFoundError, match="no features of 1 slide"):
        source.read("x")


@pytest.mark.parametrize("kind", ["folder", "files", "lmdb", "store", "isolated"])
def test_ids_with_the_extension_of_an_image(tmp_path, kind):
    """Those of tables; an id that is there as it is wins."""
    folder, arrays = tmp_path / "files", {"a.1": values(), "b": values(), "b.svs": values(3)}
    folder.mkdir()
    for name, array in arrays.items():
        write_npy(folder / f"{name}.npy", array)
    with contextlib.ExitStack() as stack:
        if kind == "isolated":
            source = stack.enter_context(IsolatedSource(folder))
        elif kind == "lmdb":
            write_lmdb(tmp_path / "x.lmdb", arrays, None, False)
            source = open_features(tmp_path / "x.lmdb")
        elif kind == "store":
            store_writer.pack(open_features(folder), sorted(arrays), tmp_path / "x.store")
            source = open_features(tmp_path / "x.store")
        else:
            source = open_features(folder if kind == "folder" else sorted(folder.iterdir()))
        named = ["a.1.svs", "a.1.TIFF", "a", "a.svs", "a.1.h5", "batch/a.1.svs"]
        assert source.missing(named) == ["a", "a.svs"]
        np.testing.assert_array_equal(source.read("a.1.svs"), values())
        np.testing.assert_array_equal(source.read_rows("a.1.Ndpi", 1, 3), values()[1:3])
        assert source.path_of("a.1.dcm") == source.path_of("a.1")
        assert source.encoder("a.1.svs") == ""
        assert [source.num_patches(slide) for slide in ("b", "b.tif", "b.svs")] == [
            *(len(values()), len(values()), 3)
        ]
        with pytest.raises(FileNotFoundError, match=r"no features of 1 slide\(s\).*: c\.svs$"):
            source.read("c.svs")
        source.require(["a.1.svs", "b", "b.svs"])
        with pytest.raises(ValueError, match=r"mean one slide: a\.1\.svs and a\.1; keep one"):
            source.require(["a.1.svs", "b", "b.svs", "a.1"])


def test_single_files(tmp_path):
    write_npy(tmp_path / "a.npy", values())
    write_trident(tmp_path / "b.h5", values())
    assert list(open_features(tmp_path / "a.npy").slide_ids) == ["a"]
    files = [tmp_path / "b.h5", tmp_path / "a.npy"]
    assert_reads(open_features(files), "b", values())
    with pytest.raises(FileNotFoundError, match=r"c\.npy: no such file"):
        open_features([*files, tmp_path / "c.npy"])
    (tmp_path / "table.csv").touch()
    with pytest.raises(BadFeatures, match=r"expected one of \.h5.*, found \.csv"):
        open_features(tmp_path / "table.csv")


def test_locations_without_features(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such file or folder; expected"):
        open_features(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"found none, nor in its folders$"):
        open_features(tmp_path)
    for name in ("h5_files", "masks", "pt_files"):
        (tmp_path / name).mkdir()
    for name in ("h5_files/a.h5", "pt_files/a.npy"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"folders \(h5_files, pt_files\); name one of them"):
        open_features(tmp_path)


def test_two_files_of_one_slide(tmp_path):
    write_npy(tmp_path / "a.npy", values())
    write_trident(tmp_path / "a.h5", values())
    with pytest.raises(ValueError, match=r"keep one file of each: .*a\.h5 and a\.npy"):
        open_features(tmp_path)


def test_other_dataset_names(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["group/uni"] = values()
        file["coords"] = np.zeros((N, 2))
    np.savez(tmp_path / "b.npz", uni=values(), coords=np.zeros((N, 2)))
    assert_reads(open_features(tmp_path, dataset_name="group/uni"), "a", values())
    assert_reads(open_features(tmp_path, dataset_name="uni"), "b", values())
    source = open_features(tmp_path)
    names = re.escape("'coords' [70, 2], 'group/uni' [70, 48]")
    with pytest.raises(BadFeatures, match=rf"a\.h5: expected a dataset 'features', found {names}"):
        source.read("a")
    with pytest.raises(BadFeatures, match="expected an array 'features', found 'uni', 'coords'"):
        source.read("b")
    with pytest.raises(BadFeatures, match="expected a dataset 'group', found"):
        open_features(tmp_path, dataset_name="group").read("a")


@pytest.mark.parametrize("write", [write_contiguous, write_npy, write_npz])
@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 5, 8), np.float32), r"\[patches, dimensions\].*, found \[2, 5, 8\]"),
        (np.zeros(5, np.float32), r"found \[5\]"),
        (np.float32(1), r"found \[\]"),
        (np.zeros((5, 0), np.float32), "5 patches of 0 dimensions"),
        (np.zeros((5, 8), np.int64), "expected features in float16, .*found int64"),
        (np.zeros((5, 8), bool), "found bool"),
        (np.zeros((5, 8), np.complex64), "found complex64"),
        (np.zeros((5, 8), np.longdouble), "found float128"),
        (np.zeros((5, 9), np.float32), "expected features of 8 dimensions, found 9"),
    ],
)
def test_wrong_content(tmp_path, write, array, message):
    path = tmp_path / f"a{LAYOUTS[write]}"
    if write is write_npz:
        np.savez(path, features=array)
    else:
        write(path, array)
    source = open_features(tmp_path, feature_dim=8)
    for action in (source.read, source.num_patches):
        with pytest.raises(BadFeatures, match=rf"a\{LAYOUTS[write]}: .*{message}"):
            action("a")


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nonfinite_values(tmp_path, dtype, value):
    features = np.zeros((20_000, 40), dtype)
    features[1] = ml_dtypes.finfo(dtype).max
    write_npy(tmp_path / "a.npy", features)
    source = open_features(tmp_path)
    source.read("a", check_finite=True)
    features[17_003, 5] = value
    write_npy(tmp_path / "a.npy", features)
    assert not np.isfinite(source.read("a")[17_003, 5])
    for action in (
        lambda: source.read("a", check_finite=True),
        lambda: source.read_rows("a", 17_000, 17_010, check_finite=True),
    ):
        with pytest.raises(BadFeatures, match=r"a\.npy: NaN or infinity .* patch 17003"):
            action()


def test_values_beyond_the_requested_type(tmp_path):
    write_npy(tmp_path / "a.npy", np.full((2, 3), 1e5, np.float32))
    source = open_features(tmp_path)
    assert source.read("a", dtype="bfloat16").dtype == ml_dtypes.bfloat16
    with pytest.raises(BadFeatures, match="values beyond the range of float16"):
        source.read("a", dtype=np.float16)


def test_buffers_of_wrong_shape(tmp_path):
    write_npy(tmp_path / "a.npy", values())
    source = open_features(tmp_path)
    for buffer in (np.empty((N - 1, D)), np.empty((N, D + 1)), np.empty((D, N)).T, np.empty(N * D)):
        with pytest.raises(ValueError, match="expected a C-contiguous buffer of at least 70 x 48"):
            source.read("a", out=buffer)
    with pytest.raises(ValueError, match="expected a buffer of float32, found float64"):
        source.read("a", out=np.empty((N, D)), dtype=np.float32)
    for start, stop in ((-1, 3), (4, 3), (0, N + 1)):
        with pytest.raises(ValueError, match=r"expected rows within 0 \.\. 70"):
            source.read_rows("a", start, stop)


GIT_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 12345\n"


@pytest.mark.parametrize("extension", [".h5", ".npy", ".npz", ".pt"])
@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (GIT_LFS, "a git-lfs pointer"),
        (b"\n<!DOCTYPE html><html>404</html>", "an HTML page"),
        (b"hello", ""),
        (b"", ""),
    ],
)
def test_files_of_another_kind(tmp_path, extension, content, kind):
    (tmp_path / f"a{extension}").write_bytes(content)
    source = open_features(tmp_path)
    for action in (source.read, source.num_patches):
        with pytest.raises(ValueError, match=rf"a\{extension}: expected .*, found .*{kind}"):
            action("a")


@pytest.mark.parametrize("write", LAYOUTS, ids=lambda write: write.__name__)
def test_truncated_files(tmp_path, write):
    path = tmp_path / f"slide.1{LAYOUTS[write]}"
    source = slide(tmp_path, write, values())
    content = path.read_bytes()
    for size in (5, 60, len(content) // 2, len(content) - 40):
        path.write_bytes(content[:size])
        with pytest.raises(BadFeatures, match=re.escape(f"{path}: expected")):
            source.read("slide.1")


def test_wrong_extension(tmp_path):
    write_trident(tmp_path / "a.h5", values())
    (tmp_path / "a.h5").rename(tmp_path / "a.npy")
    with pytest.raises(BadFeatures, match=r"a\.npy: expected a \.npy array, found a HDF5 file"):
        open_features(tmp_path).read("a")


def npy(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


@pytest.mark.parametrize(
    ("shape", "descr"), [("(1000000, 1000000)", "<f4"), ("(1" + "0" * 40 + ", 4)", "<f2")]
)
def test_header_beyond_the_file(tmp_path, shape, descr):
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    (tmp_path / "a.npy").write_bytes(npy(header) + bytes(64))
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("features.npy", npy(header) + bytes(64))
    source = open_features(tmp_path)
    for slide_id, problem in (("a", "found 64; the file is truncated"), ("b", "its header claims")):
        for action in (source.num_patches, source.read):
            with pytest.raises(BadFeatures, match=problem):
                action(slide_id)


@pytest.mark.parametrize("chunks", [None, (1, 10**6)])
def test_hdf5_header_beyond_the_file(tmp_path, chunks):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("features", (10**6, 10**6), np.float32, chunks=chunks)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_dataset(
            "features", (2, 1000), np.float32, maxshape=(None, 1000), chunks=(10**5, 1000)
        )
    source = open_features(tmp_path)
    for slide_id in "ab":
        for action in (source.num_patches, source.read):
            with pytest.raises(BadFeatures, match=r"its header claims 4.*,000 bytes"):
                action(slide_id)


def test_archives_that_unpack_to_much_more_than_their_size(tmp_path, monkeypatch):
    monkeypatch.setattr(patches, "EXPANSION_SLACK", 10_000)
    zeros = np.zeros((1000, 1000), np.float32)
    np.savez_compressed(tmp_path / "a.npz", features=zeros)
    write_gzip(tmp_path / "b.h5", zeros[:100])
    write_contiguous(tmp_path / "c.h5", zeros[:100])
    for path in (tmp_path / "a.npz", tmp_path / "b.h5"):
        assert path.stat().st_size < 50_000
        with pytest.raises(BadFeatures, match=r"its header claims .* its size is .* damaged"):
            open_features(path).read(path.stem)
    assert open_features(tmp_path / "c.h5").num_patches("c") == 100


def test_names_outside_the_folder(tmp_path):
    """Members of archives and keys of LMDBs are never used as paths."""
    folder = tmp_path / "features"
    folder.mkdir()
    with zipfile.ZipFile(folder / "a.npz", "w") as archive:
        for name in ("../../out.npy", "/out.npy", "features.npy"):
            with archive.open(name, "w") as member:
                np.lib.format.write_array(member, values())
    assert_reads(open_features(folder), "a", values())
    write_lmdb(tmp_path / "b.lmdb", {"../../out": values()}, None, False)
    source = open_features(tmp_path / "b.lmdb")
    assert_reads(source, "../../out", values())
    file_names = {path.name for path in tmp_path.rglob("*")}
    assert file_names == {"a.npz", "b.lmdb", "b.lmdb-lock", "features"}


@pytest.mark.parametrize("chunks", [None, (1, D)])
def test_hdf5_laid_out_and_never_filled(tmp_path, chunks):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("features", (N, D), np.float32, chunks=chunks)
        if chunks:
            dataset[: N // 2] = values(N // 2)
    with pytest.raises(BadFeatures, match=r"written (chunks|bytes), found (35|0); .* interrupted"):
        open_features(tmp_path).read("a")


def test_hdf5_links_outside_the_file(tmp_path):
    write_contiguous(tmp_path / "other.h5", values())
    with h5py.File(tmp_path / "a.h5", "w") as file:
        virtual = h5py.VirtualLayout((N, D), np.float32)
        virtual[:] = h5py.VirtualSource(tmp_path / "other.h5", "features", (N, D))
        file.create_virtual_dataset("features", virtual)
    with pytest.raises(BadFeatures, match="keeps its values in other files"):
        open_features(tmp_path).read("a")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["features"] = h5py.ExternalLink("other.h5", "features")
    with pytest.raises(BadFeatures, match="keeps its values in other files"):
        open_features(tmp_path).read("b")


@pytest.mark.parametrize("descr", ["'|O'", "'<i8'", "[('x', '<f4'), ('y', '<f4')]", "'|V2000'"])
def test_npy_of_other_types_is_refused(tmp_path, descr):
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': (2, 2), }}\n".encode()
    (tmp_path / "a.npy").write_bytes(npy(header) + bytes(64))
    with pytest.raises(
        BadFeatures, match=r"(expected (features in float16|a \.npy array of floats)|coordinates)"
    ):
        open_features(tmp_path).read("a")


def test_pickles_in_numpy_files_are_not_run(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[{}]], object), allow_pickle=True)
    np.savez(tmp_path / "b.npz", np.array([[{}]], object), allow_pickle=True)
    for slide_id in "ab":
        with pytest.raises(BadFeatures, match=r"found object|expected an array 'features'"):
            open_features(tmp_path).read(slide_id)


@pytest.mark.parametrize(
    ("attributes", "encoder"),
    [
        ({"encoder": "uni_v2"}, "uni_v2"),
        ({"encoder": b"conch", "savetodir": "a/features_uni"}, "conch"),
        ({"patch_encoder": "virchow2"}, "virchow2"),
        ({"savetodir": "out/20x_256px_0px_overlap/features_uni_v2"}, "uni_v2"),
        ({"savetodir": "out/h5_files"}, ""),
        ({"encoder": np.arange(3), "name": "slide"}, ""),
        ({"encoder": "x" * 5000}, ""),
        ({}, ""),
    ],
)
def test_the_encoder_that_hdf5_files_name(tmp_path, attributes, encoder):
    write_trident(tmp_path / "a.h5", values())
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["features"].attrs.clear()
        file["features"].attrs.update(attributes)
    assert open_features(tmp_path).encoder("a") == encoder


def test_write_hdf5(tmp_path):
    for num_patches in (0, 5, N):
        path = tmp_path / f"{num_patches}.h5"
        hdf5.write_hdf5(path, values(num_patches), np.zeros((num_patches, 2), np.int32))
        assert_reads(open_features(tmp_path), str(num_patches), values(num_patches))


@pytest.mark.parametrize("rows", [3, 5])
def test_a_file_that_changes_between_two_reads(tmp_path, rows):
    write_npy(tmp_path / "a.npy", values(4))
    source = open_features(tmp_path)
    assert source.num_patches("a") == 4
    write_npy(tmp_path / "a.npy", values(rows))
    with pytest.raises(BadFeatures, match=rf"a\.npy: changed .* had 4 .* has {rows} of"):
        source.read("a")


def write_lmdb(path: pathlib.Path, entries: dict[str, object], keys: object, subdir: bool) -> None:
    import lmdb

    with (
        lmdb.open(str(path), subdir=subdir, map_size=2**26) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, value in entries.items():
            transaction.put(key.encode(), pickle.dumps(value))
        if keys is not None:
            transaction.put(b"__keys__", pickle.dumps(keys))


@pytest.mark.parametrize("subdir", [True, False])
def test_lmdb_of_arrays(tmp_path, subdir):
    path = tmp_path / "features.lmdb"
    arrays = {"s.1": values()[None], "s.2": values(0)[None], "unlisted": values()}
    write_lmdb(path, arrays, ["s.1.pt", "s.2.pt", "lost.pt"], subdir)
    source = open_features(path)
    again = open_features(path)
    assert list(source.slide_ids) == list(again.slide_ids) == ["s.1", "s.2"]
    assert_reads(source, "s.1", values())
    assert again.num_patches("s.2") == 0
    assert source.path_of("s.1") == f"{path}[s.1]"
    with pytest.raises(BadFeatures, match=r"\[s\.1\]: expected features of 9 dimensions, found 48"):
        open_features(path, feature_dim=9).read("s.1")


def test_lmdb_without_keys(tmp_path):
    write_lmdb(tmp_path / "a.lmdb", {"s.1": values(), "s.2": {"features": values()}}, None, False)
    source = open_features(tmp_path / "a.lmdb")
    assert_reads(source, "s.1", values())
    assert_reads(source, "s.2", values())


def test_lmdb_that_has_lost_a_value(tmp_path):
    write_lmdb(tmp_path / "a.lmdb", {"s.1": values()}, None, False)
    source = open_features(tmp_path / "a.lmdb")
    # Another process: one cannot open an LMDB twice.
    script = "import lmdb, sys; e = lmdb.open(sys.argv[1], subdir=False); "
    script += "t = e.begin(write=True); t.delete(b's.1'); t.commit()"
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "a.lmdb")], check=True)
    with pytest.raises(BadFeatures, match=r"\[s\.1\]: expected a value under .*, found none"):
        source.read("s.1")


def test_lmdb_keys_with_extension(tmp_path):
    write_lmdb(tmp_path / "a.lmdb", {"a.DX1": values()}, ["a.DX1"], False)
    assert_reads(open_features(tmp_path / "a.lmdb"), "a.DX1", values())


def test_broken_lmdbs(tmp_path):
    path = tmp_path / "a.lmdb"
    (tmp_path / "folder.lmdb").mkdir()
    with pytest.raises(BadFeatures, match=r"expected an LMDB, found a folder without data\.mdb"):
        open_features(tmp_path / "folder.lmdb")
    path.write_bytes(GIT_LFS)
    with pytest.raises(BadFeatures, match=r"a\.lmdb: expected an LMDB, found a git-lfs pointer"):
        open_features(path)
    path.unlink()
    write_lmdb(path, {"s": values(2000), "t": "text"}, {"no": "list"}, False)
    with pytest.raises(BadFeatures, match="expected a list of file names under __keys__"):
        open_features(path)
    path.unlink()
    write_lmdb(path, {"s": values(2000), "t": "text"}, None, False)
    with pytest.raises(BadFeatures, match=r"\[t\]: expected a tensor, an array, .*, found str"):
        open_features(path).read("t")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 4096)
    with pytest.raises(BadFeatures, match="truncated LMDB: expected"):
        open_features(path)


def test_lmdb_larger_than_its_default_map(tmp_path):
    write_lmdb(tmp_path / "a.lmdb", {f"s{i}": values(40_000) for i in range(3)}, None, True)
    assert_reads(open_features(tmp_path / "a.lmdb"), "s2", values(40_000))


def test_lmdb_without_its_package(tmp_path, monkeypatch):
    (tmp_path / "a.lmdb").touch()
    monkeypatch.setitem(__import__("sys").modules, "lmdb", None)
    with pytest.raises(ValueError, match=r"pip install 'steph_jax\[lmdb\]'"):
        open_features(tmp_path / "a.lmdb")


def test_header_of_a_pair_of_bytes_is_refused():
    pair = np.dtype([("a", "u1"), ("b", "u1")])
    with pytest.raises(BadFeatures, match="expected features in float16"):
        patches.SlideHeader.from_shape((2, 2), pair, "x", None)


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("zip_format", [True, False])
def test_torch_files(tmp_path, dtype, zip_format):
    import torch

    exact = values(dtype=np.float16 if dtype == "float16" else ml_dtypes.bfloat16)
    tensor = torch.from_numpy(exact.astype(np.float32)).to(getattr(torch, dtype))
    contents = {
        "plain.pt": tensor,
        "batch.pth": tensor[None],
        "transposed.pt": tensor.t().contiguous().t(),
        "shared.pt": torch.cat([tensor, tensor])[N:],
        "dict.pt": {"features": tensor, "coords": torch.zeros(N, 2)},
        "sole.pt": {"x": tensor},
    }
    if dtype != "bfloat16":
        contents["array.pt"] = tensor.numpy()
    for name, value in contents.items():
        torch.save(value, tmp_path / name, _use_new_zipfile_serialization=zip_format)
    torch.save({"a": tensor, "b": tensor}, tmp_path / "unnamed.pt")
    source = open_features(tmp_path)
    for slide_id in source.slide_ids - {"unnamed"}:
        assert_reads(source, slide_id, exact.astype(dtype))
    with pytest.raises(BadFeatures, match="expected an array 'features', found 'a', 'b'"):
        source.read("unnamed")


@pytest.mark.torch
@pytest.mark.parametrize("subdir", [True, False])
def test_lmdb_of_tensors(tmp_path, subdir):
    import torch

    path = tmp_path / "features.lmdb"
    tensors = {"s.1": torch.from_numpy(values())[None], "s.2": torch.zeros(1, 0, D)}
    write_lmdb(path, tensors, ["s.1.h5", "s.2.h5"], subdir)
    source = open_features(path)
    assert list(source.slide_ids) == ["s.1", "s.2"]
    assert_reads(source, "s.1", values())
    assert source.num_patches("s.2") == 0


@pytest.mark.torch
def test_torch_tensor_that_repeats_one_value(tmp_path):
    import torch

    torch.save(torch.zeros(1).expand(10**6, 1536), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt: "):
        open_features(tmp_path).read("a")


@pytest.mark.parametrize("name", ["coords", "features"])
def test_coordinates_alone_are_no_features(tmp_path, name):
    np.savez(tmp_path / "a.npz", **{name: np.ones((3, 2), np.float32)})
    source = open_features(tmp_path)
    if name == "features":
        assert source.read("a").shape == (3, 2)
        return
    with pytest.raises(BadFeatures, match=r"a.npz: no features here: coordinates; name"):
        source.read("a")
