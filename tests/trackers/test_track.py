"""Trackers log every epoch once; one that fails is left out; each library is tried."""

import importlib.util
import json
import struct

import pytest
import tracking_servers

from steph_jax.trackers import track, weights_and_biases
from steph_jax.trackers.protocol import TrackedFold

ROWS = [{"epoch": i, "train_loss": 1 / i, "weight_sim b#": 0.5} for i in (1, 2, 3)]
NAMES = ("epoch", "train_loss", "weight_sim b_")
#: What a tracker of all three epochs holds, by name and step.
EXPECTED = {
    (name, step): row[key]
    for step, row in enumerate(ROWS, 1)
    for name, key in zip(NAMES, row, strict=True)
}


class Recorder:
    """A tracker that keeps its calls, across its runs, and fails where a test asks for it."""

    calls: list[tuple]
    fails_at: str

    def _call(self, *call):
        if call[0] == self.fails_at:
            raise RuntimeError("the server is gone\nfor good")
        self.calls.append(call)

    def start(self, fold, run_id, step):
        self._call("start", run_id, step)
        return run_id or "new"

    def log(self, step, numbers):
        self._call("log", step, dict(numbers))

    def finish(self, results):
        self._call("finish", results)


def steps_of(recorder):
    """(step, epoch) of everything that was logged."""
    return [(call[1], call[2]["epoch"]) for call in recorder.calls if call[0] == "log"]


@pytest.fixture
def recorders(monkeypatch):
    """Recorders in the places of two trackers."""
    kinds = {}
    for name in ("tensorboard", "mlflow"):
        kinds[name] = type(f"Recorder_{name}", (Recorder,), {"calls": [], "fails_at": ""})
        kind = track.TRACKERS[name]._replace(make=kinds[name])
        monkeypatch.setitem(track.TRACKERS, name, kind)
    return kinds


@pytest.fixture
def fold(tmp_path):
    (tmp_path / "fold_2").mkdir()
    settings = {"epochs": 3, "data.root": "x" * 2000, "sources": ["a", "b"]}
    return TrackedFold("sim_a", "steph", 2, 42, tmp_path / "fold_2", settings)


def state(fold):
    return json.loads((fold.directory / "trackers.json").read_text())


def interrupt(name, fold, rows):
    """Logs some epochs, then training is interrupted."""
    with track.tracked([name], fold) as tracked:
        tracked.log("fold_2", rows)
        raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_under_its_id(recorders, fold):
    with pytest.raises(KeyboardInterrupt):
        interrupt("mlflow", fold, ROWS[:1])
    assert state(fold) == {"mlflow": {"id": "new", "epochs": {"fold_2": 1}}}
    with track.tracked(["mlflow", "tensorboard"], fold) as tracked:
        tracked.log("fold_2", ROWS[:2])
        tracked.log("fold_2", ROWS)
        tracked.finish({"test_c_index": 0.75, "test_nll": float("nan")})
    assert steps_of(recorders["mlflow"]) == [(1, 1), (2, 2), (3, 3)]
    assert [call for call in recorders["mlflow"].calls if call[0] != "log"] == [
        ("start", None, 0),
        ("finish", None),
        ("start", "new", 1),
        ("finish", {"test_c_index": 0.75}),
    ]
    # One that joins late logs the epochs before.
    assert steps_of(recorders["tensorboard"]) == [(1, 1), (2, 2), (3, 3)]
    assert tuple(recorders["tensorboard"].calls[1][2]) == NAMES


def test_steps_go_on_where_training_starts_again(recorders, fold):
    with track.tracked(["mlflow"], fold) as tracked:
        tracked.log("fold_2", ROWS[:2])
        tracked.log("restart_1", ROWS[:1])
        tracked.log("restart_1", ROWS[:3])
    assert steps_of(recorders["mlflow"]) == [(1, 1), (2, 2), (3, 1), (4, 2), (5, 3)]
    assert state(fold)["mlflow"]["epochs"] == {"fold_2": 2, "restart_1": 3}


@pytest.mark.parametrize("fails_at", ["start", "log", "finish"])
def test_a_tracker_that_fails_is_left_out_with_one_warning(recorders, fold, caplog, fails_at):
    recorders["mlflow"].fails_at = fails_at
    names = ["mlflow", "tensorboard"]
    with track.tracked(names, fold) as tracked:
        tracked.log("fold_2", ROWS[:2])
        tracked.log("fold_2", ROWS)
        tracked.finish({"test_c_index": 0.75})
    # The fold after this one does not wait for it again.
    assert names == ["tensorboard"]
    warnings = [record.getMessage() for record in caplog.records]
    assert warnings == ["mlflow: no more is tracked there, training goes on: the server is gone"]
    names = [call[0] for call in recorders["tensorboard"].calls]
    assert names == ["start", "log", "log", "log", "finish"]


def test_nothing_is_written_without_trackers(fold):
    with track.tracked([], fold) as tracked:
        tracked.log("fold_2", ROWS)
        tracked.finish({})
    assert list(fold.directory.iterdir()) == []


def test_names_and_packages(monkeypatch):
    track.expect_names(("wandb", "mlflow"))
    track.expect_installed(())
    for names in (("tensorboard,wandb",), ("wandb", "wandb")):
        with pytest.raises(ValueError, match=r"track names some of tensorboard, wandb, mlflow"):
            track.expect_names(names)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package mlflow-skinny; pip install 'steph_"):
        track.expect_installed(("mlflow",))


def test_a_damaged_record_of_ids_is_named(fold):
    (fold.directory / "trackers.json").write_text('{"mlflow": {"id": 3}}')
    message = r"trackers\.json: expected the runs of trackers; mlflow.* remove the file"
    with pytest.raises(ValueError, match=message), track.tracked(["mlflow"], fold):
        pass


