"""Paths that users name, what may be written where, and disks that refuse."""

import os
import pathlib
import subprocess
import sys

import children
import numpy as np
import pytest

from steph_jax import files


def test_home_is_expanded_in_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert files.path_of("~/runs/a") == pathlib.Path("/home/ann/runs/a")
    assert files.path_of("runs/~") == pathlib.Path("runs/~")
    assert files.path_of(pathlib.Path("~")) == pathlib.Path("/home/ann")
    assert files.expanded("~/a/,b//c,~/d") == "/home/ann/a/,b//c,/home/ann/d"


@pytest.mark.parametrize(
    ("name", "message"),
    [(os.fsdecode(b"runs/\xe4"), r"runs/\\xe4: expected a name in UTF-8"), ("a\0b", "no file can")],
)
def test_impossible_names(name: str, message: str) -> None:
    for read in (files.path_of, files.expanded):
        with pytest.raises(ValueError, match=message):
            read(name)


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "table.csv").write_text("a")
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "s.csv").write_text("a")
    (tmp_path / "link.csv").symlink_to("table.csv")
    (tmp_path / "nowhere.csv").symlink_to("nothing")
    os.mkfifo(tmp_path / "pipe.csv")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("slides", "expected a new name or a file to replace, found a folder"),
        ("link.csv", "found a link to table.csv"),
        ("nowhere.csv", "found a link to nothing"),
        ("pipe.csv", "found a device, pipe or socket"),
        ("table.csv", "an input of the same command"),
        ("slides/../table.csv", "an input of the same command"),
        ("slides/s.csv", "an input of the same command"),
        ("none/a.csv", "no folder .*none; make it first"),
        ("table.csv/a.csv", "no folder .*table.csv; make it first"),
    ],
)
def test_outputs_over_inputs_are_refused(folder, name: str, message: str) -> None:
    before = sorted(path.name for path in folder.rglob("*"))
    inputs = [folder / "table.csv", folder / "slides", folder / "absent.csv"]
    with pytest.raises((ValueError, OSError), match=message):
        files.check_output(folder / name, inputs)
    assert sorted(path.name for path in folder.rglob("*")) == before


@pytest.mark.parametrize("name", ["new.csv", "slides/new.csv", "old.csv"])
def test_allowed_outputs(folder: pathlib.Path, name: str) -> None:
    (folder / "old.csv").write_text("old")
    before = sorted(path.name for path in folder.rglob("*"))
    files.check_output(folder / name, [folder / "table.csv", folder / "slides"])
    assert sorted(path.name for path in folder.rglob("*")) == before
    assert (folder / "old.csv").read_text() == "old"


def test_an_input_through_a_link_is_an_input(folder: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="an input of the same command"):
        files.check_output(folder / "table.csv", [folder / "link.csv"])


def test_folders_to_write_to(folder: pathlib.Path) -> None:
    (folder / "linked").symlink_to("slides")
    for name in ("slides", "linked", "new", "new/deep"):
        files.check_output_folder(folder / name)
    for name in ("table.csv", "table.csv/deep", "nowhere.csv", "pipe.csv"):
        with pytest.raises(ValueError, match="expected a folder or a new name, found "):
            files.check_output_folder(folder / name)


#: Everything that writes a file or a directory of its own.
WRITERS = [
    *("text", "json", "table", "picture", "slide", "splits"),
    *("model", "state", "pth", "safetensors", "store"),
]


def failing(command: list[str], folder: pathlib.Path, writer: str) -> None:
    """Runs a writer that the disk refuses, and checks its message and what it leaves."""
    script = pathlib.Path(__file__).parent / "helpers" / "writers.py"
    ended = subprocess.run(
        [*command, sys.executable, str(script), str(folder), writer],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(script.parents[2])},
    )
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert ended.stderr == ""
    message, *left = ended.stdout.splitlines()
    assert message.startswith(f"{folder}/")
    if writer == "store" and "are free on this disk" in message:  # before anything is written
        return
    assert "cannot be written (" in message
    assert "give the same command again" in message
    # Packing goes on with what is there when it is called again.
    assert left == (["p.store.partial"] if writer == "store" else [])


@pytest.fixture
def disk(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder to fill, and one of slides."""
    (tmp_path / "slides").mkdir()
    np.save(tmp_path / "slides" / "a.npy", np.ones((500, 64), np.float32))
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


@pytest.mark.parametrize("writer", WRITERS)
def test_a_limit_on_the_size_of_files(disk: pathlib.Path, writer: str) -> None:
    failing(children.after(children.file_size_limit(3000), []), disk, writer)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk(disk: pathlib.Path, writer: str) -> None:
    mount = 'mount -t tmpfs -o size=16k none "$0" && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", mount, str(disk)]
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as problem:
        pytest.skip(f"no small disk can be made here: {problem}")
    failing(command, disk, writer)
