"""The runs of comparisons as jobs: what has become of them, and a script that does the rest."""

import itertools
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from steph_jax import hosts, run_directory
from steph_jax.checkpoints.pool import Pool
from steph_jax.evaluation.comparison import run_directory as directory_of
from steph_jax.jobs import command_line, launch, slurm_script, states
from steph_jax.jobs.job import Job
from steph_jax.jobs.states import Work
from steph_jax.training.compared_runs import Request, check_numbers, missing_runs

#: Where runs that add to the pool are kept, below --workdir.
POOL_RUNS = "pool_runs"
#: Flags of `steph_jax.compare` that a job is given other values of, and those without a value.
_OWN = ("methods", "seeds", "reference", "datasets", "train_patients", "primary", "workdir")
_OWN_SWITCHES = ("controls", "nocontrols", "tables", "notables")


def pool_runs(request: Request) -> dict[pathlib.Path, dict[str, Any]]:
    """The configs of runs that add to the pool what it lacks, by directory.

    Those are the own models of the datasets that are compared, where `pool.save` asks for them.
    """
    record = request.record
    if not record["pool"]["save"]:
        return {}
    pool = Pool(record["pool"]["root"])
    members = hosts.agreed(pool.members() if pool.root.is_dir() else {})
    runs = {}
    for dataset in request.datasets or [record["dataset"]]:
        folds = [fold for fold in record["folds"] if fold not in members.get(dataset, ())]
        if folds:
            values = {"dataset": dataset, "method": "abmil", "control": "none"}
            run = record | values | {"folds": tuple(folds), "train_patients": 0}
            runs[request.workdir / POOL_RUNS / dataset] = run
    return runs


def name_of(request: Request, directory: pathlib.Path) -> str:
    """What the job of a run is called."""
    return str(directory.relative_to(request.workdir))


def stages(
    request: Request,
    train: Callable[..., object],
    check: Callable[[dict[str, Any], pathlib.Path], object],
) -> list[list[Job]]:
    """The jobs of what is missing of a request: those of the pool, and those that need it.

    Args:
        request: what is asked for.
        train: runs a config, as `steph_jax.train.train` does.
        check: a run of a config and a directory.

    Raises:
        ValueError, FileNotFoundError: what is found out of the runs before they begin.
    """

    def job(directory: pathlib.Path, record: dict[str, Any], compared: list[pathlib.Path]) -> Job:
        call = partial(train, record, directory, command=request.command, compared=compared)
        return Job(name_of(request, directory), call)

    pool, runs = pool_runs(request), []
    for directory, record in pool.items():
        check(record, directory)
    for workdir, record in request.comparisons().items():
        names = request.methods, request.seeds
        check_numbers(record, *names, [record["train_patients"]], pool_grows=bool(pool))
        compared = [directory_of(workdir, *name) for name in itertools.product(*names)]
        missing = missing_runs(record, *names, workdir)
        runs += [job(path, config.record, compared) for path, config in missing.items()]
    return [[job(directory, record, []) for directory, record in pool.items()], runs]


def status(request: Request) -> str:
    """What has become of the runs of comparisons, as a table."""
    asked = {directory: record["folds"] for directory, record in pool_runs(request).items()}
    names = list(itertools.product(request.methods, request.seeds))
    for workdir, record in request.comparisons().items():
        asked |= {directory_of(workdir, *name): record["folds"] for name in names}
    works = [
        Work(name_of(request, path), path, folds, run_directory.is_summarized(path, folds))
        for path, folds in asked.items()
    ]
    return states.table(works, request.workdir / launch.JOBS)


def script(request: Request, words: Sequence[str], options: Mapping[str, str], jobs: int) -> str:
    """A script for sbatch that does what is missing of comparisons, or of their pool before.

    Args:
        request: what is asked for.
        words: arguments of the call of `steph_jax.compare`.
        options: of sbatch.
        jobs: how many run at the same time; 0 for all.
    """
    of_a_run = command_line.without(words, _OWN, _OWN_SWITCHES)
    pool, folder = pool_runs(request), request.workdir / launch.JOBS
    if pool:
        train = [sys.executable, "-m", "steph_jax.train", *of_a_run]
        names = "dataset", "train_patients", "method", "control", "folds"
        commands = [
            [*train, *_settings(record, names), f"--workdir={directory}"]
            for directory, record in pool.items()
        ]
        then = ["When all have ended, the same command prints a script for what needs them."]
        return slurm_script.text(commands, then, folder, jobs, options)
    program = [sys.executable, "-m", "steph_jax.compare"]
    commands = []
    for workdir, record in request.comparisons().items():
        folds, own = record["folds"], _settings(record, ("dataset", "train_patients"))
        for method, seed in itertools.product(request.methods, request.seeds):
            if states.finished_folds(directory_of(workdir, method, seed), folds) < len(folds):
                run = [f"--methods={method}", f"--seeds={seed}", f"--workdir={workdir}"]
                commands.append([*program, *of_a_run, *own, *run])
    last = [*program, *command_line.without(words), "--tables"]
    then = slurm_script.dependent("the tables", last)
    return slurm_script.text(commands or [last], then, folder, jobs, options)


def _settings(record: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Flags that set some settings to the values of a config."""
    return [f"--config.{name}={record[name]}" for name in names]
