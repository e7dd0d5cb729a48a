"""Cells of a fold's patients.csv: what they must be, and its clinical columns."""

import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from steph_jax import records
from steph_jax.data import cells
from steph_jax.data.clinical import ClinicalTable
from steph_jax.data.tables import SurvivalTable

PARTS = ("train", "test", "validation")
#: Before the names of clinical columns.
CLINICAL = "clinical:"
_MOST_DAYS = 1e9
_SLIDES = records.list_of(records.NAME, 1)


def name(cell: str) -> str:
    """An id."""
    if not cell:
        raise ValueError("expected an id")
    return cell


def part(cell: str) -> str:
    """A part of the split."""
    if cell not in PARTS:
        raise ValueError(f"expected one of {', '.join(PARTS)}")
    return cell


def days(cell: str) -> float:
    """A time in days."""
    try:
        number = float(cell)
    except ValueError:
        number = math.nan
    if not 0 <= number <= _MOST_DAYS:
        raise ValueError("expected days, 0 or more")
    return number


def event(cell: str) -> bool:
    """Whether an event was seen."""
    if cell not in ("0", "1"):
        raise ValueError("expected 0 or 1")
    return cell == "1"


def slides(cell: str) -> list[str]:
    """Slide ids, as JSON."""
    try:
        ids: list[str] = json.loads(cell)
    except (ValueError, RecursionError):
        ids = []
    if _SLIDES.problem("", ids):
        raise ValueError(f"expected {_SLIDES.expected}")
    return ids


#: How a cell of each column is read; raises ValueError with what was expected.
READERS: dict[str, Callable[[str], Any]] = {
    "patient_id": name,
    "part": part,
    "t": days,
    "e": event,
    "slides": slides,
}


def clinical_cells(table: SurvivalTable, patients: Sequence[str]) -> dict[str, list[str]]:
    """The clinical columns of some patients, by their names in the file."""
    columns = {} if table.clinical is None else table.clinical.columns
    return {
        f"{CLINICAL}{title}": [column.get(patient, "") for patient in patients]
        for title, column in columns.items()
    }


def clinical_table(path: pathlib.Path, rows: pd.DataFrame) -> ClinicalTable | None:
    """The clinical columns of the patients of a fold; None where it has none."""
    columns = {
        title.removeprefix(CLINICAL): {
            patient: cell
            for patient, cell in zip(rows["patient_id"], rows[title], strict=True)
            if not cells.is_missing(cell)
        }
        for title in map(str, rows)
        if title.startswith(CLINICAL)
    }
    return ClinicalTable(path, columns) if columns else None
