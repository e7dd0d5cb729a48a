"""A cohort: its patients, their slides, what became of them, and the folds."""

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from steph_jax.data import clinical, tables
from steph_jax.data.bags import BagReader, ConcatBags
from steph_jax.data.columns import Columns
from steph_jax.data.persons import person_keys
from steph_jax.data.splits import check_split, read_split, split_path, without_left_out
from steph_jax.data.tables import SurvivalTable
from steph_jax.messages import join_names


@dataclasses.dataclass(frozen=True)
class Fold:
    """Numbers of patients in the cohort: [n] int arrays.

    Attributes:
        train, test, validation: of each part of the split; validation may be empty.
    """

    train: np.ndarray
    test: np.ndarray
    validation: np.ndarray


class TableSize(NamedTuple):
    """How much a survival table holds, of whatever becomes of it.

    Attributes:
        patients, slides: of the whole table.
        patients_without_outcome, slides_without_outcome: those without time or event among them.
    """

    patients: int
    slides: int
    patients_without_outcome: int
    slides_without_outcome: int

    @classmethod
    def measure(cls, table: SurvivalTable) -> "TableSize":
        """The size of a table that has just been read."""
        left_out = sum(map(len, table.left_out.values()))
        slides = sum(map(len, table.slides)) + left_out
        return cls(len(table) + len(table.left_out), slides, len(table.left_out), left_out)


@dataclasses.dataclass(frozen=True)
class Cohort:
    """The patients that the folds of a run name.

    Attributes:
        dataset: name.
        table: of these patients, in the order that numbers them.
        folds: by number of the split.
        file: size of the file that the table was read from.
        others: numbers of patients of other cohorts, who are in no fold (`joined`).
        datasets_of_others: [others] names of their cohorts.
        whole_folds: what `folds` were before training patients were left out; None where none were.
    """

    dataset: str
    table: SurvivalTable
    folds: dict[int, Fold]
    file: TableSize
    others: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.intp))
    datasets_of_others: tuple[str, ...] = ()
    whole_folds: dict[int, Fold] | None = None

    @property
    def splits(self) -> dict[int, Fold]:
        """The folds as their files have them."""
        return self.folds if self.whole_folds is None else self.whole_folds


def read_patients(root: pathlib.Path, dataset: str, columns: Columns) -> SurvivalTable:
    """Reads the table of a dataset; logs whom it leaves out (`Columns.unlabeled`).

    Raises:
        FileNotFoundError, ValueError: see `tables.read_table`.
    """
    table = tables.read_table(tables.table_path(root, dataset), columns)
    if table.left_out:
        logging.info("%s: %s", table.path, left_out(table))
    return table


def left_out(table: SurvivalTable) -> str:
    """Whom a table leaves out for want of time or event, ten at most by name."""
    return (
        f"{len(table.left_out)} patients without time or event are left out of the table and of "
        f"the splits: {join_names(table.left_out)}"
    )


def load_cohort(root: pathlib.Path, dataset: str, folds: Sequence[int], columns: Columns) -> Cohort:
    """Reads the table and the splits of a dataset and checks them against each other.

    Args:
        root: folder of datasets.
        dataset: name of one.
        folds: numbers of the splits.
        columns: how the table is written.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a table or split that cannot be used, or that disagree.
    """
    table = tables.with_competing(read_patients(root, dataset, columns), columns)
    splits = {
        fold: without_left_out(read_split(split_path(root, dataset, fold)), table) for fold in folds
    }
    for split in splits.values():
        check_split(split, table)
    file = TableSize.measure(table)
    in_splits = {p for s in splits.values() for p in (*s.train, *s.test, *s.validation)}
    table = take(table, [i for i, patient in enumerate(table.patients) if patient in in_splits])
    return Cohort(
        dataset,
        table,
        {
            fold: Fold(*(table.rows(part) for part in (split.train, split.test, split.validation)))
            for fold, split in splits.items()
        },
        file,
    )


def with_clinical(cohort: Cohort, columns: Columns, names: Sequence[str], setting: str) -> Cohort:
    """The cohort with clinical columns of its survival table.

    Args:
        cohort: as `load_cohort` reads it.
        columns: of the table.
        names: of the clinical columns.
        setting: that names them, for messages.

    Raises:
        ValueError: a column that is missing, is the outcome, has no cell of these patients, or has
            cells that cannot be used.
    """
    clinical.expect_no_outcome(names, columns, setting)
    table = cohort.table
    read = clinical.read(table.path, columns.patient, names).of_patients(table.patients)
    for name, column in read.columns.items():
        if not column:
            raise ValueError(
                f"{table.path}, column {name!r}: expected values of the patients in the splits, "
                f"found none; leave it out of {setting}"
            )
        clinical.is_numeric(table.path, name, Counter(column.values()))
    return dataclasses.replace(cohort, table=dataclasses.replace(table, clinical=read))


def take(table: SurvivalTable, rows: Sequence[int]) -> SurvivalTable:
    """The table of some of its patients."""
    indices = list(rows)
    return dataclasses.replace(
        table,
        patients=tuple(table.patients[i] for i in indices),
        time=table.time[indices],
        event=table.event[indices],
        slides=tuple(table.slides[i] for i in indices),
        competing=None if table.competing is None else table.competing[indices],
    )


def other_patients(tables: Sequence[SurvivalTable], target: SurvivalTable) -> list[SurvivalTable]:
    """The patients of each table who are neither the target's nor in a table before it.

    Persons are compared by `persons.person_keys`, so that no test patient of the target comes back
    under another id or with the same slide.
    """
    keys_so_far = person_keys_of(target)
    remaining = []
    for table in tables:
        keys = [person_keys(*row) for row in zip(table.patients, table.slides, strict=True)]
        remaining.append(
            take(table, [i for i, person in enumerate(keys) if not person & keys_so_far])
        )
        keys_so_far = keys_so_far.union(*keys)
    return remaining


def person_keys_of(table: SurvivalTable) -> set[str]:
    """What identifies the persons of a table; see `persons.person_keys`."""
    keys = [person_keys(*row) for row in zip(table.patients, table.slides, strict=True)]
    return set().union(*keys)


def _padded(competing: np.ndarray | None, length: int) -> np.ndarray | None:
    """The column of more patients, False for those added; None where there is none."""
    if competing is None:
        return None
    return np.concatenate([competing, np.zeros(length - len(competing), bool)])


def joined(
    cohort: Cohort, bags: BagReader, others: Sequence[tuple[str, SurvivalTable, BagReader]]
) -> tuple[Cohort, ConcatBags]:
    """The target's cohort with the patients of others behind its own.

    Folds are the target's; the others' patients are in none of them, but `Cohort.others` has them.

    Args:
        cohort: of the target.
        bags: of the target.
        others: names of other cohorts, their patients, none of whom is the target's, and their
            bags.
    """
    tables = [cohort.table, *(table for _, table, _ in others)]
    table = dataclasses.replace(
        cohort.table,
        patients=tuple(p for t in tables for p in t.patients),
        time=np.concatenate([t.time for t in tables]),
        event=np.concatenate([t.event for t in tables]),
        slides=tuple(s for t in tables for s in t.slides),
        # Of no use for patients who are in no fold.
        competing=_padded(cohort.table.competing, sum(map(len, tables))),
    )
    added = np.arange(len(cohort.table.patients), len(table.patients))
    names = tuple(name for name, table, _ in others for _ in table.patients)
    cohort_of_all = dataclasses.replace(cohort, table=table, others=added, datasets_of_others=names)
    return cohort_of_all, ConcatBags([bags, *(more for _, _, more in others)])
