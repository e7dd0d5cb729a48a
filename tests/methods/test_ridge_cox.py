"""The linear baseline: moments of bags, the fitted model, and everything that reads it."""

import json

import jax
import numpy as np
import pandas as pd
import pools
import pytest

from steph_jax import compare, evaluate, predict, train
from steph_jax.checkpoints import saved_model
from steph_jax.checkpoints.pool import Pool
from steph_jax.data.bags import InMemoryBags
from steph_jax.data.features.open import open_features
from steph_jax.data.tables import read_table, table_path
from steph_jax.engine.loader import DeviceLoader
from steph_jax.evaluation import predictions
from steph_jax.heatmaps import patches
from steph_jax.methods import ridge_cox
from steph_jax.methods.base import PatientMoments
from steph_jax.methods.moments import MomentsModel, linear_architecture
from steph_jax.methods.registry import find_method
from steph_jax.models.abmil import Architecture
from steph_jax.survival import cox, metrics, shrinkage
from steph_jax.training import experiment
from steph_jax.training.config import Config, stored_config

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return pools.make(tmp_path_factory.mktemp("home"))


def moments(bags, center=None):
    """By the engine: [n, 2D]."""
    dim = bags[0].shape[1]
    loader = DeviceLoader.open(InMemoryBags.of(bags, dim, np.dtype(np.float32)), 3)
    model = MomentsModel(linear_architecture(Architecture(dim)))
    center = np.zeros(dim) if center is None else center
    trainable = {"center": center.astype(np.float32)}
    return predictions.run(model, trainable, {}, loader, range(len(bags)), {})[0]


def by_numpy(bags):
    wide = [bag.astype(np.float64) for bag in bags]
    return np.array([[*bag.mean(axis=0), *bag.std(axis=0)] for bag in wide])


def test_moments_equal_numpy():
    rng = np.random.default_rng(0)
    bags = [rng.normal(size=(n, 5)).astype(np.float32) for n in (1, 2, 30, 700, 4)]
    np.testing.assert_allclose(moments(bags), by_numpy(bags), rtol=1e-3, atol=1e-6)
    assert not moments(bags)[0, 5:].any()


def test_a_center_keeps_the_digits_of_features_far_from_zero():
    rng = np.random.default_rng(1)
    bags = [(1000 + rng.normal(size=(50, 3))).astype(np.float32) for _ in range(4)]
    expected = by_numpy(bags)
    np.testing.assert_allclose(moments(bags, np.full(3, 1000.0)), expected, rtol=1e-5)
    assert np.abs(moments(bags) - expected).max() > 1e-3


def of_fold(home, config):
    """Moments, time and event of the training patients of fold 0, by numpy."""
    cohort = experiment.read_cohort(Config.from_dict(config))
    source = open_features(home / "data/features/sim_a")
    table, rows = cohort.table, cohort.folds[0].train
    bags = [np.concatenate([source.read(s) for s in table.slides[row]]) for row in rows]
    return by_numpy(bags), table.time[rows], table.event[rows]


def test_a_fold_of_the_fitted_model(home, tmp_path):
    config = pools.config(home) | {"method": "ridge_cox", "folds": [0]}
    train.train(config, tmp_path)
    fold = tmp_path / "fold_0"
    model = saved_model.load_model(fold / "model")
    written = json.loads((fold / "metrics.json").read_text())

    x, time, event = of_fold(home, config)
    standard = shrinkage.standardize(x)
    folds = cox.inner_folds(event, 3, config["seed"])
    expected = shrinkage.fit_ridge(
        standard(x), time, event, folds, [48 * p for p in (0.1, 0.3, 1.0, 3.0, 10.0)]
    )
    np.testing.assert_allclose(
        model.params["trainable"]["coefficients"], expected.coefficients, atol=1e-4
    )
    assert written["penalty"] == expected.penalty / 48
    assert (written["trainable_parameters"], written["epochs"]) == (48, 0)
    assert written["train_seconds"] > 0

    # Curves are Breslow's, and everything is found again from the fold's directory alone.
    table = pd.read_csv(fold / "predictions_test.csv")
    baseline = metrics.breslow_baseline(time, event, standard(x) @ expected.coefficients)
    curves = baseline.survival(table["risk"], 365.0 * np.arange(1, 33))
    np.testing.assert_allclose(table.filter(like="surv_"), curves, rtol=1e-3, atol=1e-5)
    assert 0 < written["test"]["ibs"]["model"] < 1
    before = (fold / "predictions_test.csv").read_text()
    evaluate.evaluate_fold(fold, stored_config(tmp_path))
    assert (fold / "predictions_test.csv").read_text() == before
    assert json.loads((fold / "metrics.json").read_text()) == written
    patients = read_table(table_path(home / "data", "sim_a"))
    slides = dict(zip(patients.patients, patients.slides, strict=True))
    chosen = {patient: slides[patient] for patient in table["patient_id"]}
    predicted = predict.predict(model, open_features(home / "data/features/sim_a"), chosen, 3)
    np.testing.assert_allclose(predicted.risk, table["risk"], rtol=1e-4)
    np.testing.assert_allclose(predicted.survival, table.filter(like="surv_"), rtol=1e-4)


