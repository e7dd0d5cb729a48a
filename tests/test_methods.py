"""Every method by name: from one config to a fold's files, and back from those alone."""

import json
import pathlib
import shutil
import types

import jax
import numpy as np
import pandas as pd
import pytest

from configs import testing
from steph_jax import (
    abmil,
    checkpoints,
    evaluate,
    metrics,
    predict,
    report,
    runs,
    settings,
    simulate,
    train,
)
from steph_jax.abmil import Architecture
from steph_jax.checkpoints import SavedModel
from steph_jax.data import features, survival
from steph_jax.generative_model import Settings
from steph_jax.methods.recipe import as_numpy
from steph_jax.methods.registry import RECIPES
from steph_jax.pool import Pool

COHORTS = Settings(cohorts=3, patients=20, patches=12, feature_dim=24, two_slides=0.3)
ARCHITECTURE = Architecture(24, 16, 8)
UNTRAINED = {"zero_shot", "fix", "average"}
METHODS = tuple(RECIPES)


def moved(params, seed, scale=0.1):
    """Parameters a random step away, as training would move them."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: (x + scale * rng.standard_normal(x.shape)).astype(np.float32), params
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> pathlib.Path:
    """Three simulated cohorts, and a pool with models of all of them."""
    root = tmp_path_factory.mktemp("world")
    simulate.simulate(root / "data", COHORTS, lambda line: None)
    pool = Pool(root / "pool")
    null = as_numpy(abmil.init(jax.random.key(0), ARCHITECTURE))
    pool.add("null", SavedModel("abmil", ARCHITECTURE, {}, null))
    for seed, name in enumerate(["sim_a-fold_0", "sim_a-fold_1", "sim_b-fold_0", "sim_c-fold_0"]):
        pool.add(name, SavedModel("abmil", ARCHITECTURE, {}, moved(null, seed)))
    return root


@pytest.fixture
def config(world):
    """What `settings.as_dict` gives for fold 0 of sim_a, one epoch."""
    made = testing.get_config()
    made.folds = (0,)
    made.epochs = 1
    made.data.root = str(world / "data")
    made.data.features = str(world / "data/features/{dataset}")
    made.pool.root = str(world / "pool")
    return settings.as_dict(made)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Pictures, which take most of the time of such small runs, are tested elsewhere."""
    names = (
        "risk_groups",
        "survival_curves",
        "training_curves",
        "source_weights",
        "folds",
        "matrix",
    )
    none = types.SimpleNamespace(**dict.fromkeys(names, lambda *given: None))
    monkeypatch.setattr(report, "plots", none)


def read_json(path):
    return json.loads(path.read_text())


@pytest.mark.parametrize("method", METHODS)
def test_a_fold_of_every_method(config, world, tmp_path, method):
    config["method"] = method
    if method == "fine_tune":
        config["transfer"]["source"] = "sim_c"
    summary = train.train(config, tmp_path)
    fold = tmp_path / "fold_0"
    written = read_json(fold / "metrics.json")
    predictions = pd.read_csv(fold / "predictions_test.csv")
    assert summary["c_index"]["folds"] == [written["test"]["c_index"]]
    assert written["method"] == method
    assert (written["trainable_parameters"] == 0) == (method in UNTRAINED)
    assert written["epochs"] == (0 if method in UNTRAINED else 1)
    split = survival.read_split(survival.split_path(world / "data", "sim_a", 0))
    assert set(predictions["patient_id"]) == set(split.test)
    curves = predictions.filter(like="surv_").to_numpy()
    assert curves.shape[1] == 32
    np.testing.assert_allclose(predictions["risk"], -curves.sum(axis=1), rtol=1e-4)

    # The fold's directory and the features are all that evaluation and prediction need.
    before = (fold / "predictions_test.csv").read_text()
    evaluate.evaluate_fold(fold, runs.load(tmp_path))
    assert (fold / "predictions_test.csv").read_text() == before
    assert read_json(fold / "metrics.json") == written
    source = features.open_features(world / "data/features/sim_a")
    slides = survival.read_slides(survival.table_path(world / "data", "sim_a"))
    chosen = {patient: slides[patient] for patient in predictions["patient_id"]}
    model = checkpoints.load_model(fold / "model")
    predicted = predict.predict(model, source, chosen, batch_size=3)
    np.testing.assert_allclose(predicted.risk, predictions["risk"], rtol=1e-5)


def test_a_cox_model_has_curves_from_its_stored_baseline(config, world, tmp_path):
    config["method"] = "abmil"
    config["loss"]["terms"] = [["cox", 1.0]]
    train.train(config, tmp_path)
    fold = tmp_path / "fold_0"
    model = checkpoints.load_model(fold / "model")
    predictions = pd.read_csv(fold / "predictions_test.csv")
    curves = predictions.filter(like="surv_").to_numpy()
    baseline = metrics.Baseline.from_json(model.settings["baseline"])
    ends = 365.0 * np.arange(1, 33)
    np.testing.assert_allclose(curves, baseline.survival(predictions["risk"], ends), rtol=1e-5)


def test_the_epoch_that_validates_best_is_kept_and_patience_ends_training(config, world, tmp_path):
    split = survival.split_path(world / "data", "sim_a", 0)
    config["method"] = "abmil"
    config["validation"] = {"select": "c_index", "patience": 1}
    with pytest.raises(ValueError, match="expected a column `validation`"):
        train.train(config, tmp_path / "without")

    data = tmp_path / "data"
    shutil.copytree(world / "data" / "sim_a", data / "sim_a")
    table = pd.read_csv(split)
    table["validation"] = pd.Series(table["train"].dropna().tolist()[:6])
    table["train"] = pd.Series(table["train"].dropna().tolist()[6:])
    table.to_csv(data / "sim_a" / split.name, index=False)
    config["data"]["root"], config["epochs"] = str(data), 6
    train.train(config, tmp_path / "run")
    fold = tmp_path / "run" / "fold_0"
    written = read_json(fold / "metrics.json")
    history = pd.read_csv(fold / "history.csv")
    best = int(history["validation_c_index"].argmax()) + 1
    assert written["best_epoch"] == best
    assert written["epochs"] == len(history) == min(best + 1, 6)
    assert written["test"]["nll"] == pytest.approx(history["test_nll"][best - 1], rel=1e-5)
