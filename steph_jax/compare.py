"""Trains several methods on the same folds and reports how they differ, and how surely.

    python -m steph_jax.compare --config configs/brca.py --methods abmil,roupkt,steph --workdir W

Runs what is missing and goes on where it was interrupted; `--seeds 42,43,44` runs every method with
several. `--controls` also runs each method that uses other cancers without the cause of its gain
(`config.control`), and reports what is left; `--reference roupkt` takes differences to that method.
Calls for other methods may use one W, at the same time as well.

`--train_patients 40,80,0` does so for each of these numbers of training patients (0 = all), in
W/patients_40 and so on, and shows what a gain is worth with how many: W/learning_curve.md, .csv and
.png, and W/compare.csv with a column train_patients.

W/{method}-seed_{seed}/   the runs, as `steph_jax.train` leaves them
W/compare.csv             method, fold, seed, c_index; and control, with --controls
W/compare.md              the table for people, with differences to the reference in words
W/compare_table.csv       the same table as numbers
W/compare.tex             and for a paper
W/report.html, .json      one page with everything inside
W/compare.png             C-index per fold, mean and interval
W/differences.png         differences to the reference, per fold and on the whole
"""

import itertools
import pathlib
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from absl import flags, logging
from ml_collections import config_flags

from steph_jax import cli, train
from steph_jax import run_directory as runs
from steph_jax.checkpoints.pool import Pool
from steph_jax.evaluation import comparison, comparison_report
from steph_jax.evaluation import learning_curve as curves
from steph_jax.evaluation.comparison import Comparison, label_of, parts_of, run_directory
from steph_jax.jobs import command_line, launch
from steph_jax.jobs.comparison_jobs import JOBS, slurm_script, status
from steph_jax.jobs.launch import Job, Launcher
from steph_jax.methods.controls import controls_of
from steph_jax.methods.registry import find_method
from steph_jax.reports import comparison_page
from steph_jax.training import experiment, preflight
from steph_jax.training.config import MAY_CHANGE_ON_RESUME, Config, as_dict, defaults
from steph_jax.training.inference import inference_cost


def main() -> int:
    """The entry point."""
    arguments = flags.FLAGS
    record = as_dict(arguments.config)
    seeds = whole_numbers(arguments.seeds) if arguments.seeds else [Config.from_dict(record).seed]
    command = f"python -m steph_jax.compare {shlex.join(sys.argv[1:])}"
    methods = with_controls(arguments.methods) if arguments.controls else arguments.methods
    reference = arguments.reference
    if reference not in methods and reference != comparison.REFERENCE:
        raise ValueError(
            f"--reference is one of --methods, {', '.join(methods)}; found {reference!r}"
        )
    launcher = launch.chosen(
        arguments.launcher, arguments.jobs, arguments.workdir / JOBS, arguments.slurm
    )
    if arguments.train_patients:
        if arguments.status or arguments.print:
            raise ValueError(
                "--status and --print are of one number of training patients; give "
                "--config.train_patients=40 --workdir W/patients_40 for --train_patients"
            )
        numbers = whole_numbers(arguments.train_patients, "train_patients")
        compare_numbers(
            record, methods, seeds, arguments.workdir, command, numbers, reference, launcher
        )
        return 0
    if arguments.status or arguments.print:
        runs_asked = Config.from_dict(record), methods, seeds, arguments.workdir
        if arguments.status:
            print(status(*runs_asked))
        else:
            options = launch.parse_options(arguments.slurm)
            print(slurm_script(*runs_asked, sys.argv[1:], options, arguments.jobs))
        return 0
    compare(
        record,
        methods,
        seeds,
        arguments.workdir,
        command,
        reference=reference,
        launcher=launcher,
    )
    print(f"report: {comparison_page.write(arguments.workdir, reference)}")
    return 0


def with_controls(methods: Sequence[str]) -> list[str]:
    """The methods, and behind each that uses other cancers its controls, by their labels."""
    labels = []
    for method in methods:
        labels.append(method)
        labels += [label_of(method, control) for control in controls_of(find_method(method))]
    return labels


def whole_numbers(texts: Sequence[str], flag: str = "seeds") -> list[int]:
    """The values of a flag as numbers.

    Raises:
        ValueError: for anything else.
    """
    try:
        return [int(text) for text in texts]
    except ValueError:
        raise ValueError(f"--{flag} are whole numbers, as 42,43; found {','.join(texts)}") from None


def compare_numbers(
    record: dict[str, Any],
    methods: Sequence[str],
    seeds: Sequence[int],
    workdir: pathlib.Path,
    command: str,
    numbers: Sequence[int],
    reference: str = comparison.REFERENCE,
    launcher: Launcher | None = None,
) -> dict[int, Comparison]:
    """A comparison with each of some numbers of training patients, and what they show together.

    Args:
        record, methods, seeds, command, reference, launcher: as of `compare`.
        workdir: where the comparisons are kept.
        numbers: of training patients; 0 for all.

    Raises:
        ValueError, FileNotFoundError: as `compare` does; a number that some fold does not have.
    """
    ordered = curves.in_order(numbers)
    records_of = {number: record | {"train_patients": number} for number in ordered}
    # Before the first is trained: each seed and number draws other patients.
    for number, seed in itertools.product(ordered, seeds):
        experiment.read_cohort(Config.from_dict(records_of[number] | {"seed": seed}))
    results = {}
    for number, record_of_number in records_of.items():
        place = curves.directory(workdir, number)
        results[number] = compare(
            record_of_number, methods, seeds, place, command, None, reference, launcher
        )
        print(f"report: {comparison_page.write(place, reference)}")
    curves.write(workdir, results, command)
    print(f"written to {workdir / 'learning_curve.md'}")
    return results


