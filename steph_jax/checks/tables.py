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
from steph_jax.data import cells, tables
from steph_jax.data.columns import DAYS_PER_UNIT, Columns, id_problems, read_cells
from steph_jax.data.features.slide_ids import slide_name
from steph_jax.data.persons import barcode_patient, ids_by_person
from steph_jax.data.tables import SurvivalTable

CHECK = "table"


def check_table(path: Path, columns: Columns) -> tuple[SurvivalTable | None, list[Finding]]:
    """Reads a table and reports all of its problems.

    Args:
        path: the file.
        columns: how it is written.

    Returns:
        the table, and findings. Where `read_table` would refuse it, the table holds what could be
        read: a time that could not be is NaN; whether events could be is returned by
        `events_are_read`. None where there is no table with these columns.
    """
    results: list[Finding] = []
    read = findings.attempt(CHECK, results, lambda: read_cells(path, columns, columns.names))
    if read is None:
        return None, results
    for problem in id_problems(columns, read):
        results += _error(path, problem.text, problem.advice, problem.items)
    labeled, left_out = tables.without_unlabeled(read.columns)
    used = labeled if columns.unlabeled == "drop" else read.columns
    results += _unlabeled(path, columns, left_out)
    results += _time_problems(path, columns, labeled[0], labeled[2])
    results += _event_problems(path, columns, labeled[0], labeled[3])
    results += _disagreements(path, columns, *labeled)
    try:
        table = tables.with_competing(tables.read_table(path, columns), columns)
    except messages.USER_ERRORS as problem:
        if findings.worst(results) < Status.ERROR:
            results.append(findings.error(CHECK, str(problem)))
        table = _what_can_be_read(path, columns, *used)
        if columns.unlabeled == "drop":
            table = dataclasses.replace(table, left_out=left_out)
    results += _persons(table)
    return table, [_summary(table, len(used[0]), results), *results]


def events_are_read(results: Iterable[Finding]) -> bool:
    """Whether the events of the table that these findings are about could be read."""
    return not any("event_cells" in finding.values for finding in results)


def _summary(table: SurvivalTable, slides: int, results: Iterable[Finding]) -> Finding:
    text, values = f"{table.path}: {len(table)} patients, {slides} slides", {}
    if events_are_read(results):
        rate = float(table.event.mean()) if len(table) else 0.0
        text += f", {int(table.event.sum())} events ({rate:.0%})"
        values["events"] = int(table.event.sum())
    return findings.ok(CHECK, text, patients=len(table), slides=slides, **values)


def _error(
    path: Path, text: str, advice: str, items: Iterable[str], **values: Any
) -> list[Finding]:
    every = tuple(dict.fromkeys(items))
    if not every:
        return []
    return [findings.error(CHECK, f"{path}: {text} ({len(every)})", advice, every, **values)]


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


def _time_problems(
    path: Path, columns: Columns, patients: Sequence[str], texts: Sequence[str]
) -> list[Finding]:
    numbers = list(map(cells.number, texts))
    rows = list(zip(patients, texts, numbers, strict=True))
    name = columns.time
    advice = "correct them, or take these patients out of table and splits"
    if any(map(cells.has_comma, texts)):
        advice = "write decimals with a point, not with a comma"
    return [
        *_error(
            path,
            f"times in column {name!r} that are no finite numbers",
            advice,
            (f"{p}: {text!r}" for p, text, number in rows if not math.isfinite(number)),
        ),
        *_error(
            path,
            f"negative times in column {name!r}",
            "times run from diagnosis to the event or to the end of follow-up",
            (f"{p}: {text}" for p, text, number in rows if number < 0),
            lowest=min((number for number in numbers if number < 0), default=0.0),
        ),
    ]


def _event_problems(
    path: Path, columns: Columns, patients: Sequence[str], texts: Sequence[str]
) -> list[Finding]:
    coding = columns.event_coding
    bad = [
        f"{patient}: {text!r}"
        for patient, text in zip(patients, texts, strict=True)
        if cells.event_code(text, coding) not in (0, 1)
    ]
    if not bad:
        return []
    values = Counter(texts)
    listing = ", ".join(f"{value!r} {count} times" for value, count in values.most_common(6))
    return [
        findings.error(
            CHECK,
            f"{path}: expected 0 or 1 in column {columns.event!r}; found {listing}",
            cells.event_advice(list(values), coding),
            dict.fromkeys(bad),
            event_cells=dict(values.most_common()),
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
        code = cells.event_code(event, columns.event_coding)
        if math.isfinite(code):
            labels[patient].add((repr(cells.number(time)), repr(code)))
    return _error(
        path,
        f"duplicate patients whose rows differ in {columns.time!r} or {columns.event!r}",
        "a patient has one time and one event in all rows",
        (
            f"{patient}: {' and '.join(f'({t}, {e})' for t, e in sorted(pairs))}"
            for patient, pairs in labels.items()
            if len(pairs) > 1
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
    owner: dict[str, str] = {}  # of a slide in several rows, the first
    slides_of = defaultdict(set)
    for row, patient in enumerate(patients):
        if not cells.is_missing(patient):
            first.setdefault(patient, row)
            if not cells.is_missing(slides[row]):
                slides_of[owner.setdefault(slides[row], patient)].add(slides[row])
    names = sorted(first)
    time = np.array([cells.number(times[first[name]]) for name in names], np.float64)
    coding = columns.event_coding
    died = 1.0 if coding == "event" else 0.0
    return SurvivalTable(
        path=path,
        patients=tuple(names),
        time=np.where((time >= 0) & np.isfinite(time), time, np.nan)
        * DAYS_PER_UNIT[columns.time_unit],
        event=np.array(
            [cells.event_code(events[first[name]], coding) == died for name in names], bool
        ),
        slides=tuple(tuple(sorted(slides_of[name])) for name in names),
    )


def _persons(table: SurvivalTable) -> list[Finding]:
    """Patients that seem to be one person, and slides that seem to be another patient's."""
    results = []
    groups = [", ".join(ids) for ids in ids_by_person(table.person_of).values() if len(ids) > 1]
    if groups:
        results.append(
            findings.warning(
                CHECK,
                f"{table.path}: duplicate patients, the same under several ids ({len(groups)})",
                "give each patient one id: two are two patients for training and testing",
                groups,
            )
        )
    foreign = [
        f"{patient}: {slide}"
        for patient, slides in zip(table.patients, table.slides, strict=True)
        for slide in slides
        if barcode_patient(patient)
        and barcode_patient(slide_name(slide)) not in ("", barcode_patient(patient))
    ]
    if foreign:
        results.append(
            findings.warning(
                CHECK,
                f"{table.path}: slides whose barcode is another patient's ({len(foreign)})",
                "correct the ids",
                foreign,
            )
        )
    return results


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
