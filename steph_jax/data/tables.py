"""Survival tables and splits on disk (docs/method.md, section 6).

    {root}/{dataset}/{dataset}_survival.csv   one row per slide: patient, slide, time, event
    {root}/{dataset}/splits_{k}.csv           train, test and perhaps validation: patient ids

Ids are text, whatever they look like: `007` is not `7`. Time bins are at home in `bins`, and can be
had from here as well.
"""

import dataclasses
import functools
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steph_jax.data import csv_files
from steph_jax.messages import listed
from steph_jax.survival.labels import survival_labels
from steph_jax.survival.time_bins import TimeBins as TimeBins
from steph_jax.survival.time_bins import quantile_bins as quantile_bins
from steph_jax.survival.time_bins import sqrt_event_bins as sqrt_event_bins
from steph_jax.survival.time_bins import uniform_bins as uniform_bins

DAYS_PER_UNIT = {"days": 1.0, "months": 365.25 / 12, "years": 365.25}
EVENT_CODINGS = ("event", "censorship")
#: What is done with patients without time or event.
UNLABELED = ("refuse", "drop")
#: Cells, in lower case, of what is not known.
_UNKNOWN = ("", "na", "nan", "n/a", "#n/a", "null", "none")

WHERE_TO_GET_DATA = (
    "tables, splits and features of the 13 cohorts are published on Hugging Face as UNI2-h-DSS, by "
    "the authors of STEPH (https://arxiv.org/abs/2603.10526), and PyTorch checkpoints with its "
    "code, which that page links; `make demo` runs on simulated data"
)


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names and coding of the columns that UNI2-h-DSS calls patient_id, pathology_id, t and e.

    Attributes:
        patient: column of patient ids.
        slide: column of slide ids.
        time: column of times to the event or to the end of follow-up.
        event: column that tells the two apart.
        time_unit: a key of `DAYS_PER_UNIT`; a year has 365.25 days and a month a twelfth of that.
        event_coding: "event" where 1 means that death was seen, "censorship" where 1 means that
            it was not.
        unlabeled: "refuse" a table with patients without time or event, or "drop" them.

    Raises:
        ValueError: for an unknown unit, coding or way with the unlabeled, or a column named twice.
    """

    patient: str = "patient_id"
    slide: str = "pathology_id"
    time: str = "t"
    event: str = "e"
    time_unit: str = "days"
    event_coding: str = "event"
    unlabeled: str = "refuse"

    def __post_init__(self) -> None:
        if self.time_unit not in DAYS_PER_UNIT:
            known = ", ".join(DAYS_PER_UNIT)
            raise ValueError(f"the time unit is one of {known}, not {self.time_unit!r}")
        if self.event_coding not in EVENT_CODINGS:
            known = ", ".join(EVENT_CODINGS)
            raise ValueError(f"the event coding is one of {known}, not {self.event_coding!r}")
        if self.unlabeled not in UNLABELED:
            known = ", ".join(UNLABELED)
            raise ValueError(f"data.unlabeled is one of {known}, not {self.unlabeled!r}")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"four different columns are needed, found {', '.join(self.names)}")

    @property
    def names(self) -> tuple[str, str, str, str]:
        """The four columns, in the order patient, slide, time, event."""
        return self.patient, self.slide, self.time, self.event


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
    """

    path: Path
    patients: tuple[str, ...]
    time: NDArray[np.float64]
    event: NDArray[np.bool_]
    slides: tuple[tuple[str, ...], ...]
    left_out: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.patients)

    @functools.cached_property
    def row_of(self) -> Mapping[str, int]:
        """Row of each patient."""
        return {patient: row for row, patient in enumerate(self.patients)}

    def rows(self, patients: Iterable[str]) -> NDArray[np.intp]:
        """Rows of these patients, in their order.

        Raises:
            ValueError: naming those that the table lacks.
        """
        wanted = list(patients)
        missing = [patient for patient in wanted if patient not in self.row_of]
        if missing:
            raise ValueError(f"{self.path}: no such patients: {listed(missing)}")
        return np.asarray([self.row_of[patient] for patient in wanted], np.intp)


@dataclasses.dataclass(frozen=True)
class Split:
    """Patient ids of one fold, in the order of the file.

    Attributes:
        path: the file.
        train, test, validation: patient ids; validation is empty where the file has none.
    """

    path: Path
    train: tuple[str, ...]
    test: tuple[str, ...]
    validation: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is wrong with a split: a sentence that ends where the patients' names begin."""

    text: str
    patients: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.text}: {listed(self.patients)}" if self.patients else self.text


def table_path(root: str | os.PathLike[str], dataset: str) -> Path:
    """{root}/{dataset}/{dataset}_survival.csv."""
    return Path(root) / dataset / f"{dataset}_survival.csv"


def split_path(root: str | os.PathLike[str], dataset: str, fold: int) -> Path:
    """{root}/{dataset}/splits_{fold}.csv."""
    return Path(root) / dataset / f"splits_{fold}.csv"


def _cells(path: Path, names: Sequence[str]) -> list[list[str]]:
    """The columns of these names, a list of cells each; the first two, the ids, have no blanks."""
    header, rows = csv_files.read(path, WHERE_TO_GET_DATA)
    missing = [name for name in names if name not in header]
    if missing:
        raise ValueError(
            f"{path}: expected the columns {', '.join(names)}; missing {', '.join(missing)}; "
            f"found {', '.join(header)}"
        )
    repeated = [name for name in names if header.count(name) > 1]
    if repeated:
        raise ValueError(f"{path}: columns that occur twice: {', '.join(repeated)}")
    if not rows:
        raise ValueError(f"{path}: expected a row per slide, found the header alone")
    columns = [[cells[header.index(name)] for _, cells in rows] for name in names]
    for name, ids in zip(names[:2], columns, strict=False):
        empty = [line for (line, _), cell in zip(rows, ids, strict=True) if not cell]
        if empty:
            raise ValueError(f"{path}, column {name!r}: empty in line {listed(empty)}")
    twice = [slide for slide, count in Counter(columns[1]).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: expected one row per slide; in several rows: {listed(twice)}")
    return columns


def _slides_of(patients: Sequence[str], slides: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The slides of each patient; both sorted."""
    found: dict[str, list[str]] = {patient: [] for patient in sorted(set(patients))}
    for patient, slide in zip(patients, slides, strict=True):
        found[patient].append(slide)
    return {patient: tuple(sorted(of)) for patient, of in found.items()}


def read_slides(
    path: str | os.PathLike[str], columns: Columns | None = None
) -> dict[str, tuple[str, ...]]:
    """Reads which slides are whose from a table that need not tell what became of the patients.

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
    patients, slides = _cells(Path(path), (columns.patient, columns.slide))
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
            is not a finite number, or negative; an event that is neither 0 nor 1; a patient whose
            rows disagree in time or event; a slide in two rows; patients without time or event,
            unless they are to be dropped.
    """
    path, columns = Path(path), columns or Columns()
    (patients, slides, *label_cells), left_out = without_unlabeled(_cells(path, columns.names))
    if left_out and columns.unlabeled == "refuse":
        raise ValueError(
            f"{path}: expected numbers in the columns {columns.time!r} and {columns.event!r}; "
            f"found none for {listed(left_out)}; fill them in, or leave these patients out by "
            "--config.data.unlabeled=drop (--unlabeled drop of steph_jax.split)"
        )
    if not patients:
        raise ValueError(f"{path}: no patient has both {columns.time!r} and {columns.event!r}")
    times, events = (
        csv_files.numbers(path, name, patients, cells)
        for name, cells in zip(columns.names[2:], label_cells, strict=True)
    )
    slides_of = _slides_of(patients, slides)
    days, died = _labels(path, columns, list(zip(patients, times, events, strict=True)))
    return SurvivalTable(
        path=path,
        patients=tuple(slides_of),
        time=days * DAYS_PER_UNIT[columns.time_unit],
        event=died if columns.event_coding == "event" else ~died,
        slides=tuple(slides_of.values()),
        left_out=left_out,
    )


def without_unlabeled(
    columns: Sequence[Sequence[str]],
) -> tuple[list[list[str]], dict[str, tuple[str, ...]]]:
    """The rows of patients who have time and event in any of them, and the slides of the others.

    Args:
        columns: cells of patients, slides, times and events.
    """
    patients, slides, *labels = columns
    labeled = {
        patient
        for patient, *cells in zip(patients, *labels, strict=True)
        if not any(cell.lower() in _UNKNOWN for cell in cells)
    }
    kept = [
        [cell for cell, patient in zip(cells, patients, strict=True) if patient in labeled]
        for cells in columns
    ]
    others = [i for i, patient in enumerate(patients) if patient not in labeled]
    return kept, _slides_of([patients[i] for i in others], [slides[i] for i in others])


def _labels(
    path: Path, columns: Columns, rows: list[tuple[str, float, float]]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Time and event as in the file, of the patients in sorted order, from a row per slide."""
    labels: dict[str, tuple[float, float]] = {}
    disagree = {}
    for patient, time, event in rows:
        first = labels.setdefault(patient, (time, event))
        if repr(first) != repr((time, event)):  # text, so that a NaN equals a NaN
            disagree[patient] = f"{patient}: {first} and {(time, event)}"
    if disagree:
        raise ValueError(
            f"{path}: expected one ({columns.time}, {columns.event}) for all rows of a patient; "
            f"found {listed(disagree.values())}"
        )
    patients = sorted(labels)
    values = np.asarray([labels[patient] for patient in patients])
    try:
        return survival_labels(values[:, 0], values[:, 1], patients)
    except ValueError as error:
        raise ValueError(
            f"{path}, columns {columns.time!r} and {columns.event!r}: {error}"
        ) from error


def read_split(path: str | os.PathLike[str]) -> Split:
    """Reads the patient ids of one fold: a CSV file with a column per part, padded with empties.

    Args:
        path: the file, with columns train, test and perhaps validation or val, and perhaps a first
            column without a name (a row number, ignored).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for anything but a CSV file, or other columns.
    """
    path = Path(path)
    header, rows = csv_files.read(path, WHERE_TO_GET_DATA)
    named = header[1:] if header[0] in ("", "Unnamed: 0") else header
    validation = [name for name in ("validation", "val") if name in named]
    if len(validation) > 1 or sorted(named) != sorted(["train", "test", *validation]):
        raise ValueError(
            f"{path}: expected the columns train, test and perhaps one of validation, val; found "
            f"{', '.join(named)}"
        )
    parts = {
        name: tuple(cells[header.index(name)] for _, cells in rows if cells[header.index(name)])
        for name in named
    }
    return Split(path, parts["train"], parts["test"], parts[validation[0]] if validation else ())


def without_left_out(split: Split, table: SurvivalTable) -> Split:
    """A split without the patients that its table leaves out for want of time or event."""

    def kept(patients: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(patient for patient in patients if patient not in table.left_out)

    return Split(split.path, kept(split.train), kept(split.test), kept(split.validation))


def split_problems(split: Split, table: SurvivalTable) -> list[Problem]:
    """Everything that makes a split unfit for its table; empty if nothing does."""
    parts = {"train": split.train, "test": split.test, "validation": split.validation}
    problems = [
        Problem(f"expected patients in {name}, found none")
        for name in ("train", "test")
        if not parts[name]
    ]
    for name, patients in parts.items():
        twice = tuple(patient for patient, count in Counter(patients).items() if count > 1)
        if twice:
            problems.append(Problem(f"patients more than once in {name}", twice))
    for one, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
        shared = tuple(sorted(set(parts[one]) & set(parts[other])))
        if shared:
            problems.append(Problem(f"patients in both {one} and {other}", shared))
    for name, patients in parts.items():
        unknown = tuple(dict.fromkeys(p for p in patients if p not in table.row_of))
        if unknown:
            numbers = all(patient.removesuffix(".0") in table.row_of for patient in unknown)
            hint = " (written as numbers there: pad the columns as text)" if numbers else ""
            problems.append(Problem(f"patients of {name} that {table.path} lacks{hint}", unknown))
    known = [table.row_of[patient] for patient in split.train if patient in table.row_of]
    if known and not table.event[known].any():
        problems.append(Problem("expected events among the training patients, found none"))
    return problems


def check_split(split: Split, table: SurvivalTable) -> None:
    """Refuses a split that its table does not fit.

    Raises:
        ValueError: for an empty train or test part; a patient more than once in a part, or in two
            parts; patients that the table lacks; no event in training. Names all of these at once,
            at most ten patients each.
    """
    problems = split_problems(split, table)
    if problems:
        raise ValueError(f"{split.path}: {'; '.join(map(str, problems))}")
