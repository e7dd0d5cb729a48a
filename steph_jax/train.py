"""Trains a method on the folds of a dataset and writes what came out.

    python -m steph_jax.train --config configs/brca.py --workdir runs/brca

Read from top to bottom: config, data, then for every fold the model, the epochs, the results. A
run that was interrupted goes on where its last epoch ended when the same command is given again.
With `--sweep NAME=VALUE,VALUE,...` every fold first selects its values on its training patients
(see steph_jax/training/sweep.py). `srun -n 2 python -m steph_jax.train ...` trains one model on the
devices of two hosts (see steph_jax/hosts); `--launcher local` or `slurm` makes each fold a job.

W/summary.json          {"c_index": {"folds", "mean", "sd"}, ...} over all folds that W holds
W/report.html, .json    the same as a page for people, with intervals and calibration
W/config.json           the config
W/provenance.json       the command and the versions that the run began with
W/inputs.json           fingerprints of what the first fold read, and every other one must
W/values.sha256         of streamed features whose values are finite (data.check_values)
W/fold_{k}/             all that `evaluate` and `predict` need:
    model/              the trained model (steph_jax.checkpoints), task vectors included
    training.json       what evaluating cannot find again; written once all of the above is there
    metrics.json        {"train": {"c_index", "nll"}, "test": {...}, ...}; written last
    predictions_test.csv, merge_weights_test.csv, history.csv, pictures
"""

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import MutableSequence, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
from absl import flags, logging
from ml_collections import config_flags

from steph_jax import cli, hosts, run_directory
from steph_jax.checkpoints.pool import Pool, member_name
from steph_jax.checkpoints.saved_model import SavedModel, stored_objective
from steph_jax.checks.cohort import warn_of_cohort
from steph_jax.checks.findings import Status, sentence
from steph_jax.checks.models import check_pool
from steph_jax.data.cohort import Cohort
from steph_jax.engine.placement import fetch
from steph_jax.evaluation import evaluator
from steph_jax.jobs import command_line, fold_jobs, launch
from steph_jax.methods import abmil
from steph_jax.methods.base import with_metadata
from steph_jax.methods.controls import label_of
from steph_jax.reports import provenance
from steph_jax.trackers.protocol import TrackedFold
from steph_jax.trackers.track import Track, expect_installed, tracked
from steph_jax.training import experiment, inputs, preflight, sweep
from steph_jax.training.config import MAY_CHANGE_ON_RESUME, Config, as_dict, defaults
from steph_jax.training.experiment import Experiment
from steph_jax.training.grid import Grid, parse
from steph_jax.training.pool_growth import check_can_add, saves_to_pool
from steph_jax.training.restarts import train_split
from steph_jax.training.subset_pool import SUBSET, with_subset_pool
from steph_jax.training.sweep import SweepResult


def main() -> int:
    """The entry point."""
    arguments = flags.FLAGS
    workdir, sweeps = arguments.workdir, arguments.sweep
    record, command = as_dict(arguments.config), provenance.command_line("train")
    if arguments.status:
        print(fold_jobs.status(record["folds"], workdir))
        return 0
    if arguments.print:
        options = launch.parse_options(arguments.slurm)
        folds = list(beginning(record, workdir, sweeps).unfinished)
        print(fold_jobs.script(folds, workdir, sys.argv[1:], options, arguments.jobs))
        return 0
    launcher = command_line.launcher(workdir)
    if launcher is None:
        train(record, workdir, sweeps, arguments.profile, command)
    elif arguments.profile:
        raise ValueError("--profile is of a run in this process; leave out --launcher")
    else:
        # By its name, and not as __main__, which jobs cannot import.
        from steph_jax import train as program

        call = partial(program.train_as_job, workdir=workdir, command=command, sweeps=sweeps)
        report = partial(program.report_as_job, workdir)
        unfinished = beginning(record, workdir, sweeps).unfinished
        if fold_jobs.run(call, report, record, unfinished, launcher):
            print(f"report: {workdir / 'report.html'}")
            return 0
    if hosts.is_writer():
        from steph_jax.training import run_results

        print(f"report: {run_results.write_report(workdir)}")
    return 0


class Beginning(NamedTuple):
    """What a run knows before its features are read.

    Attributes:
        config: of the run.
        record: of the config, with the values that folds select from.
        pool: of models.
        cohort: its patients and folds.
        grid: the points that folds select from.
        unfinished: directories of the folds that are not finished, by number.
        model: of the first of them; None where there is none.
    """

    config: Config
    record: dict[str, Any]
    pool: Pool
    cohort: Cohort
    grid: Grid
    unfinished: dict[int, pathlib.Path]
    model: SavedModel | None


