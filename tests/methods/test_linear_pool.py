"""`linear_pool`: which patients it reads, what its controls take away, what is recorded."""

import json
import pathlib
import shutil

import numpy as np
import pandas as pd
import pools
import pytest

from steph_jax import compare, train
from steph_jax.checkpoints import saved_model
from steph_jax.checkpoints.pool import Pool
from steph_jax.data.features.open import open_features
from steph_jax.data.splits import read_split, split_path
from steph_jax.data.tables import read_table, table_path
from steph_jax.methods import linear_pool
from steph_jax.methods.base import PatientMoments
from steph_jax.methods.registry import find_method
from steph_jax.survival import cox, shrinkage
from steph_jax.training import experiment, fitting
from steph_jax.training.config import Config

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return pools.make(tmp_path_factory.mktemp("home"))


def config_of(home, **more):
    return pools.config(home) | {"method": "linear_pool", "folds": [0]} | more


def opened(config):
    """The experiment of a config and the patients of its fold 0."""
    config = Config.from_dict(config)
    cohort, pool = experiment.read_cohort(config), Pool(config.pool.root)
    run = experiment.open_experiment(config, cohort, pool)
    inner = pathlib.Path(config.pool.root).parent / "inner"
    return run, fitting.SplitPatients(run, 0, run.cohort.folds[0], inner, "fold 0")


def numpy_moments(home, dataset, table, rows):
    source = open_features(home / "data/features" / dataset)
    bags = [np.concatenate([source.read(s) for s in table.slides[row]]) for row in rows]
    return np.array([[*bag.mean(axis=0), *bag.std(axis=0)] for bag in bags])


