"""What `pip install` of the wheel gives: the command, the configs, a training; in any directory."""

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile

import pytest

from steph_jax import __main__ as command
from steph_jax import config_files

ROOT = pathlib.Path(__file__).resolve().parents[1]
#: Features of the size that configs/testing.py expects.
NARROW = ("--feature-dim", 24)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist of a copy of this tree, and the wheel that is built of the sdist."""
    source, out = tmp_path_factory.mktemp("source") / "steph_jax", tmp_path_factory.mktemp("dist")
    kept_out = shutil.ignore_patterns(".*", "*.egg-info", "build", "__pycache__", "demo_output")
    shutil.copytree(ROOT, source, ignore=kept_out)
    building = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(building, check=True, capture_output=True)
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """Runs `steph-jax` where the wheel is installed: (arguments, directory) -> the process."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps"]
    for words in (
        [*install, "--no-index", str(built[1])],
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
    ):
        done = subprocess.run(words, check=True, capture_output=True, text=True, env=variables)
    # Its dependencies are those of this environment: a path in a .pth, whose own .pth files, and so
    # this checkout, are not read.
    dependencies = pathlib.Path(done.stdout.strip()) / "dependencies.pth"
    dependencies.write_text(sysconfig.get_path("purelib") + "\n")

    def run(directory, *arguments):
        return subprocess.run(
            [environment / "bin" / "steph-jax", *map(str, arguments)],
            cwd=directory,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_sdist_and_wheel_hold_the_configs(built):
    sdist, wheel = built
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"steph_jax/configs/{name}.py" for name in config_files.names()} <= names
    assert {"steph_jax/py.typed", "steph_jax/reports/base.html"} <= names
    assert not [name for name in names if name.startswith(("tests", "configs", "scripts"))]
    with tarfile.open(sdist) as archive:
        assert {"setup.cfg", "README.md", "configs"} <= {
            pathlib.PurePath(name).parts[1] for name in archive.getnames() if "/" in name
        }


def test_the_command_lists_the_programs(installed, tmp_path):
    done = installed(tmp_path, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    listed = dict(line.split(None, 1) for line in done.stdout.splitlines() if line[:4] == "    ")
    assert listed == command.programs()
    assert {"train", "evaluate", "predict", "check", "compare", "convert", "report"} <= set(listed)
    assert all(0 < len(text) < 100 for text in listed.values()), listed
    for arguments, message in (
        (("trian",), "no program is called 'trian' (do you mean train?)"),
        ((), "a program is missing"),
    ):
        done = installed(tmp_path, *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert message in done.stderr


def test_training_in_another_directory(installed, tmp_path):
    done = installed(tmp_path, "simulate", "data", "--patients", 20, "--patches", 12, *NARROW)
    assert done.returncode == 0, done.stderr
    for config in ("testing", "configs/testing.py"):
        settings = [f"--config={config}", "--config.method=abmil", "--config.epochs=1"]
        settings += ["--config.data.root=data", "--config.data.features=data/features/{dataset}"]
        done = installed(tmp_path, "check", *settings)
        assert "Traceback" not in done.stderr, done.stderr
    done = installed(tmp_path, "train", *settings, "--config.folds=(0,)", "--workdir", "w")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "w" / "fold_0" / "metrics.json").is_file()
    assert (tmp_path / "w" / "report.html").is_file()
    done = installed(tmp_path, "check", "--config", "braca")
    assert done.returncode == 2
    assert "--config braca: expected a Python file of settings" in done.stdout + done.stderr


def test_names_of_configs_give_way_to_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_files.find("brca") == ROOT / "configs" / "brca.py"
    assert config_files.find("configs/brca.py") == ROOT / "configs" / "brca.py"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "brca.py").write_text("")
    assert config_files.find("configs/brca.py") == pathlib.Path("configs/brca.py")
    with pytest.raises(ValueError, match=r"or a name of .*brca.*; found a folder"):
        config_files.find("configs")


def test_configs_import_each_other(tmp_path, monkeypatch):
    """The folder of the config comes first, then ./configs, then the project's own."""
    elsewhere, here = tmp_path / "a" / "configs", tmp_path / "b" / "configs"
    for place, name in ((elsewhere, "first"), (here, "first"), (here, "second")):
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{name}.py").write_text(f"PLACE = {str(place)!r}\n")
    script = (
        "import pathlib; from steph_jax import config_files;"
        f"config_files.make_importable(pathlib.Path({str(elsewhere / 'first.py')!r}));"
        "from configs import first, second, default;"
        "print(first.PLACE, second.PLACE, default.__file__, sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=here.parent,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    places = [str(elsewhere), str(here), str(ROOT / "configs" / "default.py")]
    assert done.stdout.splitlines() == places
