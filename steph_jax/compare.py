"""Trains several methods on the same folds and reports how they differ, and how surely.

    python -m steph_jax.compare --config configs/brca.py --methods abmil,roupkt,steph --workdir W

Runs what is missing and goes on where it was interrupted; `--seeds 42,43,44` runs every method with
several. `--controls` also runs each method that uses other cancers without the cause of its gain
(`config.control`), and reports what is left; `--reference roupkt` takes differences to that method.
Calls for other methods may use one W, at the same time as well.

`--train_patients 40,80,0` does so for each of these numbers of training patients (0 = all), in
W/patients_40 and so on, and shows what a gain is worth with how many: W/learning_curve.md, .csv and
.png, and W/compare.csv with a column train_patients.

`--datasets a,b,c` does either for each of several datasets, in W/a and so on, and shows what a gain
is over all of them: W/over_cohorts.md, .csv and W/forest.png (in W/patients_40 and so on, with
numbers of patients), and W/compare.csv with a column dataset. `--primary steph` names the one
difference that the study is about, before it is known.

W/{method}-seed_{seed}/   the runs, as `steph_jax.train` leaves them
W/compare.csv             method, fold, seed, c_index; and control, with --controls
W/compare.md              the table for people, with differences to the reference in words
W/compare_table.csv       the same table as numbers
W/compare.tex             and for a paper
W/report.html, .json      one page with everything inside
W/compare.png             C-index per fold, mean and interval
W/differences.png         differences to the reference, per fold and on the whole
"""

import dataclasses
import pathlib
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from absl import flags, logging
from ml_collections import config_flags

from steph_jax import cli, hosts, train
from steph_jax.evaluation import comparison, comparison_report, over_cohorts
from steph_jax.evaluation import learning_curve as curves
from steph_jax.evaluation.comparison import Comparison, label_of, run_directory
from steph_jax.jobs import command_line, launch
from steph_jax.jobs.comparison_jobs import JOBS, slurm_script, status
from steph_jax.jobs.launch import Job, Launcher
from steph_jax.methods.controls import controls_of
from steph_jax.methods.registry import find_method
from steph_jax.reports import comparison_page
from steph_jax.training.compared_runs import asked_runs, check_methods, check_numbers, is_finished
from steph_jax.training.config import Config, as_dict
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
    if launcher is not None and hosts.count() > 1:
        raise ValueError(
            f"--launcher {arguments.launcher} starts jobs from one process, but this command was "
            f"started in {hosts.count()}; start it in one, or leave --launcher out"
        )
    numbers = whole_numbers(arguments.train_patients or (), "train_patients")
    if (numbers or arguments.datasets) and (arguments.status or arguments.print):
        raise ValueError(
            "--status and --print are of one comparison; give --config.dataset=NAME --workdir "
            "W/NAME for --datasets, --config.train_patients=40 --workdir W/patients_40 for "
            "--train_patients"
        )
    if arguments.primary and not arguments.datasets:
        raise ValueError("--primary is the main comparison over cohorts; name them by --datasets")
    common = methods, seeds, arguments.workdir, command
    if arguments.datasets:
        compare_datasets(
            record, *common, arguments.datasets, numbers, reference, launcher, arguments.primary
        )
        return 0
    if numbers:
        compare_numbers(record, *common, numbers, reference, launcher)
        return 0
    if arguments.status or arguments.print:
        runs_asked = Config.from_dict(record), methods, seeds, arguments.workdir
        if arguments.status:
            print(status(*runs_asked))
        else:
            options = launch.parse_options(arguments.slurm)
            print(slurm_script(*runs_asked, sys.argv[1:], options, arguments.jobs))
        return 0
    compare_with_page(record, *common, reference, launcher)
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
    check_numbers(record, methods, seeds, ordered)
    results = {}
    for number in ordered:
        place = curves.directory(workdir, number)
        results[number] = compare_with_page(
            record | {"train_patients": number}, methods, seeds, place, command, reference, launcher
        )
    if hosts.is_writer():
        curves.write(workdir, results, command)
        print(f"written to {workdir / 'learning_curve.md'}")
    return results


