"""Cumulative incidence of the event and of deaths of other causes, as JSON for a report."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from steph_jax.evaluation.fold_files import FoldFiles
from steph_jax.evaluation.run_metrics import ends
from steph_jax.survival import censoring, competing
from steph_jax.survival.calibration import IntervalEstimate
from steph_jax.survival.competing import COMPETING, EVENT
from steph_jax.survival.time_bins import DAYS_PER_YEAR


def competing_risks(folds: Sequence[FoldFiles], years: Sequence[float]) -> dict[str, Any] | None:
    """Incidences in all test patients, and in those of low and of high risk.

    A patient's group is that of the own fold, cut at the median of its training patients; the
    groups of all folds are put together, and not tested against each other.

    Args:
        folds: the finished ones.
        years: horizons.

    Returns:
        deaths, of other causes; and groups {"all", "low risk", "high risk"}, each {"patients",
        "years": {year: {"event", "other", "one_minus_kaplan_meier"}}}; None where the folds do not
        tell who died of something else.
    """
    if any(fold.table.competing is None for fold in folds):
        return None
    time = np.concatenate([fold.predictions.test.time for fold in folds])
    cause = np.concatenate([_causes(fold) for fold in folds])
    high = np.concatenate([fold.predictions.risk > fold.predictions.cut for fold in folds])
    members = {"all": np.ones(len(time), bool), "low risk": ~high, "high risk": high}
    return {
        "deaths": int(np.count_nonzero(cause == COMPETING)),
        "groups": {
            name: _incidences(time[rows], cause[rows], years) for name, rows in members.items()
        },
    }


def _causes(fold: FoldFiles) -> np.ndarray:
    """[P] cause of death of the test patients of a fold, in the order of its predictions."""
    died_of_other = fold.table.competing
    assert died_of_other is not None  # refused above
    rows = fold.table.rows(fold.patients)
    return competing.causes(fold.predictions.test.event, died_of_other[rows])


def _incidences(time: np.ndarray, cause: np.ndarray, years: Sequence[float]) -> dict[str, Any]:
    """Both incidences of some patients at the horizons, where they are followed up so far."""
    days = [year * DAYS_PER_YEAR for year in years]
    event, other = (
        competing.cumulative_incidence(time, cause, of_cause, days)
        for of_cause in (EVENT, COMPETING)
    )
    alone = 1.0 - censoring.kaplan_meier_at(time, cause == EVENT, days) if len(time) else days
    return {
        "patients": len(time),
        "years": {
            f"{year:g}": {
                "event": _estimate(one),
                "other": _estimate(two),
                "one_minus_kaplan_meier": None if one is None else float(km),
            }
            for year, one, two, km in zip(years, event, other, alone, strict=True)
        },
    }


def _estimate(estimate: IntervalEstimate | None) -> dict[str, Any] | None:
    if estimate is None:
        return None
    return {"value": estimate.value, "ci95": ends(estimate.interval)}
