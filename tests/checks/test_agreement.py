"""`check` and the start of `train` agree on every kind of input, and say what is wrong."""

import gzip
import importlib.util
import pathlib
import re
import subprocess
import sys

import h5py
import numpy as np
import pytest

from steph_jax import check, messages, split, train
from steph_jax.checkpoints.pool import Pool
from steph_jax.checks import findings
from steph_jax.checks.findings import Status
from steph_jax.data.features import hdf5
from steph_jax.data.features.slide import BadFeatures
from steph_jax.training import experiment
from steph_jax.training.config import Config
from steph_jax.training.grid import parse
from tests.helpers.cohorts import DIM, cohort, config


def start(record, root):
    """Goes as far as training would before its first step."""
    run = Config.from_dict(record)
    pool = Pool(run.pool.root)
    target = experiment.read_cohort(run)
    model = train.preflight_run(run, target, pool, parse([], run), list(run.folds))
    train.open_run(run, target, pool, model, root)


def compared(root, caplog, **settings):
    """Findings of `check` that are not ok, the error that ends the start of `train`, its warnings.

    They agree on whether a run can start.
    """
    record = config(root, **settings)
    results = [f for f in check.check(record) if f.status and f.check != "devices"]
    caplog.clear()
    error = ""
    try:
        start(record, root)
    except messages.USER_ERRORS as problem:
        error = str(problem)
    assert (findings.worst(results) == Status.ERROR) == bool(error), (results, error)
    return results, error, [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]


def assert_refused(root, caplog, text, **settings):
    """The only finding, an error; `check` and `train` say `text` in one line."""
    results, error, _ = compared(root, caplog, **settings)
    assert len(results) == 1, results
    assert text in findings.sentence(results[0])
    assert text in error
    assert "\n" not in error
    return results[0]


def assert_warned(root, caplog, text, **settings):
    """The only finding, a warning, which `train` gives too, in one line."""
    results, error, warnings = compared(root, caplog, **settings)
    assert (len(results), error) == (1, ""), (results, error)
    assert text in findings.sentence(results[0])
    matching = [line for line in warnings if text in line]
    assert len(matching) == 1
    assert "\n" not in matching[0]
    return results[0]


def assert_accepted(root, caplog, **settings):
    results, error, warnings = compared(root, caplog, **settings)
    assert (results, error, warnings) == ([], "", [])


# Persons


def test_a_sound_cohort(tmp_path, caplog):
    assert_accepted(cohort().write(tmp_path), caplog)


def two_samples():
    """Every fourth patient is two, one for each sample."""
    study = cohort()
    for row in study.rows:
        row[0] += "-06" if row[1].endswith("DX2") else "-01"
    study.folds = []
    return study


def test_split_keeps_samples_of_a_person_together(tmp_path, caplog):
    """The advice of the finding about splits, which are missing, ends well."""
    root = two_samples().write(tmp_path)
    results, error, _ = compared(root, caplog)
    assert "several ids (9)" in results[0].message
    assert "python -m steph_jax.split" in error
    folder = root / "data" / "mine"
    split.main(["--table", str(folder / "mine_survival.csv"), "--out", str(folder)])
    assert_warned(root, caplog, "several ids (9)")
    for path in folder.glob("splits_*.csv"):
        parts = zip(*(line.split(",") for line in path.read_text().splitlines()[1:]), strict=True)
        train_persons, test_persons = ({patient[:12] for patient in part} for part in parts)
        assert not train_persons & test_persons - {""}


@pytest.mark.parametrize("separator", ["-01", ".01", "_06", "-01Z-00-DX1"])
def test_samples_of_a_person_in_train_and_test_are_refused(tmp_path, caplog, separator):
    study = cohort()
    (training, tested) = study.folds[0]
    twin = tested[1] + separator
    study.rows += [[twin, f"{twin}-extra", "500", "1"]]
    study.features[f"{twin}-extra"] = np.ones((2, DIM), np.float32)
    study.folds = [([*training, twin], tested)]
    results, error, _ = compared(study.write(tmp_path), caplog)
    assert f"the same persons in both train and test, under two ids: {twin} and" in error
    assert [f.status for f in results] == [Status.WARNING, Status.ERROR], results
    assert "several ids (1)" in results[0].message


@pytest.mark.parametrize(
    "change",
    [
        lambda patient: f"{patient}-01",
        lambda patient: patient.replace("-", "."),
        lambda patient: patient.lower().replace("-", "_"),
    ],
)
def test_ids_of_another_form(tmp_path, caplog, change):
    study = cohort()
    study.column("patient_id", change)
    root = study.write(tmp_path)
    error = assert_refused(
        root, caplog, "keep the folds: write the ids of one of the two files as the"
    )
    examples = re.findall(r"(\S+) here is (\S+?) there", error.message)
    assert len(examples) == 2
    assert all(there == change(here.lstrip("(")) for here, there in examples)
    assert "steph_jax.split" not in findings.sentence(error)
    study.folds = [tuple([change(p) for p in part] for part in fold) for fold in study.folds]
    assert_accepted(study.write(tmp_path), caplog)


