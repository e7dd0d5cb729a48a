"""The survival table, looked through row by row, so that all of its problems come at once."""

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from steph_jax import messages
from steph_jax.checks import findings
from steph_jax.checks.findings import Finding, Status
from steph_jax.data import csv_files, tables
from steph_jax.data.cohort import BARCODE, same_person
from steph_jax.data.tables import Columns, SurvivalTable

CHECK = "table"


def check_table(path: Path, columns: Columns) -> tuple[SurvivalTable | None, list[Finding]]:
    """Reads a table and finds all that is wrong with it.

    Args:
        path: the file.
        columns: how it is written.

    Returns:
        the table, and findings. Where `read_table` would refuse it, the table holds what could be
        read: a time that could not be is NaN. None where there is no table with these columns.
    """
    found: list[Finding] = []
    read = findings.attempt(CHECK, found, lambda: csv_files.read(path, tables.WHERE_TO_GET_DATA))
    if read is None:
        return None, found
    header, rows = read
    missing = [name for name in columns.names if header.count(name) != 1]
    if missing or not rows:
        text = f"columns that are missing or occur twice: {', '.join(missing)}"
        return None, [
            findings.error(
                CHECK,
                f"{path}: expected the columns {', '.join(columns.names)} and a row per slide; "
                f"found {text if missing else 'no row'}; its columns are {', '.join(header)}",
                "name them by data.columns.patient, .slide, .time and .event",
            )
        ]
    cells = [[row[header.index(name)] for _, row in rows] for name in columns.names]
    lines = [line for line, _ in rows]
    found += _id_problems(path, columns, lines, cells[0], cells[1])
    labeled, left_out = tables.without_unlabeled(cells)
    kept = labeled if columns.unlabeled == "drop" else cells
    found += _unlabeled(path, columns, left_out)
    found += _time_problems(path, columns, labeled[0], labeled[2])
    found += _event_problems(path, columns, labeled[0], labeled[3])
    found += _disagreements(path, columns, *labeled)
    try:
        table = tables.read_table(path, columns)
    except messages.USER_ERRORS as problem:
        if findings.worst(found) < Status.ERROR:
            found.append(findings.error(CHECK, str(problem)))
        table = _what_can_be_read(path, columns, *kept)
        if columns.unlabeled == "drop":
            table = dataclasses.replace(table, left_out=left_out)
    found += _persons(table)
    rate = float(table.event.mean()) if len(table) else 0.0
    summary = findings.ok(
        CHECK,
        f"{path}: {len(table)} patients, {len(kept[0])} slides, {int(table.event.sum())} events "
        f"({rate:.0%})",
        patients=len(table),
        slides=len(kept[0]),
        events=int(table.event.sum()),
    )
    return table, [summary, *found]


def _error(
    path: Path, text: str, advice: str, items: Iterable[str], **values: Any
) -> list[Finding]:
    every = tuple(dict.fromkeys(items))
    if not every:
        return []
    return [findings.error(CHECK, f"{path}: {text} ({len(every)})", advice, every, **values)]


def _id_problems(
    path: Path, columns: Columns, lines: Sequence[int], patients: Sequence[str], slides: list[str]
) -> list[Finding]:
    found = []
    for name, ids in ((columns.patient, patients), (columns.slide, slides)):
        empty = [f"line {line}" for line, cell in zip(lines, ids, strict=True) if not cell]
        found += _error(path, f"column {name!r} is empty", "fill in the ids", empty)
    twice = [slide for slide, count in Counter(slides).items() if slide and count > 1]
    found += _error(path, "slides in several rows", "keep one row per slide", twice)
    return found


def _unlabeled(path: Path, columns: Columns, left_out: Iterable[str]) -> list[Finding]:
    text = f"patients without a number in {columns.time!r} or {columns.event!r}"
    if columns.unlabeled == "refuse":
        advice = "fill these in, or --config.data.unlabeled=drop leaves the patients out"
        return _error(path, text, advice, left_out)
    every = tuple(left_out)
    if not every:
        return []
    text = f"{path}: {text}, left out of table and splits ({len(every)})"
    return [dataclasses.replace(findings.ok(CHECK, text, patients=len(every)), items=every)]


def _number(cell: str) -> float:
    """A cell as a number; NaN if it is none."""
    try:
        return csv_files.numbers(Path(), "", [""], [cell])[0]
    except ValueError:
        return math.nan


