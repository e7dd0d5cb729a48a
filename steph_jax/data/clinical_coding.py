"""Clinical columns as numbers for a model: coded by training patients, for any patient after.

Whether a column holds numbers or categories is decided by all cells that are there; means,
categories and what stands for a missing cell by the training patients.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from steph_jax import records
from steph_jax.data import cells, clinical
from steph_jax.data.clinical import ClinicalTable
from steph_jax.messages import join_names

#: The category of patients without a cell; no cell is this word (`cells.is_missing`).
MISSING = "missing"

#: The codings of a stored model, as `Coding.to_json` gives them.
RECORDS = records.list_of(
    records.record(
        {
            "column": records.NAME,
            "missing": records.WHOLE,
            "mean": records.or_null(records.NUMBER),
            "groups": records.list_of(
                records.record({"title": records.TEXT, "members": records.list_of(records.TEXT, 1)})
            ),
        }
    ),
    1,
)


class Group(NamedTuple):
    """Categories that count as one.

    Attributes:
        title: in words.
        members: the categories.
    """

    title: str
    members: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Coding:
    """How a column becomes predictors.

    Attributes:
        column: its name.
        missing: how many training patients have no cell.
        mean: of the training patients' numbers, which a missing one takes; None for categories.
        groups: of categories, the reference first, each other one with a predictor that is 1 in it.
    """

    column: str
    missing: int
    mean: float | None
    groups: tuple[Group, ...] = ()

    @property
    def width(self) -> int:
        """Number of predictors."""
        return 1 if self.mean is not None else max(0, len(self.groups) - 1)

    def to_json(self) -> dict[str, Any]:
        """JSON-able form, which `from_json` reads."""
        groups = [{"title": group.title, "members": list(group.members)} for group in self.groups]
        return dataclasses.asdict(self) | {"groups": groups}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Coding":
        """See `RECORDS`."""
        groups = tuple(Group(each["title"], tuple(each["members"])) for each in record["groups"])
        return cls(record["column"], record["missing"], record["mean"], groups)


def code(table: ClinicalTable, patients: Sequence[str]) -> list[Coding]:
    """The coding of each column, by training patients.

    Args:
        table: cells, of other patients too.
        patients: the training patients.

    Raises:
        ValueError: a column without any cell, one of text with too many categories, or columns none
            of which differs between these patients; names the file.
    """
    codings = [_code(table, name, patients) for name in table.columns]
    if not np.ptp(values(codings, table, patients), axis=0).any():
        raise ValueError(
            f"{table.path}, columns {join_names(table.columns)}: expected values that differ "
            f"between training patients, found the same in all {len(patients)}"
        )
    return codings


def _code(table: ClinicalTable, name: str, patients: Sequence[str]) -> Coding:
    column = table.columns[name]
    known = [column[patient] for patient in patients if patient in column]
    missing = len(patients) - len(known)
    if clinical.is_numeric(table.path, name, Counter(column.values())):
        numbers = [cells.number(cell) for cell in known]
        return Coding(name, missing, float(np.mean(numbers)) if numbers else 0.0)
    groups = clinical.groups(Counter([*known, *[MISSING] * missing]))
    return Coding(name, missing, None, tuple(Group(title, tuple(of)) for title, of in groups))


def values(
    codings: Sequence[Coding], table: ClinicalTable, patients: Sequence[str]
) -> Float64[np.ndarray, "P K"]:
    """The predictors of some patients.

    A missing number is the training patients' mean. A missing category is that of the training
    patients without one, or the reference where those were few; so is a category that no training
    patient has.

    Raises:
        ValueError: a column is missing; a cell is no number in a column of numbers; names file,
            column and patient.
    """
    missing = [coding.column for coding in codings if coding.column not in table.columns]
    if missing:
        raise ValueError(
            f"{table.path}: expected the clinical columns "
            f"{join_names(coding.column for coding in codings)}; missing {join_names(missing)}"
        )
    columns = [_values(coding, table, patients) for coding in codings]
    return np.concatenate(columns, axis=1)


def _values(
    coding: Coding, table: ClinicalTable, patients: Sequence[str]
) -> Float64[np.ndarray, "P K"]:
    column = table.columns[coding.column]
    if coding.mean is None:
        place = {text: i for i, group in enumerate(coding.groups) for text in group.members}
        without = place.get(MISSING, 0)
        at = np.array([place.get(column.get(patient, MISSING), without) for patient in patients])
        return (at[:, None] == np.arange(1, coding.width + 1)).astype(np.float64)
    numbers = []
    for patient in patients:
        number = cells.number(column[patient]) if patient in column else coding.mean
        if not np.isfinite(number):
            raise ValueError(
                f"{table.path}, column {coding.column!r}: expected numbers, as the training "
                f"patients have; found {column[patient][:60]!r} ({patient})"
            )
        numbers.append(number)
    return np.array(numbers, np.float64)[:, None]