def test_ids_without_leading_zeros(tmp_path, caplog):
    study = cohort()
    number = {row[0]: f"{i + 7:04d}" for i, row in enumerate(study.rows)}
    for row in study.rows:
        row[1] = f"slide of {row[1]}"
    study.features = {f"slide of {slide}": array for slide, array in study.features.items()}
    study.column("patient_id", number.__getitem__)
    study.folds = [tuple([f"{float(number[p])}" for p in part] for part in study.folds[0])]
    assert (
        ".0 here is 00" in assert_refused(study.write(tmp_path), caplog, "keep the folds").message
    )


def test_slides_in_place_of_patients_in_splits(tmp_path, caplog):
    study = cohort()
    study.folds = [tuple([f"{patient}-01Z-00-DX1" for patient in part] for part in study.folds[0])]
    assert_refused(study.write(tmp_path), caplog, "write the patient of each slide into the splits")


# Tables


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_separators(tmp_path, caplog, separator):
    study = cohort()
    study.separator = separator
    assert_accepted(study.write(tmp_path), caplog)


@pytest.mark.parametrize(
    ("word", "other", "coding"),
    [
        ("DECEASED", "LIVING", "event"),
        ("1:DECEASED", "0:LIVING", "event"),
        ("Dead", "Alive", "censorship"),
        ("TRUE", "false", "event"),
        ("False", "TRUE", "censorship"),
        ("1:DEAD WITH TUMOR", "0:ALIVE OR DEAD TUMOR FREE", "event"),
        ("1.0", "0.0", "event"),
    ],
)
def test_words_for_events(tmp_path, caplog, word, other, coding):
    study = cohort()
    study.column("e", lambda cell: word if cell == "1" else other)
    root = study.write(tmp_path)
    assert_accepted(root, caplog, **{"data.event_coding": coding})
    run = Config.from_dict(config(root, **{"data.event_coding": coding}))
    table = experiment.read_cohort(run).table
    assert table.event.tolist() == [i % 3 == 0 for i in range(36)]


@pytest.mark.parametrize(
    ("coding", "advice"),
    [
        ("event", "1 is death seen and 0 is censored here; 2 may be competing events"),
        ("censorship", "0 is death seen and 1 is censored here; 2 may be competing events"),
    ],
)
def test_other_codes_follow_the_coding(tmp_path, caplog, coding, advice):
    study = cohort()
    study.rows[3][3] = "2"
    assert_refused(study.write(tmp_path), caplog, advice, **{"data.event_coding": coding})
    study.rows[3][3] = "0" if coding == "event" else "1"  # the advice about a competing event
    accepted_or_warned = compared(study.write(tmp_path), caplog, **{"data.event_coding": coding})
    assert not accepted_or_warned[1]


def test_competing_events_set_to_missing(tmp_path, caplog):
    study = cohort()
    study.rows[-1][3] = "-1"
    assert (
        "(leave the cell empty, and"
        in assert_refused(study.write(tmp_path), caplog, "--config.data.unlabeled=drop").advice
    )
    study.rows[-1][3] = ""
    assert_accepted(study.write(tmp_path), caplog, **{"data.unlabeled": "drop"})


@pytest.mark.parametrize("word", ["[Not Available]", "'--", "NA", "Not Reported", "[Unknown]", "."])
def test_words_for_missing_values(tmp_path, caplog, word):
    study = cohort()
    study.rows[-1][2] = word
    root = study.write(tmp_path)
    assert_refused(root, caplog, "--config.data.unlabeled=drop")
    assert_accepted(root, caplog, **{"data.unlabeled": "drop"})


def test_missing_slides_are_one_finding(tmp_path, caplog):
    study = cohort()
    study.rows += [[f"TCGA-QQ-C00{i}", "NA", "400", "1"] for i in range(3)]
    assert_refused(study.write(tmp_path), caplog, "column 'pathology_id': empty or NA")


def test_padding_of_splits_may_be_missing_values(tmp_path, caplog):
    root = cohort().write(tmp_path)
    path = root / "data" / "mine" / "splits_0.csv"
    lines = [f"{line}NA" if line.endswith(",") else line for line in path.read_text().split("\n")]
    path.write_text("\n".join(lines))
    assert_accepted(root, caplog)


def test_times_of_zero(tmp_path, caplog):
    study = cohort()
    study.rows[-1][2] = "0"
    results = assert_warned(
        study.write(tmp_path), caplog, "patients with a time of 0 (1, 0 with an event)"
    )
    assert "they are kept, in the first time bin" in results.advice


