"""`mean_pool`: mean pooling from theta_0, with a learning rate that inner folds choose."""

import json

import numpy as np
import pandas as pd
import pools
import pytest

from steph_jax import train
from steph_jax.checkpoints import saved_model
from steph_jax.checkpoints.pool import Pool
from steph_jax.methods.registry import find_method
from steph_jax.training import compared_runs
from steph_jax.training.config import Config

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return pools.make(tmp_path_factory.mktemp("home"))


def config_of(home, rates, **more):
    section = {"learning_rates": rates}
    return pools.config(home) | {"method": "mean_pool", "folds": [0], "mean_pool": section} | more


def test_it_starts_from_theta_0_without_attention(home):
    config = Config.from_dict(config_of(home, [1e-3]))
    model = find_method("mean_pool").start(config.fold_spec(0, 32), Pool(home / "pool"))
    null = Pool(home / "pool").null()
    assert model.architecture.pooling == "mean"
    assert model.params.keys() == {"feat_proj", "pred_head"}
    np.testing.assert_array_equal(
        model.params["feat_proj"]["layers_0"]["kernel"],
        null.params["feat_proj"]["layers_0"]["kernel"],
    )


def test_the_learning_rate_is_chosen_on_inner_folds(home, tmp_path):
    config = config_of(home, [1e-4, 1e-2], epochs=2)
    train.train(config, tmp_path)
    fold = tmp_path / "fold_0"
    table = pd.read_csv(fold / "sweep.csv")
    assert sorted(table["learning_rate"].unique()) == [1e-4, 1e-2]
    best = table.groupby("learning_rate", sort=False)["c_index"].mean().idxmax()
    written = json.loads((fold / "metrics.json").read_text())
    assert written["selected"] == {"learning_rate": best}
    assert pd.read_csv(fold / "history.csv")["learning_rate"].max() <= best
    assert saved_model.load_model(fold / "model").architecture.pooling == "mean"
    # A run that is complete is not trained again, and a comparison takes it as it is.
    assert compared_runs.is_finished(tmp_path, Config.from_dict(config))


def test_a_sweep_of_the_run_comes_first_and_no_rates_are_the_runs(home, tmp_path):
    train.train(config_of(home, [1e-4, 1e-2]), tmp_path / "own", ["weight_decay=0.0,0.1"])
    written = json.loads((tmp_path / "own" / "fold_0" / "metrics.json").read_text())
    assert written["selected"].keys() == {"weight_decay"}
    train.train(config_of(home, []), tmp_path / "none")
    assert not (tmp_path / "none" / "fold_0" / "sweep.csv").exists()
    with pytest.raises(ValueError, match=r"mean_pool.learning_rates are different numbers above 0"):
        Config.from_dict(config_of(home, [1e-3, 1e-3]))