def _time_problems(
    path: Path, columns: Columns, patients: Sequence[str], cells: Sequence[str]
) -> list[Finding]:
    numbers = [_number(cell) for cell in cells]
    rows = list(zip(patients, cells, numbers, strict=True))
    name = columns.time
    return [
        *_error(
            path,
            f"times in column {name!r} that are no finite numbers",
            "correct them, or take these patients out of table and splits",
            (f"{p}: {cell!r}" for p, cell, number in rows if not math.isfinite(number)),
        ),
        *_error(
            path,
            f"negative times in column {name!r}",
            "times run from diagnosis to the event or to the end of follow-up",
            (f"{p}: {cell}" for p, cell, number in rows if number < 0),
            lowest=min((number for number in numbers if number < 0), default=0.0),
        ),
    ]


def _event_problems(
    path: Path, columns: Columns, patients: Sequence[str], cells: Sequence[str]
) -> list[Finding]:
    bad = [f"{p}: {c!r}" for p, c in zip(patients, cells, strict=True) if _number(c) not in (0, 1)]
    if not bad:
        return []
    values = Counter(cells)
    listing = ", ".join(f"{value!r} {count} times" for value, count in values.most_common(6))
    advice = "write 1 where death was seen and 0 where it was not"
    if {_number(value) for value in values} == {1, 2}:
        advice += "; 1 and 2 are R's coding of 0 and 1"
    return [
        findings.error(
            CHECK,
            f"{path}: expected 0 or 1 in column {columns.event!r}; found {listing}",
            advice,
            dict.fromkeys(bad),
            cells=dict(values.most_common()),
        )
    ]


def _disagreements(
    path: Path,
    columns: Columns,
    patients: Sequence[str],
    slides: Sequence[str],
    times: Sequence[str],
    events: Sequence[str],
) -> list[Finding]:
    labels = defaultdict(set)
    for patient, time, event in zip(patients, times, events, strict=True):
        labels[patient].add((repr(_number(time)), repr(_number(event))))
    return _error(
        path,
        f"duplicate patients whose rows differ in {columns.time!r} or {columns.event!r}",
        "a patient has one time and one event in all rows",
        (
            f"{patient}: {' and '.join(f'({t}, {e})' for t, e in sorted(found))}"
            for patient, found in labels.items()
            if len(found) > 1
        ),
    )


def _what_can_be_read(
    path: Path,
    columns: Columns,
    patients: Sequence[str],
    slides: Sequence[str],
    times: Sequence[str],
    events: Sequence[str],
) -> SurvivalTable:
    """A table of the ids and of the labels that are valid."""
    first: dict[str, int] = {}
    slides_of = defaultdict(set)
    for row, patient in enumerate(patients):
        if patient:
            first.setdefault(patient, row)
            if slides[row]:
                slides_of[patient].add(slides[row])
    names = sorted(first)
    time = np.array([_number(times[first[name]]) for name in names], np.float64)
    died = 1.0 if columns.event_coding == "event" else 0.0
    return SurvivalTable(
        path=path,
        patients=tuple(names),
        time=np.where((time >= 0) & np.isfinite(time), time, np.nan)
        * tables.DAYS_PER_UNIT[columns.time_unit],
        event=np.array([_number(events[first[name]]) == died for name in names], bool),
        slides=tuple(tuple(sorted(slides_of[name])) for name in names),
    )


def _persons(table: SurvivalTable) -> list[Finding]:
    """Patients that seem to be one person, and slides that seem to be another patient's."""
    found = []
    ids = defaultdict(list)
    for patient in table.patients:
        ids[same_person(patient)].append(patient)
    groups = [", ".join(group) for group in ids.values() if len(group) > 1]
    if groups:
        found.append(
            findings.warning(
                CHECK,
                f"{table.path}: duplicate patients, the same under several ids ({len(groups)})",
                "give each patient one id, lest they are in train and test at once",
                groups,
            )
        )
    others = [
        f"{patient}: {slide}"
        for patient, slides in zip(table.patients, table.slides, strict=True)
        for slide in slides
        if BARCODE.match(same_person(patient))
        and BARCODE.match(same_person(slide))
        and same_person(patient) != same_person(slide)
    ]
    if others:
        found.append(
            findings.warning(
                CHECK,
                f"{table.path}: slides whose barcode is another patient's ({len(others)})",
                "correct the ids",
                others,
            )
        )
    return found


def labeled(table: SurvivalTable) -> SurvivalTable:
    """The patients whose time is known."""
    rows = np.flatnonzero(np.isfinite(table.time))
    return dataclasses.replace(
        table,
        patients=tuple(table.patients[i] for i in rows),
        time=table.time[rows],
        event=table.event[rows],
        slides=tuple(table.slides[i] for i in rows),
    )
