"""Clinical columns of patients: age, stage, grade and the like, as numbers or categories."""

import math
import pathlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from steph_jax.data import cells, csv_files
from steph_jax.data.columns import Columns
from steph_jax.messages import join_names

#: Categories of fewer patients are joined, and a column has at most so many categories.
FEWEST_PATIENTS, MOST_CATEGORIES = 10, 12
_OTHER = "other"


class ClinicalTable(NamedTuple):
    """Cells of some columns, of some patients.

    Attributes:
        path: of the file.
        columns: by name, the cell of each patient who has one: text without missing values.
    """

    path: pathlib.Path
    columns: dict[str, dict[str, str]]

    def of_patients(self, patients: Iterable[str]) -> "ClinicalTable":
        """The cells of some patients."""
        order = list(patients)
        return self._replace(
            columns={
                name: {patient: column[patient] for patient in order if patient in column}
                for name, column in self.columns.items()
            }
        )


class Variable(NamedTuple):
    """A predictor that was made of a column.

    Attributes:
        column: name of the column.
        unit: what its coefficient is for: "per 12.3 (one standard deviation)", "II against I".
        values: [P] a standardized number, or 1 where the patient is of the category, else 0.
    """

    column: str
    unit: str
    values: NDArray[np.float64]


def read(path: pathlib.Path, id_column: str, names: Sequence[str] = ()) -> ClinicalTable:
    """Reads columns of a table with a row per patient, or several that agree.

    Args:
        path: CSV.
        id_column: of patient ids.
        names: of the columns; all others by default.

    Raises:
        FileNotFoundError, ValueError: no table, a column that is missing or named twice, or a
            patient whose rows disagree.
    """
    header, rows = csv_files.read(path, "expected a table with a row per patient")
    wanted = list(names) or [name for name in header if name != id_column]
    missing = [name for name in (id_column, *wanted) if name not in header]
    if missing:
        raise ValueError(
            f"{path}: expected the columns {', '.join((id_column, *wanted))}; missing "
            f"{join_names(missing)}; found {join_names(header)}"
        )
    twice = [name for name, count in Counter(header).items() if count > 1 and name in wanted]
    twice += [name for name, count in Counter((id_column, *wanted)).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: expected every column once, found twice: {join_names(twice)}")
    place = header.index(id_column)
    columns: dict[str, dict[str, str]] = {}
    for name in wanted:
        column = columns[name] = {}
        at, disagree = header.index(name), []
        for _, row in rows:
            if cells.is_missing(row[at]) or cells.is_missing(row[place]):
                continue
            if column.setdefault(row[place], row[at]) != row[at]:
                disagree.append(row[place])
        if disagree:
            raise ValueError(
                f"{path}, column {name!r}: expected one value for all rows of a patient; they "
                f"differ for {join_names(dict.fromkeys(disagree))}; correct them"
            )
    return ClinicalTable(path, columns)


def complete(table: ClinicalTable, patients: Iterable[str]) -> list[str]:
    """Those of the patients who have a value in every column."""
    return [p for p in patients if all(p in column for column in table.columns.values())]


def variables(table: ClinicalTable, patients: Sequence[str]) -> list[Variable]:
    """Predictors of patients who have a value in every column.

    A column of numbers is standardized over these patients. Any other, and one of two numbers,
    becomes a predictor for each category but the most frequent one; categories of fewer than
    `FEWEST_PATIENTS` are joined, with the most frequent one if they are still as few.

    Raises:
        ValueError: a column without two values, or with too many categories; names file and column.
    """
    return [
        variable
        for name, column in table.columns.items()
        for variable in _variables(table.path, name, [column[patient] for patient in patients])
    ]


def _variables(path: pathlib.Path, name: str, texts: Sequence[str]) -> list[Variable]:
    counts = Counter(texts)
    if len(counts) < 2:
        raise ValueError(
            f"{path}, column {name!r}: expected values that differ, found "
            f"{join_names(counts) or 'none'} in all {len(texts)} patients; leave the column out"
        )
    if not is_numeric(path, name, counts):
        (label, _), *others = groups(counts)
        cells_of = np.asarray(texts)
        return [
            Variable(name, f"{title} against {label}", np.isin(cells_of, members).astype(float))
            for title, members in others
        ]
    values = np.array([cells.number(text) for text in texts])
    sd = float(values.std(ddof=1))
    if sd == 0:
        raise ValueError(
            f"{path}, column {name!r}: expected values that differ; leave the column out"
        )
    unit = f"per {sd:.3g} (one standard deviation)"
    return [Variable(name, unit, (values - values.mean()) / sd)]


def is_numeric(path: pathlib.Path, name: str, counts: Mapping[str, int]) -> bool:
    """Whether a column with these cells holds numbers; two different ones are categories.

    Raises:
        ValueError: too many different cells for categories; names file and column.
    """
    numbers = {text: cells.number(text) for text in counts}
    if len(counts) > 2 and all(map(math.isfinite, numbers.values())):
        return True
    if len(counts) > MOST_CATEGORIES:
        odd = [text for text, number in numbers.items() if not math.isfinite(number)]
        hint = "; write decimals with a point" if any(map(cells.has_comma, odd)) else ""
        raise ValueError(
            f"{path}, column {name!r}: expected numbers, or at most {MOST_CATEGORIES} categories; "
            f"found {len(counts)} different cells, no numbers such as {join_names(odd, 3)}{hint}"
        )
    return False


def groups(counts: Mapping[str, int]) -> list[tuple[str, list[str]]]:
    """Categories as they are compared: the reference first, each with a title and its members.

    The reference is the most frequent one. Those of fewer than `FEWEST_PATIENTS` are joined, with
    the reference if they are still as few.

    Args:
        counts: patients by category, one category or more.
    """
    reference, *rest = sorted(counts, key=lambda text: (-counts[text], text))
    rare = [text for text in rest if counts[text] < FEWEST_PATIENTS]
    others = {text: [text] for text in rest if text not in rare}
    first = (reference, [reference])
    if rare and (sum(counts[text] for text in rare) >= FEWEST_PATIENTS or not others):
        others[rare[0] if len(rare) == 1 else f"{_OTHER} ({', '.join(sorted(rare))})"] = rare
    elif rare:
        first = (f"{reference} (and {', '.join(sorted(rare))})", [reference, *rare])
    return [first, *sorted(others.items())]


def expect_no_outcome(names: Sequence[str], columns: Columns, what: str) -> None:
    """Raises ValueError where one of some clinical columns is the outcome that is to be predicted.

    Args:
        names: of the clinical columns.
        columns: of the survival table.
        what: named them, for the message.
    """
    for name in (columns.time, columns.event, columns.competing):
        if name and name in names:
            raise ValueError(
                f"{what}: {name} is the outcome itself (data.columns); name what was known before"
            )
