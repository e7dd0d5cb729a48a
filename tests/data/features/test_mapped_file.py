"""Files that are cut while they are mapped and read: one message, and never the end of the process.

The cuts are made by the reader itself, between the check of the size and the copy, which is the
moment that no check of sizes can see. A process of its own reads, since a failure would end it.
"""

import os
import pathlib
import pickle
import signal
import subprocess
import sys

import lmdb
import numpy as np
import pytest
import torch_writer

from steph_jax.data.features import store_writer
from steph_jax.data.features.mapped_file import CHANGED, MappedFile
from steph_jax.data.features.open import open_features
from steph_jax.data.features.slide import BadFeatures

D = 256
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems compare sizes alone")

READ = """
import os, sys, threading
import numpy as np
from steph_jax.data.features import mapped_file, slide
from steph_jax.data.features.open import open_features

place, cut, how = sys.argv[1:]
size = os.path.getsize(cut)
convert = slide.convert

together = threading.Barrier(2)

def cutting(rows, out, where):
    together.wait()
    os.truncate(cut, 4096)
    convert(rows, out, where)
    together.wait()
    if how == "and back":
        os.truncate(cut, size)
    together.wait()

source = open_features(place)
source.read("a")
for module in [m for n, m in sys.modules.items() if n.startswith("steph_jax.data.features")]:
    if hasattr(module, "convert"):
        module.convert = cutting
failures = []

def read():
    try:
        source.read("b")
    except slide.BadFeatures as error:
        failures.append(str(error))

threads = [threading.Thread(target=read) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("\\n".join(failures))
"""


def rows(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((500, D), np.float32)


def place_of(kind: str, folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Two slides in some layout: where they are, and the file of slide b."""
    slides = {"a": rows(0), "b": rows(1)}
    if kind == "lmdb":
        path = folder / "x.lmdb"
        options = {"subdir": False, "lock": False, "map_size": 2**24}
        with (
            lmdb.open(str(path), **options) as environment,
            environment.begin(write=True) as transaction,
        ):
            for name, array in slides.items():
                transaction.put(name.encode(), pickle.dumps(array))
        return path, path
    files = folder / "files"
    files.mkdir()
    for name, array in slides.items():
        if kind == "pt":
            torch_writer.save(files / f"{name}.pt", array)
        else:
            np.save(files / f"{name}.npy", array)
    if kind == "store":
        store_writer.pack(open_features(files), ["a", "b"], folder / "x.store")
        return folder / "x.store", folder / "x.store" / "features.bin"
    return files, files / f"b.{kind}"


@pytest.mark.parametrize("kind", ["store", "npy", "pt", "lmdb"])
@pytest.mark.parametrize("how", ["short", "and back"])
def test_file_truncated_during_reading(tmp_path, kind, how):
    place, cut = place_of(kind, tmp_path)
    command = [sys.executable, "-c", READ, str(place), str(cut), how]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    messages = done.stdout.splitlines()
    assert len(messages) == 2
    for message in messages:
        assert str(cut) in message
        assert "was changed while it was in use: copy it again" in message


def test_other_files_are_read_on(tmp_path):
    """A mapping with lost pages is refused for good, a new one of the mended file is not."""
    path = tmp_path / "a.npy"
    np.save(path, rows(0))
    mapped = MappedFile(path, path.stat().st_size, CHANGED)
    array = np.load(path, mmap_mode="r")
    os.truncate(path, 4096)
    problem = r"a\.npy: expected 512,128 bytes, found 4,096; it was"
    with pytest.raises(BadFeatures, match=problem), mapped.reading():
        pytest.fail("the size is compared first")
    np.save(path, rows(1))
    np.testing.assert_array_equal(open_features(tmp_path).read("a"), rows(1))
    assert array.shape == (500, D)


def test_bus_errors_of_others_still_end_the_process(tmp_path):
    """Only what is read within `reading` is replaced."""
    script = """
import mmap, os, sys
import numpy as np
from steph_jax.data.features.mapped_file import CHANGED, MappedFile
path = sys.argv[1]
file = open(path, "r+b")
mapping = mmap.mmap(file.fileno(), 0)
import pathlib
with MappedFile(pathlib.Path(path), os.path.getsize(path), CHANGED).reading():
    pass
os.truncate(path, 0)
mapping[5000]
"""
    path = tmp_path / "x"
    path.write_bytes(bytes(10_000))
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGBUS
