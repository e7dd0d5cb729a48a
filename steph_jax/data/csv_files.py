"""CSV files as text, cell by cell, so that no id turns into a number or a missing value."""

import csv
from collections.abc import Sequence
from pathlib import Path

from steph_jax.messages import listed


def read(path: Path, hint: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Reads a CSV file in UTF-8 (a byte order mark is skipped).

    Args:
        path: the file.
        hint: what to do if it is missing, for the message.

    Returns:
        the header, and (line number, cells) of every row that is not blank. Cells are text without
        surrounding spaces; short rows are padded with empty cells to the header's length.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is empty, no CSV, or has a row longer than the header.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; {hint}")
    rows = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            for cells in reader:
                stripped = [cell.strip() for cell in cells]
                if any(stripped):
                    rows.append((reader.line_num, stripped))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: expected a CSV file in UTF-8; {error}") from error
    if not rows:
        raise ValueError(f"{path}: expected a CSV file with a header line, found an empty file")
    header = rows[0][1]
    for line, cells in rows[1:]:
        if any(cells[len(header) :]):
            raise ValueError(
                f"{path}, line {line}: expected {len(header)} cells as in the header, "
                f"found {len(cells)}"
            )
        cells += [""] * (len(header) - len(cells))
    return header, rows[1:]


def numbers(path: Path, column: str, patients: Sequence[str], cells: Sequence[str]) -> list[float]:
    """Cells of a column as numbers.

    Args:
        path: the file, for the message.
        column: name of the column, for the message.
        patients: of each cell, for the message.
        cells: the text.

    Raises:
        ValueError: naming the patients, ten at most, whose cells are none.
    """
    values, bad = [], []
    for patient, cell in zip(patients, cells, strict=True):
        try:
            # float() would take 1_000 for a thousand
            values.append(float(cell.replace("_", "?")))
        except ValueError:
            bad.append(f"{patient}: {cell!r}")
    if bad:
        raise ValueError(f"{path}, column {column!r}: expected numbers; found {listed(bad)}")
    return values
