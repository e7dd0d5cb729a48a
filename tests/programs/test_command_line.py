"""What every program does with its command line: paths, outputs, and the cache of JAX."""

import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import released
import simulated

from steph_jax.checkpoints import saved_model, torch_names
from steph_jax.checkpoints.saved_model import SavedModel

PROGRAMS = ("train", "compare", "transfer", "check", "pack")


def run(program: str, *arguments, **environment) -> subprocess.CompletedProcess:
    """Runs a program from the checkout; without its log."""
    ended = subprocess.run(
        [sys.executable, "-m", f"steph_jax.{program}", *map(os.fsencode, map(str, arguments))],
        capture_output=True,
        text=True,
        cwd=simulated.ROOT,
        env=os.environ | environment,
    )
    lines = ended.stderr.splitlines(keepends=True)
    ended.stderr = "".join(line for line in lines if line[:1] not in "IW")
    return ended


def test_help_lists_all_flags_of_a_program():
    text = run("compare", "--help").stdout
    flags = {line.split(":")[0].replace("[no]", "") for line in text.splitlines() if "  --" in line}
    names = "config methods seeds controls reference workdir launcher jobs slurm status print wait"
    assert {f"  --{name}" for name in names.split()} <= flags


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> pathlib.Path:
    """A model, slides of its features, and a table of them."""
    home = tmp_path_factory.mktemp("home")
    architecture, params = torch_names.abmil_from_torch(released.abmil())
    saved_model.save_model(home / "pool" / "null", SavedModel("abmil", architecture, {}, params))
    (home / "slides").mkdir()
    for name in ("a", "b"):
        patches = np.random.default_rng(0).random((5, architecture.feature_dim), np.float32)
        np.save(home / "slides" / f"{name}.npy", patches)
    text = "patient_id,pathology_id\nP,a\nQ,b\n"
    (home / "table.csv").write_text(text)
    return home


@pytest.fixture
def own(home: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """The same, for one test."""
    return pathlib.Path(shutil.copytree(home, tmp_path / "own"))


def predict(home: pathlib.Path, *arguments, **environment) -> subprocess.CompletedProcess:
    options = ("--checkpoint", home / "pool" / "null", "--features", home / "slides")
    return run("predict", *options, *arguments, **environment)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("table.csv", "this is an input of the same command"),
        ("slides/a.npy", "this is an input of the same command"),
        ("pool/null/model.json", "this is an input of the same command"),
        ("linked.csv", "found a link to table.csv"),
        ("pipe", "found a device, pipe or socket"),
        ("slides", "found a folder"),
    ],
)
def test_predict_replaces_no_input(own: pathlib.Path, out: str, message: str) -> None:
    (own / "linked.csv").symlink_to("table.csv")
    os.mkfifo(own / "pipe")
    before = {p: p.read_bytes() for p in own.rglob("*") if p.is_file()}
    ended = predict(own, "--table", own / "table.csv", "--out", own / out)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"error: {own / out}: ")
    assert message in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert {p: p.read_bytes() for p in own.rglob("*") if p.is_file()} == before


def test_predict_to_standard_output(own: pathlib.Path) -> None:
    ended = predict(own, "--table", own / "table.csv", "--out", own / "p.csv")
    assert (ended.returncode, ended.stderr) == (0, "")
    for out in ("-", "/dev/stdout"):
        ended = predict(own, "--table", own / "table.csv", "--out", out)
        assert ended.stdout == (own / "p.csv").read_text()
        assert ended.stderr == f"2 patients written to {out}\n"
    again = predict(own, "--table", own / "table.csv", "--out", own / "p.csv")
    assert again.returncode == 0


def test_links_to_nothing_are_named(own: pathlib.Path) -> None:
    (own / "slides" / "c.npy").symlink_to("/nothing/c.npy")
    ended = predict(own, "--table", own / "table.csv", "--out", own / "p.csv")
    assert ended.returncode == 0  # it needs another slide
    ended = predict(own, "--out", own / "p.csv")
    assert ended.returncode == 1
    assert ended.stderr == (
        f"error: {own / 'slides' / 'c.npy'}: a link to /nothing/c.npy, which is not there; fetch "
        "that file, or correct the link\n"
    )


