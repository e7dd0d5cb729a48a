"""Runs on fewer training patients know nothing of those left out."""

import shutil

import jax
import numpy as np
import pandas as pd
import pools
import pytest

from steph_jax import train
from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.saved_model import load_model
from steph_jax.evaluation import fold_results
from steph_jax.training import experiment
from steph_jax.training.config import Config

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return pools.make(tmp_path_factory.mktemp("world"))


def config(world, **more):
    return pools.config(world) | {"folds": [0], "method": "average", "batch_size": 2} | more


def risks(workdir):
    return pd.read_csv(workdir / "fold_0/predictions_test.csv")["risk"].to_numpy()


def other_pool(world, root):
    """The pool with another model of the target in each fold."""
    shutil.copytree(world / "pool", root)
    for fold in (0, 1):
        path = root / f"sim_a-fold_{fold}"
        model = load_model(path)
        shutil.rmtree(path)
        moved = jax.tree.map(lambda x: np.asarray(x) * x.dtype.type(1.1), model.params)
        Pool(root).add(path.name, model.__class__(model.kind, model.architecture, {}, moved))


def test_a_merged_model_does_not_depend_on_the_model_of_all_training_patients(world, tmp_path):
    other_pool(world, tmp_path / "pool")
    for number, is_same in ((0, False), (6, True)):
        few = config(world, train_patients=number)
        train.train(few, tmp_path / f"a{number}")
        train.train(
            few | {"pool": {"root": str(tmp_path / "pool"), "save": False}}, tmp_path / f"b{number}"
        )
        a, b = (risks(tmp_path / f"{name}{number}") for name in "ab")
        assert np.array_equal(a, b) == is_same


def test_a_fold_keeps_whom_it_was_trained_on(world, tmp_path):
    few = config(world, method="abmil", train_patients=6)
    train.train(few, tmp_path)
    table, fold = fold_results.read_patients(tmp_path / "fold_0")
    cohort = experiment.read_cohort(Config.from_dict(few))
    expected = {cohort.table.patients[i] for i in cohort.folds[0].train}
    assert {table.patients[i] for i in fold.train} == expected
    assert len(expected) == 6
    assert fold_results.read_metrics(tmp_path / "fold_0")["train_patients"] == 6
    assert len(fold.test) == len(cohort.folds[0].test)
    assert not (tmp_path / "fold_0/subset").exists()


def test_models_of_few_patients_do_not_enter_a_pool(world, tmp_path):
    few = config(world, method="abmil", train_patients=6)
    few["pool"] = {"root": str(tmp_path / "pool"), "save": True}
    with pytest.raises(ValueError, match=r"pool.save: a model of the pool is fitted on all"):
        train.train(few, tmp_path / "run")
    assert not (tmp_path / "pool").exists()
