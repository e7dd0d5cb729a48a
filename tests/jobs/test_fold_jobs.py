"""The folds of one run as jobs: their states, and a script for sbatch."""

import shlex

from steph_jax import run_directory
from steph_jax.jobs import fold_jobs, launch
from steph_jax.jobs.job import Job, Launcher


def test_states_and_script_of_folds(tmp_path):
    fold = run_directory.fold_directory(tmp_path, 1)
    fold.mkdir()
    (fold / "metrics.json").write_text("{}")
    lines = fold_jobs.status((0, 1), tmp_path).splitlines()[1:]
    assert [line.split() for line in lines] == [
        ["fold_0", "0/1", "not", "begun"],
        ["fold_1", "1/1", "finished"],
    ]
    words = shlex.split("--config=c.py --workdir W --launcher slurm --nowait --jobs=2 --print")
    script = fold_jobs.script([0], tmp_path, words, {"partition": "p"}, 2)
    lines = [line.strip() for line in script.splitlines()]
    (command,) = lines[lines.index("commands=(") + 1 : lines.index(")")]
    assert shlex.split(shlex.split(command)[0])[2:] == [
        *("steph_jax.train", "--config=c.py", "--workdir", "W", "--config.folds=(0,)")
    ]
    (report,) = (line for line in lines if "--wrap" in line)
    assert f"steph_jax.report --workdir={tmp_path}" in report


def test_each_fold_is_a_job_of_its_own(tmp_path, monkeypatch):
    jobs: list[list[Job]] = []
    monkeypatch.setattr(
        launch, "run", lambda stages, launcher, last: jobs.extend([*stages, [last]])
    )
    records, reports = [], []
    folds = {fold: run_directory.fold_directory(tmp_path, fold) for fold in (0, 3)}
    launcher = Launcher("local", 2, tmp_path)
    fold_jobs.run(records.append, lambda: reports.append(1), {"seed": 1}, folds, launcher)
    (first, second), (last,) = jobs
    assert (first.name, second.name, last.name) == ("fold_0", "fold_3", "report")
    for job in (first, second, last):
        job.call()
    assert records == [{"seed": 1, "folds": (0,)}, {"seed": 1, "folds": (3,)}]
    assert reports == [1]