def test_a_source_is_its_fold_0_training_patients_and_none_of_the_targets(home, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(home / "data", data)
    split = read_split(split_path(data, "sim_b", 0))
    # A test patient of the target is among sim_b's training patients too.
    path = data / "sim_b" / "sim_b_survival.csv"
    own = read_split(split_path(data, "sim_a", 0)).test[0]
    for file in (path, split_path(data, "sim_b", 0)):
        file.write_text(file.read_text().replace(f"{split.train[0]},", f"{own},"))
    for file in data.glob("sim_b/splits_*.csv"):
        file.write_text(file.read_text().replace(split.train[0], own))
    config = config_of(home)
    config["data"] = config["data"] | {"root": str(data)}
    run, patients = opened(config)
    table = experiment.read_patients(data, "sim_b", run.config.data.table_columns)
    assert own in table.patients
    rows = [table.row_of[p] for p in split.train[1:]]
    source = patients.source_moments("sim_b")
    np.testing.assert_allclose(
        source.values, numpy_moments(home, "sim_b", table, sorted(rows)), rtol=1e-3, atol=1e-5
    )
    np.testing.assert_array_equal(source.time, table.time[sorted(rows)])
    np.testing.assert_array_equal(source.event, table.event[sorted(rows)])


def test_directions_are_the_sources_ridge_models(home):
    run, patients = opened(config_of(home))
    spec = experiment.fold_spec(run.config, run.cohort, 0)
    found = linear_pool.directions(spec, run.pool, patients)
    source = patients.source_moments("sim_c")
    x = shrinkage.standardize(source.values)(source.values)
    folds = cox.inner_folds(source.event, 3, spec.seed)
    fit = shrinkage.fit_ridge(
        x, source.time, source.event, folds, spec.options.linear.ridge(x.shape[1])
    )
    expected = fit.coefficients / np.linalg.norm(fit.coefficients)
    assert found.shape == (2, 48)
    np.testing.assert_allclose(found[1], expected, atol=1e-9)
    # Computed once for all folds.
    patients.shared[next(iter(patients.shared))][:] = 7
    assert linear_pool.directions(spec, run.pool, patients)[0, 0] == 7


def test_permuted_directions_keep_the_entries_of_each_half(home):
    run, patients = opened(config_of(home, control="permuted"))
    spec = experiment.fold_spec(run.config, run.cohort, 0)
    permuted = linear_pool.directions(spec, run.pool, patients)
    own = [value for key, value in patients.shared.items() if key[0] == "direction"]
    for one, other in zip(own, permuted, strict=True):
        assert not np.array_equal(one, other)
        for half in (slice(0, 24), slice(24, 48)):
            np.testing.assert_array_equal(np.sort(one[half]), np.sort(other[half]))
    np.testing.assert_array_equal(permuted, linear_pool.directions(spec, run.pool, patients))


def test_without_sources_it_is_ridge_cox_and_reads_no_other_cohort(home, tmp_path):
    train.train(config_of(home, control="no_sources"), tmp_path / "pool")
    train.train(config_of(home, method="ridge_cox"), tmp_path / "ridge")
    one, other = (
        saved_model.load_model(tmp_path / name / "fold_0" / "model") for name in ("pool", "ridge")
    )
    for branch in ("trainable", "frozen"):
        for name, leaf in one.params[branch].items():
            np.testing.assert_array_equal(leaf, other.params[branch][name])
    written = json.loads((tmp_path / "pool" / "fold_0" / "metrics.json").read_text())
    assert written["source_share"] == 0.0
    inputs = json.loads((tmp_path / "pool" / "inputs.json").read_text())
    own = read_table(table_path(home / "data", "sim_a")).patients
    assert set(inputs["patients"]) == set(own)


class FewPatients:
    """A target whose coefficients are the sources', in 48 features and few patients."""

    def __init__(self):
        rng = np.random.default_rng(4)
        self.truth = rng.normal(size=48) / 6
        self.shared = {}
        self.own = self.draw(rng, 60)
        self.source = self.draw(rng, 600)

    def draw(self, rng, number):
        x = rng.normal(size=(number, 48))
        death = rng.exponential(1000 * np.exp(-x @ self.truth))
        censored = rng.uniform(100, 3000, number)
        time, event = np.minimum(death, censored), death <= censored
        return PatientMoments(x, np.zeros(24), time, event)

    def moments(self):
        return self.own

    def source_moments(self, dataset):
        return self.source


@pytest.mark.parametrize("control", ["none", "permuted"])
def test_the_pool_is_used_where_it_knows_more(home, control):
    spec = Config.from_dict(config_of(home, control=control)).fold_spec(0, 32)
    patients = FewPatients()
    model = find_method("linear_pool").fit(spec, Pool(home / "pool"), patients)
    recovered = np.corrcoef(model.params["trainable"]["coefficients"], patients.truth)[0, 1]
    if control == "none":
        assert model.metadata["source_share"] > 0.3
        assert model.metadata["pool_weights"]["mean"] > 0
        assert model.metadata["pool_weights"].keys() == {"mean", "sim_b", "sim_c"}
        assert recovered > 0.9
    else:
        assert model.metadata["source_share"] < 0.2
        assert recovered < 0.9
    assert model.metadata["fitted_parameters"] == 48 + 3


def test_a_fold_with_its_controls_in_a_comparison(home, tmp_path):
    labels = compare.with_controls(["linear_pool", "ridge_cox"])
    assert labels == [
        "linear_pool",
        "linear_pool+permuted",
        "linear_pool+no_sources",
        "ridge_cox",
    ]
    config = config_of(home)
    compare.compare(config, labels, [42], tmp_path, "command")
    table = pd.read_csv(tmp_path / "compare.csv").set_index(["method", "control"])["c_index"]
    assert table["linear_pool", "no_sources"] == table["ridge_cox", "none"]
    written = json.loads((tmp_path / "linear_pool-seed_42/fold_0/metrics.json").read_text())
    assert 0 <= written["source_share"] <= 1
    with pytest.raises(ValueError, match="control=longer trains for more epochs, but method lin"):
        Config.from_dict(config | {"control": "longer"})


@pytest.mark.parametrize("name", ["common", "own"])
def test_penalties_are_above_zero(home, name):
    section = {"common": [1.0], "own": [1.0]} | {name: [0.0]}
    with pytest.raises(ValueError, match=rf"linear_pool.{name} are numbers above 0"):
        Config.from_dict(config_of(home, linear_pool=section))
    with pytest.raises(ValueError, match=r"linear_pool.common has one number or more"):
        Config.from_dict(config_of(home, linear_pool={"common": [], "own": []}))
