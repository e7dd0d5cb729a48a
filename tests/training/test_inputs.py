"""What the folds of a run read is the same for all of them, or the run is refused by name."""

import contextlib
import os
import shutil

import h5py
import numpy as np
import pandas as pd
import pools
import pytest

from steph_jax import train
from steph_jax.checkpoints.pool import Pool
from steph_jax.data.bags import OnDiskBags
from steph_jax.data.features.open import open_features
from steph_jax.training import inputs

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return pools.make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    """A run of two folds whose process was killed before the second."""
    workdir = tmp_path_factory.mktemp("W")
    train.train(pools.config(world), workdir)
    shutil.rmtree(workdir / "fold_1")
    (workdir / "summary.json").unlink()
    return workdir


@contextlib.contextmanager
def changed(*paths):
    """Lets files and folders be changed, and puts them back."""
    kept = [path.with_name(f"kept-{path.name}") for path in paths]
    for path, copy in zip(paths, kept, strict=True):
        (shutil.copytree if path.is_dir() else shutil.copy2)(path, copy)
    try:
        yield
    finally:
        for path, copy in zip(paths, kept, strict=True):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            os.rename(copy, path)


def flip_events(world):
    path = world / "data/sim_a/sim_a_survival.csv"
    table = pd.read_csv(path)
    table["e"] = 1 - table["e"]
    table.to_csv(path, index=False)


def swap_splits(world):
    folder = world / "data/sim_a"
    shutil.copy(folder / "splits_0.csv", folder / "splits_1.csv")


def replace_source(world):
    pool = Pool(world / "pool")
    pool.add("sim_b-fold_0", pool.member("sim_c", 0))


def replace_target_of_the_other_fold(world):
    pool = Pool(world / "pool")
    pool.add("sim_a-fold_1", pool.member("sim_c", 0))


def replace_null(world):
    pool = Pool(world / "pool")
    pool.add("null", pool.member("sim_c", 0))


def rescale_features(world, factor=2.0):
    for path in (world / "data/features/sim_a").iterdir():
        with h5py.File(path, "r+") as file:
            file["features"][...] *= factor


CHANGES = [
    (flip_events, "data/sim_a", r"time, event or slides of .*\(\d+ in all\)[.]"),
    (swap_splits, "data/sim_a", "the splits of fold 1[.]"),
    (replace_source, "pool", "the pool's model sim_b-fold_0[.]"),
    (replace_target_of_the_other_fold, "pool", "the pool's model sim_a-fold_1[.]"),
    (replace_null, "pool", "the pool's model null[.]"),
    (rescale_features, "data/features/sim_a", r"the features of .*\(\d+ in all\)[.]"),
]


@pytest.mark.parametrize(("change", "where", "message"), CHANGES)
@pytest.mark.parametrize("cache_gb", [0.0, 1e-5])
def test_changed_input_is_refused(world, run, change, where, message, cache_gb):
    config = pools.config(world)
    config["data"]["cache_gb"] = cache_gb
    with changed(world / where):
        change(world)
        with pytest.raises(ValueError, match=f"{run}: inputs have changed .*: {message}"):
            train.train(config, run)
    assert not (run / "fold_1").exists()
    assert not (run / "summary.json").exists()


def test_unchanged_run_resumes(world, run, tmp_path):
    shutil.copytree(run, tmp_path / "W")
    for path in (world / "data/features/sim_a").iterdir():
        os.utime(path)
    pool = Pool(world / "pool")
    pool.add("sim_b-fold_0", pool.member("sim_b", 0))
    summary = train.train(pools.config(world), tmp_path / "W")
    assert summary["fold_numbers"] == [0, 1]


def test_run_of_an_older_version_resumes(world, run, tmp_path):
    shutil.copytree(run, tmp_path / "W")
    (tmp_path / "W" / inputs.INPUTS).unlink()
    assert train.train(pools.config(world), tmp_path / "W")["fold_numbers"] == [0, 1]
    actual, expected = inputs.read(tmp_path / "W"), inputs.read(run)
    assert actual.pop("models").items() <= expected.pop("models").items()
    assert actual == expected


def test_folds_asked_for_later_are_added(world, tmp_path):
    config = pools.config(world)
    train.train(config | {"folds": [1]}, tmp_path / "W")
    assert list(inputs.read(tmp_path / "W")["splits"]) == ["1"]
    train.train(config | {"folds": [0]}, tmp_path / "W")
    assert set(inputs.read(tmp_path / "W")["splits"]) == {"0", "1"}
    (tmp_path / "W/fold_0/metrics.json").unlink()
    with changed(world / "data/sim_a"):
        swap_splits(world)
        with pytest.raises(ValueError, match="the splits of fold 1"):
            train.train(config, tmp_path / "W")


def test_streamed_rows_are_read_again_only_where_a_file_has_changed(world):
    source = open_features(world / "data/features/sim_a")
    ids = sorted(source.slide_ids)
    bags = OnDiskBags(source, [[slide] for slide in ids], np.dtype(np.float32))
    first = inputs.feature_digests(ids, bags, {})
    known = {name: digests | {"rows": "as it was"} for name, digests in first.items()}
    assert inputs.feature_digests(ids, bags, known) == known
    os.utime(source.path_of(ids[3]))
    again = inputs.feature_digests(ids, bags, known)
    assert [name for name in ids if again[name] != known[name]] == [ids[3]]
    assert again[ids[3]]["rows"] == first[ids[3]]["rows"]
