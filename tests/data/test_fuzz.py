"""A short run of what `scripts/fuzz_readers.py` does at length (docs/fuzzing.md)."""

import json
import pathlib
import subprocess
import sys

import fuzzing
import pytest
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


def run(names: list[str], failures: pathlib.Path) -> list[dict]:
    command = [sys.executable, fuzzing.__file__, "1", str(INPUTS), str(failures), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
