"""A cohort: its patients, their slides, what became of them, and the folds."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from absl import logging

from steph_jax.data import survival
from steph_jax.data.survival import Columns, SurvivalTable
from steph_jax.labels import listed


@dataclasses.dataclass(frozen=True)
class Fold:
    """Numbers of patients in the cohort: [n] int arrays.

    Attributes:
        train, test, validation: of each part of the split; validation may be empty.
    """

    train: np.ndarray
    test: np.ndarray
    validation: np.ndarray


@dataclasses.dataclass(frozen=True)
class Cohort:
    """The patients that the folds of a run name.

    Attributes:
        dataset: name.
        table: of these patients, in the order that numbers them.
        folds: by number of the split.
        others: numbers of patients of other cohorts, who are in no fold (`data.joined`).
    """

    dataset: str
    table: SurvivalTable
    folds: dict[int, Fold]
    others: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.intp))


def read_patients(root: pathlib.Path, dataset: str, columns: Columns) -> SurvivalTable:
    """Reads the table of a dataset; says on the log whom it leaves out (`Columns.unlabeled`).

    Raises:
        FileNotFoundError, ValueError: see `survival.read_table`.
    """
    table = survival.read_table(survival.table_path(root, dataset), columns)
    if table.left_out:
        logging.info("%s: %s", table.path, left_out(table))
    return table


def left_out(table: SurvivalTable) -> str:
    """Whom a table leaves out for want of time or event, ten at most by name."""
    return (
        f"{len(table.left_out)} patients without time or event are left out of the table and of "
        f"the splits: {listed(table.left_out)}"
    )


def load_cohort(root: pathlib.Path, dataset: str, folds: Sequence[int], columns: Columns) -> Cohort:
    """Reads the table and the splits of a dataset (SPEC 5) and checks them against each other.

    Args:
        root: folder of datasets.
        dataset: name of one.
        folds: numbers of the splits.
        columns: how the table is written.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a table or split that cannot be used, or that disagree.
    """
    table = read_patients(root, dataset, columns)
    splits = {
        fold: survival.without_left_out(
            survival.read_split(survival.split_path(root, dataset, fold)), table
        )
        for fold in folds
    }
    for split in splits.values():
        survival.check_split(split, table)
    named = {p for s in splits.values() for p in (*s.train, *s.test, *s.validation)}
    table = take(table, [i for i, patient in enumerate(table.patients) if patient in named])
    return Cohort(
        dataset,
        table,
        {
            fold: Fold(*(table.rows(part) for part in (split.train, split.test, split.validation)))
            for fold, split in splits.items()
        },
    )


def take(table: SurvivalTable, rows: Sequence[int]) -> SurvivalTable:
    """The table of some of its patients."""
    chosen = list(rows)
    return dataclasses.replace(
        table,
        patients=tuple(table.patients[i] for i in chosen),
        time=table.time[chosen],
        event=table.event[chosen],
        slides=tuple(table.slides[i] for i in chosen),
    )
