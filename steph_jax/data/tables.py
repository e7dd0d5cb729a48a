"""Survival tables on disk (docs/method.md, section 6).

    {root}/{dataset}/{dataset}_survival.csv   one row per slide: patient, slide, time, event

Ids are text, whatever they look like: a table that holds `007` has no patient `7`. Which ids are
one person's is decided in `persons`.
"""

import dataclasses
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steph_jax.data import cells, persons
from steph_jax.data.clinical import ClinicalTable
from steph_jax.data.columns import DAYS_PER_UNIT, Columns, usable_cells
from steph_jax.messages import join_names
from steph_jax.survival.labels import survival_labels


@dataclasses.dataclass(frozen=True, eq=False)
class SurvivalTable:
    """Patients of a cohort, sorted by id, so that the order of a file's rows changes nothing.

    Attributes:
        path: the file.
        patients: [P] ids, sorted.
        time: [P] days to the event or to the end of follow-up.
        event: [P] True where death was seen.
        slides: [P] slide ids of each patient, sorted.
        left_out: slide ids, by id, of patients that are not here, for want of time or event.
        competing: [P] True where a patient without the event died of something else; None where
            the table does not tell.
        clinical: cells of clinical columns; None where a run reads none.
    """

    path: Path
    patients: tuple[str, ...]
    time: NDArray[np.float64]
    event: NDArray[np.bool_]
    slides: tuple[tuple[str, ...], ...]
    left_out: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    competing: NDArray[np.bool_] | None = None
    clinical: ClinicalTable | None = None

    def __len__(self) -> int:
        return len(self.patients)

    @functools.cached_property
    def row_of(self) -> Mapping[str, int]:
        """Row of each patient."""
        return {patient: row for row, patient in enumerate(self.patients)}

    @functools.cached_property
    def person_of(self) -> Mapping[str, str]:
        """The person of each patient, by ids and slides; see `persons.person_labels`."""
        return persons.person_labels(dict(zip(self.patients, self.slides, strict=True)))

    def rows(self, patients: Iterable[str]) -> NDArray[np.intp]:
        """Rows of these patients, in their order.

        Raises:
            ValueError: naming those that the table lacks.
        """
        ids = list(patients)
        missing = [patient for patient in ids if patient not in self.row_of]
        if missing:
            raise ValueError(f"{self.path}: no such patients: {join_names(missing)}")
        return np.asarray([self.row_of[patient] for patient in ids], np.intp)


def table_path(root: str | os.PathLike[str], dataset: str) -> Path:
    """{root}/{dataset}/{dataset}_survival.csv."""
    return Path(root) / dataset / f"{dataset}_survival.csv"


