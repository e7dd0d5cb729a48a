"""Cohorts larger than the cache: the same training and evaluation, to the last bit."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pools
import pytest

from steph_jax import checkpoints, epochs, evaluate, fitting, train
from steph_jax.data import cache
from steph_jax.data.cache import CachedBags

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
def expected(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """What streamed bags were told to expect, call by call; none where nothing was streamed."""
    orders: list[list[int]] = []
    real = CachedBags.expect

    def expect(self: CachedBags, order: Sequence[int]) -> None:
        orders.append(list(order))
        real(self, order)

    monkeypatch.setattr(CachedBags, "expect", expect)
    return orders


def digest(workdir: pathlib.Path) -> str:
    return epochs.fingerprint(checkpoints.load_model(workdir / "fold_0" / "model"))


def assert_same(one: pathlib.Path, other: pathlib.Path) -> None:
    """Two runs whose parameters, histories, predictions and weights agree exactly."""
    assert digest(one) == digest(other)
    first, second = one / "fold_0", other / "fold_0"
    histories = (pd.read_csv(of / "history.csv").drop(columns=TIMES) for of in (first, second))
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    for name in ("predictions_test.csv", "merge_weights_test.csv"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    scores = (json.loads((of / "metrics.json").read_text()) for of in (first, second))
    assert next(scores)["test"] == next(scores)["test"]


def test_training_is_the_same(home, in_memory, expected, tmp_path):
    train.train(config_of(home, TINY_GB), tmp_path / "streamed")
    assert len(expected) >= 3, "the bags were not streamed"
    assert_same(in_memory, tmp_path / "streamed")


def test_evaluation_is_the_same(home, in_memory, expected, monkeypatch):
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
    evaluate.evaluate_fold(directory, config_of(home, TINY_GB))
    assert patches, "the bags were not streamed"
    assert json.loads((directory / "metrics.json").read_text())["test"] == scores["test"]
    assert before == {name: (directory / name).read_bytes() for name in names}


@pytest.mark.parametrize("cache_gb", [TINY_GB, 1.0])
def test_a_streamed_run_goes_on_where_it_stopped(
    home, in_memory, expected, tmp_path, monkeypatch, cache_gb
):
    """In the same order, with the cache of before or another one."""

    class Interrupted(Exception):
        pass

    real = fitting.train_epoch
    passed = 0

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        nonlocal passed
        passed += 1
        if passed == 2:
            raise Interrupted
        return real(*args, **kwargs)

    monkeypatch.setattr(fitting, "train_epoch", interrupted)
    with pytest.raises(Interrupted):
        train.train(config_of(home, TINY_GB), tmp_path / "w")
    before = list(expected)
    assert len(before) == 2
    expected.clear()
    train.train(config_of(home, cache_gb), tmp_path / "w")
    assert passed == 1 + 3, "the first epoch ran again"
    if cache_gb == TINY_GB:
        assert expected[0] == before[1], "the order of the second epoch has changed"
    assert_same(in_memory, tmp_path / "w")


def test_the_default_is_a_quarter_of_the_memory(home, expected, monkeypatch):
    """`data.cache_gb` of configs/default.py, at both sides of the bound."""
    from steph_jax import experiment

    config = pools.config(home)
    assert config["data"]["cache_gb"] == 0
    cohort = experiment.read_cohort(config)
    monkeypatch.setattr(cache, "machine_memory", lambda: 10**9)
    bags = experiment.read_bags(config, "sim_a", cohort.table)
    needed = int(bags.num_patches.sum()) * bags.feature_dim * bags.dtype.itemsize
    for memory, streamed in ((4 * needed, False), (4 * needed - 4, True)):
        monkeypatch.setattr(cache, "machine_memory", lambda memory=memory: memory)
        opened = experiment.read_bags(config, "sim_a", cohort.table)
        assert isinstance(opened, CachedBags) == streamed


def test_joined_cohorts_are_the_same(home, expected, tmp_path):
    for name, cache_gb in (("memory", 1.0), ("streamed", TINY_GB)):
        config = config_of(home, cache_gb, "joint") | {"epochs": 1}
        train.train(config, tmp_path / name)
        assert (name == "streamed") == bool(expected)
    assert digest(tmp_path / "memory") == digest(tmp_path / "streamed")
