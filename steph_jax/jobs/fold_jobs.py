"""The folds of a run as jobs: what has become of them, and a script that does the rest."""

import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from steph_jax import run_directory
from steph_jax.jobs import command_line, launch, slurm_script, states
from steph_jax.jobs.job import Job, Launcher
from steph_jax.jobs.states import Work


def run(
    train: Callable[[dict[str, Any]], object],
    report: Callable[[], object],
    record: dict[str, Any],
    folds: Mapping[int, pathlib.Path],
    launcher: Launcher,
) -> bool:
    """Runs folds of a run, each as a job.

    Args:
        train: a function of a module, all but the config bound by `functools.partial`.
        report: writes the run's report, as `train` is called.
        record: the config.
        folds: directories by number.
        launcher: where.

    Returns:
        whether a job writes the report, too.

    Raises:
        ValueError: as `launch.run` does.
    """
    jobs = [
        Job(directory.name, partial(train, record | {"folds": (fold,)}))
        for fold, directory in folds.items()
    ]
    return launch.run([jobs], launcher, Job("report", report))


def status(folds: Sequence[int], workdir: pathlib.Path) -> str:
    """What has become of the folds of a run, as a table."""
    names = [run_directory.fold_directory(workdir, fold).name for fold in folds]
    works = [Work(name, workdir, [fold]) for name, fold in zip(names, folds, strict=True)]
    return states.table(works, workdir / launch.JOBS)


def script(
    folds: Sequence[int],
    workdir: pathlib.Path,
    words: Sequence[str],
    options: Mapping[str, str],
    jobs: int,
) -> str:
    """A script for sbatch that does some folds of a run.

    Args:
        folds: numbers.
        workdir: of the run.
        words: arguments of the call of `steph_jax.train`.
        options: of sbatch.
        jobs: how many run at the same time; 0 for all.
    """
    command = [sys.executable, "-m", "steph_jax.train", *command_line.without(words)]
    commands = [[*command, f"--config.folds=({fold},)"] for fold in folds] or [command]
    report = [sys.executable, "-m", "steph_jax.report", f"--workdir={workdir}"]
    then = slurm_script.dependent("the report", report)
    return slurm_script.text(commands, then, workdir / launch.JOBS, jobs, options)
