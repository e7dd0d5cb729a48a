"""The packed store: what is read from it, and what is refused."""

import json
import pathlib
import re

import h5py
import ml_dtypes
import numpy as np
import pytest

from steph_jax.data.bags import load_bags
from steph_jax.data.features import store, store_writer
from steph_jax.data.features.open import open_features
from steph_jax.data.features.slide import BadFeatures
from steph_jax.data.features.store import DTYPES, StoreSource

D = 24
SIZES = {"c.1": 70, "a": 3, "empty": 0, "b": 129}


def values(slide: str, dtype: object = np.float32) -> np.ndarray:
    rng = np.random.default_rng(sorted(SIZES).index(slide))
    return rng.standard_normal((SIZES[slide], D)).astype(dtype)


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Slides in a mixture of formats."""
    path = tmp_path / "features"
    path.mkdir()
    for slide in SIZES:
        if slide == "b":
            np.save(path / "b.npy", values("b")[None])
        else:
            with h5py.File(path / f"{slide}.h5", "w") as file:
                file["features"] = values(slide)
    return path


@pytest.fixture
def packed(folder: pathlib.Path) -> pathlib.Path:
    out = folder.parent / "cohort.store"
    store_writer.pack(open_features(folder), list(SIZES), out)
    return out


def change(store: pathlib.Path, **entries: object) -> None:
    """Puts other entries into the index of a store."""
    path = store / "store.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_store_equals_its_files(folder: pathlib.Path, packed: pathlib.Path) -> None:
    source = open_features(packed)
    assert isinstance(source, StoreSource)
    assert list(source.slide_ids) == sorted(SIZES)
    for slide, num_patches in SIZES.items():
        assert (source.num_patches(slide), source.dim(slide)) == (num_patches, D)
        np.testing.assert_array_equal(source.read(slide), values(slide))
        buffer = np.full((200, D), 7, np.float64)
        assert len(source.read(slide, buffer)) == num_patches
        np.testing.assert_array_equal(buffer[:num_patches], values(slide).astype(np.float64))
        assert (buffer[num_patches:] == 7).all()
    np.testing.assert_array_equal(source.read_rows("b", 5, 90), values("b")[5:90])
    bags = load_bags(source, ["P"], [["c.1", "empty", "a"]], np.dtype(np.float32))
    np.testing.assert_array_equal(bags.bag(0), np.concatenate([values("c.1"), values("a")]))


def test_any_program_can_map_the_features(packed: pathlib.Path) -> None:
    mapped = np.memmap(packed / "features.bin", "<f4", "r").reshape(-1, D)
    np.testing.assert_array_equal(mapped, np.concatenate([values(s) for s in sorted(SIZES)]))
    assert {path.name for path in packed.iterdir()} == {"features.bin", "store.json"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_float_types(folder: pathlib.Path, dtype: str) -> None:
    out = folder.parent / "other"
    store_writer.pack(open_features(folder), list(SIZES), out, dtype=dtype)
    source = open_features(out)
    expected = values("b").astype(DTYPES[dtype])
    rows = source.read("b")
    assert rows.dtype == expected.dtype
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(source.read("b", dtype=np.float32), expected.astype(np.float32))


def mapped_bytes() -> int:
    """Memory of this process that is mapped from files."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"RssFile:\s+(\d+)", status).group(1))


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="no /proc here")
def test_pages_are_released_after_reading(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = np.arange(12_000 * 1024, dtype=np.float32).reshape(12_000, 1024)
    (tmp_path / "slides").mkdir()
    np.save(tmp_path / "slides" / "large.npy", slide)
    store_writer.pack(open_features(tmp_path / "slides"), ["large"], tmp_path / "one.store")
    monkeypatch.setattr(store, "HELD_BYTES", 4 << 20)
    source = open_features(tmp_path / "one.store")
    before, buffer = mapped_bytes(), np.empty((1_000, 1024), np.float32)
    for start in range(0, len(slide), 1_000):  # 49 MB, 4 MB at a time
        source.read_rows("large", start, start + 1_000, buffer)
        np.testing.assert_array_equal(buffer, slide[start : start + 1_000])
        assert mapped_bytes() - before < 16 << 20


def test_provenance(folder: pathlib.Path, packed: pathlib.Path) -> None:
    index = json.loads((packed / "store.json").read_text())
    assert index["provenance"]["location"] == str(folder)
    slide = next(s for s in index["slides"] if s["slide_id"] == "b")
    file = folder / "b.npy"
    assert slide["source"] == {
        "path": str(file),
        "shape": [1, SIZES["b"], D],
        "dtype": "float32",
        "size": file.stat().st_size,
        "mtime_ns": file.stat().st_mtime_ns,
    }


def test_encoder_name_is_stored(folder: pathlib.Path) -> None:
    with h5py.File(folder / "a.h5", "r+") as file:
        file["features"].attrs["encoder"] = "uni_v2"
    first, second = folder.parent / "first.store", folder.parent / "second.store"
    store_writer.pack(open_features(folder), list(SIZES), first)
    store_writer.pack(open_features(first), list(SIZES), second, dtype="float16")
    assert [open_features(second).encoder(s) for s in ("a", "b")] == ["uni_v2", ""]


def test_store_of_a_store(packed: pathlib.Path) -> None:
    halved = packed.with_name("halved.store")
    store_writer.pack(open_features(packed), list(SIZES), halved, dtype="bfloat16")
    expected = values("b").astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(open_features(halved).read("b"), expected)
    assert (halved / "features.bin").stat().st_size == (packed / "features.bin").stat().st_size // 2


def test_a_demanded_feature_size(packed: pathlib.Path) -> None:
    source = open_features(packed, feature_dim=1536)
    with pytest.raises(BadFeatures, match=r"\[b\]: expected features of 1536 dimensions, found 24"):
        source.read("b")


def test_truncated_features(packed: pathlib.Path) -> None:
    source = open_features(packed)
    with (packed / "features.bin").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(BadFeatures, match=r"found 1,000; the store was changed while it was in"):
        source.read("b")
    with pytest.raises(BadFeatures, match=r"features.bin: expected 19,392 bytes .*found 1,000"):
        open_features(packed)


@pytest.mark.parametrize("name", ["features.bin", "store.json"])
def test_a_part_is_missing(packed: pathlib.Path, name: str) -> None:
    (packed / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"packed store .*found no {name}"):
        open_features(packed)


def test_unfinished_store(packed: pathlib.Path) -> None:
    partial = packed.rename(packed.with_name("cohort.store.partial"))
    with pytest.raises(FileNotFoundError, match="packing was interrupted; give the command"):
        open_features(partial)
    change(partial, finished=False)
    with pytest.raises(BadFeatures, match="it is not finished"):
        open_features(partial.rename(packed))


def slides_of(store: pathlib.Path) -> list[dict]:
    return json.loads((store / "store.json").read_text())["slides"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"format": "zarr"}, "no entry 'format'"),
        ({"version": 2}, "version 1 is known here, not 2"),
        ({"dtype": "object"}, "dtype is one of float32, bfloat16, float16, not 'object'"),
        ({"rows": 10**12}, "overlap or lie outside|expected .* bytes"),
        ({"rows": -1}, "rows is no size: -1"),
        ({"feature_dim": 1.5}, "feature_dim is no size"),
        ({"feature_dim": True}, "feature_dim is no size"),
        ({"slides": 7}, "TypeError"),
        ({"slides": [7]}, "a slide is no object"),
        ({"slides": [{"slide_id": "x"}]}, "missing 4 required"),
        ({"skipped": []}, "skipped is no object"),
    ],
)
def test_damaged_index(packed: pathlib.Path, entries: dict, message: str) -> None:
    change(packed, **entries)
    with pytest.raises(BadFeatures, match=message):
        open_features(packed)


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("start", 1, "rows of slide .* overlap or lie outside"),
        ("num_patches", 10**9, "rows of slide .* overlap or lie outside"),
        ("num_patches", "3", "num_patches is no size: '3'"),
        ("slide_id", "a", "slide 'a' is there twice"),
        ("slide_id", 5, "a slide has entries of the wrong type"),
        ("extra", 1, "unexpected keyword argument 'extra'"),
    ],
)
def test_damaged_slide(packed: pathlib.Path, entry: str, value: object, message: str) -> None:
    slides = slides_of(packed)
    slides[1][entry] = value
    change(packed, slides=slides)
    with pytest.raises(BadFeatures, match=message):
        open_features(packed)


@pytest.mark.parametrize(
    "text", [b"", b"\xff\xfe", b"{", b"[" * 100_000, b"1" * 10_000, b"null", b"<html>"]
)
def test_index_is_not_json(packed: pathlib.Path, text: bytes) -> None:
    (packed / "store.json").write_bytes(text)
    expected = re.escape(str(packed / "store.json")) + ": expected the index of a packed store"
    with pytest.raises(BadFeatures, match=expected):
        open_features(packed)