def test_inverted_events(tmp_path, caplog):
    study = cohort()
    study.header[3] = "os_censorship"
    names = {"data.columns.event": "os_censorship"}
    assert_warned(study.write(tmp_path), caplog, "--config.data.event_coding=censorship", **names)


def test_files_that_are_not_tables(tmp_path, caplog):
    root = cohort().write(tmp_path)
    path = root / "data" / "mine" / "mine_survival.csv"
    text = path.read_text()
    path.write_bytes(text.encode("utf-16"))
    assert_accepted(root, caplog)
    for data, message in (
        (b"PK\x03\x04....xl/workbook.xml", "found an Excel file: save it as CSV UTF-8"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "found an Excel file"),
        (gzip.compress(text.encode()), "found a gzip file: unpack it"),
        (text.encode("utf-16-le"), "found zero bytes (UTF-16 without its mark?)"),
        (text.replace("TCGA-QQ-B002", "M\u00fcller").encode("latin-1"), "found the byte 0xfc"),
        (b"<!DOCTYPE html><html>", "found an HTML page"),
    ):
        path.write_bytes(data)
        assert_refused(root, caplog, message)
    path.rename(path.with_suffix(".xlsx"))
    assert (
        "found mine_survival.xlsx"
        in assert_refused(root, caplog, "python -m steph_jax.split").message
    )


def test_tables_of_booleans_are_one_finding(tmp_path, caplog):
    root = cohort().write(tmp_path)
    rows = "\n".join(f"slide_{i},{i % 3 > 0},False,{i % 3 == 0}" for i in range(30))
    for fold in (0, 1):
        path = root / "data" / "mine" / f"splits_{fold}.csv"
        path.write_text(f",train,val,test\n{rows}\n")
    results = assert_refused(root, caplog, "found a table of booleans", folds=(0, 1))
    assert "splits_0.csv, splits_1.csv" in results.message


def test_splits_with_a_part_named_val(tmp_path, caplog):
    """The advice, followed, ends well."""
    root = cohort().write(tmp_path)
    path = root / "data" / "mine" / "splits_0.csv"
    path.write_text(path.read_text().replace("train,test", "train,val"))
    assert_refused(root, caplog, "rename val to test")
    path.write_text(path.read_text().replace("train,val", "train,test"))
    assert_accepted(root, caplog)


def test_missing_dataset_is_one_finding(tmp_path, caplog):
    assert_refused(tmp_path, caplog, "mine_survival.csv: no such file", folds=(0, 1, 2))


def test_missing_splits_are_one_finding(tmp_path, caplog):
    study = cohort()
    study.folds = []
    assert_refused(study.write(tmp_path), caplog, "splits_0.csv: no such file", folds=(0, 1, 2))


# Features


@pytest.mark.parametrize("name", ["encoder", "extractor", "patch_encoder", "model_name"])
def test_several_encoders(tmp_path, caplog, name):
    study = cohort()
    study.attributes = lambda slide: {name: "uni2" if "B00" in slide else "gigapath"}
    assert_refused(study.write(tmp_path), caplog, "features of several encoders")


def test_slide_level_embeddings(tmp_path, caplog):
    study = cohort()
    study.features = {slide: array[:1] for slide, array in study.features.items()}
    study.array = "feats"
    assert_warned(
        study.write(tmp_path), caplog, "every slide has one patch (45): slide- or patient-level"
    )


@pytest.mark.parametrize("num_patches", [lambda i: 64, lambda i: 3 + i])
def test_transposed_arrays(tmp_path, caplog, num_patches):
    study = cohort()
    sizes = {slide: num_patches(i) for i, slide in enumerate(study.features)}
    study.features = {slide: np.ones((192, size), np.float32) for slide, size in sizes.items()}
    for i, array in enumerate(study.features.values()):
        array[0, 0] = i
    text = "the arrays seem transposed"
    assert_refused(study.write(tmp_path), caplog, text, **{"model.feature_dim": 192})


@pytest.mark.parametrize(
    ("array", "shape", "dtype", "text"),
    [
        ("coords", (3, 2), np.int64, "no features here: coordinates"),
        ("features", (3, 2), np.int64, "no features here: coordinates of patches"),
        ("features", (3, 8, 8, 3), np.uint8, "no features here: tile images"),
        ("imgs", (3, 8, 8, 3), np.uint8, "no features here: tile images"),
        ("features", (24,), np.float32, "one vector for the whole slide"),
    ],
)
def test_coordinates_in_place_of_features(tmp_path, caplog, array, shape, dtype, text):
    study = cohort()
    study.array = array
    study.features = {slide: np.ones(shape, dtype) for slide in study.features}
    assert_refused(study.write(tmp_path), caplog, text)


