"""A start whose weights of sources all fall to 0 is drawn anew (see `training.train_split`)."""

import json
import logging

import jax
import numpy as np
import pandas as pd
import pytest
import simulated

from steph_jax import train
from steph_jax.checkpoints import saved_model
from steph_jax.models import hypernetworks
from steph_jax.training import epoch, loop, restarts
from steph_jax.training.history import has_collapsed

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Cohorts, and a pool grown on them."""
    home = simulated.make(tmp_path_factory.mktemp("home"))
    for dataset in ("sim_a", "sim_b"):
        config = simulated.config(
            home, method="abmil", dataset=dataset, folds=(0,), epochs=1, pool__save=True
        )
        train.train(config, home / "runs" / dataset)
    return home


def config(home, **more):
    return simulated.config(home, folds=(0,), epochs=2, sources=("sim_b",), steph__top_k=1, **more)


def dead_until(monkeypatch, restarts):
    """Has STEPH start with weights far below 0 until so many starts have died."""
    real = hypernetworks.init
    seed = 42 + 1000 * restarts
    alive = np.asarray(jax.random.key_data(jax.random.key(seed)))

    def init(key, *args):
        is_alive = np.array_equal(np.asarray(jax.random.key_data(key)), alive)
        return real(key, *args[:-1], 3.0 if is_alive else -3.0)

    monkeypatch.setattr(hypernetworks, "init", init)


def read(workdir):
    return json.loads((workdir / "fold_0" / "metrics.json").read_text())


@pytest.mark.parametrize("method", ["steph", "dynamic"])
def test_collapsed_start_is_initialized_again(home, tmp_path, monkeypatch, caplog, method):
    if method == "steph":
        dead_until(monkeypatch, 2)
    else:
        real = hypernetworks.init

        def init(key, *args, mixing, initial_weight):
            first = np.asarray(jax.random.key_data(key)).tolist() == [0, 42]
            return real(key, *args, mixing=mixing, initial_weight=-3.0 if first else 3.0)

        monkeypatch.setattr(hypernetworks, "init", init)
    expected = 2 if method == "steph" else 1
    with caplog.at_level(logging.WARNING):
        train.train(config(home, method=method), tmp_path / "w")
    assert read(tmp_path / "w")["restarts"] == expected
    assert f"starting again from other random numbers ({expected} of 4)" in caplog.text
    history = pd.read_csv(tmp_path / "w" / "fold_0" / "history.csv")
    assert len(history) == 2, "of the start that was kept"
    # What died cost time too.
    assert read(tmp_path / "w")["train_seconds"] > 1.05 * history["seconds"].sum()
    assert (history["weight_sim_b"] > 0).all()
    assert saved_model.load_model(tmp_path / "w" / "fold_0" / "model").metadata["restarts"] == (
        expected
    )


def test_interrupted_run_resumes_at_its_restart(home, tmp_path, monkeypatch):
    class Interrupted(Exception):
        pass

    dead_until(monkeypatch, 1)
    train.train(config(home), tmp_path / "whole")
    real, passed = epoch.train_epoch, 0

    def interrupted(*args):
        nonlocal passed
        passed += 1
        if passed in (2, 4):
            raise Interrupted
        return real(*args)

    monkeypatch.setattr(loop, "train_epoch", interrupted)
    for _ in range(2):
        with pytest.raises(Interrupted):
            train.train(config(home), tmp_path / "parts")
    train.train(config(home), tmp_path / "parts")
    assert passed == 1 + 2 + 2, "the dead epoch and two live ones, and two that were interrupted"
    actual, expected = (
        pd.read_csv(tmp_path / name / "fold_0" / "predictions_test.csv")
        for name in ("parts", "whole")
    )
    pd.testing.assert_frame_equal(actual, expected)


def test_last_starts_begin_with_higher_weights(home, tmp_path, monkeypatch):
    real, asked = hypernetworks.init, []

    def init(key, *args):
        asked.append(args[-1])
        return real(key, *args[:-1], -3.0)

    monkeypatch.setattr(hypernetworks, "init", init)
    train.train(config(home, steph__initial_weight=0.1), tmp_path / "w")
    assert asked[-5:] == [0.1, 0.1, 0.1, 0.3, 0.3]
    stored = saved_model.load_model(tmp_path / "w" / "fold_0" / "model").metadata
    assert stored["options"]["initial_weight"] == 0.3


@pytest.mark.parametrize(
    ("totals", "dead"),
    [
        ([0.05, 0.0], True),
        ([0.05, 0.003, 0.003], False),
        ([0.05, 0.003, 0.003, 0.2], False),
        ([0.05, 0.003, 0.003, 0.009], True),
        ([0.003, 0.003], False),
    ],
)
def test_collapsed_weights_are_detected(totals, dead):
    history = [{"train_c_index": 0.5, "weight_a": x / 4, "weight_b": 3 * x / 4} for x in totals]
    assert has_collapsed(history) == dead
    assert not has_collapsed([{"train_c_index": 0.5}] * 4), "a method without weights"


def test_last_start_stands_collapsed_or_not(home, tmp_path, monkeypatch):
    monkeypatch.setattr(restarts, "MOST_STARTS", 2)
    train.train(config(home, steph__initial_weight=-3.0), tmp_path / "w")
    assert read(tmp_path / "w")["restarts"] == 1
    history = pd.read_csv(tmp_path / "w" / "fold_0" / "history.csv")
    assert (history["weight_sim_b"] == 0).all()


@pytest.mark.parametrize(
    "more",
    [
        {"method": "steph_target"},
        {"steph__merged": "pred_head"},
    ],
)
def test_without_sources_a_trained_encoder_is_left(home, tmp_path, more):
    train.train(config(home, steph__initial_weight=-3.0, **more), tmp_path / "w")
    assert "restarts" not in read(tmp_path / "w")
    history = pd.read_csv(tmp_path / "w" / "fold_0" / "history.csv")
    assert (history["weight_sim_b"] == 0).all()
