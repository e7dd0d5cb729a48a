"""Models on disk: whole, or an error that names what is wrong."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import damage
import jax
import ml_dtypes
import numpy as np
import pytest
import released
from absl import logging

from steph_jax import locks, records
from steph_jax.checkpoints import saved_model, torch_names
from steph_jax.checkpoints.saved_model import SavedModel


@pytest.fixture(scope="module")
def model():
    architecture, tree = torch_names.abmil_from_torch(released.abmil())
    return SavedModel("abmil", architecture, {"dataset": "tcga_x", "fold": 3}, tree)


def assert_same(one, other):
    assert (one.kind, one.architecture, one.metadata) == (
        other.kind,
        other.architecture,
        other.metadata,
    )
    assert jax.tree.structure(one.params) == jax.tree.structure(other.params)
    for left, right in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True):
        assert type(left) is np.ndarray
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


def test_round_trip(tmp_path, model):
    path = tmp_path / "pool" / "tcga_x-fold_3"
    saved_model.save_model(path, model)
    assert_same(saved_model.load_model(path), model)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    header = saved_model.load_header(path)
    assert header == (model.kind, model.architecture, model.metadata)


def test_trees_with_empty_branches_and_other_types(tmp_path, model):
    params = {
        "trainable": {},
        "frozen": {
            "null": model.params,
            "low": {"x": np.arange(3).astype(ml_dtypes.bfloat16)},
            "wide": {"x": np.arange(3, dtype=np.float64), "none": {"at": {}}},
            "one": np.array(2.5, np.float32),
        },
    }
    other = SavedModel("other", model.architecture, {"sources": ["a", "b"]}, params)
    saved_model.save_model(tmp_path / "m", other)
    assert_same(saved_model.load_model(tmp_path / "m"), other)


def test_arrays_on_a_device_come_back_as_numpy(tmp_path, model):
    on_device = dataclasses.replace(model, params=jax.tree.map(jax.numpy.asarray, model.params))
    saved_model.save_model(tmp_path / "m", on_device)
    assert_same(saved_model.load_model(tmp_path / "m"), model)


def test_replacing_a_model(tmp_path, model):
    saved_model.save_model(tmp_path / "m", model)
    newer = dataclasses.replace(model, metadata={"dataset": "tcga_y", "fold": 0})
    saved_model.save_model(tmp_path / "m", newer)
    assert_same(saved_model.load_model(tmp_path / "m"), newer)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_nothing_remains_of_a_failed_save(tmp_path, model):
    with pytest.raises(TypeError, match="not JSON serializable"):
        saved_model.save_model(tmp_path / "m", dataclasses.replace(model, metadata={"x": {1, 2}}))
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_dead_writers_are_removed(tmp_path, model):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    me = locks.this_process()
    dead, living, elsewhere = (
        tmp_path / f".m.{writer.temporary_suffix()}"
        for writer in (
            me._replace(number=process.pid),
            me._replace(number=os.getppid()),
            me._replace(number=process.pid, system="0" * 12),
        )
    )
    for leftover in (dead, living, elsewhere):
        leftover.mkdir()
    saved_model.save_model(tmp_path / "m", model)
    assert {p.name for p in tmp_path.iterdir()} == {living.name, elsewhere.name, "m"}


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
import released
from steph_jax.checkpoints import saved_model, torch_names
rename = os.rename
def rename_all_but_the_new_model(source, target):
    if str(target) == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
architecture, tree = torch_names.abmil_from_torch(released.abmil())
model = saved_model.SavedModel("abmil", architecture, {"new": True}, tree)
os.rename = rename_all_but_the_new_model
saved_model.save_model(sys.argv[1], model)
"""


def test_writer_killed_between_the_two_renames(tmp_path, model):
    saved_model.save_model(tmp_path / "m", model)
    helpers = os.path.dirname(released.__file__)
    command = [sys.executable, "-c", KILLED, str(tmp_path / "m"), helpers]
    killed = subprocess.run(command, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "m").exists()
    assert saved_model.exists(tmp_path / "m")
    assert saved_model.names_in(tmp_path) == ["m"]
    assert_same(saved_model.load_model(tmp_path / "m"), model)
    newer = dataclasses.replace(model, metadata={"fold": 1})
    saved_model.save_model(tmp_path / "m", newer)
    assert_same(saved_model.load_model(tmp_path / "m"), newer)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_folder_without_model_is_refused(tmp_path, model):
    with pytest.raises(FileNotFoundError, match=r"none: no such model; expected a directory with"):
        saved_model.load_model(tmp_path / "none")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("x")
    with pytest.raises(ValueError, match=r"other: not a model, or half of one \(no model.json\)"):
        saved_model.load_model(tmp_path / "other")
    with pytest.raises(ValueError, match="other: expected a model or nothing"):
        saved_model.save_model(tmp_path / "other", model)


def rewritten(path, change=lambda record: None):
    """Changes the record of a model, and gives it the checksum that belongs to the change."""
    record = json.loads((path / "model.json").read_text())
    record.pop("sha256", None)
    change(record)
    if record["format"] == 2:
        record = records.sealed(record)
    (path / "model.json").write_text(json.dumps(record))