def test_frozen_and_normal_sections(tmp_path, caplog):
    study = cohort()
    for patient, sample in (("TCGA-QQ-B001", "01A-01-TS1"), ("TCGA-QQ-B002", "11A-01-BS1")):
        time, event = next(row[2:] for row in study.rows if row[0] == patient)
        study.rows.append([patient, f"{patient}-{sample}", time, event])
        study.features[f"{patient}-{sample}"] = np.full((3, DIM), len(study.rows), np.float32)
    results, error, warnings = compared(study.write(tmp_path), caplog)
    assert [f.values for f in results] == [{"frozen": 1, "diagnostic": 45}, {"normal": 1}]
    assert all("take their rows out" in line for line in warnings)
    assert (len(warnings), error) == (2, "")
    study.rows = study.rows[:-2]
    assert compared(study.write(tmp_path), caplog)[1:] == ("", [])


def test_two_images_of_one_slide(tmp_path, caplog):
    study = cohort()
    study.rows.append([*study.rows[0][:1], f"{study.rows[0][1]}.tiff", *study.rows[0][2:]])
    assert_refused(study.write(tmp_path), caplog, "keep one row per slide")


def test_slides_named_by_their_files(tmp_path, caplog):
    study = cohort()
    study.column("pathology_id", lambda slide: f"batch_1/{slide}.h5")
    assert_accepted(study.write(tmp_path), caplog)


def test_features_in_folders(tmp_path, caplog):
    """By project; by slide; in two places."""
    features = cohort().write(tmp_path) / "data" / "features" / "mine"
    files = sorted(features.glob("*.h5"))
    for i, path in enumerate(files):
        place = features / ("TCGA-GBM" if i % 2 else "TCGA-LGG")
        place.mkdir(exist_ok=True)
        path.rename(place / path.name)
    assert_accepted(tmp_path, caplog)
    places = f"{features / 'TCGA-GBM'},{features / 'TCGA-LGG'}"
    assert_accepted(tmp_path, caplog, **{"data.features": places})
    for path in features.glob("*/*.h5"):
        place = features / path.stem
        place.mkdir()
        path.rename(place / "features.h5")
    assert_accepted(tmp_path, caplog)
    (features / "copy").mkdir()
    (features / "copy" / f"{files[0].stem}.h5").write_bytes(
        (features / files[0].stem / "features.h5").read_bytes()
    )
    assert_refused(
        tmp_path, caplog, "are in several of its folders (TCGA-QQ-B000-01Z-00-DX1, copy)"
    )


def test_a_compression_filter_of_a_package(tmp_path, caplog):
    root = cohort().write(tmp_path)
    script = (
        "import sys, pathlib, h5py, hdf5plugin\n"
        "for path in pathlib.Path(sys.argv[1]).glob('*.h5'):\n"
        "    with h5py.File(path, 'r') as file: array = file['features'][:]\n"
        "    with h5py.File(path, 'w') as file:\n"
        "        file.create_dataset('features', data=array, **hdf5plugin.Zstd())\n"
    )
    pytest.importorskip("hdf5plugin")
    places = root / "data" / "features" / "mine"
    subprocess.run([sys.executable, "-c", script, str(places)], check=True)
    assert_accepted(root, caplog)


def test_a_compression_filter_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    create = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    create.set_chunk((4, DIM))
    create.set_filter(32004, h5py.h5z.FLAG_OPTIONAL, (0,))  # LZ4, which is not used where it lacks
    with h5py.File(path, "w") as file:
        space = h5py.h5s.create_simple((4, DIM))
        array = h5py.h5d.create(file.id, b"features", h5py.h5t.IEEE_F32LE, space, create)
        array.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ones((4, DIM), np.float32))
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda number: False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    text = r"a\.h5: compressed with the HDF5 filter LZ4 \(number 32004\), .*pip install hdf5plugin"
    with pytest.raises(BadFeatures, match=text), hdf5.open_hdf5(path, "features", None):
        pass


@pytest.mark.torch
def test_cases_of_the_field(shared, tmp_path, caplog):
    """Every case beside the checkout; torch only writes them."""
    script = shared / "field" / "make_cases.py"
    if not script.is_file():
        pytest.skip("no cases of the field here")
    pytest.importorskip("torch")
    pytest.importorskip("hdf5plugin")
    pytest.importorskip("openpyxl")
    pytest.importorskip("safetensors")
    subprocess.run([sys.executable, str(script), str(tmp_path / "field")], check=True)
    names = sorted(path.name for path in (tmp_path / "field").iterdir() if (path / "data").is_dir())
    assert len(names) > 40
    for name in names:
        root = pathlib.Path(tmp_path / "field" / name)
        compared(root, caplog, **{"model.feature_dim": 1536, "batch_size": 16})
