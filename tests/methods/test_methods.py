"""Every method by name: from one config to a fold's files, and back from those alone."""

import json
import pathlib
import shutil
from collections import Counter

import jax
import numpy as np
import pandas as pd
import pytest

from configs import testing
from steph_jax import compare, evaluate, predict, simulate, train
from steph_jax.checkpoints import saved_model
from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.data.features.open import open_features
from steph_jax.data.simulation import Settings
from steph_jax.data.splits import read_split, split_path
from steph_jax.data.tables import read_slides, read_table, table_path
from steph_jax.engine import frozen_encoders
from steph_jax.methods.base import as_numpy
from steph_jax.methods.registry import METHODS
from steph_jax.models import abmil
from steph_jax.models.abmil import Architecture
from steph_jax.survival import metrics
from steph_jax.training import experiment, loop
from steph_jax.training.config import Config, as_dict, stored_config

pytestmark = pytest.mark.usefixtures("no_pictures")

COHORTS = Settings(cohorts=3, patients=20, patches=12, feature_dim=24, two_slides=0.3)
ARCHITECTURE = Architecture(24, 16, 8)
UNTRAINED = {"zero_shot", "fix", "average"}
#: Those that are fitted otherwise than by gradient steps have tests of their own.
METHODS = tuple(name for name, method in METHODS.items() if method.fit is None)


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
    return as_dict(made)


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
    split = read_split(split_path(world / "data", "sim_a", 0))
    assert set(predictions["patient_id"]) == set(split.test)
    curves = predictions.filter(like="surv_").to_numpy()
    assert curves.shape[1] == 32
    np.testing.assert_allclose(predictions["risk"], -curves.sum(axis=1), rtol=1e-4)

    # The fold's directory and the features are all that evaluation and prediction need.
    before = (fold / "predictions_test.csv").read_text()
    evaluate.evaluate_fold(fold, stored_config(tmp_path))
    assert (fold / "predictions_test.csv").read_text() == before
    assert read_json(fold / "metrics.json") == written
    source = open_features(world / "data/features/sim_a")
    slides = read_slides(table_path(world / "data", "sim_a"))
    chosen = {patient: slides[patient] for patient in predictions["patient_id"]}
    model = saved_model.load_model(fold / "model")
    predicted = predict.predict(model, source, chosen, batch_size=3)
    np.testing.assert_allclose(predicted.risk, predictions["risk"], rtol=1e-5)


@pytest.mark.parametrize("method", ["zero_shot", "fine_tune"])
def test_the_source_is_the_best_on_the_training_patients(config, world, tmp_path, method):
    config["method"] = method
    train.train(config, tmp_path)
    written = read_json(tmp_path / "fold_0" / "metrics.json")
    table = read_table(table_path(world / "data", "sim_a"))
    training = read_split(split_path(world / "data", "sim_a", 0)).train
    rows = [table.patients.index(patient) for patient in training]
    slides = {table.patients[row]: table.slides[row] for row in rows}
    source = open_features(world / "data/features/sim_a")
    expected = {}
    for name in ("sim_b", "sim_c"):
        model = saved_model.load_model(world / "pool" / f"{name}-fold_0")
        risk = predict.predict(model, source, slides, batch_size=4).risk
        expected[name] = metrics.concordance_index(table.time[rows], table.event[rows], risk)
    assert written["source_train_c_index"] == pytest.approx(expected)
    assert expected["sim_b"] != expected["sim_c"]
    assert written["source"] == max(expected, key=expected.get)


def test_the_null_models_own_c_index_is_reported_with_zero_shot(config, world, tmp_path):
    config["method"] = "zero_shot"
    compare.compare(config, ["zero_shot"], [42], tmp_path, "command")
    fold = tmp_path / "zero_shot-seed_42" / "fold_0"
    test = read_split(split_path(world / "data", "sim_a", 0)).test
    table = read_table(table_path(world / "data", "sim_a"))
    rows = [table.row_of[patient] for patient in test]
    slides = {table.patients[row]: table.slides[row] for row in rows}
    null = Pool(world / "pool").null()
    risk = predict.predict(null, open_features(world / "data/features/sim_a"), slides).risk
    expected = metrics.concordance_index(table.time[rows], table.event[rows], risk)
    written = read_json(fold / "metrics.json")
    assert written["null_model"] == {"c_index": pytest.approx(expected)}
    page = (tmp_path / "compare.md").read_text()
    assert f"the untrained null model has a C-index of {expected:.4f}" in page
    evaluate.evaluate_fold(fold, stored_config(fold.parent))
    assert read_json(fold / "metrics.json") == written


