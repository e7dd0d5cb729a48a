"""Jobs of a comparison: the queue of one machine, the script for a cluster, the table of states."""

import os
import pathlib
import subprocess
import sys
from functools import partial

import job_calls
import pools
import pytest

from steph_jax import compare
from steph_jax.jobs import command_line, comparison_jobs, launch, slurm_script, states
from steph_jax.jobs.job import Job, Launcher
from steph_jax.training.compared_runs import Request

submitit = pytest.importorskip("submitit", reason="extra `jobs` is not installed")


@pytest.fixture(autouse=True)
def importable_helpers(monkeypatch):
    """Jobs import their functions by name."""
    path = os.pathsep.join([str(pathlib.Path(job_calls.__file__).parent), os.getcwd()])
    monkeypatch.setenv("PYTHONPATH", path)


@pytest.mark.parametrize(("gpus", "expected"), [("2,5", {"2", "5"}), ("", {""})])
def test_each_job_has_a_gpu_of_its_own(tmp_path, monkeypatch, gpus, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    out = tmp_path / "out"
    out.mkdir()
    jobs = [Job(str(number), partial(job_calls.note, out, str(number))) for number in range(2)]
    launch.run([jobs], Launcher("local", 0 if gpus else 2, tmp_path / "jobs"))
    assert {path.name for path in out.iterdir()} == {"0", "1"}
    assert {path.read_text() for path in out.iterdir()} == expected


def test_a_job_that_fails_is_named_and_the_others_go_on(tmp_path):
    jobs = [
        Job("a", job_calls.mistaken),
        Job("b", job_calls.broken),
        Job("c", job_calls.vanished),
        Job("d", partial(job_calls.note, tmp_path, "d")),
    ]
    with pytest.raises(ValueError, match="3 of 4 jobs failed") as error:
        launch.run([jobs], Launcher("local", 4, tmp_path / "jobs"))
    lines = str(error.value).splitlines()[1:]
    by_name = {line.split(":")[0].strip(): line for line in lines}
    assert "x.csv: expected a column t, found none" in by_name["a"]
    assert "RuntimeError: a fault of the program; see " in by_name["b"]
    assert "c: ended without a result" in by_name["c"]
    assert (tmp_path / "d").is_file()


def test_choices_that_do_not_fit():
    folder = pathlib.Path("jobs")
    assert launch.chosen("here", 0, folder, "") is None
    chosen = launch.chosen("slurm", 3, folder, "partition=gpu,gres=gpu:1,cpus_per_task=4")
    assert chosen is not None
    assert chosen.options == {"partition": "gpu", "gres": "gpu:1", "cpus-per-task": "4"}
    for arguments, message in (
        (("local", -1, folder, ""), "--jobs is a number of jobs"),
        (("here", 2, folder, ""), "--jobs needs --launcher"),
        (("local", 2, folder, "", False), "--nowait needs --launcher slurm"),
        (("local", 2, folder, "partition=p"), "--slurm needs --launcher slurm"),
        (("slurm", 2, folder, "partition"), "expected options of sbatch"),
        (("slurm", 2, folder, "time=1:00:00"), "time is in minutes"),
    ):
        with pytest.raises(ValueError, match=message):
            launch.chosen(*arguments)


def test_slurm_is_asked_for_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="sbatch is not on this machine; give the command on a"):
        launch.run([[Job("a", job_calls.broken)]], Launcher("slurm", 1, tmp_path / "jobs"))


def test_the_script_runs_the_command_of_its_number(tmp_path):
    """As bash runs it; names with spaces and quotes stay one word."""
    out = tmp_path / "it's here"
    write = "import sys; open(sys.argv[1], 'w').write(sys.argv[2])"
    commands = [[sys.executable, "-c", write, str(out), f"number {n}"] for n in range(3)]
    options = {"partition": "p", "time": "30"}
    then = slurm_script.dependent("a word", ["echo", "it's done"])
    script = slurm_script.text(commands, then, tmp_path / "logs", 2, options)
    assert "#SBATCH --array=0-2%2\n" in script
    assert "#SBATCH --partition=p\n#SBATCH --time=30\n#SBATCH --requeue\n" in script
    subprocess.run(
        ["bash", "-c", script], check=True, env=os.environ | {"SLURM_ARRAY_TASK_ID": "1"}
    )
    assert out.read_text() == "number 1"


def test_flags_of_the_launcher_are_left_out():
    words = "--config a.py --launcher slurm --jobs=4 --status --methods a,b --slurm x=1 --controls"
    kept = command_line.without(words.split(), ("methods",))
    assert kept == ["--config", "a.py", "--controls"]


def test_comparison_of_jobs_equals_one_of_this_process(tmp_path):
    world = pools.make(tmp_path / "world")
    record, methods = pools.config(world) | {"folds": [0]}, ("abmil", "average")
    launched = tmp_path / "launched"
    request = Request(record, methods, (1,), launched, "")
    assert "abmil-seed_1      0/1  not begun" in comparison_jobs.status(request)
    launcher = Launcher("local", 2, launched / launch.JOBS)
    assert not compare.run_jobs(request, launcher)
    table = comparison_jobs.status(request)
    assert [line.split()[1:] for line in table.splitlines()[1:]] == [["1/1", "finished"]] * 2
    compare.write_tables(request)
    compare.compare(record, methods, (1,), tmp_path / "here", "")
    name = "abmil-seed_1/fold_0/predictions_test.csv"
    assert (launched / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
    assert (launched / "compare.csv").read_text() == (tmp_path / "here/compare.csv").read_text()
    assert states.finished_folds(launched / "abmil-seed_1", (0, 1)) == 1
