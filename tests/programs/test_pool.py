"""`steph_jax.pool` on pools of every age."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pools
import pytest
import simulated

from steph_jax import pool as program
from steph_jax import train
from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.pool_entries import PoolEntry, entries
from steph_jax.data.splits import read_split
from steph_jax.data.tables import read_table, table_path

UNKNOWN = ("patients", "events", "encoder", "test_c_index")


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """A pool whose models say nothing of themselves."""
    return pools.make(tmp_path_factory.mktemp("earlier")) / "pool"


def run(*words):
    command = [sys.executable, "-m", "steph_jax.pool", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_a_model_of_a_run_knows_itself(tmp_path):
    home = simulated.make(tmp_path)
    config = simulated.config(home, method="abmil", folds=(1,), epochs=1, pool__save=True)
    summary = train.train(config, tmp_path / "w")
    null, member = entries(Pool(home / "pool"))
    split = read_split(home / "data" / "sim_a" / "splits_1.csv")
    table = read_table(table_path(home / "data", "sim_a"))
    events = sum(table.event[table.patients.index(patient)] for patient in split.train)
    assert (null.name, null.kind) == ("null", "null")
    assert (member.name, member.kind, member.dataset, member.fold) == (
        "sim_a-fold_1",
        "abmil",
        "sim_a",
        1,
    )
    assert (member.patients, member.events) == (len(split.train), events)
    assert member.encoder == "simulated"
    assert member.test_c_index == summary["c_index"]["folds"][0]
    assert member.dimensions["feature_dim"] == 24
    header, first, _ = program.table([member, null]).splitlines()
    columns = ["model", "kind", "dataset", "fold", "patients", "events", "test", "C", "encoder"]
    assert header.split() == columns
    c_index = f"{member.test_c_index:.4f}"
    cells = ["sim_a-fold_1", "abmil", "sim_a", "1", str(member.patients), str(events), c_index]
    assert first.split() == [*cells, "simulated"]


def test_earlier_models_are_unknown(earlier):
    listing = {entry.name: entry for entry in entries(Pool(earlier))}
    assert set(listing) == {"null", *pools.MEMBERS}
    member = listing["sim_a-fold_1"]
    assert (member.dataset, member.fold, member.problem) == ("sim_a", 1, "")
    assert all(getattr(member, name) is None for name in UNKNOWN)
    line = program.table([member]).splitlines()[1]
    assert line.split() == ["sim_a-fold_1", "abmil", "sim_a", "1", *["unknown"] * 4]


def test_damaged_models_are_named_and_the_others_listed(earlier, tmp_path):
    shutil.copytree(earlier, tmp_path / "pool")
    (tmp_path / "pool" / "sim_b-fold_0" / "model.json").write_text("{")
    arrays = tmp_path / "pool" / "sim_c-fold_0" / "params"
    file = max((path for path in arrays.rglob("*") if path.is_file()), key=os.path.getsize)
    data = np.fromfile(file, np.uint8)
    data[-1] ^= 1
    data.tofile(file)
    shutil.rmtree(tmp_path / "pool" / "sim_a-fold_1" / "params")
    done = run("--list", tmp_path / "pool")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    rows = {line.split()[0]: line.split()[1] for line in lines[1:6]}
    assert rows == {
        "null": "null",
        "sim_a-fold_0": "abmil",
        "sim_a-fold_1": "damaged",
        "sim_b-fold_0": "damaged",
        "sim_c-fold_0": "damaged",
    }
    assert [line.partition(":")[0] for line in lines[6:]] == ["damaged"] * 3
    half, record, bytes_ = lines[6:]
    assert "sim_a-fold_1: half of a model, params/ is missing" in half
    assert "sim_b-fold_0/model.json: expected the record of a model" in record
    assert f"{file}: damaged, its bytes are not those that were written" in bytes_


def test_json_and_a_pool_that_is_not_there(earlier, tmp_path):
    done = run("--list", earlier, "--json")
    records = json.loads(done.stdout)
    assert [record["name"] for record in records] == sorted({"null", *pools.MEMBERS})
    assert [PoolEntry(**record) for record in records] == entries(Pool(earlier))
    done = run("--list", tmp_path / "none")
    assert done.returncode == 1
    assert f"error: {tmp_path / 'none'}: no such pool of models" in done.stderr


def test_names_of_others_stay_text():
    listing = [PoolEntry("x-fold_0", "abmil", "a\x1b[31m\nb", 0, encoder="e\nf")]
    assert program.table(listing).count("\n") == 1
    assert "\x1b" not in program.table(listing)
    assert program.table([]) == "no model is in this pool"