def compare(
    record: dict[str, Any],
    methods: Sequence[str],
    seeds: Sequence[int],
    workdir: pathlib.Path,
    command: str,
    tables: pathlib.Path | None = None,
    reference: str = comparison.REFERENCE,
    launcher: Launcher | None = None,
) -> Comparison:
    """Runs what is missing of some methods and writes the comparison.

    Args:
        record: the config as `config.as_dict` gives it; its method and seed are not used.
        methods: values of `config.method`, or labels of controls (`comparison.label_of`).
        seeds: every method is run with each.
        workdir: where the runs are kept.
        command: that was given, for the record.
        tables: where tables and pictures go, if not in `workdir`.
        reference: the one of the methods that differences are to.
        launcher: where runs are jobs; None to do them in this process, one after the other.

    Raises:
        ValueError, FileNotFoundError: a method, setting, file or directory that cannot be used; a
            job that failed.
    """
    runs_asked = [(method, seed) for method in methods for seed in seeds]
    if not runs_asked or len(set(runs_asked)) < len(runs_asked):
        raise ValueError(
            "expected methods and seeds, each of them once; found --methods "
            f"{','.join(methods)} --seeds {','.join(map(str, seeds))}"
        )
    config = Config.from_dict(record)
    asked = {
        (label, seed): config.with_values(
            dict(zip(("method", "control"), parts_of(label), strict=True)) | {"seed": seed}
        )
        for label, seed in runs_asked
    }
    missing = {
        (method, seed): run
        for (method, seed), run in asked.items()
        if not is_finished(run_directory(workdir, method, seed), run)
    }
    check_methods(missing)
    directories = [run_directory(workdir, method, seed) for method, seed in asked]
    if launcher is None:
        for (method, seed), run in missing.items():
            logging.info("%s, seed %d", method, seed)
            directory = run_directory(workdir, method, seed)
            train.train(run.record, directory, command=command, compared=directories)
    else:
        launch.run(
            [
                Job(path.name, partial(train.train_as_job, run.record, path, command, directories))
                for (method, seed), run in missing.items()
                for path in [run_directory(workdir, method, seed)]
            ],
            launcher,
        )
    costs = {method: inference_cost(config, workdir, method, seeds[0]) for method in methods}
    result = comparison.compare_runs(
        workdir, config.dataset, methods, seeds, config.folds, reference=reference
    )
    out = workdir if tables is None else tables
    out.mkdir(parents=True, exist_ok=True)
    comparison_report.write(out, result, costs, command)
    print(f"\n{(out / 'compare.md').read_text(encoding='utf-8')}\nwritten to {out}")
    return result


def is_finished(directory: pathlib.Path, config: Config) -> bool:
    """Whether a run has finished all folds of its config.

    Raises:
        ValueError: the run in this directory has other settings.
    """
    folds = [runs.fold_directory(directory, fold) for fold in config.folds]
    # A run that was ended before its summary is given the chance to write it.
    summarized = runs.is_summarized(directory, config.folds)
    if not summarized or not all(runs.is_finished(fold) for fold in folds):
        return False
    runs.store_config(directory, config.record, MAY_CHANGE_ON_RESUME, defaults())
    return True


def check_methods(configs: dict[tuple[str, int], Config]) -> None:
    """Finds out before the first training whether each of the runs can be started.

    Raises:
        ValueError, FileNotFoundError: a setting that cannot be used; a model that the pool lacks,
            with how to make it.
    """
    checked: set[str] = set()
    for (method, _), config in configs.items():
        if config.pool.save:
            raise ValueError(
                "pool.save is for `steph_jax.train`: a comparison uses the pool as it is, so that "
                "no method depends on those run before it; make the pool first"
            )
        if method in checked:
            continue
        checked.add(method)
        cohort = experiment.read_cohort(config)
        pool = Pool(config.pool.root)
        preflight.preflight(config, cohort, pool, config.folds)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
    flags.DEFINE_list("methods", None, "Values of config.method, separated by commas.")
    flags.DEFINE_bool("controls", False, "Run the controls of each method too.")
    flags.DEFINE_string("reference", comparison.REFERENCE, "The method that differences are to.")
    flags.DEFINE_list("train_patients", None, "Numbers of training patients; 0 for all.")
    flags.DEFINE_list("seeds", None, "Seeds of every method; the config's by default.")
    cli.define_path("workdir", None, "Where runs and tables are kept.")
    command_line.define()
    cli.app_run(
        main,
        required=("config", "methods", "workdir"),
        resuming="the same command goes on after the last finished epoch",
    )
