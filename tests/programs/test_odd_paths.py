"""Runs, pools and outputs whose folders have names that libraries read as patterns."""

import json
import shutil
import subprocess
import sys

import pandas as pd
import pools
import pytest

from steph_jax import train
from steph_jax.checkpoints.pool import Pool

pytestmark = pytest.mark.usefixtures("no_pictures")

NAME = "steph[lr=1e-4] \\w*? Größe"


def program(name, *flags):
    command = [sys.executable, "-m", f"steph_jax.{name}", *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return pools.make(tmp_path_factory.mktemp("world") / NAME)


def test_run_resume_evaluate_predict_and_export(world, tmp_path):
    workdir = tmp_path / "runs" / NAME
    config = pools.config(world) | {"epochs": 2}
    first = train.train(config, workdir)
    fold = workdir / "fold_1"
    predicted = pd.read_csv(fold / "predictions_test.csv")
    # The fold goes on from its last state where its process was killed before the metrics.
    for name in ("metrics.json", "training.json"):
        (fold / name).unlink()
    shutil.rmtree(fold / "model")
    assert train.train(config, workdir) == first
    pd.testing.assert_frame_equal(pd.read_csv(fold / "predictions_test.csv"), predicted)
    program("evaluate", "--workdir", workdir)
    assert json.loads((workdir / "summary.json").read_text())["c_index"] == first["c_index"]
    out = tmp_path / NAME
    out.mkdir()
    flags = ["--checkpoint", fold, "--features", world / "data/features/sim_a"]
    program("predict", *flags, "--out", out / "p[1].csv")
    assert len(pd.read_csv(out / "p[1].csv"))
    program("export", "--checkpoint", fold, "--out", out / "m[1].safetensors")
    assert sorted(path.name for path in out.iterdir()) == ["m[1].safetensors", "p[1].csv"]


def test_pool_grows(world, tmp_path):
    config = pools.config(world) | {"method": "abmil", "folds": [1]}
    config["pool"] = {"root": str(tmp_path / "pools" / NAME), "save": True}
    train.train(config, tmp_path / "W")
    pool = Pool(tmp_path / "pools" / NAME)
    assert pool.names() == ["null", "sim_a-fold_1"]
    assert pool.member("sim_a", 1).metadata["fold"] == 1
