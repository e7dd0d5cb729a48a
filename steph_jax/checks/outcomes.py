"""Whether times and events fit the config's units and coding, judged by their distributions."""

from typing import Any

import numpy as np

from steph_jax.checks import findings
from steph_jax.checks.findings import Finding
from steph_jax.data.columns import DAYS_PER_UNIT, Columns
from steph_jax.data.tables import SurvivalTable

#: A cohort's 95 % quantile of time is taken for years up to 30, for months up to a month more
#: than that many years, and for days beyond.
_LARGEST = {"years": 30.0, "months": 372.0}
#: Days between which that quantile lies in any cohort that is followed up.
_PLAUSIBLE = (365.0, 40 * 365.25)
#: No one is followed up for longer.
_LONGEST_DAYS = 60 * 365.25
_SHARE_AT_END = 0.6


def check_times(table: SurvivalTable, columns: Columns) -> list[Finding]:
    """Times in another unit than the config's.

    Args:
        table: patients whose time is known; at least one.
        columns: the unit the table was read in.
    """
    days = float(np.quantile(table.time, 0.95))
    raw = days / DAYS_PER_UNIT[columns.time_unit]
    guess = next((unit for unit, largest in _LARGEST.items() if raw <= largest), "days")
    plausible = _PLAUSIBLE[0] <= days <= _PLAUSIBLE[1]
    described = (
        f"{columns.time!r} is read as {columns.time_unit}: "
        f"median {np.median(table.time):.0f} days, 95 % within {days:.0f} days, "
        f"longest {table.time.max():.0f} days"
    )
    values: dict[str, Any] = {
        "median_days": float(np.median(table.time)),
        "quantile_95_days": days,
        "longest_days": float(table.time.max()),
    }
    if guess != columns.time_unit and not plausible:
        return [
            findings.warning(
                "time unit",
                f"{described}; the numbers (95 % within {raw:.4g}) look like {guess}",
                f"if they are, set --config.data.time_unit={guess}",
                **values,
            )
        ]
    results = [findings.ok("time unit", described, **values)]
    far = np.flatnonzero(table.time > _LONGEST_DAYS)
    if far.size:
        results.append(
            findings.warning(
                "time unit",
                f"times beyond 60 years ({far.size})",
                "are these in another unit, or dates?",
                (f"{table.patients[i]}: {table.time[i]:.0f} days" for i in far),
                days=table.time[far].tolist(),
            )
        )
    return results


def check_zero_times(table: SurvivalTable) -> list[Finding]:
    """Patients who died or were lost on day 0.

    Args:
        table: patients whose time is known.
    """
    rows = np.flatnonzero(table.time == 0)
    if not rows.size:
        return []
    events = int(table.event[rows].sum())
    return [
        findings.warning(
            "times of 0",
            f"{table.path}: patients with a time of 0 ({rows.size}, {events} with an event)",
            "they are kept, in the first time bin; where 0 stands for an unknown time, empty these "
            "cells and leave the patients out by --config.data.unlabeled=drop",
            [table.patients[row] for row in rows],
            patients=int(rows.size),
            events=events,
        )
    ]


def check_events(table: SurvivalTable, columns: Columns) -> list[Finding]:
    """Events that look like the opposite of the config's coding.

    Whoever is followed up the longest is mostly censored: follow-up ends, and few die just then.

    Args:
        table: patients whose time is known; at least one.
        columns: the coding the table was read with.
    """
    rate = float(table.event.mean())
    longest = np.argsort(-table.time, kind="stable")[: max(1, len(table) // 10)]
    at_end = float(table.event[longest].mean())
    other = "censorship" if columns.event_coding == "event" else "event"
    turn = f"if 1 means the opposite, set --config.data.event_coding={other}"
    described = f"{int(table.event.sum())} events of {len(table)} patients ({rate:.0%})"
    medians = [
        np.median(table.time[table.event == status]) if (table.event == status).any() else np.nan
        for status in (True, False)
    ]
    values: dict[str, Any] = {
        "patients": len(table),
        "events": int(table.event.sum()),
        "event_rate": rate,
        "event_rate_at_end": at_end,
    }
    described += f"; median {medians[0]:.0f} days to an event, {medians[1]:.0f} to censoring"
    name = columns.event.lower()
    if "cens" in name and columns.event_coding == "event":
        text = f"the column is named {columns.event!r} and read as 1 = death seen; {described}"
    elif "cens" not in name and columns.event_coding == "censorship" and rate > 0.5:
        text = f"the column is named {columns.event!r} and read as 1 = censored; {described}"
    elif rate in (0.0, 1.0):
        text = f"{'no' if rate == 0 else 'every'} patient has an event; {described}"
    elif rate > 0.9:
        text = f"nearly all patients have an event; {described}"
    elif rate > 0.5 and at_end >= _SHARE_AT_END:
        text = f"of the tenth followed up the longest {at_end:.0%} have an event; {described}"
    elif table.event.sum() < 10:
        turn = "the C-index of folds with so few events is too noisy to interpret"
        text = f"few events; {described}"
    else:
        return [findings.ok("event coding", described, **values)]
    status = findings.error if rate == 0 else findings.warning
    return [status("event coding", text, turn, **values)]