def beginning(
    record: dict[str, Any], workdir: pathlib.Path, sweeps: Sequence[str] = ()
) -> Beginning:
    """Checks a run before its features are read; arguments and errors are those of `train`."""
    config = Config.from_dict(record)
    pool = Pool(config.pool.root)
    cohort = experiment.read_cohort(config)
    directories = {fold: run_directory.fold_directory(workdir, fold) for fold in config.folds}
    finished = hosts.agreed([f for f, p in directories.items() if run_directory.is_finished(p)])
    unfinished = {fold: path for fold, path in directories.items() if fold not in finished}
    grid = parse(sweeps, config)
    config_record = record | grid.record()
    if not grid.values:
        grid = Grid(config.controlled_method.grid(config.options))
    # A pool that lacks a model is known at once.
    model = preflight_run(config, cohort, pool, grid, list(unfinished)) if unfinished else None
    return Beginning(config, config_record, pool, cohort, grid, unfinished, model)


def train(
    record: dict[str, Any],
    workdir: pathlib.Path,
    sweeps: Sequence[str] = (),
    profile: bool = False,
    command: str = "",
    compared: Sequence[pathlib.Path] = (),
) -> dict[str, Any]:
    """Runs all folds of a config that are not finished; returns the summary.

    Args:
        record: the config as `config.as_dict` gives it.
        workdir: where the run keeps its files.
        sweeps: settings whose values each fold selects, as `grid.parse` reads them.
        profile: whether a trace of one epoch is left in `workdir`/profile.
        command: that was given, for the record.
        compared: directories of runs, started or not, that must have read the same.

    Raises:
        ValueError, FileNotFoundError: a setting, file or directory that cannot be used; inputs that
            have changed since the first fold of the run, or of one that it is compared with.
    """
    begun = beginning(record, workdir, sweeps)
    config, pool, cohort, grid = begun.config, begun.pool, begun.cohort, begun.grid
    model, unfinished, config_record = begun.model, begun.unfinished, begun.record
    hosts.barrier()  # a mistake that one process finds leaves no files of another
    # The writer holds the locks for the other processes of the run, if there are any.
    with (
        run_directory.folds_locked(workdir, unfinished)
        if hosts.is_writer()
        else contextlib.nullcontext()
    ):
        run_directory.reconciled_config(workdir, config_record, MAY_CHANGE_ON_RESUME, defaults())
        logging.info("devices: %s", ", ".join(str(d) for d in jax.devices()))
        run = None if model is None else open_run(config, cohort, pool, model, workdir)

        # What was mistaken until here leaves no settings, and no model in the pool, to be undone.
        def store_start() -> None:
            with run_directory.locked(workdir, run_directory.TURN_SECONDS):
                run_directory.store_config(workdir, config_record, MAY_CHANGE_ON_RESUME, defaults())
                provenance.write(workdir, command, cohort)
            if run is not None and model is not None:
                if saves_to_pool(config):
                    abmil.add_null(pool, model.architecture, config.seed)
                inputs.keep(workdir, run, sweep.members(grid, run, list(unfinished)), compared)

        hosts.written(store_start)
        if run is not None:
            if profile and hosts.is_writer():
                run = dataclasses.replace(run, profile=workdir / "profile")
            trackers = list(config.track) if hosts.is_writer() else []
            for fold, directory in unfinished.items():
                # By another run, before the lock.
                if hosts.agreed(run_directory.is_finished(directory)):
                    continue
                selection = sweep.select(run, grid, fold, directory)
                at_point = sweep.with_point(run, selection.point)
                train_fold(at_point, fold, directory, selection, trackers)
        from steph_jax.training import run_results  # here: no training waits for it

        return hosts.agreed(run_results.summarize(workdir, config) if hosts.is_writer() else {})


def train_as_job(
    record: dict[str, Any],
    workdir: pathlib.Path,
    command: str,
    compared: Sequence[pathlib.Path] = (),
    sweeps: Sequence[str] = (),
) -> None:
    """`train` in a process that a launcher has started."""
    cli.prepare()
    train(record, workdir, sweeps, command=command, compared=compared)


def report_as_job(workdir: pathlib.Path) -> None:
    """Writes the report of a run in a process that a launcher has started."""
    from steph_jax.training import run_results

    cli.prepare()
    run_results.write_report(workdir)


