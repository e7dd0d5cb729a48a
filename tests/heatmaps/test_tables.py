"""Names of files, GeoJSON and the lists of patches that stand out."""

import json
import pathlib
import uuid

import numpy as np
import pandas as pd
import pytest

from steph_jax.heatmaps import tables

HOSTILE = [
    "../../etc/passwd",
    "a/b",
    "..",
    ".",
    "",
    ".hidden",
    "a\\b",
    "C:x",
    "a\nb",
    "x\x00y",
    "50%",
    "%2F",
    "slides",
    "top_patches",
    "X.patches",
    "ends. ",
    "\udcff",
    "é" * 300,
    "é" * 301,
    "x" * 5000,
]


@pytest.mark.parametrize("slide", HOSTILE)
def test_name_of_a_file_stays_in_its_folder(tmp_path, slide):
    name = tables.file_name(slide)
    path = tmp_path / f"{name}.patches.png"
    assert pathlib.PurePosixPath(name).name == name
    assert "\\" not in name
    path.write_text("x")  # a name that the system takes
    assert [child.name for child in tmp_path.iterdir()] == [path.name]
    assert path.resolve().parent == tmp_path.resolve()


def test_names_of_files_differ_and_plain_ones_stay():
    names = [tables.file_name(slide) for slide in HOSTILE]
    assert len(set(names)) == len(HOSTILE)
    assert not {"slides", "top_patches"} & set(names)
    plain = "TCGA-02-0001-01Z-00-DX1.83fce43e-42ac-4dcd-b156-2908e75f2e47"
    for slide in (plain, "Schnitt 7 (links)", "Żółć"):
        assert tables.file_name(slide) == slide


def table(count=6):
    rng = np.random.default_rng(0)
    seen = {name: rng.normal(size=count) for name in ("attention", "percentile", "contribution")}
    xy = np.stack([np.arange(count) * 256.0, np.arange(count) % 2 * 256.0], axis=1)
    return tables.slide_table(xy, pd.DataFrame(seen))


def test_pixels_are_integers_where_they_can_be():
    assert table().dtypes[["x", "y"]].tolist() == [np.int64, np.int64]
    halves = tables.slide_table(np.array([[0.5, 1.0]]), pd.DataFrame({"attention": [1.0]}))
    assert halves["x"].tolist() == [0.5]


def test_geojson_is_what_qupath_reads():
    patches = table()
    text = tables.geojson("a/b <x>", patches, 256.0)
    value = json.loads(text)
    assert value["type"] == "FeatureCollection"
    assert len(value["features"]) == len(patches)
    for feature, row in zip(value["features"], patches.itertuples(), strict=True):
        assert feature["type"] == "Feature"
        assert uuid.UUID(feature["id"])
        (ring,) = feature["geometry"]["coordinates"]
        assert ring[0] == ring[-1] == [row.x, row.y]
        assert ring[2] == [row.x + 256, row.y + 256]
        assert len(ring) == 5
        properties = feature["properties"]
        assert properties["objectType"] == "tile"
        assert set(properties["measurements"]) == {"attention", "percentile", "contribution"}
        assert properties["measurements"]["attention"] == pytest.approx(row.attention, rel=1e-5)
    ids = {feature["id"] for feature in value["features"]}
    assert len(ids) == len(patches)
    assert tables.geojson("a/b <x>", patches, 256.0) == text
    other = json.loads(tables.geojson("another", patches, 256.0))
    assert not ids & {feature["id"] for feature in other["features"]}


def test_patches_that_stand_out():
    patches = table(10)
    top = tables.top_patches(patches, 3)
    assert top["list"].tolist() == [name for name in tables.TOP for _ in range(3)]
    assert top["rank"].tolist() == [1, 2, 3] * 3
    by_attention = patches["attention"].sort_values(ascending=False)
    assert top["attention"][:3].tolist() == by_attention[:3].tolist()
    assert top["patch"][:3].tolist() == by_attention[:3].index.tolist()
    lowest = patches["contribution"].sort_values()
    assert top["contribution"][6:].tolist() == lowest[:3].tolist()
    assert len(tables.top_patches(patches, 50)) == 30