def track_twice(name, fold):
    """Three epochs and a result, interrupted after the second; returns the id of the run."""
    with pytest.raises(KeyboardInterrupt):
        interrupt(name, fold, ROWS[:2])
    with track.tracked([name], fold) as tracked:
        tracked.log("fold_2", ROWS)
        tracked.finish({"test_c_index": 0.75})
    return state(fold)[name]["id"]


def tfrecords(path):
    """The records of an event file: length, its checksum, data, its checksum."""
    data, at = path.read_bytes(), 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        yield data[at + 12 : at + 12 + length]
        at += 16 + length


def test_event_files_hold_every_epoch(fold):
    pytest.importorskip("tensorboardX", reason="needs the extra [tensorboard]")
    from tensorboardX.proto.event_pb2 import Event

    assert track_twice("tensorboard", fold) == "sim_a/steph/fold_2"
    folder = fold.workdir / "tensorboard" / "sim_a" / "steph" / "fold_2"
    assert len(list(folder.iterdir())) == 2
    values, purged = {}, []
    for path in folder.iterdir():
        for record in tfrecords(path):
            event = Event.FromString(record)
            if event.HasField("session_log"):
                purged.append(event.step)
            for value in event.summary.value:
                assert (value.tag, event.step) not in values
                values[value.tag, event.step] = value.simple_value
    assert purged == [3]
    assert values.pop(("result/test_c_index", 3)) == 0.75
    expected = {(name.replace(" ", "_"), step): x for (name, step), x in EXPECTED.items()}
    assert values == pytest.approx(expected)


def wandb_records(path):
    """The records of an offline run, whose format is that of LevelDB's log: blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), 7, b""  # a header of seven bytes comes first
    while at + 7 <= len(data):
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield Record.FromString(parts)
            parts = b""
        if (-at) % 32768 < 7:
            at += (-at) % 32768


def items_of(items):
    """Names and values of a part of a record."""
    return {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}


@pytest.fixture
def wandb():
    """The library, which reads its variables again, as it does once in a process."""
    library = pytest.importorskip("wandb", reason="needs the extra [wandb]")
    library.teardown()
    yield library
    library.teardown()


def test_offline_files_of_wandb_hold_every_epoch(wandb, fold, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    name = track_twice("wandb", fold)
    wandb.teardown()  # its process writes the last of the files when it ends
    paths = sorted((fold.workdir / "wandb").glob(f"offline-run-*-{name}*/run-{name}.wandb"))
    assert len(paths) == 2
    values, results, runs, codes = {}, {}, [], []
    for record in (record for path in paths for record in wandb_records(path)):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            runs.append(record.run)
        if kind == "exit":
            codes.append(record.exit.exit_code)
        if kind == "history":
            row = items_of(record.history.item)
            values |= {(key, record.history.step.num): row[key] for key in NAMES}
        if kind == "summary":
            results |= items_of(record.summary.update)
    assert values == pytest.approx(EXPECTED)
    assert results["result/test_c_index"] == 0.75
    groups = {(run.run_id, run.run_group, run.project) for run in runs}
    assert groups == {(name, "sim_a/steph", "steph_jax")}
    assert codes == [1, 0]
    assert items_of(runs[0].config.update)["epochs"] == 3


def test_the_file_store_of_mlflow_holds_every_epoch(fold, monkeypatch):
    pytest.importorskip("mlflow", reason="needs the extra [mlflow]")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run_id = track_twice("mlflow", fold)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=(fold.workdir / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("sim_a/steph")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == run_id
    assert (run.info.status, run.info.run_name) == ("FINISHED", "fold_2")
    tags = {name: run.data.tags[name] for name in ("dataset", "method", "fold")}
    assert tags == {"dataset": "sim_a", "method": "steph", "fold": "2"}
    assert run.data.params["epochs"] == "3"
    assert run.data.params["data.root"] == "x" * 500
    values = {
        (name, metric.step): metric.value
        for name in NAMES
        for metric in client.get_metric_history(run_id, name)
    }
    assert values == pytest.approx(EXPECTED)
    assert run.data.metrics["result/test_c_index"] == 0.75


def warnings_after_the_server_is_gone(name, fold, caplog, server_ends):
    """Two epochs, with the end of a server between them; what the log says."""
    names = [name]
    with track.tracked(names, fold) as tracked:
        tracked.log("fold_2", ROWS[:1])
        assert state(fold)[name]["epochs"] == {"fold_2": 1}
        server_ends()
        tracked.log("fold_2", ROWS[:2])
        tracked.finish({"test_c_index": 0.75})
    assert names == []
    return [r.getMessage() for r in caplog.records if "training goes on" in r.getMessage()]


def test_a_server_of_mlflow_that_goes_away_is_left_out(fold, monkeypatch, caplog):
    pytest.importorskip("mlflow", reason="needs the extra [mlflow]")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with tracking_servers.serving(tracking_servers.MLFLOW) as (address, end):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        (warning,) = warnings_after_the_server_is_gone("mlflow", fold, caplog, end)
    assert warning.startswith("mlflow: no more is tracked there, training goes on: API request to")


def test_a_server_of_wandb_that_goes_away_is_left_out(wandb, fold, monkeypatch, caplog):
    monkeypatch.setattr(weights_and_biases, "FINISH_SECONDS", 1.0)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_ENTITY", "us")
    monkeypatch.setenv("WANDB_MODE", "online")
    with tracking_servers.serving(tracking_servers.WANDB) as (address, end):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        (warning,) = warnings_after_the_server_is_gone("wandb", fold, caplog, end)
    assert warning == (
        "wandb: no more is tracked there, training goes on: Timed out finishing run."
    )
