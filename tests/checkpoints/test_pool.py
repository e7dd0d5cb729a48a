"""A pool: theta_0 and models trained from it."""

import dataclasses
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import released

from steph_jax.checkpoints import torch_names
from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.saved_model import SavedModel


def model(seed=0, kind="abmil", **options):
    architecture, tree = torch_names.abmil_from_torch(released.abmil(seed, **options))
    return SavedModel(kind, architecture, {"seed": seed}, tree)


@pytest.fixture
def pool(tmp_path):
    pool = Pool(tmp_path / "pool")
    pool.add("null", model(0))
    pool.add("tcga_b-fold_0", model(1))
    pool.add("tcga_b-fold_10", model(2))
    pool.add("tcga_b-fold_2", model(3))
    pool.add("my-cohort_2-fold_0", model(4))
    pool.add("tcga_a-fold_1", model(5))
    return pool


def test_members(pool):
    pool.add("merged", dataclasses.replace(model(6, feature_dim=3), kind="steph"))
    assert pool.names()[0] == "merged"
    assert len(pool.names()) == 7
    assert pool.members() == {"my-cohort_2": [0], "tcga_a": [1], "tcga_b": [0, 2, 10]}
    assert pool.datasets() == ("my-cohort_2", "tcga_b")
    assert pool.has_null()
    assert pool.null().metadata == {"seed": 0}
    assert pool.member("tcga_b", 10).metadata == {"seed": 2}
    assert pool.member("my-cohort_2", 0).metadata == {"seed": 4}
    np.testing.assert_array_equal(
        pool.member("tcga_b", 0).params["pred_head"]["bias"], released.abmil(1)["pred_head.bias"]
    )


def test_a_model_is_read_once_until_its_files_change(pool, monkeypatch):
    first = pool.member("tcga_b", 0)
    assert pool.member("tcga_b", 0) is first
    assert not first.params["pred_head"]["bias"].flags.writeable
    pool.add("tcga_b-fold_0", model(7))
    assert pool.member("tcga_b", 0).metadata == {"seed": 7}
    monkeypatch.setattr("steph_jax.checkpoints.pool._MOST_KEPT", 1)
    small = Pool(pool.root)
    assert small.null() is not small.null()


def test_model_of_a_writer_killed_while_replacing_it(pool):
    names = pool.names()
    for name in ("null", "tcga_b-fold_0"):
        (pool.root / name).rename(pool.root / f".{name}.replaced")
    assert pool.names() == names
    assert pool.has_null()
    assert pool.null().metadata == {"seed": 0}
    assert pool.member("tcga_b", 0).metadata == {"seed": 1}


def test_missing_pool(tmp_path):
    pool = Pool(tmp_path / "pool")
    assert not pool.has_null()
    for use in (pool.names, pool.null, pool.datasets, lambda: pool.member("tcga_a", 0)):
        with pytest.raises(FileNotFoundError, match=r"no such pool.*arxiv.*make demo"):
            use()


def test_pool_without_null(tmp_path):
    pool = Pool(tmp_path)
    pool.add("tcga_a-fold_0", model(1))
    assert not pool.has_null()
    for use in (pool.null, lambda: pool.member("tcga_a", 0)):
        with pytest.raises(FileNotFoundError, match=r"a pool without null model \(no null/\)"):
            use()


def test_unknown_source(pool):
    with pytest.raises(
        FileNotFoundError,
        match=r"no model of 'tcga_c' for fold 0; it holds my-cohort_2 \(fold 0\), "
        r"tcga_a \(fold 1\), tcga_b \(folds 0, 2, 10\)\. Make it with `--config.dataset=tcga_c "
        r"--config.method=abmil --config.pool.save=true",
    ):
        pool.member("tcga_c", 0)


def test_members_share_the_dimensions_of_null(pool):
    with pytest.raises(
        ValueError,
        match=r"tcga_c-fold_0 and .*null have other dimensions: feature_dim 20 and 12; models",
    ):
        pool.add("tcga_c-fold_0", model(6, feature_dim=20))
    with pytest.raises(ValueError, match="pooling mean and gated"):
        pool.add("tcga_c-fold_0", model(6, pooling="mean"))
    with pytest.raises(ValueError, match=r"null and .*fold_0 have other dimensions: num_layers 2"):
        pool.add("null", model(6, num_layers=2))
    assert "tcga_c-fold_0" not in pool.names()


def test_members_of_an_earlier_null_model(tmp_path):
    pool = Pool(tmp_path)
    pool.add("tcga_a-fold_0", model(1, feature_dim=20))
    (tmp_path / "tcga_a-fold_0").rename(tmp_path / "aside")
    pool.add("null", model(0))
    (tmp_path / "aside").rename(tmp_path / "tcga_a-fold_0")
    with pytest.raises(ValueError, match="feature_dim 20 and 12"):
        pool.member("tcga_a", 0)


def test_member_of_another_kind(pool):
    pool.add("tcga_c-fold_0", dataclasses.replace(model(6), kind="other"))
    with pytest.raises(ValueError, match="expected an ABMIL model, found one of kind 'other'"):
        pool.member("tcga_c", 0)


@pytest.mark.parametrize("name", ["", ".hidden", "../out", "a/b", "a b"])
def test_impossible_names(tmp_path, name):
    with pytest.raises(ValueError, match="a model cannot be named"):
        Pool(tmp_path).add(name, model())


def test_a_pool_that_cannot_be_read(tmp_path, monkeypatch):
    """It is not one without models."""
    (tmp_path / "pool").mkdir()

    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(PermissionError, match=r"Permission denied: .*pool"):
        Pool(tmp_path / "pool").null()


ADD = """
import pathlib, sys
sys.path.insert(0, sys.argv[2])
import released
from steph_jax.checkpoints import torch_names
from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.saved_model import SavedModel
architecture, params = torch_names.abmil_from_torch(released.abmil(int(sys.argv[3])))
sys.stdin.read(1)
for name in ("null", "a-fold_0", "b-fold_0", "null", "a-fold_0", "b-fold_0"):
    Pool(sys.argv[1]).add(name, SavedModel("abmil", architecture, {"seed": sys.argv[3]}, params))
"""


def test_writers_of_equal_number_in_two_containers(tmp_path):
    """Two conversions into one pool: all models are there, each of one of the writers."""
    container = ["unshare", "--pid", "--fork", "--mount-proc"]
    try:
        subprocess.run([*container, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as problem:
        pytest.skip(f"no second namespace can be made here: {problem}")
    helpers = os.path.dirname(released.__file__)
    command = [*container, sys.executable, "-c", ADD, str(tmp_path / "pool"), helpers]
    writers = [
        subprocess.Popen([*command, seed], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        for seed in ("0", "1")
    ]
    for writer in writers:
        writer.stdin.write(b"x")
        writer.stdin.close()
    for writer in writers:
        with writer:
            assert writer.stderr.read() == b""
        assert writer.returncode == 0
    pool = Pool(tmp_path / "pool")
    assert pool.names() == ["a-fold_0", "b-fold_0", "null"]
    for model in (pool.null(), pool.member("a", 0), pool.member("b", 0)):
        _, params = torch_names.abmil_from_torch(released.abmil(int(model.metadata["seed"])))
        assert jax.tree.all(jax.tree.map(np.array_equal, model.params, params))
    hidden = {path.name for path in pool.root.iterdir() if path.name.startswith(".")}
    assert hidden == {".lock"}
