"""Looks through all that a run needs, before the run: settings, table, splits, features, pool.

    python -m steph_jax.check --config configs/brca.py [--config.x=y] [--json FILE] [--out DIR]

Ends with status 0 where all is well, 1 where something needs a look, 2 where training would fail or
give wrong numbers, and where the command itself is wrong. Every problem is looked for, the first
one found hides no other. The table shows ten items of a list; `--json FILE` and `--out DIR`
(report.txt, report.json) hold all of them.

Features are read in child processes: a file that crashes its library, or never ends, is reported
like any other. Headers are read of all slides, values until `--seconds` are over.
"""

import math
import os
import pathlib
import random
import sys
import time
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from steph_jax import cli, files, messages
from steph_jax.checkpoints.pool import Pool, member_name
from steph_jax.checks import (
    check_report,
    cohort,
    devices,
    findings,
    folds,
    models,
    reading,
    slides,
    tables,
)
from steph_jax.checks.findings import Finding, Status
from steph_jax.data.cohort import take
from steph_jax.data.features import lookalikes, sandbox
from steph_jax.data.features.open import exists
from steph_jax.data.splits import Split
from steph_jax.data.tables import SurvivalTable, table_path
from steph_jax.messages import join_names
from steph_jax.methods.base import Method
from steph_jax.trackers.track import expect_installed
from steph_jax.training.config import Config, as_dict, read_config
from steph_jax.training.experiment import read_cohort
from steph_jax.training.preflight import preflight

#: Seconds in which values of features are read, unless the user gives more.
SECONDS = 50.0
#: Part of them that is for the target's features; what is left is for those of the sources.
_TARGETS_SHARE = 0.8


def main() -> int:
    """The entry point."""
    arguments = flags.FLAGS
    return run(
        as_dict(arguments.config),
        arguments.json,
        arguments.out,
        arguments.seconds,
        arguments.slide_seconds,
    )


def run(
    record: dict[str, Any],
    json_file: str | os.PathLike[str] | None = None,
    out_dir: str | os.PathLike[str] | None = None,
    seconds: float = SECONDS,
    slide_seconds: float = sandbox.SLIDE_SECONDS,
) -> int:
    """Checks a run, prints and writes the report; returns the exit status."""
    try:
        if json_file:
            files.check_output(pathlib.Path(json_file))
        if out_dir:
            files.check_output_folder(pathlib.Path(out_dir))
        results = check(record, seconds=seconds, slide_seconds=slide_seconds)
        dataset = str(record.get("dataset"))
        check_report.write(dataset, results, json_file, out_dir)
    except messages.USER_ERRORS as problem:
        print(f"error: {problem}", file=sys.stderr)
        return int(Status.ERROR)
    print("\n".join(check_report.lines(dataset, results, findings.MAX_SHOWN)))
    is_cut = any(len(finding.items) > findings.MAX_SHOWN for finding in results)
    if is_cut and not (json_file or out_dir):
        print("lists are cut; --json FILE or --out DIR writes them in full")
    return int(findings.worst(results))


def check(
    record: dict[str, Any],
    *,
    seconds: float = SECONDS,
    slide_seconds: float = sandbox.SLIDE_SECONDS,
) -> list[Finding]:
    """All findings about a run.

    Args:
        record: the config as `config.as_dict` gives it.
        seconds: in which values of features are read, those of sources too, headers of all slides
            apart; 0 sets no limit.
        slide_seconds: that one slide may take before its file is taken to hang.
    """
    results = [devices.check_devices(devices.gpus_there())]
    config, problems = read_config(record)
    results += [findings.error("settings", problem) for problem in problems.values()]
    if config is None:  # without a dataset and its data there is nothing to look at
        return results
    if not problems:
        text = f"{config.method} on {config.dataset}, folds {join_names(config.folds)}"
        results.append(findings.ok("settings", text))
    if "track" not in problems:
        findings.attempt("trackers", results, lambda: expect_installed(config.track))
    columns = config.data.table_columns
    table, splits = check_tables(config, results)
    read, start = None, time.monotonic()
    seconds = seconds or math.inf
    if table is not None:
        rows = folds.patients_named(splits, table).tolist()
        unused = [table.slides[row] for row in set(range(len(table))) - set(rows)]
        other_slides = [
            slide
            for patient_slides in (*unused, *table.left_out.values())
            for slide in patient_slides
        ]
        used, deadline = take(table, rows), start + _TARGETS_SHARE * seconds
        read = check_features(config, used, other_slides, results, deadline, slide_seconds)
    seconds_for_sources = max((1 - _TARGETS_SHARE) * seconds, start + seconds - time.monotonic())
    method = None if "method" in problems else config.controlled_method
    sources = check_pool(config, method, read, results)
    look = folds.check_joined if method and method.joins else folds.check_leaks
    results += look(config.data.folder, config.dataset, splits, sources, columns, table)
    if read is not None:
        deadline = time.monotonic() + seconds_for_sources
        results += check_encoders(config, sources, read, deadline, slide_seconds)
    not_needed = (
        "features",
        "encoder",
        "trackers",
    )  # these do not block a start: report them, then try it
    status = findings.worst([finding for finding in results if finding.check not in not_needed])
    if not problems and status < Status.ERROR:
        pool = Pool(config.pool.root)
        findings.attempt(
            "start", results, lambda: preflight(config, read_cohort(config), pool, config.folds)
        )
    return results


def check_tables(
    config: Config, results: list[Finding]
) -> tuple[SurvivalTable | None, dict[int, Split]]:
    """The table and the splits, as far as they can be read."""
    root, dataset, columns = config.data.folder, config.dataset, config.data.table_columns
    table, problems = cohort.check_patients(table_path(root, dataset), columns)
    results += problems
    splits, problems = folds.check_splits(
        root,
        dataset,
        list(config.folds),
        table,
        config.batch_size,
        tables.events_are_read(results),
    )
    results += problems
    return table, splits


