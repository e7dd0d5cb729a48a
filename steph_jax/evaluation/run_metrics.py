"""The numbers of a run over its folds: those of summary.json and of the report.

Risks of different folds' models have no common unit, so a number of risks is computed in each fold
and then averaged. Probabilities have one, so calibration is that of the patients of all folds.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from steph_jax.evaluation import fold_files, survival_metrics
from steph_jax.evaluation.fold_files import FoldFiles
from steph_jax.evaluation.survival_metrics import FoldPredictions
from steph_jax.survival import calibration, metrics
from steph_jax.survival.calibration import Calibration
from steph_jax.survival.significance import Interval

_BOTH = ("model", "kaplan_meier")


def run_metrics(folds: Sequence[FoldFiles], years: Sequence[float]) -> dict[str, Any]:
    """Everything beside Harrell's C, as JSON (docs/method.md, section 8).

    Args:
        folds: the finished ones.
        years: horizons.

    Returns:
        years and tau_days; uno, auc {year}, ibs {model, kaplan_meier}, ipa and brier {year: {model,
        kaplan_meier}}, each {"mean", "sd", "folds"} over folds, null where a fold has none;
        largest_weight; d_calibration {p, shares} and calibration {year} of all test patients;
        hazard_ratio and hazard_ratio_per_sd {value, ci95}, hazard_ratio_missing; and missing, by
        fold and number the reason why it is null.
    """
    predictions = [fold.predictions for fold in folds]
    tau = survival_metrics.horizon(fold_files.cohort_labels(folds), years)
    per_fold = [survival_metrics.fold_metrics(fold, tau, years) for fold in predictions]
    names = [f"{year:g}" for year in years]
    numbers: dict[str, Any] = {
        "years": list(years),
        "tau_days": tau,
        "uno": spread([fold["uno"] for fold in per_fold]),
        "auc": {year: spread([fold["auc"][year] for fold in per_fold]) for year in names},
        "largest_weight": max(fold["largest_weight"] for fold in per_fold),
    }
    numbers |= _brier(per_fold, names)
    numbers |= _calibration(predictions, years)
    numbers |= _ratios(folds)
    missing = {
        f"fold {fold.number}": _without_c_index(fold) | numbers_of_fold["missing"]
        for fold, numbers_of_fold in zip(folds, per_fold, strict=True)
    }
    numbers["missing"] = {fold: reasons for fold, reasons in missing.items() if reasons}
    return numbers


def _without_c_index(fold: FoldFiles) -> dict[str, str]:
    if fold.metrics["test"]["c_index"] is not None:
        return {}
    return {"c_index": "no two test patients can be compared"}


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """A number over folds: mean and sd (n - 1), None where a fold has none, and of each fold."""
    mean, sd = metrics.mean_sd([math.nan if value is None else value for value in values])
    return {"mean": or_none(mean), "sd": or_none(sd), "folds": list(values)}


def or_none(value: float) -> float | None:
    """The number; None where it is undefined."""
    return float(value) if math.isfinite(value) else None


def ends(interval: Interval) -> list[float] | None:
    """Both ends of an interval; None where there is none."""
    return list(interval) if all(map(math.isfinite, interval)) else None


def _brier(per_fold: Sequence[Mapping[str, Any]], years: Sequence[str]) -> dict[str, Any]:
    """Brier scores of the model and of Kaplan-Meier, integrated and at the horizons."""
    if any(fold["ibs"] is None for fold in per_fold):
        return {"ibs": None, "ipa": None, "brier": {}}
    marks = [year for year in years if all(year in fold["brier"] for fold in per_fold)]
    return {
        "ibs": {name: spread([fold["ibs"][name] for fold in per_fold]) for name in _BOTH},
        "ipa": spread([fold["ipa"] for fold in per_fold]),
        "brier": {
            year: {name: spread([fold["brier"][year][name] for fold in per_fold]) for name in _BOTH}
            for year in marks
        },
    }


def _calibration(folds: Sequence[FoldPredictions], years: Sequence[float]) -> dict[str, Any]:
    """Calibration and D-calibration of the probabilities of all test patients."""
    own = [fold.at_own_times() for fold in folds]
    if any(curves is None for curves in own):
        return {"d_calibration": None, "calibration": {}}
    shares = calibration.d_calibration(
        np.concatenate([fold.test.event for fold in folds]),
        np.concatenate([curves for curves in own if curves is not None]),
    )
    return {
        "d_calibration": {"p": shares.p, "shares": list(shares.shares)},
        "calibration": {
            f"{year:g}": _at_horizon(survival_metrics.pooled_calibration(folds, year))
            for year in years
        },
    }


def _at_horizon(result: Calibration | calibration.Estimate) -> dict[str, Any]:
    """JSON of the calibration at one horizon, or why there is none."""
    if not isinstance(result, Calibration):
        return {"missing": result.reason}
    slope = result.slope
    return {
        "slope": None if slope is None else {"value": slope.value, "ci95": ends(slope.interval)},
        "in_the_large": result.in_the_large,
        "ici": result.ici,
        "fifths": [
            {
                "patients": fifth.patients,
                "predicted": fifth.predicted,
                "observed": fifth.observed.value,
                "ci95": ends(fifth.observed.interval),
            }
            for fifth in result.fifths
        ],
        "missing": result.missing,
    }


def _ratios(folds: Sequence[FoldFiles]) -> dict[str, Any]:
    """Hazard ratios, and which folds have no part in them."""
    ratios = survival_metrics.hazard_ratios([fold.predictions for fold in folds])
    return {
        "hazard_ratio": ratios["groups"],
        "hazard_ratio_per_sd": ratios["per_sd"],
        "hazard_ratio_missing": {
            name: [f"fold {folds[place].number}: {why}" for place, why in sorted(reasons.items())]
            for name, reasons in ratios["missing"].items()
        },
    }
