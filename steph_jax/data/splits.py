"""Splits on disk (docs/method.md, section 6), and whether they fit their table.

{root}/{dataset}/splits_{k}.csv           train, test and perhaps validation: patient ids
"""

import dataclasses
import itertools
import os
from collections import Counter
from pathlib import Path

from steph_jax.data import cells, csv_files, persons
from steph_jax.data.columns import WHERE_TO_GET_DATA
from steph_jax.data.tables import SurvivalTable
from steph_jax.messages import join_names

_BOOLEANS = {"true", "false", "0", "1", "0.0", "1.0"}


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

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """The patients of each part, by its name."""
        return {"train": self.train, "test": self.test, "validation": self.validation}


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is wrong with a split.

    Attributes:
        text: a sentence that ends where the patients' names begin.
        patients: whom it is about.
        advice: what to do.
        kind: shared by problems that have one cause in several folds, whatever their text; "" where
            part of the text.
    """

    text: str
    patients: tuple[str, ...] = ()
    advice: str = ""
    kind: str = ""

    def __str__(self) -> str:
        text = f"{self.text}: {join_names(self.patients)}" if self.patients else self.text
        return f"{text}; {self.advice}" if self.advice else text


def split_path(root: str | os.PathLike[str], dataset: str, fold: int) -> Path:
    """{root}/{dataset}/splits_{fold}.csv."""
    return Path(root) / dataset / f"splits_{fold}.csv"


def how_to_make(folder: Path) -> str:
    """What to do about splits that are missing from the folder of a dataset."""
    table = folder / f"{folder.name}_survival.csv"
    return (
        f"`python -m steph_jax.split --table {table} --out {folder}` makes splits of a table of "
        f"yours; {WHERE_TO_GET_DATA}"
    )


def read_split(path: str | os.PathLike[str]) -> Split:
    """Reads the patient ids of one fold: a CSV file with a column per part, padded with empties.

    Args:
        path: the file, with columns train, test and perhaps validation or val, and perhaps a first
            column without a name (a row number, ignored). Missing values (NA) are padding too.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for anything but a CSV file, other columns, or a table of booleans.
    """
    path = Path(path)
    header, rows = csv_files.read(path, how_to_make(path.parent))
    columns = header[1:] if header[0] in ("", "Unnamed: 0") else header
    validation = [name for name in ("validation", "val") if name in columns]
    if len(validation) > 1 or sorted(columns) != sorted(["train", "test", *validation]):
        hint = ""
        if validation and "train" in columns and "test" not in columns:
            hint = f"; rename {validation[0]} to test, if models are tested on these patients"
        raise ValueError(
            f"{path}: expected the columns train, test and perhaps one of validation, val; found "
            f"{', '.join(columns)}{hint}"
        )
    lines = [line for line, row in rows if not "".join(row).isprintable()]
    if lines:
        raise ValueError(
            f"{path}: ids with line breaks or other control characters in line "
            f"{join_names(lines)}; "
            "correct them"
        )
    parts = {
        name: tuple(cell for _, row in rows if not cells.is_missing(cell := row[place]))
        for name, place in ((name, header.index(name)) for name in columns)
    }
    every = [patient.lower() for patients in parts.values() for patient in patients]
    if len(every) > len(_BOOLEANS) and set(every) <= _BOOLEANS:
        raise ValueError(
            f"{path}: expected patient ids in the columns {', '.join(columns)}, found a table of "
            "booleans, as CLAM's splits_*_bool.csv; use the file with ids that CLAM writes beside "
            "it, with patients in place of slides"
        )
    return Split(path, parts["train"], parts["test"], parts[validation[0]] if validation else ())


def without_left_out(split: Split, table: SurvivalTable) -> Split:
    """A split without the patients that its table leaves out for want of time or event."""

    def without(patients: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(patient for patient in patients if patient not in table.left_out)

    return Split(split.path, without(split.train), without(split.test), without(split.validation))


def split_problems(
    split: Split, table: SurvivalTable, events_are_read: bool = True
) -> list[Problem]:
    """Everything that makes a split unfit for its table; empty if nothing does.

    Args:
        split: of a fold.
        table: of the dataset.
        events_are_read: whether the table has events; else their number is not checked.
    """
    parts = split.parts
    problems = [
        Problem(
            f"expected patients in {name}, found none",
            advice="`python -m steph_jax.split` makes splits",
        )
        for name in ("train", "test")
        if not parts[name]
    ]
    for name, patients in parts.items():
        twice = tuple(patient for patient, count in Counter(patients).items() if count > 1)
        if twice:
            problems.append(Problem(f"patients more than once in {name}", twice))
    for one, other in itertools.combinations(parts, 2):
        shared = tuple(sorted(set(parts[one]) & set(parts[other])))
        if shared:
            problems.append(
                Problem(f"patients in both {one} and {other}", shared, "keep each in one of them")
            )
    problems += _shared_persons(parts, table)
    other_ids = ids_of_table(split, table)
    if other_ids:
        problems.append(_under_other_ids(other_ids, table))
    for name, patients in parts.items():
        absent = (p for p in patients if p not in table.row_of and p not in other_ids)
        unknown = tuple(dict.fromkeys(absent))
        if unknown:
            problems.append(
                Problem(
                    f"patients of {name} that {table.path} lacks",
                    unknown,
                    "add them to the table, or take them out of the split",
                )
            )
    rows = [table.row_of[patient] for patient in split.train if patient in table.row_of]
    if events_are_read and rows and not other_ids and not table.event[rows].any():
        problems.append(
            Problem(
                "expected events among the training patients, found none",
                advice="`python -m steph_jax.split` deals events to all folds",
            )
        )
    return problems


def _shared_persons(parts: dict[str, tuple[str, ...]], table: SurvivalTable) -> list[Problem]:
    """Persons who are in two parts under two ids."""
    problems = []

    def person(patient: str) -> str:
        return table.person_of.get(patient) or persons.normalized_patient_id(patient)

    for one, other in itertools.combinations(parts, 2):
        first = {person(patient): patient for patient in parts[one]}
        twins = tuple(
            f"{first[person(patient)]} and {patient}"
            for patient in dict.fromkeys(parts[other])
            if person(patient) in first and patient not in parts[one]
        )
        if twins:
            problems.append(
                Problem(
                    f"the same persons in both {one} and {other}, under two ids",
                    twins,
                    "give a person one id in table and splits, or make folds by `python -m "
                    "steph_jax.split`, which keeps the ids of a person together",
                )
            )
    return problems


def ids_of_table(split: Split, table: SurvivalTable) -> dict[str, str]:
    """The table's ids of patients whom a split names otherwise, or by their slides."""
    unknown = [p for part in split.parts.values() for p in part if p not in table.row_of]
    if not unknown:
        return {}
    owner: dict[str, str] = {}
    for patient, slides in zip(table.patients, table.slides, strict=True):
        for key in persons.person_keys(patient, slides):
            owner.setdefault(key, patient)
    table_ids = {}
    for patient in unknown:
        keys = persons.person_keys(patient, [patient])
        table_id = next((owner[key] for key in sorted(keys) if key in owner), None)
        if table_id is not None:
            table_ids[patient] = table_id
    return table_ids


def _under_other_ids(other_ids: dict[str, str], table: SurvivalTable) -> Problem:
    """The problem of a split that names patients of the table otherwise."""
    examples = [f"{split_id} here is {table_id} there" for split_id, table_id in other_ids.items()][
        :2
    ]
    slides = {slide for slides in table.slides for slide in slides}
    if any(patient in slides for patient in other_ids):
        text = f"slides of {table.path} in place of their patients"
        advice = "keep the folds: write the patient of each slide into the splits, once"
    else:
        text = f"the same persons as in {table.path}, under ids of another form"
        advice = "keep the folds: write the ids of one of the two files as the other does"
    message = f"{text} ({'; '.join(examples)})"
    return Problem(message, tuple(other_ids), advice, kind=text)


def check_split(split: Split, table: SurvivalTable) -> None:
    """Refuses a split that its table does not fit.

    Raises:
        ValueError: for an empty train or test part; a patient more than once in a part, or a person
            in two parts; patients that the table lacks or names otherwise; no event in training.
            Names all of these at once, at most ten patients each.
    """
    problems = split_problems(split, table)
    if problems:
        raise ValueError(f"{split.path}: {'; '.join(map(str, problems))}")
