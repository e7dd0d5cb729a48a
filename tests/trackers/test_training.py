"""Trainings with trackers: nothing that is computed changes, and nothing ends for them."""

import importlib.util
import json
import shutil

import pandas as pd
import pools
import pytest

from steph_jax import train
from steph_jax.trackers import track
from steph_jax.training import resume


class Recorder:
    """A tracker that keeps its calls, across its runs."""

    calls: list[tuple]
    fails = False

    def start(self, fold, run_id, step):
        self.calls.append(("start", fold.group, fold.name, run_id))
        return run_id or "new"

    def log(self, step, numbers):
        if self.fails:
            raise ConnectionError("no route")
        self.calls.append((step, numbers["train_loss"]))

    def finish(self, results):
        self.calls.append(("finish", results))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return pools.make(tmp_path_factory.mktemp("home"))


@pytest.fixture
def recorder(monkeypatch):
    kind = type("OneRecorder", (Recorder,), {"calls": []})
    tensorboard = track.TRACKERS["tensorboard"]._replace(make=kind, module="json")
    monkeypatch.setitem(track.TRACKERS, "tensorboard", tensorboard)
    return kind


def config(home, **settings):
    own = {"method": "abmil", "folds": [1], "epochs": 3, "track": ["tensorboard"]}
    return pools.config(home) | own | settings


def test_an_interrupted_training_is_tracked_once(home, tmp_path, recorder, monkeypatch):
    save = resume.EpochStore.save

    def save_and_stop(store, epoch, *rest):
        save(store, epoch, *rest)
        if epoch == 2:  # before the tracker logs it
            raise KeyboardInterrupt

    monkeypatch.setattr(resume.EpochStore, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train.train(config(home), tmp_path / "w")
    monkeypatch.setattr(resume.EpochStore, "save", save)
    train.train(config(home), tmp_path / "w")
    history = pd.read_csv(tmp_path / "w" / "fold_1" / "history.csv")
    first, one, stopped, second, two, three, (finish, results) = recorder.calls
    assert (first, stopped) == (("start", "sim_a/abmil", "fold_1", None), ("finish", None))
    assert second == ("start", "sim_a/abmil", "fold_1", "new")
    assert [step for step, _ in (one, two, three)] == [1, 2, 3]
    losses = [loss for _, loss in (one, two, three)]
    assert losses == pytest.approx(history["train_loss"].tolist())
    record = json.loads((tmp_path / "w" / "fold_1" / "metrics.json").read_text())
    assert finish == "finish"
    assert results["test_c_index"] == record["test"]["c_index"]
    assert results["train_nll"] == pytest.approx(record["train"]["nll"])


def test_a_tracker_that_fails_ends_no_training(home, tmp_path, recorder, caplog):
    recorder.fails = True
    train.train(config(home, epochs=2, folds=[0, 1]), tmp_path / "w")
    assert recorder.calls == [("start", "sim_a/abmil", "fold_0", None)]
    warnings = [r.getMessage() for r in caplog.records if "tracked" in r.getMessage()]
    assert warnings == ["tensorboard: no more is tracked there, training goes on: no route"]
    recorder.fails, recorder.calls = False, []
    # The same run without trackers, and from the same start: the same history.
    train.train(config(home, epochs=2, track=[]), tmp_path / "plain")
    assert recorder.calls == []
    assert not (tmp_path / "plain" / "fold_1" / "trackers.json").exists()
    histories = [pd.read_csv(tmp_path / w / "fold_1" / "history.csv") for w in ("w", "plain")]
    columns = ["epoch", "learning_rate", "train_loss", "train_c_index"]
    pd.testing.assert_frame_equal(*(history[columns] for history in histories))
    # Another choice of trackers is no other run.
    shutil.rmtree(tmp_path / "plain" / "fold_1")
    train.train(config(home, epochs=2), tmp_path / "plain")
    assert [call[0] for call in recorder.calls] == ["start", 1, 2, "finish"]


def test_a_missing_package_is_named_before_anything_is_written(home, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"config\.track: mlflow needs the package mlflow-skinny"):
        train.train(config(home, track=["mlflow"]), tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_an_unknown_tracker_is_refused(home, tmp_path):
    with pytest.raises(ValueError, match=r"track names some of tensorboard.*found \['comet'\]"):
        train.train(config(home, track=["comet"]), tmp_path / "w")
