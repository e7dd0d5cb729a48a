"""Cohorts larger than the cache: the same training and evaluation, to the last bit."""

import json
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pools
import pytest

from steph_jax import evaluate, train
from steph_jax.checkpoints import saved_model
from steph_jax.checkpoints.pool import Pool
from steph_jax.data import cache, finite_check
from steph_jax.data.cache import CachedBags
from steph_jax.data.features import store_writer
from steph_jax.data.features.open import open_features
from steph_jax.training import epoch, experiment, loop, preflight, resume
from steph_jax.training.config import Config

pytestmark = pytest.mark.usefixtures("no_pictures")

#: Far below the 40 KB that the patients of sim_a take: a bag or two stay, the others are streamed.
TINY_GB = 1e-5
#: Columns of a history that say how fast it went.
TIMES = ["seconds", "slides_per_second", "patches_per_second", "waiting_share"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return pools.make(tmp_path_factory.mktemp("home"))


def config_of(home: pathlib.Path, cache_gb: float, method: str = "steph") -> dict[str, Any]:
    """Three epochs of fold 0."""
    config = pools.config(home)
    config |= {"method": method, "folds": [0], "epochs": 3}
    config["data"]["cache_gb"] = cache_gb
    return config


@pytest.fixture(scope="module")
def in_memory(home: pathlib.Path) -> pathlib.Path:
    """A run with all bags in memory."""
    train.train(config_of(home, 1.0), home / "in_memory")
    return home / "in_memory"


@pytest.fixture
def announced(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The orders that streamed bags were given to prefetch; none where nothing was streamed."""
    orders: list[list[int]] = []
    real = CachedBags.announce

    def announce(self: CachedBags, order: Sequence[int]) -> None:
        orders.append(list(order))
        real(self, order)

    monkeypatch.setattr(CachedBags, "announce", announce)
    return orders


def digest(workdir: pathlib.Path) -> str:
    return resume.fingerprint(saved_model.load_model(workdir / "fold_0" / "model"))


def assert_same(one: pathlib.Path, other: pathlib.Path) -> None:
    """Two runs whose parameters, histories, predictions and weights agree exactly."""
    assert digest(one) == digest(other)
    first, second = one / "fold_0", other / "fold_0"
    histories = (
        pd.read_csv(directory / "history.csv").drop(columns=TIMES) for directory in (first, second)
    )
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    for name in ("predictions_test.csv", "merge_weights_test.csv"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    scores = (json.loads((directory / "metrics.json").read_text()) for directory in (first, second))
    assert next(scores)["test"] == next(scores)["test"]


def test_training_is_the_same(home, in_memory, announced, tmp_path):
    train.train(config_of(home, TINY_GB), tmp_path / "streamed")
    assert len(announced) >= 3, "the bags were not streamed"
    assert_same(in_memory, tmp_path / "streamed")


def test_evaluation_is_the_same(home, in_memory, announced, monkeypatch):
    directory = in_memory / "fold_0"
    names = ("predictions_test.csv", "merge_weights_test.csv")
    before = {name: (directory / name).read_bytes() for name in names}
    read = CachedBags.read
    patches = 0

    def counted(self: CachedBags, index: int, start: int, out: np.ndarray) -> None:
        nonlocal patches
        patches += len(out)
        read(self, index, start, out)

    monkeypatch.setattr(CachedBags, "read", counted)
    scores = json.loads((directory / "metrics.json").read_text())
    evaluate.evaluate_fold(directory, Config.from_dict(config_of(home, TINY_GB)))
    assert patches, "the bags were not streamed"
    assert json.loads((directory / "metrics.json").read_text())["test"] == scores["test"]
    assert before == {name: (directory / name).read_bytes() for name in names}


@pytest.mark.parametrize("cache_gb", [TINY_GB, 1.0])
def test_streamed_run_resumes(home, in_memory, announced, tmp_path, monkeypatch, cache_gb):
    """In the same order, with the cache of before or another one."""

    class Interrupted(Exception):
        pass

    real = epoch.train_epoch
    passed = 0

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        nonlocal passed
        passed += 1
        if passed == 2:
            raise Interrupted
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "train_epoch", interrupted)
    with pytest.raises(Interrupted):
        train.train(config_of(home, TINY_GB), tmp_path / "w")
    look, *before = announced
    assert look == sorted(look), "all values are read before the first epoch"
    assert len(before) == 2
    announced.clear()
    train.train(config_of(home, cache_gb), tmp_path / "w")
    assert passed == 1 + 3, "the first epoch ran again"
    if cache_gb == TINY_GB:
        assert announced[0] == before[1], (
            "the order of the second epoch has changed, or all is read"
        )
    assert_same(in_memory, tmp_path / "w")


def spoiled(home: pathlib.Path, tmp_path: pathlib.Path) -> tuple[dict[str, Any], list[str]]:
    """The features of sim_a with a NaN in one file and a damaged chunk in another; their names."""
    folder = tmp_path / "features"
    shutil.copytree(home / "data" / "features" / "sim_a", folder)
    paths = sorted(folder.iterdir())
    nan, damaged = paths[2], paths[-1]
    with h5py.File(nan, "r+") as file:
        file["features"][..., 1, 3] = np.nan
    with h5py.File(damaged, "r+") as file:
        rows = file["features"][:]
        del file["features"]
        held = file.create_dataset("features", data=rows, chunks=rows.shape, compression="gzip")
        file.flush()
        chunk = held.id.get_chunk_info(0)
    with damaged.open("r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(bytes(chunk.size))
    config = config_of(home, TINY_GB, "abmil")
    config["data"]["features"] = str(folder)
    return config, [str(nan), str(damaged)]


def test_all_bad_values_are_reported_before_training(home, tmp_path, monkeypatch):
    config, names = spoiled(home, tmp_path)
    monkeypatch.setattr(loop, "train_epoch", None)  # not callable: no epoch begins
    with pytest.raises(ValueError, match="values of 2 slides cannot be used") as error:
        train.train(config, tmp_path / "w")
    lines = str(error.value).split("\n")[1:]
    assert [sum(name in line for line in lines) for name in names] == [1, 1]
    assert [path.name for path in (tmp_path / "w").iterdir()] == [".fold_0.lock"]
    unchecked = config | {"data": config["data"] | {"check_values": False}}
    with pytest.raises(ValueError, match=rf"{names[0]}: NaN or infinity"):
        train.train(unchecked, tmp_path / "w")  # a slide is read, and only this one is named


def test_values_are_read_once_until_a_file_changes(home, tmp_path, monkeypatch):
    shutil.copytree(home / "data" / "features" / "sim_a", tmp_path / "features")
    config = config_of(home, TINY_GB, "abmil")
    config["data"]["features"] = str(tmp_path / "features")
    typed, pool, read = Config.from_dict(config), Pool(home / "pool"), []
    cohort = experiment.read_cohort(typed)
    real = finite_check.bad_slides

    def count_reads(bags, patients, progress):
        read.append(len(patients))
        return real(bags, patients, progress)

    monkeypatch.setattr(finite_check, "bad_slides", count_reads)

    def check(**data: Any) -> int:
        changed = typed.with_values({f"data.{name}": value for name, value in data.items()})
        run = experiment.open_experiment(changed, cohort, pool)
        preflight.check_values(run, tmp_path / "marker")
        return len(read)

    assert [check(), check()] == [1, 1]
    os.utime(next((tmp_path / "features").iterdir()), (1, 1))
    assert [check(), check()] == [2, 2]
    (tmp_path / "marker").unlink()
    source = open_features(tmp_path / "features")
    store_writer.pack(source, sorted(source.slide_ids), tmp_path / "x.store")
    assert check(features=str(tmp_path / "x.store")) == 2
    assert check(cache_gb=1.0) == 2
    assert not (tmp_path / "marker").exists()


def test_the_default_is_a_quarter_of_the_memory(home, announced, monkeypatch):
    """`data.cache_gb` of configs/default.py, at both sides of the bound."""
    config = Config.from_dict(pools.config(home))
    assert config.data.cache_gb == 0
    cohort = experiment.read_cohort(config)
    monkeypatch.setattr(cache, "memory_limit", lambda: 10**9)
    bags = experiment.read_bags(config, "sim_a", cohort.table)
    needed = int(bags.num_patches.sum()) * bags.feature_dim * bags.dtype.itemsize
    for memory, streamed in ((4 * needed, False), (4 * needed - 4, True)):
        monkeypatch.setattr(cache, "memory_limit", lambda memory=memory: memory)
        opened = experiment.read_bags(config, "sim_a", cohort.table)
        assert isinstance(opened, CachedBags) == streamed


def test_joined_cohorts_are_the_same(home, announced, tmp_path):
    for name, cache_gb in (("memory", 1.0), ("streamed", TINY_GB)):
        config = config_of(home, cache_gb, "joint") | {"epochs": 1}
        train.train(config, tmp_path / name)
        assert (name == "streamed") == bool(announced)
    assert digest(tmp_path / "memory") == digest(tmp_path / "streamed")
