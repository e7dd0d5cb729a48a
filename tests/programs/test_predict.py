"""`predict` and `pack` on features as users keep them; messages name their own flags."""

import subprocess
import sys

import jax
import numpy as np
import pandas as pd
import pytest

from steph_jax.checkpoints import saved_model
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.methods.base import as_numpy
from steph_jax.models import abmil
from steph_jax.models.abmil import Architecture
from tests.helpers.cohorts import DIM, cohort

DIMS = Architecture(feature_dim=DIM, embed_dim=16, attention_dim=8, num_bins=32)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An untrained model, as one that was imported."""
    path = tmp_path_factory.mktemp("model") / "abmil"
    params = as_numpy(abmil.init(jax.random.key(0), DIMS))
    saved_model.save_model(path, SavedModel("abmil", DIMS, {}, params))
    return path


def run(program, *words):
    """Its exit status and standard error."""
    command = [sys.executable, "-m", f"steph_jax.{program}", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    return done.returncode, done.stderr


def test_patients_of_several_folders(tmp_path, model):
    study = cohort(12)
    features = study.write(tmp_path) / "data" / "features" / "mine"
    for i, path in enumerate(sorted(features.glob("*.h5"))):
        place = features / f"project_{i % 2}"
        place.mkdir(exist_ok=True)
        path.rename(place / path.name)
    words = ["--checkpoint", model, "--table", tmp_path / "data" / "mine" / "mine_survival.csv"]
    places = [features / "project_0", features / "project_1"]
    for i, locations in enumerate(([features], places)):
        flags = [f"--features={place}" for place in locations]
        status, output = run("predict", *words, *flags, "--out", tmp_path / f"{i}.csv")
        assert status == 0, output
    one, two = (pd.read_csv(tmp_path / f"{i}.csv") for i in range(2))
    pd.testing.assert_frame_equal(one, two)
    assert len(one) == 12
    status, output = run(
        "pack", "--out", tmp_path / "x.store", *[f"--features={place}" for place in places]
    )
    assert status == 0, output
    words += ["--features", tmp_path / "x.store", "--out", tmp_path / "packed.csv"]
    assert run("predict", *words)[0] == 0
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "packed.csv"), one)


def test_messages_name_flags(tmp_path, model):
    study = cohort(4)
    study.array = "uni"
    study.header[:2] = ["case", "slide"]
    root = study.write(tmp_path)
    features = root / "data" / "features" / "mine"
    words = ["--checkpoint", model, "--features", features, "--out", tmp_path / "out.csv"]
    status, output = run("predict", *words)
    assert (status, "name it by --hdf5_dataset" in output) == (1, True), output
    assert "data.hdf5_dataset" not in output
    words += ["--table", root / "data" / "mine" / "mine_survival.csv"]
    status, output = run("predict", *words)
    assert (status, "name yours by --patient_column, --slide_column" in output) == (1, True), output
    status, output = run("pack", "--features", features, "--out", tmp_path / "x.store")
    assert (status, "name it by --hdf5_dataset" in output) == (1, True), output
    assert "data.hdf5_dataset" not in output


def test_slide_level_embeddings_are_warned_of(tmp_path, model):
    study = cohort(4)
    study.array = "feats"
    study.features = {slide: array[:1] for slide, array in study.features.items()}
    features = study.write(tmp_path) / "data" / "features" / "mine"
    words = ["--checkpoint", model, "--features", features, "--out", tmp_path / "out.csv"]
    status, output = run("predict", *words)
    assert status == 0, output
    assert output.count("every slide has one patch (5)") == 1


def test_a_transposed_array_is_named(tmp_path, model):
    study = cohort(4)
    study.features = {slide: np.ones((DIM, 7), np.float32) for slide in study.features}
    features = study.write(tmp_path) / "data" / "features" / "mine"
    words = ["--checkpoint", model, "--features", features, "--out", tmp_path / "out.csv"]
    status, output = run("predict", *words)
    assert (status, "the array seems transposed: write it as [7, 24]" in output) == (1, True), (
        output
    )
