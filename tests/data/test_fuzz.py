"""A short run of what `scripts/fuzz_readers.py` does at length (docs/fuzzing.md)."""

import json
import pathlib
import subprocess
import sys

import fuzzing
import numpy as np
import pytest
from guarded_memory import guarded
from readers import READERS

INPUTS = 120


@pytest.mark.parametrize("name", [name for name in READERS if not READERS[name].native])
def test_mutated_files_give_a_value_or_the_documented_error(tmp_path, name):
    result = run([name], tmp_path)[0]
    assert result["others"] == []
    assert result["counts"]["value"] > 0
    # `check` has findings for every table, and no errors.
    assert (result["counts"]["error"] > INPUTS // 5) == (name != "survival table, check")
    assert result["counts"]["value"] + result["counts"]["error"] == INPUTS
    assert not list(tmp_path.iterdir())


def test_mutated_files_of_libraries(tmp_path):
    for result in run([name for name in READERS if READERS[name].native], tmp_path):
        assert result["others"] == []
        assert sum(result["counts"].values()) == INPUTS


UNBOUNDED = """
import sys
sys.path.insert(0, {helpers!r})
import fuzzing, numpy
from steph_jax.data.torch_format import allowed_globals

def unbounded(storage, offset, size, stride, budget):
    array = getattr(storage, "entries", storage)[offset:]
    steps = [step * array.itemsize for step in stride]
    view = numpy.lib.stride_tricks.as_strided(array, size, steps)
    budget.charge(view.nbytes)
    return view

allowed_globals.tensor_view = unbounded
fuzzing.main()
"""


def test_tensors_beyond_their_storage_are_noticed(tmp_path):
    """With the reader's own check of bounds taken out."""
    script = UNBOUNDED.format(helpers=str(pathlib.Path(fuzzing.__file__).parent))
    result = run(["tensors, bounds"], tmp_path, (sys.executable, "-c", script))[0]
    others = [text.partition(": ")[2] for text in result["others"]]
    assert "the process ended: SIGSEGV" in others
    assert "AssertionError: a tensor beyond its storage" in others


@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("size", [1, 1023, 1024, 5000])
def test_guarded_memory_holds_its_values(size, at_end):
    data = np.arange(size, dtype=np.float32)
    np.testing.assert_array_equal(guarded(data, at_end), data)


PROGRAM = (sys.executable, fuzzing.__file__)


def run(names: list[str], failures: pathlib.Path, program: tuple[str, ...] = PROGRAM) -> list[dict]:
    command = [*program, "1", str(INPUTS), str(failures), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