def test_joint_trains_on_all_patients_of_the_sources_but_the_targets_own(config, world, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(world / "data", data)
    tables = {name: data / name / f"{name}_survival.csv" for name in ("sim_a", "sim_b", "sim_c")}
    read = {name: pd.read_csv(path, dtype=str) for name, path in tables.items()}
    # A test patient of the target is in sim_b's cohort too, spelt differently, and one of sim_b's
    # in sim_c's.
    test = read_split(split_path(data, "sim_a", 0)).test[0]
    is_test = read["sim_a"]["patient_id"] == test
    twice = read["sim_b"]["patient_id"] == read["sim_b"]["patient_id"][0]
    again = read["sim_a"][is_test].assign(patient_id=test.lower())
    pd.concat([read["sim_b"], again]).to_csv(tables["sim_b"], index=False)
    pd.concat([read["sim_c"], read["sim_b"][twice]]).to_csv(tables["sim_c"], index=False)
    config["method"], config["data"]["root"] = "joint", str(data)
    config["data"]["features"] = str(data / "features/{dataset}")
    typed = Config.from_dict(config)
    own = experiment.read_cohort(typed)
    run = experiment.open_experiment(typed, own, Pool(world / "pool"))
    added = [run.cohort.table.patients[row] for row in run.cohort.others]
    expected = [*read["sim_b"]["patient_id"].unique(), *read["sim_c"]["patient_id"].unique()]
    assert sorted(added) == sorted(expected)
    np.testing.assert_array_equal(run.cohort.folds[0].train, own.folds[0].train)
    strangers = typed.with_values({"sources": ["sim_b", "sim_d"]})
    shutil.copytree(data / "sim_b", data / "sim_d")
    tables["sim_b"].rename(data / "sim_d" / "sim_d_survival.csv")
    read["sim_b"].to_csv(tables["sim_b"], index=False)
    with pytest.raises(ValueError, match=r"sim_d_survival.csv: all patients have ids of patients"):
        experiment.join_cohorts(strangers, own, ["sim_b", "sim_d"])

    seen = []
    real = loop.train_epoch

    def train_epoch(*arguments):
        state, epoch = real(*arguments)
        index = np.concatenate([np.asarray(batch.bags.index).ravel() for batch in epoch.batches])
        seen.extend(index[index >= 0].tolist())
        return state, epoch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_epoch", train_epoch)
        train.train(config, tmp_path / "run")
    allowed = {*own.folds[0].train.tolist(), *run.cohort.others.tolist()}
    assert set(seen) <= allowed
    assert len(seen) == len(set(seen)) == len(allowed) // 4 * 4


def test_frozen_embeddings_are_computed_once_for_all_folds(config, tmp_path, monkeypatch):
    passes = Counter()
    real = frozen_encoders.evaluate

    def evaluate(model, mesh, trainable, encoder, batch):
        kernel = encoder["feat_proj"]["layers_0"]["kernel"]
        passes[np.asarray(kernel).tobytes()] += 1
        return real(model, mesh, trainable, encoder, batch)

    monkeypatch.setattr(frozen_encoders, "evaluate", evaluate)
    config |= {"method": "roupkt", "folds": (0, 1), "epochs": 2}
    train.train(config, tmp_path)
    # Two sources, and the target's models of folds 0 and 1, each over all batches once.
    assert len(passes) == 4
    assert len(set(passes.values())) == 1


def test_a_cox_model_has_curves_from_its_stored_baseline(config, world, tmp_path):
    config["method"] = "abmil"
    config["loss"]["terms"] = [["cox", 1.0]]
    train.train(config, tmp_path)
    fold = tmp_path / "fold_0"
    model = saved_model.load_model(fold / "model")
    predictions = pd.read_csv(fold / "predictions_test.csv")
    curves = predictions.filter(like="surv_").to_numpy()
    baseline = metrics.Baseline.from_json(model.metadata["baseline"])
    ends = 365.0 * np.arange(1, 33)
    np.testing.assert_allclose(curves, baseline.survival(predictions["risk"], ends), rtol=1e-5)


def test_the_epoch_that_validates_best_is_kept_and_patience_ends_training(config, world, tmp_path):
    split = split_path(world / "data", "sim_a", 0)
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
    patients = pd.read_csv(data / "sim_a" / "sim_a_survival.csv")
    censored = patients["patient_id"].isin(table["validation"].dropna())
    path = data / "sim_a" / "sim_a_survival.csv"
    patients.assign(e=patients["e"].where(~censored, 0)).to_csv(path, index=False)
    with pytest.raises(
        ValueError, match=r"no two of its 6 validation patients \(0 with an event\)"
    ):
        train.train(config, tmp_path / "no events")
    patients.to_csv(path, index=False)
    train.train(config, tmp_path / "run")
    fold = tmp_path / "run" / "fold_0"
    written = read_json(fold / "metrics.json")
    history = pd.read_csv(fold / "history.csv")
    best = int(history["validation_c_index"].argmax()) + 1
    assert written["best_epoch"] == best
    assert written["epochs"] == len(history) == min(best + 1, 6)
    assert written["test"]["nll"] == pytest.approx(history["test_nll"][best - 1], rel=1e-5)


def test_settings_that_differ_from_the_null_model_are_logged_once(config, tmp_path, caplog):
    config["model"]["embed_dim"] += 1
    config["folds"] = (0, 1)
    config["method"] = "abmil"
    with caplog.at_level("WARNING"):
        train.train(config, tmp_path / "w")
    assert caplog.text.count("config.model is not used: embed_dim") == 1
    fold = tmp_path / "w" / "fold_0"
    assert saved_model.load_header(fold / "model").architecture.embed_dim == (
        config["model"]["embed_dim"] - 1
    )