def check_features(
    config: Config,
    table: SurvivalTable,
    other_slides: Sequence[str],
    results: list[Finding],
    deadline: float,
    slide_seconds: float,
) -> reading.Reading | None:
    """Reads the features of the patients that the run names; None where there are none.

    Args:
        config: of the run.
        table: of these patients.
        other_slides: ids of slides of other patients of the whole table.
        results: findings so far.
        deadline: of `time.monotonic`; after it, only headers are read.
        slide_seconds: that one slide may take.
    """
    data = config.data
    slide_ids = [slide for patient_slides in table.slides for slide in patient_slides]
    random.Random(0).shuffle(slide_ids)  # where time is short, slides of all kinds are read

    def read_all() -> tuple[pathlib.Path, reading.Reading]:
        location = data.features_of(config.dataset)
        is_terminal = sys.stderr.isatty()
        with tqdm(
            total=len(slide_ids), desc="features", unit="slide", disable=not is_terminal
        ) as bar:
            return location, reading.read(
                location,
                data.hdf5_dataset,
                slide_ids,
                deadline=deadline,
                slide_seconds=slide_seconds,
                progress=bar.update,
            )

    answer = findings.attempt("features", results, read_all)
    if answer is None:
        return None
    location, read = answer
    results += slides.check_slides(
        location, table.patients, table.slides, read, other_slides, config.model.feature_dim
    )
    return read


def check_pool(
    config: Config, method: Method | None, read: reading.Reading | None, results: list[Finding]
) -> tuple[str, ...]:
    """Looks at the pool; returns the other cohorts whose models or patients the run uses."""
    pool = Pool(config.pool.root)
    dim = slides.feature_dim(read, config.model.feature_dim) if read is not None else None
    encoder = slides.encoder_name(read) if read is not None else ""

    def look(names: Sequence[str]) -> None:
        results.extend(
            models.check_pool(
                pool,
                tuple(names),
                dim,
                feature_encoder=encoder,
                task_vectors_used=method is None or method.uses_task_vectors,
            )
        )

    if method is None:  # reported by `read_config`
        findings.attempt("pool", results, lambda: look(()))
        return ()
    members_and_cohorts = findings.attempt(
        "pool", results, lambda: needed_of_pool(method, config, pool)
    )
    if members_and_cohorts is None:
        return ()
    members, cohorts = members_and_cohorts
    if not members and not pool.has_null():
        config_dim = config.model.feature_dim
        if dim not in (None, config_dim):
            text = f"model.feature_dim is {config_dim}, the features have D = {dim}"
            results.append(findings.error("pool", text, lookalikes.dim_advice(dim)))
        results.append(
            findings.ok("pool", f"{pool.root}: no null model; one is made from the seed")
        )
    else:
        names = list(dict.fromkeys(member_name(*member) for member in members))
        findings.attempt("pool", results, lambda: look(names))
    sources = dict.fromkeys([*(name for name, _ in members), *cohorts])
    return tuple(name for name in sources if name != config.dataset)


def needed_of_pool(
    method: Method, config: Config, pool: Pool
) -> tuple[list[tuple[str, int]], Sequence[str]]:
    """(dataset, fold) of the members that the folds of a run read, and the cohorts they join.

    Raises:
        ValueError, FileNotFoundError: `Method.members` or `Method.joins` did.
    """
    specs = [config.fold_spec(fold, num_outputs=1) for fold in config.folds]
    members = [member for spec in specs for member in method.members(spec, pool)]
    return members, method.joins(specs[0], pool) if method.joins else ()


def check_encoders(
    config: Config,
    sources: tuple[str, ...],
    read: reading.Reading,
    deadline: float,
    slide_seconds: float,
) -> list[Finding]:
    """Compares the features that sources were fitted on with the target's, where they are here.

    Args:
        config: of the run.
        sources: names of datasets.
        read: the target's features.
        deadline: of `time.monotonic`; after it, only headers are read.
        slide_seconds: that one slide may take.
    """
    data, target = config.data, config.dataset
    results: list[Finding] = []
    target_location = data.features_of(target)
    compared: list[str] = []
    in_part: list[str] = []
    for source in sources:
        location = data.features_of(source)
        if location == target_location or not exists(location):
            continue

        def first_slides(location: pathlib.Path = location) -> reading.Reading:
            return reading.read(
                location,
                data.hdf5_dataset,
                None,
                deadline=deadline,
                slide_seconds=slide_seconds,
                workers=1,
            )

        reading_of_source = findings.attempt("encoder", results, first_slides)
        if reading_of_source is not None:
            results += slides.compare_encoders(read, reading_of_source, location)
            (in_part if reading_of_source.unread else compared).append(source)
    if compared and not results:
        text = f"features of {join_names(compared)} are like the target's"
        results.append(findings.ok("encoder", text, sources=compared))
    if in_part:
        text = f"features of {len(in_part)} sources were compared with the target's by headers only"
        advice = "no time was left; --seconds=0 reads values of all"
        results.append(findings.warning("encoder", text, advice, in_part))
    return results


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
    cli.define_path("json", None, "File for the whole report as JSON.")
    cli.define_path("out", None, "Folder for the whole report as report.txt and report.json.")
    flags.DEFINE_float("seconds", SECONDS, "In which values are read; 0: no limit.")
    flags.DEFINE_float("slide_seconds", sandbox.SLIDE_SECONDS, "That reading a slide may take.")
    cli.app_run(main, required=("config",), mistake=int(Status.ERROR))
