"""`check`: cohorts broken in every way, pools that do not fit, files that crash their reader."""

import dataclasses
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import h5py
import jax
import numpy as np
import pytest

from configs import testing
from steph_jax import check, cli, locks, simulate
from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.checks import devices, findings, folds, models, outcomes, reading, slides, tables
from steph_jax.checks.findings import Status
from steph_jax.data.columns import DAYS_PER_UNIT, Columns
from steph_jax.data.simulation import Settings
from steph_jax.data.splits import Split, read_split, split_path
from steph_jax.data.tables import SurvivalTable, read_table, table_path
from steph_jax.methods.base import as_numpy
from steph_jax.methods.registry import find_method
from steph_jax.models import abmil
from steph_jax.models.abmil import Architecture
from steph_jax.trackers import track
from steph_jax.training.config import Config, as_dict

SMALL = Settings(cohorts=2, patients=40, patches=12, feature_dim=24, two_slides=0.2, seed=3)
DIMS = Architecture(feature_dim=24, embed_dim=16, attention_dim=8, num_bins=32)
HEADER = "patient_id,pathology_id,project,t,e\n"


def theta(seed, near=None, scale=0.05, architecture=DIMS):
    """A model from a start of its own, or near another one."""
    params = as_numpy(abmil.init(jax.random.key(seed), architecture))
    if near is not None:
        params = jax.tree.map(lambda a, b: a + np.float32(scale) * b, near, params)
    return SavedModel("abmil", architecture, {}, params)