def _slides_of(patients: Sequence[str], slides: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The slides of each patient; both sorted."""
    slides_of: dict[str, list[str]] = {patient: [] for patient in sorted(set(patients))}
    for patient, slide in zip(patients, slides, strict=True):
        slides_of[patient].append(slide)
    return {patient: tuple(sorted(patient_slides)) for patient, patient_slides in slides_of.items()}


def read_slides(
    path: str | os.PathLike[str], columns: Columns | None = None
) -> dict[str, tuple[str, ...]]:
    """Reads the slides of every patient from a table that need not have outcomes.

    Args:
        path: a CSV file with one row per slide. Columns beyond the two needed are ignored.
        columns: names of the columns; those of UNI2-h-DSS if left out.

    Returns:
        slide ids by patient id, both sorted.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for anything but a CSV file; missing columns; no rows; empty ids; a slide in
            two rows.
    """
    columns = columns or Columns()
    patients, slides = usable_cells(Path(path), columns, (columns.patient, columns.slide))
    return _slides_of(patients, slides)


def read_table(path: str | os.PathLike[str], columns: Columns | None = None) -> SurvivalTable:
    """Reads a survival table: a CSV file with one row per slide.

    Args:
        path: the file. Columns beyond the four needed are ignored.
        columns: names, unit and coding of the columns; as in UNI2-h-DSS if left out.

    Returns:
        the patients, sorted by id, with times in days.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for anything but a CSV file; missing columns; no rows; empty ids; a time that
            is not a finite number, or negative; an event that is neither 0 nor 1 nor a usual word;
            a patient whose rows disagree in time or event; a slide in two rows; patients without
            time or event, unless they are to be dropped.
    """
    path, columns = Path(path), columns or Columns()
    read = usable_cells(path, columns, columns.names)
    (patients, slides, times, events), left_out = without_unlabeled(read)
    if left_out and columns.unlabeled == "refuse":
        raise ValueError(
            f"{path}: expected numbers in the columns {columns.time!r} and {columns.event!r}; "
            f"found none for {join_names(left_out)}; fill them in, or leave these patients out by "
            "--config.data.unlabeled=drop"
        )
    if not patients:
        raise ValueError(f"{path}: no patient has both {columns.time!r} and {columns.event!r}")
    rows = list(
        zip(
            patients,
            _numbers(path, columns.time, patients, times),
            _event_codes(path, columns, patients, events),
            strict=True,
        )
    )
    slides_of = _slides_of(patients, slides)
    days, died = _labels(path, columns, rows)
    return SurvivalTable(
        path=path,
        patients=tuple(slides_of),
        time=days * DAYS_PER_UNIT[columns.time_unit],
        event=died if columns.event_coding == "event" else ~died,
        slides=tuple(slides_of.values()),
        left_out=left_out,
    )


def with_competing(table: SurvivalTable, columns: Columns) -> SurvivalTable:
    """The table with deaths of other causes, where `columns` names a column of them.

    Raises:
        ValueError: the column is missing; a cell is neither 0 nor 1 nor a usual word; rows of a
            patient disagree; a patient has both the event and a death of another cause.
    """
    if not columns.competing:
        return table
    patients, _, texts = usable_cells(
        table.path, columns, (columns.patient, columns.slide, columns.competing)
    )
    codes: dict[str, set[float]] = {}
    for patient, text in zip(patients, texts, strict=True):
        if patient in table.row_of:
            codes.setdefault(patient, set()).add(cells.event_code(text, "event"))
    both = [p for p, seen in codes.items() if seen == {1.0} and table.event[table.row_of[p]]]
    for text, bad in (
        (
            "expected 1 where a patient died of something else and 0 elsewhere, alike in all rows "
            "of a patient; found other cells for",
            [patient for patient, seen in codes.items() if seen not in ({0.0}, {1.0})],
        ),
        (f"expected 0 where {columns.event!r} says that the event was seen; found 1 for", both),
    ):
        if bad:
            raise ValueError(
                f"{table.path}, column {columns.competing!r}: {text} {join_names(bad)}"
            )
    died = np.array([codes[patient] == {1.0} for patient in table.patients], bool)
    return dataclasses.replace(table, competing=died)


def without_unlabeled(
    columns: Sequence[Sequence[str]],
) -> tuple[list[list[str]], dict[str, tuple[str, ...]]]:
    """The rows of patients who have time and event in any of them, and the slides of the others.

    Args:
        columns: cells of patients, slides, times and events.
    """
    patients, slides, *labels = columns
    labeled_patients = {
        patient
        for patient, *row in zip(patients, *labels, strict=True)
        if not any(map(cells.is_missing, row))
    }
    labeled_columns = [
        [
            cell
            for cell, patient in zip(column, patients, strict=True)
            if patient in labeled_patients
        ]
        for column in columns
    ]
    unlabeled = [i for i, patient in enumerate(patients) if patient not in labeled_patients]
    return labeled_columns, _slides_of(
        [patients[i] for i in unlabeled], [slides[i] for i in unlabeled]
    )


def _numbers(path: Path, column: str, patients: Sequence[str], texts: Sequence[str]) -> list[float]:
    """Cells of the column of times as numbers."""
    values = list(map(cells.number, texts))
    bad = [
        f"{patient}: {text!r}"
        for patient, text, value in zip(patients, texts, values, strict=True)
        if np.isnan(value)
    ]
    if bad:
        hint = "; write decimals with a point" if any(map(cells.has_comma, texts)) else ""
        bad_texts = join_names(dict.fromkeys(bad))
        raise ValueError(f"{path}, column {column!r}: expected numbers; found {bad_texts}{hint}")
    return values


def _event_codes(
    path: Path, columns: Columns, patients: Sequence[str], texts: Sequence[str]
) -> list[float]:
    """Cells of the column of events as 0 and 1."""
    codes = [cells.event_code(text, columns.event_coding) for text in texts]
    bad = [
        f"{patient}: {text!r}"
        for patient, text, code in zip(patients, texts, codes, strict=True)
        if code not in (0, 1)
    ]
    if bad:
        bad_texts = join_names(dict.fromkeys(bad))
        advice = cells.event_advice(list(dict.fromkeys(texts)), columns.event_coding)
        raise ValueError(
            f"{path}, column {columns.event!r}: events must be 0 or 1; found {bad_texts}; {advice}"
        )
    return codes


def _labels(
    path: Path, columns: Columns, rows: list[tuple[str, float, float]]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Time and event as in the file, of the patients in sorted order, from a row per slide."""
    labels: dict[str, tuple[float, float]] = {}
    disagree = {}
    for patient, time, event in rows:
        first = labels.setdefault(patient, (time, event))
        if first != (time, event):
            disagree[patient] = f"{patient}: {first} and {(time, event)}"
    if disagree:
        raise ValueError(
            f"{path}: expected one ({columns.time}, {columns.event}) for all rows of a patient; "
            f"found {join_names(disagree.values())}"
        )
    patients = sorted(labels)
    values = np.asarray([labels[patient] for patient in patients])
    try:
        return survival_labels(values[:, 0], values[:, 1], patients)
    except ValueError as error:
        raise ValueError(
            f"{path}, columns {columns.time!r} and {columns.event!r}: {error}"
        ) from error
