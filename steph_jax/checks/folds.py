"""Splits against their table, against each other, and against what the sources were trained on."""

import math
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from steph_jax import messages
from steph_jax.checks import findings
from steph_jax.checks.findings import Finding
from steph_jax.data import tables
from steph_jax.data.columns import Columns
from steph_jax.data.leaks import find_leaks
from steph_jax.data.persons import normalized_patient_id, person_keys
from steph_jax.data.splits import (
    Problem,
    Split,
    how_to_make,
    ids_of_table,
    read_split,
    split_path,
    split_problems,
    without_left_out,
)
from steph_jax.data.tables import SurvivalTable
from steph_jax.messages import join_names

CHECK = "splits"
#: Standard errors by which the event rates of train and test may differ.
_LARGEST_DIFFERENCE = 3.0


def check_splits(
    root: Path,
    dataset: str,
    folds: list[int],
    table: SurvivalTable | None,
    batch_size: int,
    events_are_read: bool = True,
) -> tuple[dict[int, Split], list[Finding]]:
    """Reads the splits of a dataset and reports all of their problems.

    A problem that several folds share is one finding.

    Args:
        root: folder of datasets.
        dataset: name of one.
        folds: numbers of the splits.
        table: of the dataset; None where it cannot be read.
        batch_size: patients that a fold needs for training.
        events_are_read: whether the events of the table can be read; without them, the checks of
            events are skipped.

    Returns:
        the splits that can be read, by fold, and findings.
    """
    paths = {fold: split_path(root, dataset, fold) for fold in folds}
    if not (root / dataset).is_dir():  # reported with the table
        return {}, []
    missing = [path for path in paths.values() if not path.is_file()]
    results, splits = _missing(missing), {}
    problems: dict[Problem, list[Path]] = defaultdict(list)
    for fold, path in paths.items():
        if path in missing:
            continue
        try:
            split = read_split(path)
        except messages.USER_ERRORS as problem:
            problems[Problem(str(problem).removeprefix(f"{path}: "))].append(path)
            continue
        if table is not None:
            split = without_left_out(split, table)
            for wrong in split_problems(split, table, events_are_read):
                problems[wrong].append(path)
            results += _fold(fold, split, table, batch_size, events_are_read)
        splits[fold] = split
    results = [*_merged(problems), *results, *_between(splits, table)]
    if table is not None and splits:
        in_splits = {p for s in splits.values() for part in s.parts.values() for p in part}
        table_ids = {own for s in splits.values() for own in ids_of_table(s, table).values()}
        persons = {table.person_of[own] for own in table_ids}
        unused = [  # patients without slides are a finding about the table
            patient
            for patient, slides in zip(table.patients, table.slides, strict=True)
            if slides and patient not in in_splits and table.person_of[patient] not in persons
        ]
        if unused:
            results.append(
                findings.warning(
                    CHECK,
                    f"patients of the table that no split names ({len(unused)})",
                    "they are not used",
                    unused,
                )
            )
    return splits, results


def _missing(paths: list[Path]) -> list[Finding]:
    if not paths:
        return []
    names = join_names(path.name for path in paths[1:])
    also = f", nor {names}" if names else ""
    text = f"{paths[0]}: no such file{also}"
    return [findings.error(CHECK, text, how_to_make(paths[0].parent), map(str, paths[1:]))]


def _merged(problems: dict[Problem, list[Path]]) -> list[Finding]:
    """A finding for every problem, whatever number of splits has it.

    Ids of another form differ from fold to fold, and so do the patients of a part: these are one
    problem where text and advice are alike.
    """
    alike: dict[tuple[str, str], dict[str, None]] = {}
    paths_by_key: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for problem, paths in problems.items():
        key = (problem.kind or problem.text, problem.advice)
        alike.setdefault(key, {}).update(dict.fromkeys(problem.patients))
        paths_by_key[key] += paths
    texts = {(problem.kind or problem.text, problem.advice): problem.text for problem in problems}
    results = []
    for key, patients in alike.items():
        first, *other_paths = dict.fromkeys(paths_by_key[key])
        also = f", {join_names(path.name for path in other_paths)}" if other_paths else ""
        count = f" ({len(patients)})" if patients else ""
        text = f"{first}{also}: {texts[key]}{count}"
        results.append(findings.error(CHECK, text, key[1], patients))
    return results


def _fold(
    fold: int, split: Split, table: SurvivalTable, batch_size: int, events_are_read: bool
) -> list[Finding]:
    results = []
    if split.train and len(split.train) < batch_size:
        results.append(
            findings.error(
                CHECK,
                f"{split.path}: {len(split.train)} training patients, fewer than a batch",
                f"lower --config.batch_size (now {batch_size})",
                patients=len(split.train),
                batch_size=batch_size,
            )
        )
    return [*results, *(event_rates(fold, split, table) if events_are_read else ())]


