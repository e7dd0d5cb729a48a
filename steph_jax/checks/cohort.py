"""Checks of a table and its splits before features are read: for `check`, `train` and `split`."""

import pathlib
from collections.abc import Iterable

from absl import logging

from steph_jax.checks import findings, folds, outcomes, sections, tables
from steph_jax.checks.findings import Finding, Status
from steph_jax.data.columns import Columns
from steph_jax.data.tables import SurvivalTable, table_path
from steph_jax.messages import join_names

#: Items of a warning that its line names: it is one of several on a log.
_MAX_LISTED = 3


def check_patients(
    path: pathlib.Path, columns: Columns
) -> tuple[SurvivalTable | None, list[Finding]]:
    """The table as far as it can be read, and all findings about it.

    Args:
        path: of the table.
        columns: how it is written.
    """
    table, results = tables.check_table(path, columns)
    if table is None:
        return None, results
    with_times = tables.labeled(table)
    if len(with_times):
        results += outcomes.check_times(with_times, columns)
        results += outcomes.check_zero_times(with_times)
        if tables.events_are_read(results):
            results += outcomes.check_events(with_times, columns)
    return table, results + sections.check_sections(path, table.slides)


def warn_of_patients(path: pathlib.Path, columns: Columns) -> list[str]:
    """The warnings about a table, a line each."""
    return warnings(check_patients(path, columns)[1])


def warn_of_cohort(
    root: pathlib.Path, dataset: str, fold_numbers: list[int], columns: Columns, batch_size: int
) -> None:
    """Says on the log what `check` warns of in the table and the splits of a run.

    Args:
        root: folder of datasets.
        dataset: name of one.
        fold_numbers: of its splits.
        columns: how the table is written.
        batch_size: patients that a fold needs for training.
    """
    table, results = check_patients(table_path(root, dataset), columns)
    results += folds.check_splits(root, dataset, fold_numbers, table, batch_size)[1]
    for line in warnings(results):
        logging.warning("%s", line)


def warnings(results: Iterable[Finding]) -> list[str]:
    """The warnings among some findings, a line each."""
    lines = []
    for finding in results:
        if finding.status is Status.WARNING:
            items = f": {join_names(finding.items, _MAX_LISTED)}" if finding.items else ""
            lines.append(f"{findings.sentence(finding)}{items}")
    return lines
