"""Trains several methods on the same folds and reports how they differ, and how surely.

    python -m steph_jax.compare --config configs/brca.py --methods abmil,roupkt,steph --workdir W

Runs what is missing and goes on where it was interrupted; `--seeds 42,43,44` runs every method with
several. `--controls` also runs each method that uses other cancers without the cause of its gain
(`config.control`), and reports what is left; `--reference roupkt` takes differences to that method.
Calls for other methods may use one W, at the same time as well.

`--train_patients 40,80,0` does so for each of these numbers of training patients (0 = all), in
W/patients_40 and so on, and shows what a gain is worth with how many: W/learning_curve.md, .csv and
.png, and W/compare.csv with a column train_patients.

`--config.pool.save=true` first adds to the pool what it lacks of the own models of the datasets
that are compared, in W/pool_runs. `--launcher local` or `slurm` makes every run a job.

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

import itertools
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
from steph_jax.evaluation.comparison import Comparison, run_directory
from steph_jax.jobs import command_line, comparison_jobs, launch
from steph_jax.jobs.job import Job, Launcher
from steph_jax.messages import join_names
from steph_jax.methods.controls import controls_of, label_of
from steph_jax.methods.registry import find_method
from steph_jax.reports import comparison_page
from steph_jax.training.compared_runs import (
    Request,
    check_methods,
    check_numbers,
    missing_runs,
)
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
    numbers = whole_numbers(arguments.train_patients or (), "train_patients")
    launcher = command_line.launcher(arguments.workdir)
    request = Request(
        *(record, methods, seeds, arguments.workdir, command),
        *(arguments.datasets or (), numbers, reference, arguments.primary),
    )
    request.check()
    if arguments.status:
        print(comparison_jobs.status(request))
    elif arguments.print:
        options = launch.parse_options(arguments.slurm)
        print(comparison_jobs.script(request, sys.argv[1:], options, arguments.jobs))
    elif arguments.tables:
        write_tables(request)
    elif launcher is None:
        if record["pool"]["save"]:
            of_the_pool, _ = comparison_jobs.stages(request, train.train, train.beginning)
            for job in of_the_pool:
                job.call()
        compare_all(request)
    elif not run_jobs(request, launcher):
        compare_all(request)
    elif launcher.waits:
        if not (request.datasets or request.numbers):
            print(f"\n{(arguments.workdir / 'compare.md').read_text(encoding='utf-8')}")
        print(f"written to {arguments.workdir}")
    else:
        print(f"submitted; the last job writes to {arguments.workdir}, and --status tells how far")
    return 0


def compare_all(request: Request) -> None:
    """Runs what is missing of a request, one run after the other, and writes what it asks for.

    Raises:
        ValueError, FileNotFoundError: as `compare_datasets` and `compare` do.
    """
    record = next(iter(request.comparisons().values()))
    common = request.methods, request.seeds, request.workdir, request.command
    numbers, reference = request.numbers, request.reference
    if request.datasets:
        compare_datasets(record, *common, request.datasets, numbers, reference, request.primary)
    elif numbers:
        compare_numbers(record, *common, numbers, reference)
    else:
        compare_with_page(record, *common, reference)


def write_tables(request: Request) -> None:
    """Writes what a request asks for of finished runs, and trains nothing.

    Raises:
        ValueError: runs are not finished; the comparisons that have them all are written.
    """
    unfinished: list[str] = []
    whole = {}
    for workdir, record in request.comparisons().items():
        missing = missing_runs(record, request.methods, request.seeds, workdir)
        unfinished += [comparison_jobs.name_of(request, directory) for directory in missing]
        if not missing:
            whole[workdir] = record
    if not unfinished:
        compare_all(request)
        return
    for workdir, record in whole.items():
        compare_with_page(
            *(record, request.methods, request.seeds, workdir, request.command, request.reference)
        )
    raise ValueError(
        f"not finished: {join_names(unfinished)}; {len(whole)} of {len(request.comparisons())} "
        "comparisons are written; --status tells what the runs are doing, and the same command "
        "without --tables goes on with them"
    )


def tables_as_job(request: Request) -> None:
    """`write_tables` in a process that a launcher has started."""
    cli.prepare()
    write_tables(request)


def run_jobs(request: Request, launcher: Launcher) -> bool:
    """Runs what is missing of a request as jobs: of the pool first, then all else.

    Returns:
        whether a job writes what is asked for; if not, `compare_all` does, and finds all finished.

    Raises:
        ValueError, FileNotFoundError: as `compare` does; a job that failed.
    """
    # By its name, and not as __main__, which jobs cannot import.
    from steph_jax import compare as program

    stages = comparison_jobs.stages(request, train.train_as_job, train.beginning)
    return launch.run(stages, launcher, Job("tables", partial(program.tables_as_job, request)))


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
) -> dict[int, Comparison]:
    """A comparison with each of some numbers of training patients, and what they show together.

    Args:
        record, methods, seeds, command, reference: as of `compare`.
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
            record | {"train_patients": number}, methods, seeds, place, command, reference
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
    primary: str = "",
) -> dict[int, dict[str, Comparison]]:
    """A comparison on each of several datasets, and what they show together.

    Args:
        record, methods, seeds, command, reference: as of `compare`.
        workdir: where the comparisons are kept, each in the folder of its dataset.
        datasets: names; that of the record is not used.
        numbers: of training patients, 0 for all; () for that of the record.
        primary: see `over_cohorts.expect_primary`; "" for none.

    Returns:
        by number of training patients, by dataset.

    Raises:
        ValueError, FileNotFoundError: as `compare_numbers` does; fewer than two datasets.
    """
    Request(
        *(record, methods, seeds, workdir, command, datasets, numbers, reference, primary)
    ).check()
    ordered = curves.in_order(numbers or [record["train_patients"]])
    for dataset in datasets:
        check_numbers(record | {"dataset": dataset}, methods, seeds, ordered)
    results: dict[int, dict[str, Comparison]] = {number: {} for number in ordered}
    for dataset in datasets:
        common = methods, seeds, workdir / dataset, command
        of_dataset = record | {"dataset": dataset}
        if numbers:
            by_number = compare_numbers(of_dataset, *common, numbers, reference)
        else:
            by_number = {ordered[0]: compare_with_page(of_dataset, *common, reference)}
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
) -> Comparison:
    """`compare`, and its page."""
    result = compare(record, methods, seeds, workdir, command, None, reference)
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
) -> Comparison:
    """Runs what is missing of some methods and writes the comparison.

    Args:
        record: the config as `config.as_dict` gives it; its method and seed are not used.
        methods: values of `config.method`, or labels of controls (`controls.label_of`).
        seeds: every method is run with each.
        workdir: where the runs are kept.
        command: that was given, for the record.
        tables: where tables and pictures go, if not in `workdir`.
        reference: the one of the methods that differences are to.

    Raises:
        ValueError, FileNotFoundError: a method, setting, file or directory that cannot be used.
    """
    config, missing = Config.from_dict(record), missing_runs(record, methods, seeds, workdir)
    check_methods(missing.values())
    directories = [run_directory(workdir, *name) for name in itertools.product(methods, seeds)]
    for directory, run in missing.items():
        logging.info("%s", directory.name)
        train.train(run.record, directory, command=command, compared=directories)
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
    flags.DEFINE_bool("tables", False, "Write the tables of finished runs; train nothing.")
    command_line.define()
    cli.app_run(
        main,
        required=("config", "methods", "workdir"),
        resuming="the same command goes on after the last finished epoch",
        shares_hosts=True,
    )