def event_rates(fold: int, split: Split, table: SurvivalTable) -> list[Finding]:
    """Patients and events of the parts of a fold; a warning where the rates of events differ.

    Args:
        fold: its number.
        split: its parts.
        table: of the dataset.
    """
    values: dict[str, Any] = {"fold": fold}
    texts, rates = [], {}
    for part in ("train", "validation", "test"):
        in_table = [p for p in getattr(split, part) if p in table.row_of]
        if not in_table:
            continue
        event = table.event[table.rows(in_table)]
        rates[part] = (float(event.mean()), len(in_table))
        texts.append(
            f"{part} {len(in_table)} patients, {int(event.sum())} events ({rates[part][0]:.0%})"
        )
        values[part] = {
            "patients": len(in_table),
            "events": int(event.sum()),
            "rate": rates[part][0],
        }
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


def _between(splits: dict[int, Split], table: SurvivalTable | None) -> list[Finding]:
    """Persons who are tested in several folds, whatever ids they have there."""
    person_of = {} if table is None else table.person_of
    ids: dict[str, dict[str, None]] = defaultdict(dict)
    test_counts: Counter[str] = Counter()
    for split in splits.values():
        persons = {p: person_of.get(p) or normalized_patient_id(p) for p in split.test}
        test_counts.update(set(persons.values()))
        for patient, person in persons.items():
            ids[person][patient] = None
    several = sorted(", ".join(ids[person]) for person, count in test_counts.items() if count > 1)
    if not several:
        return []
    text = f"patients in the test part of several folds ({len(several)})"
    return [findings.warning(CHECK, text, "each should be tested once", several)]


def check_leaks(
    root: Path,
    target: str,
    splits: dict[int, Split],
    sources: tuple[str, ...],
    columns: Columns,
    table: SurvivalTable | None = None,
) -> list[Finding]:
    """Test patients of the target whom a source's model was, or may have been, trained on.

    Args:
        root: folder of datasets; sources without a table or splits_0.csv there cannot be compared.
        target: name of the target.
        splits: of the target, by fold.
        sources: names of the datasets whose fold-0 models are merged.
        columns: how tables are written.
        table: of the target, for the slides of its patients; None where it cannot be read.
    """
    test = {fold: split.test for fold, split in splits.items()}
    slides = _slides_of(table)
    search = find_leaks(root, target, test, sources, columns, slides)
    results = [
        findings.warning("leaks", problem, "patients cannot be compared")
        for problem in search.unreadable
    ]
    results += [
        findings.warning("leaks", leak.message, leak.advice, leak.patients) for leak in search.leaks
    ]
    if search.compared and not results:
        num_test = len({patient for ids in test.values() for patient in ids})
        compared_by = "ids and slides" if slides else "ids"
        each = ", ".join(f"{source}: {text}" for source, text in search.compared.items())
        text = (
            f"no test patient of {target} ({compared_by} of {num_test}, without regard to case, "
            "separators and what follows the patient in a barcode) is among those that the models "
            f"of {len(search.compared)} sources were trained on ({each})"
        )
        results.append(findings.ok("leaks", text, sources=list(search.compared)))
    if search.unknown:
        text = (
            f"sources without a table in {root}, where patients cannot be compared: "
            f"{', '.join(search.unknown)}"
        )
        results.append(findings.ok("leaks", text, sources=list(search.unknown)))
    return results


def _slides_of(table: SurvivalTable | None) -> dict[str, tuple[str, ...]]:
    return {} if table is None else dict(zip(table.patients, table.slides, strict=True))


def check_joined(
    root: Path,
    target: str,
    splits: dict[int, Split],
    cohorts: tuple[str, ...],
    columns: Columns,
    table: SurvivalTable | None = None,
) -> list[Finding]:
    """Patients of joined cohorts whom training leaves out, because they are the target's.

    Args:
        root: folder of datasets.
        target: name of the target.
        splits: of the target, by fold.
        cohorts: names of the datasets that are trained on too; those without a table are passed
            over here, and refused by `preflight.check_joined`.
        columns: how tables are written.
        table: of the target, for the slides of its patients; None where it cannot be read.
    """
    slides = _slides_of(table)
    in_splits = [p for split in splits.values() for part in split.parts.values() for p in part]
    target_keys = set().union(
        *(person_keys(patient, slides.get(patient, ())) for patient in in_splits)
    )
    results: list[Finding] = []
    for cohort in cohorts:
        path = tables.table_path(root, cohort)
        if not path.is_file():
            continue
        patients = findings.attempt("leaks", results, partial(tables.read_slides, path, columns))
        if patients is not None:
            shared = [
                p for p, slides_of in patients.items() if person_keys(p, slides_of) & target_keys
            ]
            num_joined = len(patients) - len(shared)
            text = f"{num_joined} of the {len(patients)} patients of {cohort} are trained on too"
            if shared:
                text += f", the rest are {target}'s own and left out"
            values = {"patients": len(patients), "left_out": len(shared)}
            results.append(findings.ok("leaks", text, **values))
    return results


def patients_named(splits: dict[int, Split], table: SurvivalTable) -> np.ndarray:
    """Rows of the table that the splits name; all of them where there is no split."""
    in_splits = {p for s in splits.values() for part in s.parts.values() for p in part}
    rows = [row for row, patient in enumerate(table.patients) if patient in in_splits or not splits]
    return np.asarray(rows, np.intp)