def preflight_run(
    config: Config, cohort: Cohort, pool: Pool, grid: Grid, folds: Sequence[int]
) -> SavedModel:
    """Checks what a run needs before its features are read; returns the first fold's model.

    Raises:
        ValueError, FileNotFoundError: what is missing, or cannot be used.
    """
    expect_installed(config.track)
    model = preflight.preflight(config, cohort, pool, folds)
    if saves_to_pool(config):
        check_can_add(config, cohort, pool, model.architecture, folds)
    read = preflight.members(config, cohort, pool, config.folds[0])
    if read:
        expect_sound_pool(config, cohort, pool)
    data = config.data
    warn_of_cohort(
        data.folder, config.dataset, list(config.folds), data.table_columns, config.batch_size
    )
    preflight.warn_of_leaks(config, cohort, dict.fromkeys(dataset for dataset, _ in read))
    sweep.check(grid, config, cohort, pool)
    return model


def expect_sound_pool(config: Config, cohort: Cohort, pool: Pool) -> None:
    """Raises ValueError for models that the run reads and `check` finds unfit to be merged."""
    folds = (preflight.members(config, cohort, pool, fold) for fold in config.folds)
    names = dict.fromkeys(member_name(*member) for members in folds for member in members)
    used = config.controlled_method.uses_task_vectors
    for finding in check_pool(pool, tuple(names), None, task_vectors_used=used):
        if finding.status is Status.ERROR:
            raise ValueError(f"{pool.root}: {sentence(finding)}")


def open_run(
    config: Config, cohort: Cohort, pool: Pool, model: SavedModel, workdir: pathlib.Path
) -> Experiment:
    """The experiment, whose features are open and checked.

    Raises:
        ValueError, FileNotFoundError: features that are missing or cannot be used.
    """
    encoder = preflight.encoder_of(config, config.dataset, cohort.table)
    preflight.expect_encoder_of_members(config, cohort, pool, config.folds, encoder)
    run = experiment.open_experiment(config, cohort, pool)
    preflight.check_feature_dim(model, run)
    preflight.warn_of_slide_level(run)
    if config.data.check_values:
        preflight.check_values(run, workdir / "values.sha256")
    return dataclasses.replace(run, encoder=encoder) if saves_to_pool(config) else run


def train_fold(
    run: Experiment,
    fold: int,
    directory: pathlib.Path,
    selection: SweepResult,
    trackers: MutableSequence[str],
) -> None:
    """Trains and evaluates one fold with its trackers; arguments as in `finish_fold` and `tracked`.

    A control counts as a method of its own.
    """
    config = run.config
    method = label_of(config.method, config.control)
    fold_of_run = TrackedFold(config.dataset, method, fold, config.seed, directory, config.settings)
    with tracked(trackers, fold_of_run) as track:
        track.finish(finish_fold(run, fold, directory, selection, track))


def finish_fold(
    run: Experiment, fold: int, directory: pathlib.Path, selection: SweepResult, track: Track
) -> dict[str, float]:
    """Trains and evaluates one fold; returns the numbers of its parts for trackers.

    Args:
        run: config and data; the config has the values that the fold's sweep selected.
        fold: number.
        directory: of the fold.
        selection: what the sweep selected.
        track: its trackers.
    """
    # --- model, epochs ---
    cohort, method = run.cohort, run.method
    split = cohort.folds[fold]
    run = with_subset_pool(run, split, directory / SUBSET, f"fold {fold}, target's model")
    result = train_split(run, fold, split, directory, f"fold {fold}", track)
    model, evaluate = result.start, result.evaluate

    # --- results ---
    from steph_jax.training.trained_fold import TrainedFold, write_fold

    parts = {
        "train": evaluate(split.train, result.trainable),
        "test": evaluate(split.test, result.trainable),
    }
    stored = method.store(model, fetch(result.trainable))
    objective = stored_objective(model)
    stored = with_metadata(stored, **evaluator.breslow(parts["train"], cohort.table, objective))
    target_only = evaluator.target_only(stored, evaluate, split.test)
    null_model = (
        evaluator.null_model(run.pool.null(), evaluate, split.test) if method.shows_null else None
    )
    trained = TrainedFold(fold, selection, result, stored, parts, target_only, null_model)
    hosts.written(lambda: write_fold(run, trained, directory))
    return {
        f"{name}_{number}": float(value)
        for name, part in parts.items()
        for number, value in part.scores.items()
    }


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
    cli.define_path("workdir", None, "Where the run keeps its files.")
    flags.DEFINE_multi_string(
        "sweep", [], "NAME=VALUE,VALUE,...: a setting whose value inner folds select; repeatable."
    )
    flags.DEFINE_bool("profile", False, "Leaves a JAX trace of one epoch in WORKDIR/profile.")
    command_line.define()
    cli.app_run(
        main,
        required=("config", "workdir"),
        resuming="the same command goes on after the last finished epoch",
        shares_hosts=True,
    )
