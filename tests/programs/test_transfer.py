"""The zero-shot matrix against the method `zero_shot`, and what is left out of it."""

import shutil

import numpy as np
import pandas as pd
import pools
import pytest

from steph_jax import predict, transfer
from steph_jax.checkpoints import saved_model
from steph_jax.checkpoints.pool import Pool
from steph_jax.data import tables
from steph_jax.data.features.open import open_features
from steph_jax.data.splits import read_split, split_path
from steph_jax.survival import metrics


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return pools.make(tmp_path_factory.mktemp("world"))


@pytest.fixture
def config(world):
    return pools.config(world)


def predicted_c_index(world, member, target, fold):
    """C-index of a pool member on the test patients of a fold, by way of `predict`."""
    table = tables.read_table(tables.table_path(world / "data", target))
    test = read_split(split_path(world / "data", target, fold)).test
    rows = [table.row_of[patient] for patient in test]
    slides = {patient: table.slides[i] for patient, i in zip(test, rows, strict=True)}
    model = saved_model.load_model(world / "pool" / member)
    source = open_features(world / "data/features" / target)
    risk = predict.predict(model, source, slides).risk
    return metrics.concordance_index(table.time[rows], table.event[rows], risk)


def test_the_matrix_holds_every_source_on_every_target(config, world, tmp_path, caplog):
    table = transfer.transfer(config, tmp_path)
    matrix = pd.read_csv(tmp_path / "transfer.csv")
    pd.testing.assert_frame_equal(matrix, table)
    assert list(table) == ["source", "target", "fold", "c_index"]
    values = table.set_index(["source", "target", "fold"])["c_index"]
    # The null model is the first row; sim_b and sim_c have no model of fold 1, for their own test
    # patients of it.
    assert len(values) == (1 + 3) * 3 * 2 - 2
    assert table["source"][0] == "null model"
    assert ("sim_b", "sim_b", 1) not in values.index
    assert "sim_b, fold 1: its own model is not in" in caplog.text
    for source, target, fold, member in (
        ("null model", "sim_a", 1, "null"),
        ("sim_b", "sim_a", 1, "sim_b-fold_0"),
        ("sim_a", "sim_a", 1, "sim_a-fold_1"),
        ("sim_a", "sim_c", 0, "sim_a-fold_0"),
    ):
        expected = predicted_c_index(world, member, target, fold)
        assert values[source, target, fold] == pytest.approx(expected, abs=1e-8)
    assert (tmp_path / "transfer.png").stat().st_size > 10_000

    cosines = pd.read_csv(tmp_path / "task_vector_cosines.csv", index_col="source")
    np.testing.assert_allclose(np.diag(cosines), 1, rtol=1e-5)
    pool = Pool(world / "pool")
    null = pool.null().params

    def vector(name):
        theta = pool.member(name, 0).params
        parts = {part: (theta[part], null[part]) for part in ("feat_proj", "attention_net")}
        changes = [
            (theta_of[layer][leaf] - null_of[layer][leaf]).ravel()
            for theta_of, null_of in parts.values()
            for layer in null_of
            for leaf in null_of[layer]
        ]
        return np.concatenate(changes)

    a, b = vector("sim_a"), vector("sim_b")
    expected = a @ b / np.sqrt((a @ a) * (b @ b))
    assert cosines.loc["sim_a", "sim_b"] == pytest.approx(expected, abs=1e-5)


def test_mean_needs_all_folds():
    table = pd.DataFrame(
        [("a", "b", 0, 0.5), ("a", "b", 1, 0.7), ("b", "b", 0, 0.6), ("a", "a", 0, np.nan)],
        columns=["source", "target", "fold", "c_index"],
    )
    means = transfer.mean_matrix(table, ["a", "b"], ["b", "a"])
    expected = [[0.6, np.nan], [np.nan, np.nan]]
    np.testing.assert_allclose(means.to_numpy(float), expected)
    assert (means.index.name, means.columns.name) == ("source", "target")


def test_cohorts_without_data_or_model_are_left_out_with_a_line(config, world, tmp_path, caplog):
    world_copy = tmp_path / "world"
    shutil.copytree(world, world_copy)
    config = pools.config(world_copy)
    shutil.rmtree(world_copy / "data/features/sim_b")
    shutil.rmtree(world_copy / "pool/sim_c-fold_0")
    config["folds"], config["sources"] = [0], ["sim_c", "sim_b"]
    table = transfer.transfer(config, tmp_path / "W")
    pairs = set(zip(table["source"], table["target"], strict=True))
    assert pairs == {(s, t) for s in ("null model", "sim_a", "sim_b") for t in ("sim_a", "sim_c")}
    assert "sim_c is no source: no fold-0 model of it in" in caplog.text
    assert "sim_b is no target: no " in caplog.text

    # So is a cohort that has no splits.
    (world_copy / "data/sim_c/splits_0.csv").rename(world_copy / "data/sim_c/splits_7.csv")
    table = transfer.transfer(config, tmp_path / "V")
    assert set(table["target"]) == {"sim_a"}
    assert "sim_c is no target: no " in caplog.text

    # A cohort of another's patients is named: its model has seen test patients of fold 1.
    caplog.clear()
    for name in ("sim_{}_survival.csv", "splits_0.csv"):
        text = (world_copy / "data/sim_a" / name.format("a")).read_text()
        (world_copy / "data/sim_b" / name.format("b")).write_text(text)
    transfer.transfer(config | {"sources": ["sim_b"], "folds": [0, 1]}, tmp_path / "W")
    tested = read_split(world_copy / "data/sim_a/splits_1.csv").test
    message = (
        f"test patients of sim_a whom the model of sim_b was trained on ({len(tested)}): fold 1"
    )
    assert message in caplog.text


def test_missing_source_or_target_is_an_error(config, tmp_path):
    config["sources"], config["dataset"] = ["sim_x"], "sim_y"
    with pytest.raises(FileNotFoundError, match=r"no model of 'sim_x' for fold 0.*pool.save=true"):
        transfer.transfer(config, tmp_path)
    config["dataset"] = "sim_a"
    config["data"]["root"] = str(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"none of sim_x, sim_a has a table under"):
        transfer.transfer(config, tmp_path)