def as_first_format(record):
    """The record that a version without checksums wrote."""
    record["format"] = 1
    record.pop("files", None)


def test_half_of_a_model(tmp_path, model):
    path = tmp_path / "m"
    saved_model.save_model(path, model)
    cut = [f for f in (path / "params").rglob("*") if f.is_file() and f.stat().st_size > 500]
    for file in cut:
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(
        ValueError, match=f"{min(cut)}: damaged, its bytes .*; make the model again"
    ):
        saved_model.load_model(path)
    rewritten(path, as_first_format)
    with pytest.raises(ValueError, match=r"m/params: damaged arrays \(.*; make the model again"):
        saved_model.load_model(path)
    cut[0].unlink()
    saved_model.save_model(path, model)
    next((path / "params" / "d").iterdir()).unlink()
    with pytest.raises(ValueError, match=r"m/params/d/\w+: not there .*; make the model again"):
        saved_model.load_model(path)
    os.rename(path / "params", path / "lost")
    with pytest.raises(ValueError, match="m: half of a model, params/ is missing"):
        saved_model.load_model(path)


def test_models_without_checksums_still_open(tmp_path, model):
    saved_model.save_model(tmp_path / "m", model)
    rewritten(tmp_path / "m", as_first_format)
    assert_same(saved_model.load_model(tmp_path / "m"), model)


def test_flipped_bit_is_refused_or_changes_nothing(tmp_path, model):
    path = tmp_path / "m"
    saved_model.save_model(path, model)
    messages = []
    for file in damage.flipped(path):
        try:
            loaded = saved_model.load_model(path)
        except ValueError as error:
            messages.append((str(error), str(file)))
        else:
            assert_same(loaded, model)
    assert len(messages) > 100
    assert all(text.startswith(f"{file}: ") and "\n" not in text for text, file in messages)
    assert_same(saved_model.load_model(path), model)


def test_edited_record_is_refused(tmp_path, model):
    saved_model.save_model(tmp_path / "m", model)
    file = tmp_path / "m" / "model.json"
    file.write_text(file.read_text().replace("tcga_x", "tcga_y"))
    for load in (saved_model.load_model, saved_model.load_header):
        with pytest.raises(ValueError, match=r"m/model.json: damaged or edited, its checksum"):
            load(tmp_path / "m")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(format=99), "format: expected one of 1, 2, found 99"),
        (lambda r: r.pop("architecture"), "architecture is missing"),
        (lambda r: r["architecture"].update(size=3), "unexpected keyword argument 'size'"),
        (lambda r: r["architecture"].update(pooling="sum"), "pooling is one of"),
        (lambda r: r["architecture"].update(num_layers=10**9), "architecture.num_layers: expected"),
        (lambda r: r["params"]["pred_head"].update(bias=["float32", [9]]), "expected an array"),
        (lambda r: r["params"]["pred_head"].update(bias=["object", [9]]), "params.pred_head.bias"),
        (lambda r: r["params"]["pred_head"].update(bias=["float32", [1 << 23, 1 << 23]]), "bytes"),
        (lambda r: r["architecture"].update(embed_dim=9), "not those of its architecture"),
        (lambda r: r["settings"].update(fold="3"), "settings.fold: expected a whole number"),
        (
            lambda r: r["settings"].update(bins={"kind": "uniform"}),
            "settings.bins.edges is missing",
        ),
        (lambda r: r.update(kind="steph"), "settings.sources is missing"),
    ],
)
@pytest.mark.parametrize("older", [False, True])
def test_inconsistent_records(tmp_path, model, change, message, older):
    path = tmp_path / "m"
    saved_model.save_model(path, model)
    if older:
        rewritten(path, as_first_format)
    rewritten(path, change)
    with pytest.raises(ValueError, match=rf"m.*{message}"):
        saved_model.load_model(path)


def test_record_is_not_json(tmp_path, model):
    saved_model.save_model(tmp_path / "m", model)
    (tmp_path / "m" / "model.json").write_text("<html>")
    with pytest.raises(ValueError, match=r"m/model.json: expected the record of a model"):
        saved_model.load_model(tmp_path / "m")


def test_parameters_of_another_architecture_are_not_saved(tmp_path, model):
    wrong = dataclasses.replace(
        model, architecture=dataclasses.replace(model.architecture, num_bins=9)
    )
    with pytest.raises(ValueError, match=r"pred_head/bias: \(9,\) \| \(4,\)"):
        saved_model.save_model(tmp_path / "m", wrong)
    assert list(tmp_path.iterdir()) == []


def test_orbax_is_quiet_and_others_are_not(tmp_path, model, caplog):
    with caplog.at_level("INFO"), caplog.at_level("INFO", logger="absl"):
        saved_model.save_model(tmp_path / "m", model)
        saved_model.load_model(tmp_path / "m")
        logging.info("ours")
    assert [r.message for r in caplog.records if r.name == "absl"] == ["ours"]
