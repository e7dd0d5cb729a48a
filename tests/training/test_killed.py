"""Conversion, splits, what training writes, killed at 20 moments each: never anything half there.

Packing is killed in tests/programs/test_pack.py, a whole training in tests/programs/test_train.py.
"""

import subprocess
import sys

import killing
import pytest


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        ("conversion", {"pool", "turn", *(f"{name}.pth" for name in killing.NAMES)}),
        (
            "training",
            {"epochs", "model", "model.safetensors", "model.pth", "history.csv", "metrics.json"},
        ),
        ("splitting", {"seed", "table.csv", *(f"splits_{fold}.csv" for fold in range(5))}),
    ],
)
def test_killed_at_any_moment(tmp_path, work, expected):
    command = [sys.executable, killing.__file__, work, str(tmp_path), "20"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 20
    assert {path.name for path in tmp_path.iterdir()} == expected
    if work == "conversion":
        assert {path.name for path in (tmp_path / "pool").glob("[!.]*")} == set(killing.NAMES)