def compare_datasets(
    record: dict[str, Any],
    methods: Sequence[str],
    seeds: Sequence[int],
    workdir: pathlib.Path,
    command: str,
    datasets: Sequence[str],
    numbers: Sequence[int] = (),
    reference: str = comparison.REFERENCE,
    launcher: Launcher | None = None,
    primary: str = "",
) -> dict[int, dict[str, Comparison]]:
    """A comparison on each of several datasets, and what they show together.

    Args:
        record, methods, seeds, command, reference, launcher: as of `compare`.
        workdir: where the comparisons are kept, each in the folder of its dataset.
        datasets: names; that of the record is not used.
        numbers: of training patients, 0 for all; () for that of the record.
        primary: see `over_cohorts.expect_primary`; "" for none.

    Returns:
        by number of training patients, by dataset.

    Raises:
        ValueError, FileNotFoundError: as `compare_numbers` does; fewer than two datasets.
    """
    if len(datasets) < 2 or len(set(datasets)) < len(datasets):
        raise ValueError(
            f"--datasets are two or more different ones, as a,b; found {','.join(datasets)}"
        )
    if primary:
        over_cohorts.expect_primary(primary, methods, reference)
    ordered = curves.in_order(numbers or [record["train_patients"]])
    for dataset in datasets:
        check_numbers(record | {"dataset": dataset}, methods, seeds, ordered)
    results: dict[int, dict[str, Comparison]] = {number: {} for number in ordered}
    for dataset in datasets:
        common = methods, seeds, workdir / dataset, command
        of_dataset = record | {"dataset": dataset}
        if numbers:
            by_number = compare_numbers(of_dataset, *common, numbers, reference, launcher)
        else:
            by_number = {ordered[0]: compare_with_page(of_dataset, *common, reference, launcher)}
        for number, result in by_number.items():
            results[number][dataset] = result
    if hosts.is_writer():
        over_cohorts.write_all(workdir, results, command, primary, bool(numbers))
        print(f"written to {workdir}")
    return results


def compare_with_page(
    record: dict[str, Any],
    methods: Sequence[str],
    seeds: Sequence[int],
    workdir: pathlib.Path,
    command: str,
    reference: str,
    launcher: Launcher | None,
) -> Comparison:
    """`compare`, and its page; jobs have their scripts and logs in a folder of the comparison."""
    if launcher is not None:
        launcher = dataclasses.replace(launcher, folder=workdir / JOBS)
    result = compare(record, methods, seeds, workdir, command, None, reference, launcher)
    if hosts.is_writer():
        print(f"report: {comparison_page.write(workdir, reference)}")
    return result


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
    config, asked = Config.from_dict(record), asked_runs(record, methods, seeds)
    missing = {
        (method, seed): run
        for (method, seed), run in asked.items()
        if not hosts.agreed(is_finished(run_directory(workdir, method, seed), run))
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
    if hosts.is_writer():
        out = workdir if tables is None else tables
        out.mkdir(parents=True, exist_ok=True)
        comparison_report.write(out, result, costs, command)
        print(f"\n{(out / 'compare.md').read_text(encoding='utf-8')}\nwritten to {out}")
    return result


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
    flags.DEFINE_list("methods", None, "Values of config.method, separated by commas.")
    flags.DEFINE_bool("controls", False, "Run the controls of each method too.")
    flags.DEFINE_string("reference", comparison.REFERENCE, "The method that differences are to.")
    flags.DEFINE_list("train_patients", None, "Numbers of training patients; 0 for all.")
    flags.DEFINE_list("datasets", None, "Datasets to compare on, and over; the config's alone.")
    flags.DEFINE_string("primary", "", "The main comparison over datasets: a method, or a label.")
    flags.DEFINE_list("seeds", None, "Seeds of every method; the config's by default.")
    cli.define_path("workdir", None, "Where runs and tables are kept.")
    command_line.define()
    cli.app_run(
        main,
        required=("config", "methods", "workdir"),
        resuming="the same command goes on after the last finished epoch",
        shares_hosts=True,
    )
