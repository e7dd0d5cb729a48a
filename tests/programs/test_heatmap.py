"""`heatmap` on a fold of a run: against predictions, files, stores and slides."""

import dataclasses
import json
import re
import subprocess
import sys

import h5py
import numpy as np
import openslide
import pandas as pd
import pools
import pytest
import tifffile

from steph_jax import heatmap, train
from steph_jax.checkpoints import saved_model
from steph_jax.checkpoints.pool import Pool
from steph_jax.data.features import store_writer
from steph_jax.data.features.open import open_features, slides_in
from steph_jax.evaluation import fold_results
from steph_jax.heatmap import Request
from steph_jax.heatmaps.viewer import Viewer, coordinates_of
from steph_jax.heatmaps.wsi import Slide
from steph_jax.methods.base import FoldSpec
from steph_jax.methods.registry import find_method

pytestmark = pytest.mark.usefixtures("no_pictures")

SIZE = 512


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Cohorts, a pool, and a fold of STEPH after an epoch, in run/fold_0."""
    root = pools.make(tmp_path_factory.mktemp("world"))
    config = pools.config(root)
    config["folds"] = (0,)
    config["steph"]["top_k"] = 1
    train.train(config, root / "run")
    return root


@pytest.fixture(scope="module")
def fold(world):
    return world / "run" / "fold_0"


@pytest.fixture(scope="module")
def source(world):
    return open_features(world / "data" / "features" / "sim_a")


@pytest.fixture(scope="module")
def slides_of(fold):
    """Slides of the patients of the fold."""
    table, _ = fold_results.read_patients(fold)
    return {patient: list(table.slides[row]) for row, patient in enumerate(table.patients)}


def draw(fold, source, slides, out, request=Request(), sources=()):  # noqa: B008
    viewer = Viewer.load(fold, sources)
    patients = heatmap.patients_of(slides, source, fold)
    heatmap.heatmaps(viewer, source, patients, out, request)
    return {slide: pd.read_csv(out / f"{slide}.csv") for slide in slides}


def test_risks_are_those_of_predict(fold, source, slides_of):
    predicted = pd.read_csv(fold / "predictions_test.csv").set_index("patient_id")["risk"]
    viewer = Viewer.load(fold)
    assert len(predicted) > 3
    for patient, risk in predicted.items():
        seen = viewer.patient(source, patient, slides_of[patient])
        assert seen.risk == pytest.approx(risk, rel=1e-5)


def test_tables_of_a_patient_with_two_slides(world, fold, source, slides_of, tmp_path):
    patient, slides = next((p, s) for p, s in slides_of.items() if len(s) == 2)
    drawn = draw(fold, source, slides, tmp_path / "out", sources=["sim_b"])
    both = pd.concat(drawn.values())
    assert list(both.columns[:5]) == ["x", "y", "attention", "percentile", "contribution"]
    assert both["attention"].sum() == pytest.approx(1)  # over both: they are one bag
    assert both["attention[sim_b]"].sum() == pytest.approx(1)
    assert drawn[slides[0]]["attention"].sum() < 0.99
    summary = pd.read_csv(tmp_path / "out" / "slides.csv")
    cut = json.loads((fold / "metrics.json").read_text())["risk_cut"]
    assert summary["reference"].tolist() == pytest.approx([cut] * 2)
    risk, own_risk = summary["risk"][0], summary["own_risk"][0]
    assert both["contribution"].sum() == pytest.approx(risk - cut, abs=1e-6)
    assert both["contribution_difference"].sum() == pytest.approx(risk - own_risk, abs=1e-6)
    for name in ("attention", "percentile", "contribution"):
        np.testing.assert_allclose(
            both[f"{name}_difference"], both[name] - both[f"own_{name}"], atol=1e-6
        )
    for slide in slides:
        coordinates = source.coordinates(slide)
        np.testing.assert_array_equal(drawn[slide][["x", "y"]], coordinates.xy)
        assert (tmp_path / "out" / f"{slide}.png").read_bytes().startswith(b"\x89PNG")
        features = json.loads((tmp_path / "out" / f"{slide}.geojson").read_text())["features"]
        assert len(features) == len(drawn[slide])
        corner, _, far, *_ = features[0]["geometry"]["coordinates"][0]
        assert [far[0] - corner[0], far[1] - corner[1]] == [SIZE, SIZE]
    top = pd.read_csv(tmp_path / "out" / "top_patches.csv")
    assert set(top["slide_id"]) == set(slides)
    assert set(top["patient_id"]) == {patient}


def test_own_and_source_models_are_those_of_the_pool(world, fold, source, slides_of):
    patient, slides = next(iter(slides_of.items()))
    merged = Viewer.load(fold, ["all"]).patient(source, patient, slides).tables[slides[0]]
    pool = world / "pool"
    own = Viewer.load(pool / "sim_a-fold_0").patient(source, patient, slides)
    assert own.reference == own.risk  # no fold, no cut
    np.testing.assert_allclose(
        merged["own_attention"], own.tables[slides[0]]["attention"], rtol=1e-5
    )
    for name in ("sim_b", "sim_c"):
        other = Viewer.load(pool / f"{name}-fold_0").patient(source, patient, slides)
        seen = other.tables[slides[0]]
        np.testing.assert_allclose(merged[f"attention[{name}]"], seen["attention"], rtol=1e-4)
        np.testing.assert_allclose(merged[f"percentile[{name}]"], seen["percentile"], atol=1e-3)
    with pytest.raises(ValueError, match=r"has no source nowhere; it has sim_b, sim_c"):
        Viewer.load(fold, ["nowhere"])
    with pytest.raises(ValueError, match="does not hold the models of its sources"):
        Viewer.load(pool / "sim_a-fold_0", ["sim_b"])


def test_own_model_with_other_outputs_is_compared_by_attention_alone(
    fold, source, slides_of, tmp_path
):
    model = saved_model.load_model(fold / "model")
    other = dataclasses.replace(model, metadata=model.metadata | {"target_output": "log_risk"})
    saved_model.save_model(tmp_path / "other", other)
    patient, slides = next(iter(slides_of.items()))
    seen = Viewer.load(tmp_path / "other").patient(source, patient, slides)
    assert seen.own_risk is None
    columns = set(seen.tables[slides[0]].columns)
    assert {"own_attention", "percentile_difference", "contribution"} <= columns
    assert not {"own_contribution", "contribution_difference"} & columns


def test_a_store_gives_the_same_files(fold, source, slides_of, tmp_path):
    slides = next(iter(slides_of.values()))
    store_writer.pack(source, slides, tmp_path / "x.store")
    packed = open_features(tmp_path / "x.store")
    draw(fold, source, slides, tmp_path / "files")
    draw(fold, packed, slides, tmp_path / "packed")
    names = sorted(path.name for path in (tmp_path / "files").iterdir())
    assert len(names) == 2 + 3 * len(slides)
    for name in names:
        one, other = (tmp_path / folder / name for folder in ("files", "packed"))
        assert one.read_bytes() == other.read_bytes()


@pytest.fixture
def bare(world, source, slides_of, tmp_path):
    """A slide of one patient whose features have no coordinates, and its id."""
    slide = next(slides[0] for slides in slides_of.values() if len(slides) == 1)
    (tmp_path / "bare").mkdir()
    with h5py.File(tmp_path / "bare" / f"{slide}.h5", "w") as file:
        file["features"] = source.read(slide)
    return tmp_path / "bare", slide


def test_no_coordinates_is_one_line(fold, bare, tmp_path):
    folder, slide = bare
    message = rf"{slide}\.h5: no coordinates of patches .*TRIDENT and CLAM"
    with pytest.raises(ValueError, match=message) as error:
        draw(fold, open_features(folder), [slide], tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_coordinates_from_files_of_patches(fold, source, bare, tmp_path):
    folder, slide = bare
    patches = tmp_path / "patches"
    patches.mkdir()
    coordinates = source.coordinates(slide)
    with h5py.File(patches / f"{slide}_patches.h5", "w") as file:
        file["coords"] = coordinates.xy.astype(int)
        file["coords"].attrs["patch_size_level0"] = 600
    request = Request(coords=slides_in(patches))
    drawn = draw(fold, open_features(folder), [slide], tmp_path / "out", request)
    expected = draw(fold, source, [slide], tmp_path / "expected")
    pd.testing.assert_frame_equal(drawn[slide], expected[slide])
    assert coordinates_of(open_features(folder), slide, request.coords).size == 600
    with h5py.File(patches / f"{slide}_patches.h5", "r+") as file:
        values = file["coords"][1:]
        del file["coords"]
        file["coords"] = values
    with pytest.raises(ValueError, match="name the folder of the patches that the features"):
        draw(fold, open_features(folder), [slide], tmp_path / "out", request)
    with pytest.raises(ValueError, match="--coords has no file"):
        draw(fold, open_features(folder), [slide], tmp_path / "out", Request(coords={}))


def test_micrometers_need_the_size_of_a_pixel(fold, source, bare, tmp_path):
    folder, slide = bare
    with h5py.File(folder / f"{slide}.h5", "r+") as file:
        file["coords"] = source.coordinates(slide).xy / 2
        file.attrs["unit"] = "um"
        file.attrs["tile_size"] = SIZE / 2
    other = open_features(folder)
    with pytest.raises(ValueError, match="coordinates in micrometers; give --mpp"):
        draw(fold, other, [slide], tmp_path / "out")
    drawn = draw(fold, other, [slide], tmp_path / "out", Request(mpp=0.5))
    np.testing.assert_array_equal(drawn[slide][["x", "y"]], source.coordinates(slide).xy)


def test_models_without_one_attention_are_refused(world, tmp_path):
    method = find_method("roupkt")
    options = method.options_type()
    spec = FoldSpec("sim_a", 0, 0, pools.ARCHITECTURE, 32, "hazard", None, (), options)
    spec.options.roupkt.__dict__["top_k"] = 1
    saved_model.save_model(tmp_path / "roupkt", method.start(spec, Pool(world / "pool")))
    with pytest.raises(ValueError, match="kind roupkt mixes what several frozen models"):
        Viewer.load(tmp_path / "roupkt")


def test_patients_come_from_the_table_the_fold_or_the_slides(world, fold, source, slides_of):
    patient, slides = next((p, s) for p, s in slides_of.items() if len(s) == 2)
    first = slides[:1]
    of_fold = heatmap.patients_of(first, source, fold)
    assert of_fold == {patient: (slides, first)}
    assert heatmap.patients_of(first, source, world / "pool") == {first[0]: (first, first)}
    table = world / "data" / "sim_a" / "sim_a_survival.csv"
    assert heatmap.patients_of(first, source, world / "pool", table) == of_fold
    alone = open_features(source.path_of(first[0]))
    with pytest.raises(FileNotFoundError, match="other slides of the same patients"):
        heatmap.patients_of(first, alone, fold)
    short = world / "short.csv"
    short.write_text("patient_id,pathology_id\nX,Y\n")
    with pytest.raises(ValueError, match=r"short\.csv: no row for slides of --slides"):
        heatmap.patients_of(first, source, fold, short)


@pytest.fixture
def image(source, slides_of, tmp_path):
    """A pyramid of two levels, each patch in a color of its own, and the slide that it is of."""
    slide = next(slides[0] for slides in slides_of.values() if len(slides) == 1)
    xy = source.coordinates(slide).xy.astype(int)
    width, height = xy.max(axis=0) + SIZE
    pixels = np.full((height, width, 3), 255, np.uint8)
    for number, (x, y) in enumerate(xy):
        pixels[y : y + SIZE, x : x + SIZE] = color(number)
    path = tmp_path / f"{slide}.tiff"
    with tifffile.TiffWriter(path) as writer:
        options = {"tile": (256, 256), "photometric": "rgb", "metadata": None}
        writer.write(pixels, resolution=(20000, 20000), resolutionunit="CENTIMETER", **options)
        writer.write(pixels[::4, ::4], subfiletype=1, **options)
    return path, slide


def color(number):
    return 40 + 9 * number, 200 - 9 * number, 30 * (number % 7)


def test_slide_gives_thumbnail_patches_and_size_of_a_pixel(image, source):
    path, slide_id = image
    xy = source.coordinates(slide_id).xy
    with Slide(path) as slide:
        assert slide.size == tuple((xy.max(axis=0) + SIZE).astype(int))
        assert slide.micrometers_per_pixel == pytest.approx(0.5)
        thumbnail = slide.thumbnail(256)
        assert max(thumbnail.shape[:2]) == 256
        scale = 256 / max(slide.size)
        for number, corner in enumerate(xy):
            column, row = ((corner + SIZE / 2) * scale).astype(int)
            np.testing.assert_allclose(thumbnail[row, column], color(number), atol=6)
            picture = slide.patch(*corner, SIZE, 64)
            assert picture.shape == (64, 64, 3)
            np.testing.assert_allclose(picture.mean(axis=(0, 1)), color(number), atol=1)
        outside = slide.patch(slide.size[0] + 1000.0, 0.0, SIZE, 8)
        assert (outside == 255).all()
        slide.expect_patches(xy, SIZE)
        with pytest.raises(ValueError, match=r"lie outside of this slide .* another slide"):
            slide.expect_patches(xy * 3, SIZE)


def test_files_that_are_no_slide_are_named(tmp_path, monkeypatch):
    (tmp_path / "a.svs").write_bytes(b"II*\0 no slide")
    with pytest.raises(ValueError, match=r"a\.svs: expected a slide that openslide reads"):
        Slide(tmp_path / "a.svs")
    with pytest.raises(FileNotFoundError, match=r"b\.svs: no such file"):
        Slide(tmp_path / "b.svs")
    monkeypatch.setitem(sys.modules, openslide.__name__, None)
    with pytest.raises(ValueError, match=r"a\.svs: .*pip install 'steph_jax\[wsi\]'"):
        Slide(tmp_path / "a.svs")


def test_images_belong_to_slides_by_their_names(tmp_path):
    paths = [tmp_path / "B.svs", tmp_path / "A.ome.tiff"]
    assert heatmap.images_of(["A.ome", "B"], paths) == {"B": paths[0], "A.ome": paths[1]}
    assert heatmap.images_of(["other"], paths[:1]) == {"other": paths[0]}
    with pytest.raises(ValueError, match=r"no slide of --slides has this name"):
        heatmap.images_of(["A", "B"], paths)


def test_nothing_takes_the_place_of_an_input(fold, source, image, tmp_path):
    _, slide = image
    table = tmp_path / "out" / "slides.csv"
    table.parent.mkdir()
    table.write_text("mine")
    request = Request(inputs=[table])
    with pytest.raises(ValueError, match=r"slides\.csv: this is an input of the same command"):
        draw(fold, source, [slide], table.parent, request)
    assert table.read_text() == "mine"
    assert [child.name for child in table.parent.iterdir()] == ["slides.csv"]


def test_command_line(world, fold, image, tmp_path):
    path, slide = image
    words = ["--checkpoint", fold, "--features", world / "data" / "features" / "sim_a"]
    words += ["--slides", f"{slide}.svs", "--slide", path, "--out", tmp_path / "out"]
    command = [sys.executable, "-m", "steph_jax.heatmap", *map(str, words), "--sources", "sim_c"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.match(r"heatmaps of 1 slide\(s\) written to ", done.stdout)
    names = {child.name for child in (tmp_path / "out").iterdir()}
    endings = (".csv", ".png", ".geojson", ".patches.png")
    assert names == {"top_patches.csv", "slides.csv", *(slide + ending for ending in endings)}
    assert "attention[sim_c]" in pd.read_csv(tmp_path / "out" / f"{slide}.csv").columns