def make_pool(root):
    pool = Pool(root)
    null = theta(0)
    pool.add("null", null)
    for seed, name in enumerate(("sim_a-fold_0", "sim_a-fold_1", "sim_b-fold_0"), 1):
        pool.add(name, theta(seed, null.params))
    return pool


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A cohort, a source and a pool in which all is well."""
    root = tmp_path_factory.mktemp("whole")
    simulate.simulate(root / "data", SMALL, lambda line: None)
    make_pool(root / "pool")
    return root


def config_of(root, **more):
    config = testing.get_config()
    config.data.root = str(root / "data")
    config.data.features = str(root / "data" / "features" / "{dataset}")
    config.pool.root = str(root / "pool")
    config.update(more)
    return as_dict(config)


def having(results, text):
    """The only finding whose message has a text."""
    matching = [finding for finding in results if text in finding.message]
    assert len(matching) == 1, [finding.message for finding in results]
    return matching[0]


def table_of(time, event, patients=None, slides=None):
    patients = patients or [f"P{i:03}" for i in range(len(time))]
    return SurvivalTable(
        pathlib.Path("table.csv"),
        tuple(patients),
        np.asarray(time, np.float64),
        np.asarray(event, bool),
        tuple(slides or [(f"{patient}-a",) for patient in patients]),
    )


# The whole


def test_sound_run_has_no_findings(whole):
    results = check.check(config_of(whole))
    assert [f.message for f in results if f.status and f.check != "devices"] == []
    names = {finding.check for finding in results}
    assert names >= {"table", "features", "pool", "task vectors", "leaks", "encoder", "time unit"}
    summary = having(results, "slides can be read")
    assert summary.values["dims"] == [24]
    assert summary.values["patches"] > 0
    assert having(results, "fold 1: train").values["test"]["patients"] == 8
    matrix = having(results, "cosine similarities").values
    assert matrix["names"] == ["sim_a-fold_0", "sim_a-fold_1", "sim_b-fold_0"]
    np.testing.assert_allclose(np.diag(matrix["cosines"]), 1, rtol=1e-6)


def test_status_0_where_all_is_well(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(devices, "gpus_there", list)
    assert check.run(config_of(whole), json_file=str(tmp_path / "found.json")) == 0
    assert "sim_a: 0 errors, 0 warnings" in capsys.readouterr().out
    record = json.loads((tmp_path / "found.json").read_text())
    assert (record["dataset"], record["exit_status"], record["status"]) == ("sim_a", 0, "ok")


def test_missing_config_data_and_pool(tmp_path):
    results = check.check(config_of(tmp_path, method="no_such", folds=(0, 0)))
    assert findings.worst(results) == Status.ERROR
    for text in (
        "method is one of",
        "a fold is named twice",
        "sim_a_survival.csv: no such file",
        "no such pool of models",
    ):
        assert having(results, text).status == Status.ERROR


def test_missing_data_end_in_status_2(tmp_path):
    command = [sys.executable, "-m", "steph_jax.check", "--config", "configs/testing.py"]
    command += [f"--config.data.root={tmp_path}", f"--config.pool.root={tmp_path}/pool"]
    command += ["--json", str(tmp_path / "found.json")]
    repo = pathlib.Path(check.__file__).parents[1]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "UNI2-h-DSS" in done.stdout
    record = json.loads((tmp_path / "found.json").read_text())
    assert record["exit_status"] == 2
    statuses = [finding["status"] for finding in record["findings"]]
    assert record["counts"] == {s: statuses.count(s) for s in ("ok", "warning", "error")}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--config must have a value"),
        (("--config=configs/testing.py", "--no_such_flag"), "'no_such_flag'; see --help"),
        (("--config=configs/testing.py", "--config.epoch=3"), 'Did you mean "epochs"'),
        (("--config=configs/testing.py", "more"), "unexpected argument 'more'"),
        (("--config=configs/none.py",), "configs/none.py"),
    ],
)
def test_usage_errors_end_in_status_2(words, message):
    repo = pathlib.Path(check.__file__).parents[1]
    command = [sys.executable, "-m", "steph_jax.check", *words]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_mistake_in_the_code_of_a_config_keeps_its_traceback(tmp_path):
    (tmp_path / "own.py").write_text("import json\ndef get_config():\n    return json.nothing()\n")
    repo = pathlib.Path(check.__file__).parents[1]
    command = [sys.executable, "-m", "steph_jax.check", f"--config={tmp_path / 'own.py'}"]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert 'own.py", line 3' in done.stderr


def test_full_lists_are_written(whole, tmp_path, capsys):
    target = tmp_path / "data" / "sim_a"
    target.mkdir(parents=True)
    for path in (whole / "data" / "sim_a").iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    with (target / "sim_a_survival.csv").open("a") as table:
        table.writelines(f"new_{i},new_{i}-1,x,1000,1\n" for i in range(12))
    config = config_of(whole)
    config["data"]["root"] = str(tmp_path / "data")
    assert check.run(config, out_dir=str(tmp_path / "out")) == 1
    printed = capsys.readouterr().out
    assert "patients of the table that no split names (12)" in printed
    assert "- ... 12 in all" in printed
    assert "new_9" not in printed
    text = (tmp_path / "out" / "report.txt").read_text()
    assert all(f"- new_{i}\n" in text for i in range(12))
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    assert record["counts"]["error"] == 0


def test_features_of_another_size_than_the_pool(whole, tmp_path):
    features = tmp_path / "data" / "features"
    for dataset, dim in (("sim_a", 20), ("sim_b", 24)):
        (features / dataset).mkdir(parents=True)
        rng = np.random.default_rng(dim)
        for path in sorted((whole / "data" / "features" / dataset).iterdir()):
            with h5py.File(features / dataset / path.name, "w") as file:
                file["features"] = rng.random((3, dim), np.float32)
    config = config_of(whole)
    config["data"]["features"] = f"{features}/{{dataset}}"
    results = check.check(config)
    assert having(results, "but the target's features have D = 20").check == "pool"
    other = having(results, "D = 24, but the features of the target have D = 20")
    assert other.status == Status.WARNING
    assert other.check == "encoder"


# Tables


def test_every_problem_of_a_table_is_reported(tmp_path):
    path = tmp_path / "t.csv"
    rows = [
        *("P1,P1-a,x,100,1", "P1,P1-b,x,200,1", "P2,P2-a,x,nan,0", "P3,P3-a,x,-5,0"),
        *("P4,P4-a,x,1_0,2", ",P5-a,x,3,0", "P6,P4-a,x,7,0", "p6,P7-a,x,7,0", "P8,P8-a,x,9,1"),
    ]
    path.write_text(HEADER + "\n".join(rows) + "\n")
    table, results = tables.check_table(path, Columns())
    expected = {
        "'patient_id': empty or NA": ("line 7",),
        "slides in several rows": ("P4-a",),
        "without a number in 't' or 'e'": ("P2",),
        "no finite numbers": ("P4: '1_0'",),
        "negative times": ("P3: -5",),
        "expected 0 or 1 in column 'e'": ("P4: '2'",),
        "rows differ in 't' or 'e'": ("P1: (100.0, 1.0) and (200.0, 1.0)",),
        "the same under several ids": ("P6, p6",),
    }
    for text, items in expected.items():
        assert having(results, text).items == items
    assert table is not None
    assert table.patients == ("P1", "P2", "P3", "P4", "P6", "P8", "p6")
    assert tables.labeled(table).patients == ("P1", "P6", "P8", "p6")


def test_a_table_with_other_columns(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("case,slide,months,censored\nP1,a,1,0\n")
    table, (results,) = tables.check_table(path, Columns())
    assert table is None
    assert "missing patient_id, pathology_id, t, e" in results.message
    assert "found case, slide, months, censored" in results.message
    assert "name yours by data.columns.patient, data.columns.slide" in results.message
    named = Columns("case", "slide", "months", "censored", "months", "censorship")
    table, results = tables.check_table(path, named)
    assert findings.worst(results) == Status.OK
    assert table.event.tolist() == [True]


def test_patients_without_labels(tmp_path):
    path = tmp_path / "x" / "t.csv"
    path.parent.mkdir()
    path.write_text(HEADER + "A,a,x,1,1\nB,b,x,,1\nC,c,x,3,NA\nD,d,x,3,0\n")
    _, results = tables.check_table(path, Columns())
    refused = having(results, "patients without a number in 't' or 'e' (2)")
    assert (refused.status, refused.items) == (Status.ERROR, ("B", "C"))
    assert "data.unlabeled=drop" in refused.advice
    table, results = tables.check_table(path, Columns(unlabeled="drop"))
    assert findings.worst(results) == Status.OK
    assert having(results, "left out of table and splits (2)").items == ("B", "C")
    write_split(path.parent / "splits_0.csv", ["A", "B"], ["D", "C"])
    splits, results = folds.check_splits(tmp_path, "x", [0], table, 1)
    assert (splits[0].train, splits[0].test) == (("A",), ("D",))
    assert not any("lacks" in finding.message for finding in results)
    path.write_text(HEADER + "A,a,x,-1,1\nB,b,x,,1\n")
    table, _ = tables.check_table(path, Columns(unlabeled="drop"))
    assert (table.patients, set(table.left_out)) == (("A",), {"B"})


def test_codings_of_others(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(HEADER + "A,a,x,1,1\nB,b,x,2,2\n")
    assert "R's codes" in having(tables.check_table(path, Columns())[1], "expected 0 or 1").advice


def test_tcga_barcodes(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        HEADER + "TCGA-A1-0001,TCGA-A1-0001-01Z,x,5,1\nTCGA-A1-0001-01,TCGA-A1-0002-01Z,x,5,1\n"
    )
    _, results = tables.check_table(path, Columns())
    assert having(results, "several ids").items == ("TCGA-A1-0001, TCGA-A1-0001-01",)
    assert having(results, "another patient's").items == ("TCGA-A1-0001-01: TCGA-A1-0002-01Z",)


# Times and events


@pytest.mark.parametrize("truth", ["days", "months", "years"])
@pytest.mark.parametrize("unit", ["days", "months", "years"])
def test_units_of_time(truth, unit):
    days = np.random.default_rng(0).exponential(1200, 200).clip(1, 6000)
    raw = days / DAYS_PER_UNIT[truth]
    table = table_of(raw * DAYS_PER_UNIT[unit], np.arange(200) % 3 == 0)
    results = outcomes.check_times(table, Columns(time_unit=unit))
    assert findings.worst(results) == (Status.OK if truth == unit else Status.WARNING)
    if truth != unit:
        assert f"--config.data.time_unit={truth}" in results[0].advice
        assert results[0].values["longest_days"] == pytest.approx(table.time.max())


def test_times_that_no_one_lives():
    table = table_of([*np.linspace(100, 3000, 99), 40000], np.arange(100) % 2)
    (_, far) = outcomes.check_times(table, Columns())
    assert far.items == ("P099: 40000 days",)


def test_codings_are_judged_on_real_cohorts(shared):
    for path in sorted((shared / "tcga_rna").glob("*/*_survival.csv")):
        table = read_table(path)
        assert findings.worst(outcomes.check_times(table, Columns())) == Status.OK
        assert findings.worst(outcomes.check_events(table, Columns())) == Status.OK
        turned = dataclasses.replace(table, event=~table.event)
        (results,) = outcomes.check_events(turned, Columns())
        assert results.status == Status.WARNING
        assert "--config.data.event_coding=censorship" in results.advice


@pytest.mark.parametrize(
    ("event", "columns", "text", "status"),
    [
        (np.zeros(40), Columns(), "no patient has an event", Status.ERROR),
        (np.ones(40), Columns(), "every patient has an event", Status.WARNING),
        (np.arange(40) > 1, Columns(), "nearly all patients", Status.WARNING),
        (np.arange(40) < 5, Columns(), "few events", Status.WARNING),
        (np.arange(40) % 3 == 0, Columns(event="censored"), "read as 1 = death", Status.WARNING),
        (
            np.arange(40) % 3 > 0,
            Columns(event_coding="censorship"),
            "read as 1 = censored",
            Status.WARNING,
        ),
    ],
)
def test_codings(event, columns, text, status):
    (results,) = outcomes.check_events(table_of(np.arange(40.0) + 1, event), columns)
    assert text in results.message
    assert results.values["event_rate"] == np.mean(event)
    assert results.status == status


# Splits


def write_split(path, train, test):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{a},{b}" for a, b in zip(train, [*test, *[""] * len(train)], strict=False)]
    path.write_text("\n".join(["train,test", *rows]) + "\n")


def test_every_problem_of_splits_is_reported(tmp_path):
    table = table_of(np.arange(40.0) + 1, np.arange(40) % 2, [f"p{i:02}" for i in range(40)])
    p = table.patients
    write_split(tmp_path / "x" / "splits_0.csv", [*p[:8], "P09", "q"], [p[0], *p[8:12]])
    write_split(tmp_path / "x" / "splits_1.csv", p[12:36:2], p[8:12])
    splits, results = folds.check_splits(tmp_path, "x", [0, 1, 2], table, 11)
    assert set(splits) == {0, 1}
    assert having(results, "in both train and test (1)").items == ("p00",)
    assert having(results, "in both train and test, under two ids").items == ("P09 and p09",)
    assert having(results, "P09 here is p09 there").items == ("P09",)
    assert having(results, "that table.csv lacks").items == ("q",)
    assert "splits_1.csv: expected events" in having(results, "among the training").message
    assert having(results, "splits_0.csv: 10 training patients").advice == (
        "lower --config.batch_size (now 11)"
    )
    assert having(results, "in the test part of several folds").items == p[8:12]
    assert "p39" in having(results, "that no split names").items
    assert "splits_2.csv: no such file" in having(results, "no such file").message


def test_event_rates_of_unlike_parts():
    table = table_of(np.arange(200.0) + 1, np.arange(200) < 100)
    p = table.patients

    def rates(train, test):
        (results,) = folds.event_rates(0, Split(pathlib.Path("s"), train, test), table)
        return results.status

    assert rates(p[::2], p[1::2]) == Status.OK
    assert rates(p[:120], p[120:]) == Status.WARNING
    assert rates(p[:50], p[50:150]) == Status.WARNING
    (results,) = folds.event_rates(0, Split(pathlib.Path("s"), p[:120], p[120:]), table)
    assert results.to_json()["values"]["test"] == {"patients": 80, "events": 0, "rate": 0.0}


def test_leaks_of_test_patients(tmp_path):
    write_split(tmp_path / "kipan" / "splits_0.csv", ["TCGA-A1-0001", "TCGA-A1-0002"], ["z"])
    write_split(tmp_path / "brca" / "splits_0.csv", ["y"], ["TCGA-A1-0001-01"])
    split = Split(pathlib.Path("s"), ("TCGA-A1-0002-01",), ("TCGA-A1-0001-01", "w"))
    for name, text in (("mine", HEADER), ("other", "id,x\n")):
        (tmp_path / name).mkdir()
        table = table_path(tmp_path, name)
        table.write_text(f"{text}tcga-a1-0001,s,x,,\nTCGA-A1-0002,t,x,1,1\nTCGA-A1-0003,u,x,1,1\n")
    sources = ("kipan", "brca", "elsewhere", "kirc", "mine", "other")
    results = folds.check_leaks(tmp_path, "kirc", {3: split}, sources, Columns())
    leak = having(results, "the model of kipan was trained on")
    assert leak.status == Status.WARNING
    assert leak.items == ("fold 3: TCGA-A1-0001-01",)
    whole_table = having(results, "in the table of mine, whose model may have been trained on them")
    assert (whole_table.status, whole_table.items) == (leak.status, leak.items)
    assert "no splits_0.csv to compare with" in whole_table.message
    assert having(results, "other_survival.csv").status == Status.WARNING
    assert having(results, "without a table").values["sources"] == ["elsewhere"]
    (joined,) = folds.check_joined(tmp_path, "kirc", {3: split}, ("mine", "elsewhere"), Columns())
    assert joined.values == {"patients": 3, "left_out": 2}
    assert joined.status == Status.OK


def test_real_cohorts_do_not_share_patients(shared):
    root = shared / "tcga_rna"
    table = read_table(table_path(root, "tcga_kirc"))
    splits, results = folds.check_splits(root, "tcga_kirc", [0, 1, 2, 3, 4], table, 16)
    assert findings.worst(results) == Status.OK
    results = folds.check_leaks(root, "tcga_kirc", splits, ("tcga_blca", "tcga_luad"), Columns())
    assert [finding.status for finding in results] == [Status.OK]


# Features


@pytest.fixture
def broken(tmp_path):
    """A folder with a file for each thing that can be wrong."""
    rng = np.random.default_rng(0)

    def save(name, rows):
        np.save(tmp_path / f"{name}.npy", rows.astype(np.float32))

    for name in ("good", "twin_a", "spare", "beside", "inf", "crash"):
        save(name, rng.random((5, 24)))
    save("twin_b", np.load(tmp_path / "twin_a.npy"))
    save("empty", np.zeros((0, 24)))
    save("alone", np.zeros((0, 24)))
    save("nan", np.where(np.arange(48).reshape(2, 24) == 30, np.nan, 1))
    save("inf", np.full((2, 24), np.inf))
    save("other", rng.random((5, 30)))
    (tmp_path / "page.h5").write_text("<!doctype html>")
    (tmp_path / "void.pt").write_bytes(b"")
    return tmp_path


SLIDES = {
    "P0": ("good", "empty"),
    "P1": ("alone",),
    "P2": ("twin_a", "twin_b"),
    "P3": ("nan", "inf"),
    "P4": ("page", "void", "other"),
    "P5": ("gone.svs",),
    "P6": ("beside.svs", "crash"),
}


def test_every_problem_of_features_is_reported(broken):
    slide_ids = [slide for patient_slides in SLIDES.values() for slide in patient_slides]
    read = reading.read(broken, "features", slide_ids, workers=1)
    results = slides.check_slides(broken, list(SLIDES), list(SLIDES.values()), read)
    missing = having(results, "no features of slides")
    assert missing.items == ("gone.svs",)
    assert having(results, "the table lacks").items == ("spare",)
    page, void = having(results, "cannot be read (2)").items
    assert "page.h5" in page
    assert "HTML page" in page
    assert "void.pt" in void
    nan, inf = having(results, "NaN or infinity (2)").items
    assert "nan.npy" in nan
    assert "first in patch 1" in nan
    assert "inf.npy" in inf
    assert having(results, "without any patch").items == (f"P1: {broken / 'alone.npy'}",)
    assert having(results, "beside others").items == (str(broken / "empty.npy"),)
    mixed = having(results, "mixed sizes")
    assert mixed.items == (f"{broken / 'other.npy'}: D = 30",)
    assert mixed.values["slides"]["30"] == 1
    assert missing.values == {"missing": 1, "wanted": 13}
    assert having(results, "identical features").items == ("twin_a, twin_b",)


CRASHING = """
import os, signal, sys
from steph_jax.data.features import sandbox_worker as reader
look_at = reader.look_at

