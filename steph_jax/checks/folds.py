"""Splits against their table, against each other, and against what the sources were trained on."""

import math
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from steph_jax.checks import findings
from steph_jax.checks.findings import Finding
from steph_jax.data import tables
from steph_jax.data.cohort import same_person
from steph_jax.data.leaks import find_leaks
from steph_jax.data.tables import Columns, Split, SurvivalTable

CHECK = "splits"
#: Standard errors by which the event rates of train and test may differ.
_LARGEST_DIFFERENCE = 3.0


def check_splits(
    root: Path, dataset: str, folds: list[int], table: SurvivalTable | None, batch_size: int
) -> tuple[dict[int, Split], list[Finding]]:
    """Reads the splits of a dataset and finds all that is wrong with them.

    Args:
        root: folder of datasets.
        dataset: name of one.
        folds: numbers of the splits.
        table: of the dataset; None where it cannot be read.
        batch_size: patients that a fold needs for training.

    Returns:
        the splits that can be read, by fold, and findings.
    """
    found: list[Finding] = []
    splits: dict[int, Split] = {}
    for fold in folds:
        path = tables.split_path(root, dataset, fold)
        split = findings.attempt(CHECK, found, partial(tables.read_split, path))
        if split is None:
            continue
        if table is not None:
            split = tables.without_left_out(split, table)
            found += _fold(fold, split, table, batch_size)
        splits[fold] = split
    found += _between(splits)
    if table is not None and splits:
        named = {p for s in splits.values() for p in (*s.train, *s.test, *s.validation)}
        unused = [patient for patient in table.patients if patient not in named]
        if unused:
            found.append(
                findings.warning(
                    CHECK,
                    f"patients of the table that no split names ({len(unused)})",
                    "they are not used",
                    unused,
                )
            )
    return splits, found


def _fold(fold: int, split: Split, table: SurvivalTable, batch_size: int) -> list[Finding]:
    found = [
        findings.error(
            CHECK,
            f"{split.path}: {problem.text}"
            + (f" ({len(problem.patients)})" if problem.patients else ""),
            "correct the split, or make new ones by python -m steph_jax.split",
            problem.patients,
        )
        for problem in tables.split_problems(split, table)
    ]
    persons = {same_person(patient): patient for patient in split.train}
    twins = [
        f"{persons[same_person(patient)]} and {patient}"
        for patient in split.test
        if patient not in split.train and same_person(patient) in persons
    ]
    if twins:
        found.append(
            findings.error(
                CHECK,
                f"{split.path}: patients in both train and test, under two ids ({len(twins)})",
                "give each patient one id",
                twins,
            )
        )
    if split.train and len(split.train) < batch_size:
        found.append(
            findings.error(
                CHECK,
                f"{split.path}: {len(split.train)} training patients, fewer than a batch",
                f"lower --config.batch_size (now {batch_size})",
                patients=len(split.train),
                batch_size=batch_size,
            )
        )
    return [*found, *_event_rates(fold, split, table)]


def _event_rates(fold: int, split: Split, table: SurvivalTable) -> list[Finding]:
    """Patients and events of the parts of a fold."""
    values: dict[str, Any] = {"fold": fold}
    texts, rates = [], {}
    for part in ("train", "validation", "test"):
        known = [p for p in getattr(split, part) if p in table.row_of]
        if not known:
            continue
        event = table.event[table.rows(known)]
        rates[part] = (float(event.mean()), len(known))
        texts.append(
            f"{part} {len(known)} patients, {int(event.sum())} events ({rates[part][0]:.0%})"
        )
        values[part] = {"patients": len(known), "events": int(event.sum()), "rate": rates[part][0]}
    text = f"fold {fold}: {'; '.join(texts)}"
    if "train" not in rates or "test" not in rates:
        return []
    (p, n), (q, m) = rates["train"], rates["test"]
    pooled = (p * n + q * m) / (n + m)
    deviation = math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    if q == 0:
        advice = "without events the C-index is undefined"
        return [findings.warning("event rates", text, advice, **values)]
    if deviation and abs(p - q) > _LARGEST_DIFFERENCE * deviation:
        advice = "the parts differ: python -m steph_jax.split makes stratified folds"
        return [findings.warning("event rates", text, advice, **values)]
    return [findings.ok("event rates", text, **values)]


def _between(splits: dict[int, Split]) -> list[Finding]:
    """Patients that are tested in several folds."""
    tested = Counter(patient for split in splits.values() for patient in set(split.test))
    several = sorted(patient for patient, count in tested.items() if count > 1)
    if not several:
        return []
    text = f"patients in the test part of several folds ({len(several)})"
    return [findings.warning(CHECK, text, "each should be tested once", several)]


def check_leaks(
    root: Path, target: str, splits: dict[int, Split], sources: tuple[str, ...], columns: Columns
) -> list[Finding]:
    """Test patients of the target whom a source's model was, or may have been, trained on.

    Args:
        root: folder of datasets; sources without a table or splits_0.csv there cannot be looked at.
        target: name of the target.
        splits: of the target, by fold.
        sources: names of the datasets whose fold-0 models are merged.
        columns: how tables are written.
    """
    test = {fold: split.test for fold, split in splits.items()}
    search = find_leaks(root, target, test, sources, columns)
    found = [
        findings.warning("leaks", problem, "patients cannot be compared")
        for problem in search.unreadable
    ]
    found += [
        findings.warning("leaks", leak.message, leak.advice, leak.patients) for leak in search.leaks
    ]
    if search.compared and not found:
        text = (
            f"no test patient of {target} is among those that the models of "
            f"{len(search.compared)} sources were trained on"
        )
        found.append(findings.ok("leaks", text, sources=list(search.compared)))
    if search.unknown:
        text = (
            f"sources without a table in {root}, where patients cannot be compared: "
            f"{', '.join(search.unknown)}"
        )
        found.append(findings.ok("leaks", text, sources=list(search.unknown)))
    return found


def check_joined(
    root: Path, target: str, splits: dict[int, Split], cohorts: tuple[str, ...], columns: Columns
) -> list[Finding]:
    """Patients of joined cohorts whom training leaves out, because they are the target's.

    Args:
        root: folder of datasets.
        target: name of the target.
        splits: of the target, by fold.
        cohorts: names of the datasets that are trained on too; those without a table are passed
            over here, and refused by `experiment.check_joined`.
        columns: how tables are written.
    """
    own = {same_person(p) for of in splits.values() for p in (*of.train, *of.test, *of.validation)}
    found: list[Finding] = []
    for cohort in cohorts:
        path = tables.table_path(root, cohort)
        if not path.is_file():
            continue
        patients = findings.attempt("leaks", found, partial(tables.read_slides, path, columns))
        if patients is not None:
            shared = [patient for patient in patients if same_person(patient) in own]
            others = len(patients) - len(shared)
            text = f"{others} of the {len(patients)} patients of {cohort} are trained on too"
            if shared:
                text += f", the rest are {target}'s own and left out"
            values = {"patients": len(patients), "left_out": len(shared)}
            found.append(findings.ok("leaks", text, **values))
    return found


def patients_named(splits: dict[int, Split], table: SurvivalTable) -> np.ndarray:
    """Rows of the table that the splits name; all of them where there is no split."""
    named = {p for s in splits.values() for p in (*s.train, *s.test, *s.validation)}
    rows = [row for row, patient in enumerate(table.patients) if patient in named or not splits]
    return np.asarray(rows, np.intp)
