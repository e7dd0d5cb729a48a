"""HDF5 files whose links lead elsewhere, round in circles, or down for ever.

Each is read in a process of its own with a limit of time: a pipe that is opened never answers.
"""

import os
import pathlib
import subprocess
import sys
from collections.abc import Callable

import h5py
import numpy as np
import pytest

from steph_jax.data.features.open import open_features
from steph_jax.data.features.slide import BadFeatures

SHAPE = (10, 4)
VALUES = np.arange(40, dtype=np.float32).reshape(SHAPE)


def external_link(file: h5py.File) -> None:
    file["features"] = h5py.ExternalLink("pipe", "/x")


def external_link_on_the_way(file: h5py.File) -> None:
    file.create_group("a")
    file["a/b"] = h5py.ExternalLink("pipe", "/x")
    file["features"] = h5py.SoftLink("/a/b/c")


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(SHAPE, "f4", maxshape=(None, 4))
    source = h5py.VirtualSource("pipe", "x", SHAPE, maxshape=(None, 4))
    everything = slice(0, h5py.h5s.UNLIMITED)
    layout[everything, :] = source[everything, :]
    file.create_virtual_dataset("features", layout)


def external_storage(file: h5py.File) -> None:
    storage = [("pipe", 0, h5py.h5f.UNLIMITED)]
    file.create_dataset("features", SHAPE, "f4", external=storage)


ELSEWHERE: list[Callable[[h5py.File], None]] = [
    *(external_link, external_link_on_the_way, virtual, external_storage)
]
READ = """
import sys
from steph_jax.data.features.open import open_features
from steph_jax.data.features.slide import BadFeatures
for name in ("features", "other", "a/b"):
    for action in ("read", "encoder"):
        try:
            getattr(open_features(sys.argv[1], dataset_name=name), action)("slide")
        except BadFeatures as error:
            print(error)
"""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system")
@pytest.mark.parametrize("write", ELSEWHERE)
def test_nothing_is_opened_outside_the_file(tmp_path: pathlib.Path, write) -> None:
    """By the name of the dataset, and by the list of names where there is another in its place."""
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / "slide.h5"
    with h5py.File(path, "w") as file:
        write(file)
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
        cwd=tmp_path,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 6
    assert lines[0] == f"{path}: 'features' keeps its values in other files; copy them in"
    assert lines[1] == lines[0]
    assert lines[2].startswith(f"{path}: expected a dataset 'other', found ")


def test_soft_links_within_the_file_are_followed(tmp_path: pathlib.Path) -> None:
    with h5py.File(tmp_path / "slide.h5", "w") as file:
        file["a/b/values"] = VALUES
        file["a/again"] = h5py.SoftLink("b")
        file["a/far"] = h5py.SoftLink("/a/again/./values")
        file["features"] = h5py.SoftLink("a/far")
    np.testing.assert_array_equal(open_features(tmp_path).read("slide"), VALUES)
    source = open_features(tmp_path, dataset_name="/a//again/values")
    np.testing.assert_array_equal(source.read("slide"), VALUES)


def test_links_in_circles_lead_nowhere(tmp_path: pathlib.Path) -> None:
    with h5py.File(tmp_path / "slide.h5", "w") as file:
        file["a/values"] = VALUES
        file["a/up"] = file["/"]
        file["a/features"] = h5py.SoftLink("/features")
        file["features"] = h5py.SoftLink("/a/features")
    with pytest.raises(BadFeatures, match=r"'features', found 'a/values' \[10, 4\]; name it"):
        open_features(tmp_path).read("slide")


def opened_groups(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """How many objects are looked at for a message, and the message."""
    objects = []
    get_info = h5py.h5o.get_info
    monkeypatch.setattr(h5py.h5o, "get_info", lambda item: objects.append(item) or get_info(item))
    with pytest.raises(BadFeatures, match="expected a dataset 'features', found") as error:
        open_features(path).read(path.stem)
    return len(objects), str(error.value)


@pytest.mark.parametrize("nested", [True, False])
def test_search_for_datasets_is_bounded(tmp_path: pathlib.Path, monkeypatch, nested) -> None:
    path = tmp_path / "slide.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file["values"] = VALUES
        group: h5py.Group = file
        for number in range(3000):
            child = group.create_group(f"g{number}")
            group = child if nested else group
    number, message = opened_groups(path, monkeypatch)
    assert number <= 1001
    assert ("'values' [10, 4]" in message) == nested
