"""Commands of the tutorials (docs/tutorials) run as they stand there, one after the other."""

import json
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

TUTORIALS = pathlib.Path(__file__).resolve().parents[1] / "docs" / "tutorials"


def blocks(name, language):
    """The blocks of code of a tutorial."""
    text = (TUTORIALS / f"{name}.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run_commands(name, folder, **places):
    """Runs the commands of a tutorial in a folder, and returns what each printed.

    Args:
        places: what stands in capitals in the commands, for example RELEASED.
    """
    outputs = []
    for line in "".join(blocks(name, "sh")).splitlines():
        program, *words = shlex.split(line)
        assert program == "steph-jax"
        words = [str(places.get(word, word)) for word in words]
        command = [sys.executable, "-m", "steph_jax", *words]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        outputs.append(done.stdout)
    return outputs


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The folder of the first tutorial after its last command."""
    folder = tmp_path_factory.mktemp("study")
    (config,) = blocks("features_to_report", "python")
    (folder / "my_cancer.py").write_text(config, encoding="utf-8")
    run_commands("features_to_report", folder)
    return folder


def test_features_to_report(study):
    report = json.loads((study / "runs/sim_a-steph/report.json").read_text(encoding="utf-8"))
    assert report["verdict"]
    assert (study / "runs/sim_a-steph/report.html").is_file()
    assert {path.suffix for path in (study / "maps").iterdir()} >= {".csv", ".png", ".geojson"}


def test_cluster(study):
    script, states = run_commands("cluster", study)
    assert script.startswith("#!")
    assert "--gres=gpu:1" in script
    for run in ("abmil-seed_42", "abmil-seed_43", "steph-seed_42", "steph-seed_43"):
        assert run in states


def test_released_pool(parity, tmp_path):
    _, listed = run_commands("released_pool", tmp_path, RELEASED=parity / "result")
    assert "tcga_gbmlgg-fold_0" in listed