def test_penalties_are_those_of_the_config(home, tmp_path):
    config = pools.config(home) | {"method": "ridge_cox", "folds": [0]}
    train.train(config | {"linear": {"penalties": [50.0], "inner_repeats": 2}}, tmp_path)
    written = json.loads((tmp_path / "fold_0" / "metrics.json").read_text())
    assert written["penalty"] == pytest.approx(50.0)
    for values in ([], [0.0], [-1.0]):
        with pytest.raises(ValueError, match=r"linear.penalties are numbers above 0, one or more"):
            Config.from_dict(config | {"linear": {"penalties": values, "inner_repeats": 1}})
    with pytest.raises(
        ValueError, match=r"linear.inner_repeats is a whole number from 1 .*found 0"
    ):
        Config.from_dict(config | {"linear": {"penalties": [1.0], "inner_repeats": 0}})


def test_inner_folds_are_drawn_as_often_as_the_config_says():
    event = np.arange(40) < 15
    linear = ridge_cox.Linear(inner_repeats=3)
    np.testing.assert_array_equal(
        linear.inner_folds(event, 7), cox.inner_folds(event, 3, 7, repeats=3)
    )
    assert len(ridge_cox.Linear().inner_folds(event, 7)) == 1


def test_a_linear_model_needs_no_pool(home, tmp_path):
    config = pools.config(home) | {"method": "ridge_cox", "folds": [0]}
    spec = Config.from_dict(config).fold_spec(0, 32)
    model = find_method("ridge_cox").start(spec, Pool(tmp_path / "none"))
    assert model.architecture.feature_dim == 24
    assert not any(leaf.any() for leaf in jax.tree.leaves(model.params["trainable"]))


def test_it_is_compared_like_any_other(home, tmp_path):
    config = pools.config(home) | {"folds": [0]}
    result = compare.compare(config, ["ridge_cox", "average"], [42], tmp_path, "command")
    assert np.isfinite(result.c_index["ridge_cox"]).all()
    table = pd.read_csv(tmp_path / "compare_table.csv").set_index("method")
    # A product with the coefficients is all that it multiplies.
    assert table.loc["ridge_cox", "flops_per_slide"] == 2 * 48


def test_one_event_is_too_few(home, tmp_path):
    spec = Config.from_dict(pools.config(home) | {"method": "ridge_cox"}).fold_spec(1, 32)
    alive = np.zeros((5, 48)), np.zeros(24), np.arange(5.0), np.arange(5) < 1

    class Patients:
        def moments(self):
            return PatientMoments(*alive)

    with pytest.raises(ValueError, match=r"sim_a, fold 1: .* two events .* of sim_a, found 1"):
        find_method("ridge_cox").fit(spec, Pool(tmp_path / "none"), Patients())


def test_it_has_no_heatmap(home, tmp_path):
    spec = Config.from_dict(pools.config(home) | {"method": "ridge_cox"}).fold_spec(0, 32)
    model = find_method("ridge_cox").start(spec, Pool(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"kind ridge_cox reads the mean and the standard dev"):
        patches.merged_model(model)


def test_a_damaged_linear_model_is_named(home, tmp_path):
    config = pools.config(home) | {"method": "ridge_cox"}
    spec = Config.from_dict(config).fold_spec(0, 32)
    model = find_method("ridge_cox").start(spec, Pool(tmp_path / "none"))
    model.params["frozen"]["mean"] = model.params["frozen"]["mean"][:5]
    with pytest.raises(ValueError, match=r"expected frozen.mean of shape \(48,\), found \(5,\)"):
        find_method("ridge_cox").restore(model, None)
