"""Features read in child processes: what a source gives in this process, they give too."""

import pathlib
import sys

import h5py
import ml_dtypes
import numpy as np
import pytest

from steph_jax.data.features.open import open_features
from steph_jax.data.features.sandbox import IsolatedSource
from steph_jax.data.features.slide import BadFeatures

D = 12


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "features"
    path.mkdir()
    for name, size, dtype in (("a", 5, "f4"), ("b", 9, "f2"), ("c", 3, ">f8"), ("none", 0, "f4")):
        np.save(path / f"{name}.npy", rng.standard_normal((size, D)).astype(dtype))
    with h5py.File(path / "named.h5", "w") as file:
        file["features"] = rng.standard_normal((2, D), np.float32)
        file["features"].attrs["encoder"] = "uni_v2"
    np.save(path / "half.npy", rng.standard_normal((1, 4, D)).astype(ml_dtypes.bfloat16))
    return path


def test_the_same_as_in_this_process(folder: pathlib.Path) -> None:
    direct = open_features(folder)
    with IsolatedSource(folder) as source:
        assert list(source.slide_ids) == list(direct.slide_ids)
        assert source.location == direct.location
        for slide in direct.slide_ids:
            assert source.encoder(slide) == direct.encoder(slide)
            assert source.path_of(slide) == direct.path_of(slide)
            header = direct.header(slide)
            assert source.header(slide).leading == header.leading
            assert source.header(slide).dtype == header.dtype.newbyteorder("=")
            for dtype in (None, np.float64, ml_dtypes.bfloat16):
                rows = source.read(slide, dtype=dtype)
                expected = direct.read(slide, dtype=dtype)
                assert rows.dtype == expected.dtype
                np.testing.assert_array_equal(rows, expected)
        np.testing.assert_array_equal(source.read_rows("b", 3, 7), direct.read_rows("b", 3, 7))


def test_problems_of_slides(folder: pathlib.Path) -> None:
    np.save(folder / "nan.npy", np.full((2, D), np.nan, np.float32))
    (folder / "page.h5").write_text("<html>")
    np.save(folder / "large.npy", np.full((2, D), 1e6, np.float32))
    with IsolatedSource(folder) as source:
        with pytest.raises(BadFeatures, match=r"page\.h5: expected .* found an HTML page"):
            source.read("page")
        with pytest.raises(BadFeatures, match=r"nan\.npy: NaN or infinity .* patch 0"):
            source.read("nan", check_finite=True)
        with pytest.raises(BadFeatures, match="values beyond the range of float16"):
            source.read("large", dtype=np.float16)
        with pytest.raises(FileNotFoundError, match="no features of 1 slide"):
            source.read("no")
        np.save(folder / "a.npy", np.ones((2, D), np.float32))
        assert source.num_patches("a") == 2
        np.save(folder / "a.npy", np.ones((2, D + 1), np.float32))
        with pytest.raises(BadFeatures, match=r"a\.npy: changed .* had 2 .* of 12 .* has 2 of 13"):
            source.read("a")
        assert source.read("b").shape == (9, D)


def test_locations_that_cannot_be_opened(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="no such file or folder"):
        IsolatedSource(folder / "no")
    script = tmp_path / "reader.py"
    script.write_text("import os; os.abort()")
    with pytest.raises(ValueError, match=r"cannot be opened, .*SIGABRT"):
        IsolatedSource(folder, command=(sys.executable, str(script)))


HALF = """
import sys
print('{"slides": {"a": "a.npy"}}', flush=True)
for _ in sys.stdin:
    answer = '{"num_patches": 2, "dim": 2, "dtype": "float32", "leading": false}'
    print(answer, flush=True)
    next(sys.stdin)
    sys.stdout.write('{"nbytes": 16}\\n' + "x" * 9)
    sys.exit(3)
"""


def test_half_of_the_rows(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    script = tmp_path / "reader.py"
    script.write_text(HALF)
    with (
        IsolatedSource(folder, command=(sys.executable, str(script))) as source,
        pytest.raises(BadFeatures, match=r"a\.npy: .* crashed the process .* \(status 3\): copy"),
    ):
        source.read("a")