def test_home_in_flags(own: pathlib.Path) -> None:
    arguments = ("--checkpoint=~/pool/null", "--features=~/slides", "--table=~/table.csv")
    ended = run("predict", *arguments, "--out=~/p.csv", HOME=str(own))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert pd.read_csv(own / "p.csv")["patient_id"].tolist() == ["P", "Q"]
    ended = run("export", "--checkpoint=~/pool/null", "--out=~/m.pth", HOME=str(own))
    assert ended.returncode == 0
    assert (own / "m.pth").is_file()


def test_home_in_configs(tmp_path: pathlib.Path) -> None:
    simulated.make(tmp_path)
    shutil.copytree(simulated.ROOT / "configs", tmp_path / "configs")
    arguments = (
        *("--config=~/configs/testing.py", "--config.data.root=~/data"),
        *("--config.data.features=~/data/features/{dataset}", "--config.pool.root=~/pool"),
        *("--config.method=abmil", "--config.folds=(0,)", "--config.epochs=1"),
    )
    ended = run("train", *arguments, "--workdir=~/w", HOME=str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "w" / "summary.json").is_file()


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("config", "path_text"),
    [("none.py", "no such file"), ("configs", "a folder"), ("README.md", "another file")],
)
def test_configs_of_a_wrong_path(program: str, config: str, path_text: str) -> None:
    place = {"pack": "out", "check": "out"}.get(program, "workdir")
    ended = run(program, "--config", config, f"--{place}", "/no such folder/w")
    assert ended.returncode == (2 if program == "check" else 1)
    assert ended.stderr.startswith(f"error: --config {config}: expected a Python file of settings")
    assert ended.stderr.endswith(f"found {path_text}\n")


@pytest.mark.parametrize(
    ("program", "flag"),
    [("train", "--workdir"), ("predict", "--out"), ("split", "--out"), ("simulate", None)],
)
def test_names_that_are_not_utf8(program: str, flag: str | None) -> None:
    name = os.fsdecode(b"runs/\xe4")
    ended = run(program, *([flag] if flag else []), name)
    assert ended.returncode != 0
    assert "runs/\\xe4: expected a name in UTF-8; rename it" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_split_keeps_its_table(tmp_path: pathlib.Path) -> None:
    rows = [f"P{i:02},S{i:02},{100 + 7 * i},{i % 2}" for i in range(30)]
    table = tmp_path / "splits_0.csv"
    table.write_text("\n".join(["patient_id,pathology_id,t,e", *rows]) + "\n")
    before = table.read_text()
    ended = run("split", "--table", table, "--out", tmp_path, "--overwrite", "--folds", "3")
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"error: {table}: this is an input of the same command")
    assert table.read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == [table.name]


def test_split_without_events_names_its_table(tmp_path: pathlib.Path) -> None:
    rows = [f"P{i:02},S{i:02},{100 + 7 * i},0" for i in range(30)]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["patient_id,pathology_id,t,e", *rows]) + "\n")
    ended = run("split", "--table", table, "--out", tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"error: {table}: ")
    assert ended.stderr.count("\n") == 1


def test_a_damaged_cache_of_programs_is_mended(own: pathlib.Path) -> None:
    cache = {"JAX_COMPILATION_CACHE_DIR": str(own / "cache")}
    arguments = ("--table", own / "table.csv", "--out", own / "p.csv")
    assert predict(own, *arguments, **cache).returncode == 0
    entries = sorted((own / "cache").glob("*-cache"))
    good = {entry.name: entry.stat().st_size for entry in entries}
    assert len(good) > 2
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:50])
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "steph_jax.predict", *map(str, arguments)),
            *("--checkpoint", str(own / "pool" / "null"), "--features", str(own / "slides")),
        ],
        capture_output=True,
        text=True,
        cwd=simulated.ROOT,
        env=os.environ | cache,
    )
    assert ended.returncode == 0
    assert ended.stderr.count("\n") == 1
    assert f"{own / 'cache'}: a compiled program is damaged; all of them" in ended.stderr
    mended = {entry.name: entry.stat().st_size for entry in (own / "cache").glob("*-cache")}
    # Sizes differ a little, by the time that is kept in each.
    assert mended.keys() == good.keys()
    assert all(mended[name] > good[name] / 2 for name in good)