def dangerous(source, slide, values, profile):
    if slide == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if slide == "beside":
        signal.pause()
    return look_at(source, slide, values, profile)

reader.look_at = dangerous
reader.main()
"""


def test_files_that_crash_or_hang_their_reader(broken, tmp_path_factory):
    script = tmp_path_factory.mktemp("script") / "reader.py"
    script.write_text(CRASHING)
    read = reading.read(
        broken,
        "features",
        ["crash", "beside", "good"],
        workers=1,
        slide_seconds=8,
        command=(sys.executable, str(script)),
    )
    assert read.answers["good"]["num_patches"] == 5
    results = slides.check_slides(broken, ["P"], [["crash", "beside", "good"]], read)
    crash, hang = having(results, "cannot be read (2)").items
    assert "crash.npy" in crash
    assert "SIGSEGV" in crash
    assert "beside.npy" in hang
    assert "more than 8 seconds" in hang


def test_a_location_that_cannot_be_opened(broken, tmp_path):
    with pytest.raises(ValueError, match="no such file or folder"):
        reading.read(broken / "no", "features", None)
    script = tmp_path / "reader.py"
    script.write_text("import os; os.abort()")
    with pytest.raises(ValueError, match=r"cannot be opened, .*SIGABRT"):
        reading.read(broken, "features", None, command=(sys.executable, str(script)))


def test_slides_of_patients_outside_the_splits(whole, tmp_path):
    """They are in the table, and so are those of patients without labels."""
    shutil.copytree(whole / "data" / "sim_a", tmp_path / "sim_a")
    path = tmp_path / "sim_a" / "sim_a_survival.csv"
    header, *rows = path.read_text().splitlines()
    patient, slide, project, *_ = rows[0].split(",")
    lone = [row for row in rows if not row.startswith(f"{patient},")]
    unlabeled = f"{patient},{slide}.svs,{project},,"
    path.write_text("\n".join([header, unlabeled, *lone]) + "\n")
    others = [row.split(",")[1] for row in rows if row.startswith(f"{patient},")][1:]
    config = config_of(whole, folds=(0,))
    config["data"] |= {"root": str(tmp_path), "unlabeled": "drop"}
    split = read_split(split_path(tmp_path, "sim_a", 0))
    write_split(split.path, split.train[1:], split.test)
    results = check.check(config)
    assert "of patients whom the run does not use" in having(results, "does not use").message
    lacking = [f.items for f in results if "the table lacks" in f.message]
    assert lacking == ([tuple(others)] if others else [])


def test_an_interrupt_ends_the_processes_that_read(tmp_path):
    script = tmp_path / "reader.py"
    script.write_text(
        "import os, pathlib, signal\n"
        "from steph_jax.data.features import sandbox_worker as reader\n"
        "def hang(source, slide, values, profile):\n"
        f"    (pathlib.Path({str(tmp_path)!r}) / f'{{os.getpid()}}.pid').touch()\n"
        "    signal.pause()\n"
        "reader.look_at = hang\n"
        "reader.main()\n"
    )
    (tmp_path / "slides").mkdir()
    for name in ("a", "b", "c"):
        np.save(tmp_path / "slides" / f"{name}.npy", np.ones((2, 4), np.float32))
    program = (
        "import pathlib, signal, sys; from steph_jax.checks import reading\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job\n"
        "try:\n"
        f"    reading.read(pathlib.Path({str(tmp_path / 'slides')!r}), 'features', "
        f"['a', 'b', 'c'], workers=2, command=(sys.executable, {str(script)!r}))\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(130)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as running:
        while len(list(tmp_path.glob("*.pid"))) < 2:
            assert running.poll() is None
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        assert running.wait(100) == 130  # a slide is given up after 120 seconds
    pids = [int(path.stem) for path in tmp_path.glob("*.pid")]
    assert all(locks.this_process()._replace(number=pid).is_gone() for pid in pids)
    assert len(pids) == 2


def test_an_interrupted_check_is_one_line(monkeypatch, capsys):
    def interrupted(config, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "check", interrupted)
    assert cli.guarded(lambda: check.run({"dataset": "x"})) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_time_for_headers_alone(broken):
    read = reading.read(broken, "features", ["good", "nan"], deadline=0.0, workers=1)
    assert read.unread == ("good", "nan")
    results = slides.check_slides(broken, ["P"], [["good", "nan"]], read)
    assert "values of 2 of 2 slides were not read" in having(results, "headers only").message


def encoder(rng, offset, slides_=4, length=1.0):
    """A reading of slides whose dimensions have means of their own."""
    answers = {
        f"s{i}": {
            "num_patches": 9,
            "dim": len(offset),
            "mean": (offset + 0.1 * rng.standard_normal(len(offset))).tolist(),
            "length": length,
        }
        for i in range(slides_)
    }
    return reading.Reading({}, answers, ())


def test_encoders_are_compared():
    rng = np.random.default_rng(0)
    one, two = rng.standard_normal((2, 200))
    location = pathlib.Path("b")
    target = encoder(rng, one)
    assert slides.compare_encoders(target, encoder(rng, one), location) == []
    (results,) = slides.compare_encoders(target, encoder(rng, two), location)
    assert "unlike the target's" in results.message
    (results,) = slides.compare_encoders(target, encoder(rng, one, length=40.0), location)
    assert "40.0 times as long" in results.message
    (results,) = slides.compare_encoders(target, encoder(rng, one[:100]), location)
    assert results.status == Status.WARNING


def test_encoders_that_files_name(tmp_path):
    rng = np.random.default_rng(0)
    for i, name in enumerate(("UNI_v2", "uni-v2", "", "conch")):
        with h5py.File(tmp_path / f"s{i}.h5", "w") as file:
            file["features"] = rng.random((5, 24), np.float32)
            file["features"].attrs["encoder"] = name
    names = [f"s{i}" for i in range(4)]
    read = reading.read(tmp_path, "features", names, workers=1)
    results = slides.check_slides(tmp_path, names, [[name] for name in names], read)
    several = having(results, "features of several encoders: univ2 in 2, conch in 1")
    assert several.status == Status.ERROR
    assert several.items == (f"{tmp_path / 's3.h5'}: conch",)
    assert slides.encoder_name(read) in ("UNI_v2", "uni-v2", "conch")
    target, source = encoder(rng, np.ones(9)), encoder(rng, np.ones(9))
    for answer in source.answers.values():
        answer["encoder"] = "conch"
    assert slides.compare_encoders(target, source, tmp_path) == []
    for answer in target.answers.values():
        answer["encoder"] = "uni_v2"
    (results,) = slides.compare_encoders(target, source, tmp_path)
    assert "of the encoder conch, but the target's are of uni_v2" in results.message


def test_sources_are_compared_within_the_time(whole):
    target = encoder(np.random.default_rng(0), np.ones(24))
    config = Config.from_dict(config_of(whole))
    results = check.check_encoders(config, ("sim_b",), target, 0.0, 60.0)
    assert having(results, "by headers only").items == ("sim_b",)
    assert len(results) == 1


# The pool


def test_members_fitted_on_features_of_another_encoder(tmp_path):
    pool = make_pool(tmp_path)
    null = pool.null()
    for seed, name in enumerate(("uni_v2", "conch", "")):
        model = dataclasses.replace(theta(seed + 20, null.params), metadata={"encoder": name})
        pool.add(f"of_{name or 'unknown'}-fold_0", model)
    names = ("of_conch-fold_0", "of_uni_v2-fold_0")
    results = models.check_pool(pool, names, 24, feature_encoder="UNI-v2")
    other = having(results, "fitted on features of the encoder")
    assert other.message.startswith("of_conch-fold_0: ")
    assert other.status == Status.ERROR
    results = models.check_pool(pool, (), 24, feature_encoder="UNI-v2")
    assert having(results, "fitted on features of the encoder").status == Status.WARNING
    results = models.check_pool(pool, names, 24)
    assert not any("fitted on features" in finding.message for finding in results)


def test_foreign_members(tmp_path):
    pool = make_pool(tmp_path)
    null = pool.null().params
    for seed in (11, 12, 13):
        pool.add(f"fine_{seed}-fold_0", theta(seed, null))
    pool.add("random-fold_0", theta(5))
    pool.add("far-fold_0", theta(6, null, 0.5))
    pool.add("same-fold_0", theta(11, null))
    pool.add("zero-fold_0", pool.null())
    wider = dataclasses.replace(DIMS, feature_dim=30)
    other = Pool(tmp_path / "other")
    other.add("wide-fold_0", theta(1, architecture=wider))
    (tmp_path / "other" / "wide-fold_0").rename(tmp_path / "wide-fold_0")
    (tmp_path / "half-fold_0").mkdir()
    (tmp_path / "half-fold_0" / "model.json").write_text("{}")
    names = ("random-fold_0", "sim_a-fold_0", "wide-fold_0", "absent-fold_0")
    results = models.check_pool(pool, names, 24)
    assert having(results, "are not there").items == ("absent-fold_0",)
    assert having(results, "not descended from null").status == Status.ERROR
    assert having(results, "not descended").message.startswith("random-fold_0: D = 24")
    far = having(results, "times as far as the others")
    assert far.message.startswith("far-fold_0")
    assert far.values["distance"] > 3 * far.values["median_distance"]
    assert far.status == Status.WARNING
    assert having(results, "the null model itself").message.startswith("zero-fold_0")
    assert having(results, "same task vector").items == ("fine_11-fold_0 and same-fold_0",)
    assert "feature_dim 30 and 24" in having(results, "other dimensions").message
    assert having(results, "half-fold_0").status == Status.WARNING
    fine = having(results, "sim_a-fold_0: D")
    a, b = (
        np.concatenate([x.ravel() for n in ("feat_proj", "attention_net") for x in leaves(p[n])])
        for p in (pool.member("sim_a", 0).params, null)
    )
    assert fine.values["distance"] == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(b))
    assert fine.values["cosine"] == pytest.approx(
        a @ b / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-5
    )


def leaves(tree):
    return jax.tree.leaves(tree)


def test_another_null_model(tmp_path):
    pool = make_pool(tmp_path)
    pool.add("null", theta(99))
    results = models.check_pool(pool, (), None)
    finding = having(results, "no member is descended from null")
    assert finding.status == Status.ERROR
    assert len(finding.items) == 3


def test_nonfinite_parameters(tmp_path):
    pool = make_pool(tmp_path)
    model = pool.member("sim_b", 0)
    params = jax.tree.map(np.array, model.params)
    params["feat_proj"]["layers_0"]["bias"][0] = np.nan
    model = dataclasses.replace(model, params=params)
    pool.add("sim_b-fold_0", model)
    results = models.check_pool(pool, ("sim_b-fold_0",), None)
    assert "sim_b-fold_0" in having(results, "NaN or infinity").message


# Devices, reports


def test_unused_gpu_is_reported(tmp_path):
    assert devices.gpus_there(tmp_path, "no-such-tool") == []
    (tmp_path / "nvidia0").touch()
    (tmp_path / "nvidiactl").touch()
    signs = devices.gpus_there(tmp_path, "no-such-tool")
    assert signs == [str(tmp_path / "nvidia0")]
    results = devices.check_devices(signs)
    on_cpu = jax.devices()[0].platform == "cpu"
    assert results.status == (Status.WARNING if on_cpu else Status.OK)
    assert devices.check_devices([]).status == Status.OK


def test_reports_are_aligned_and_cut():
    results = [
        findings.ok("a", "good"),
        findings.error("long", "bad", "mend it", map(str, range(12))),
    ]
    lines = findings.report(results)
    assert lines[1] == "ok       a      good"
    assert lines[2] == "error    long   bad; mend it"
    assert lines[3] == "                - 0"
    assert lines[-1].strip() == "- ... 12 in all"
    assert len(findings.report(results, None)) == 15
    assert results[1].to_json()["count"] == 12


@pytest.mark.parametrize(
    ("method", "more", "absent"),
    [
        ("abmil", {}, ()),
        ("joint", {"sources": ("elsewhere",)}, ()),
        ("zero_shot", {}, ()),
        ("fine_tune", {"transfer": {"source": "elsewhere"}}, ("elsewhere-fold_0",)),
        ("average", {"folds": (0, 3)}, ("sim_a-fold_3",)),
        (
            "steph",
            {"folds": (0, 3), "sources": ("elsewhere",)},
            ("elsewhere-fold_0", "sim_a-fold_3"),
        ),
        ("roupkt", {"sources": ("sim_b", "sim_a")}, ()),
    ],
)
def test_only_models_of_the_method_are_required(whole, method, more, absent):
    config = Config.from_dict(config_of(whole) | {"method": method} | more)
    results = []
    sources = check.check_pool(config, find_method(config.method), None, results)
    errors = [f for f in results if f.status == Status.ERROR]
    assert [set(finding.items) for finding in errors] == ([set(absent)] if absent else [])
    expected = {"abmil": (), "steph": ("elsewhere",), "joint": ("elsewhere",)}
    expected |= {"fine_tune": ("elsewhere",)}
    assert sources == expected.get(method, ("sim_b",))


def test_a_tracker_that_is_not_installed(whole, monkeypatch):
    monkeypatch.setattr(track.importlib.util, "find_spec", lambda name: None)
    missing = having(
        check.check(config_of(whole, track=("mlflow",))), "needs the package mlflow-skinny"
    )
    assert (missing.check, missing.status) == ("trackers", Status.ERROR)


def test_joined_cohorts_need_no_pool(whole, tmp_path):
    config = config_of(whole, method="joint", sources=("sim_b",))
    config["pool"]["root"] = str(tmp_path / "none")
    results = check.check(config)
    assert findings.worst(results) < Status.ERROR
    assert "one is made from the seed" in having(results, "no null model").message


def test_bad_options_are_reported_with_bad_features(whole, tmp_path):
    config = config_of(whole)
    config["steph"]["top_k"] = 9
    config["data"]["features"] = str(tmp_path)
    results = check.check(config)
    assert having(results, "steph.top_k = 9 is larger").check == "start"
    assert having(results, "expected files of features").check == "features"


def test_check_reports_errors_of_training(whole, tmp_path):
    config = config_of(whole)
    config["validation"] = config["validation"] | {"select": "loss"}
    missing = having(check.check(config), "expected a column `validation`")
    assert missing.status == Status.ERROR
    config = config_of(whole, method="joint")
    config["sources"] = ("sim_b",)
    config["data"] = config["data"] | {"root": str(tmp_path)}
    shutil.copytree(whole / "data" / "sim_a", tmp_path / "sim_a")
    assert having(check.check(config), "joint trains on").status == Status.ERROR


def test_unwritable_report_fails_early(whole, tmp_path, capsys):
    assert check.run(config_of(whole), json_file=str(tmp_path / "none" / "x.json")) == 2
    assert "none/x.json: no folder" in capsys.readouterr().err
