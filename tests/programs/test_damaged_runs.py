"""Files of a finished run with any field missing or of another kind: one line, no traceback."""

import copy
import json
import math
import pathlib
import shutil

import numpy as np
import pandas as pd
import pools
import pytest

from steph_jax import run_directory, train
from steph_jax.checkpoints import saved_model
from steph_jax.evaluation import fold_files, fold_results, run_summary
from steph_jax.methods.registry import find_method
from steph_jax.survival.time_bins import TimeBins
from steph_jax.training.config import stored_config

pytestmark = pytest.mark.usefixtures("no_pictures")


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


VALUES = ["x", "", 7, -1, 0.5, True, None, [], {}, math.nan, math.inf, 10**30, 1e300, nested(400)]
METHODS = ("steph", "dynamic", "learned", "roupkt", "abmil")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Directories of finished runs, by method."""
    world = pools.make(tmp_path_factory.mktemp("world"))
    workdirs = {}
    for method in METHODS:
        workdirs[method] = tmp_path_factory.mktemp(method)
        train.train(pools.config(world) | {"method": method, "folds": [0]}, workdirs[method])
    return workdirs


def places(value, at=()):
    """Where every field of a record is, and the first entry of every list."""
    if isinstance(value, dict):
        for name, entry in value.items():
            yield (*at, name)
            yield from places(entry, (*at, name))
    elif isinstance(value, list) and value:
        yield (*at, 0)
        yield from places(value[0], (*at, 0))


def mutations(record):
    """The record with each field removed, and with each of `VALUES` in its place."""
    for *within, last in places(record):
        for value in (mutations, *VALUES):
            changed = copy.deepcopy(record)
            place = changed
            for name in within:
                place = place[name]
            if value is mutations:
                del place[last]
            else:
                place[last] = value
            yield changed
    yield from VALUES


def check(path, read):
    """Reads a file after each mutation; every message is a line that names the file."""
    text = path.read_text()
    refused = 0
    for changed in mutations(json.loads(text)):
        path.write_text(json.dumps(changed))
        try:
            read()
        except (ValueError, OSError) as error:
            refused += 1
            message = str(error)
        else:
            continue
        assert str(path) in message, (message, changed)
        assert "\n" not in message
        assert len(message) < 1000
    for broken in ("", "{", text[: len(text) // 2], "[" * 100_000, "\0"):
        path.write_text(broken)
        with pytest.raises((ValueError, OSError), match=path.name):
            read()
    path.unlink()
    with pytest.raises((ValueError, OSError), match=path.name):
        read()
    path.write_text(text)
    read()
    return refused


def test_metrics_training_and_summary(runs, tmp_path, capsys, monkeypatch):
    # Seconds of reading and of Cox models for each of hundreds of files.
    monkeypatch.setattr(run_summary, "run_metrics_of", lambda workdir, folds: {})
    workdir = pathlib.Path(shutil.copytree(runs["steph"], tmp_path / "w"))
    fold = workdir / "fold_0"

    def summarize():
        run_summary.write(workdir, "sim_a", "steph", 42, [0])

    assert check(fold / "metrics.json", summarize) > 50
    assert check(fold / "training.json", lambda: fold_results.read_training(fold)) > 50
    summarize()
    assert check(workdir / "summary.json", lambda: run_directory.load_summary(workdir)) > 20


def test_scale_of_risks_and_time_bins(runs, tmp_path):
    workdir = pathlib.Path(shutil.copytree(runs["steph"], tmp_path / "w"))
    path = workdir / "fold_0" / "metrics.json"
    record = json.loads(path.read_text())
    for name, value in (
        ("bin_edges", [0.0, 365.0]),
        ("bin_edges", record["bin_edges"][::-1]),
        ("bin_edges", "x"),
        ("risk_sd", -1.0),
        ("risk_cut", None),
    ):
        path.write_text(json.dumps(record | {name: value}))
        with pytest.raises(ValueError, match=f"{path}: .*{name}|{path}: expected edges of"):
            fold_files.read_fold(workdir, 0)
    path.write_text(json.dumps(record))
    table = pd.read_csv(workdir / "fold_0" / "predictions_test.csv", dtype=str)
    for value, message in (("1.5", "expected survival from 0 to 1"), ("x", "expected a number")):
        table.assign(surv_2=value).to_csv(workdir / "fold_0" / "predictions_test.csv")
        with pytest.raises(ValueError, match=f"predictions_test.csv: .*{message}"):
            fold_files.read_fold(workdir, 0)


def test_config(runs, tmp_path):
    workdir = pathlib.Path(shutil.copytree(runs["steph"], tmp_path / "w"))
    assert check(workdir / "config.json", lambda: stored_config(workdir)) > 300


@pytest.mark.parametrize("method", METHODS)
def test_model_without_checksums(runs, tmp_path, method):
    path = tmp_path / "model"
    shutil.copytree(runs[method] / "fold_0/model", path)
    file = path / "model.json"
    record = json.loads(file.read_text())
    del record["files"], record["sha256"]
    file.write_text(json.dumps(record | {"format": 1}))

    def use():
        model = saved_model.load_model(path)
        TimeBins.from_json(model.metadata.get("bins", {"kind": "uniform", "edges": [0, 1]}))
        saved_model.stored_objective(model)
        find_method("abmil" if model.kind not in METHODS else model.kind).restore(model, None)

    assert check(file, use) > 200


def test_model_with_checksums(runs, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(runs["steph"] / "fold_0/model", path)

    assert check(path / "model.json", lambda: saved_model.load_model(path)) > 400


def test_patients(runs, tmp_path):
    fold = pathlib.Path(shutil.copytree(runs["steph"] / "fold_0", tmp_path / "f"))
    path = fold / "patients.csv"
    table = pd.read_csv(path, dtype=str)
    refused = 0
    for column in table.columns:
        table.drop(columns=column).to_csv(path, index=False)
        with pytest.raises(ValueError, match=f"{path}: expected the column {column}, found none"):
            fold_results.read_patients(fold)
        for value in (
            "",
            "x",
            "-1",
            "nan",
            "inf",
            "1e400",
            "9" * 400,
            "2",
            "[1]",
            "[" * 9000,
            "{}",
        ):
            changed = table.copy()
            changed.loc[3, column] = value
            changed.to_csv(path, index=False)
            try:
                patients, _ = fold_results.read_patients(fold)
            except ValueError as error:
                refused += 1
                message = str(error)
            else:
                assert np.isfinite(patients.time).all()
                continue
            assert message.startswith(f"{path}: row 5, {column}: expected "), message
            assert "\n" not in message
    assert refused > 30
    pd.concat([table, table.iloc[[0]]]).to_csv(path, index=False)
    with pytest.raises(ValueError, match=f"{path}: patients are there twice"):
        fold_results.read_patients(fold)
    path.write_bytes(b"\x00\xff,\n")
    with pytest.raises(ValueError, match=f"{path}: expected"):
        fold_results.read_patients(fold)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{path}: the file is missing"):
        fold_results.read_patients(fold)
