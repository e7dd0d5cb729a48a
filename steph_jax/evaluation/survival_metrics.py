"""Metrics of predictions besides Harrell's C: Uno's C, AUC, Brier scores, calibration.

Per fold these are the entries of metrics.json under "test"; over folds see `run_metrics`. A
number that cannot be computed is None, and `missing` has the reason.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from steph_jax.survival import calibration, censoring
from steph_jax.survival.calibration import Calibration
from steph_jax.survival.censoring import CensoringCurve, Estimate
from steph_jax.survival.significance import WIDENING
from steph_jax.survival.time_bins import DAYS_PER_YEAR

Floats = NDArray[np.float64]

#: Horizons at which AUC, Brier scores and calibration are given.
YEARS = (1.0, 3.0, 5.0)
_MOST_YEARS = 100.0


def expect_years(years: Sequence[float]) -> None:
    """Raises ValueError for horizons that are not increasing numbers of years above 0."""
    increasing = list(years) == sorted(set(years))
    if not years or not increasing or years[0] <= 0 or years[-1] > _MOST_YEARS:
        raise ValueError(
            f"years are increasing numbers above 0, as (1, 3, 5); found {tuple(years)}"
        )


class Labels(NamedTuple):
    """What became of some patients: time [P] in days, event [P] in {0, 1}."""

    time: Floats
    event: NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class FoldPredictions:
    """The test patients of a fold, and the training patients that censoring is estimated on.

    Attributes:
        train: labels of the training patients.
        test: labels of the test patients.
        risk: [P] of the test patients, higher = worse.
        cut: risk above which a patient counts as of high risk, the median of the training patients.
        risk_sd: standard deviation of the training patients' risks; None where it is not known.
        survival: [P, T] of the test patients at the end of every time bin; None for losses that
            give no curves.
        edges: [T + 1] of the bins, in days.
    """

    train: Labels
    test: Labels
    risk: Floats
    cut: float
    risk_sd: float | None
    survival: Floats | None
    edges: Floats

    def survival_at(self, days: Floats) -> Floats | None:
        """[P, M] predicted survival at some days."""
        if self.survival is None:
            return None
        return censoring.survival_at(self.survival, self.edges, np.minimum(days, self.edges[-1]))

    def at_own_times(self) -> Floats | None:
        """[P] predicted survival of each test patient at the own time."""
        curves = self.survival_at(self.test.time)
        return None if curves is None else np.diagonal(curves).copy()


def horizon(cohort: Labels, years: Sequence[float] = YEARS) -> float:
    """tau in days: one for all folds and methods of a cohort, so that their numbers compare.

    The last horizon, or the last day up to which the whole cohort's follow-up supports weights.
    """
    return censoring.last_time(cohort.time, cohort.event, max(years) * DAYS_PER_YEAR)


def fold_metrics(
    fold: FoldPredictions, tau: float, years: Sequence[float] = YEARS
) -> dict[str, Any]:
    """The entries of a fold's metrics.json besides the C-index and the loss.

    Args:
        fold: its predictions.
        tau: of `horizon`, in days.
        years: horizons; those beyond tau are missing.

    Returns:
        uno, auc {year: number}, ibs {model, kaplan_meier}, ipa, brier {year: {model,
        kaplan_meier}}, d_calibration {p, shares}, largest_weight, tau_days, missing {name: why}.
    """
    curve = censoring.censoring_curve(*fold.train)
    missing: dict[str, str] = {}

    def value(name: str, estimate: Estimate) -> float | None:
        if estimate.value is None:
            missing[name] = estimate.reason
        return estimate.value

    beyond = Estimate(None, f"beyond {tau:g} days, where follow-up supports no number")
    numbers: dict[str, Any] = {
        "uno": value("uno", censoring.uno_concordance(curve, *fold.test, fold.risk, tau)),
        "auc": {
            f"{year:g}": value(
                f"auc {year:g}",
                censoring.auc(curve, *fold.test, fold.risk, year * DAYS_PER_YEAR)
                if year * DAYS_PER_YEAR <= tau
                else beyond,
            )
            for year in years
        },
        "tau_days": tau,
        "largest_weight": censoring.largest_weight(curve, *fold.test, tau),
    }
    numbers |= _probabilities(fold, curve, tau, years, missing)
    return numbers | {"missing": missing}


def _probabilities(
    fold: FoldPredictions,
    curve: CensoringCurve,
    tau: float,
    years: Sequence[float],
    missing: dict[str, str],
) -> dict[str, Any]:
    """Numbers of predicted probabilities: Brier scores and D-calibration."""
    empty = {"ibs": None, "ipa": None, "brier": None, "d_calibration": None}
    if fold.survival is None:
        missing |= dict.fromkeys(empty, "this loss gives no survival curves")
        return empty
    if tau <= 0:
        missing |= dict.fromkeys(empty, "follow-up supports no horizon")
        return empty
    grid = np.concatenate([[0.0], censoring.grid(tau)])
    marks = np.asarray([year * DAYS_PER_YEAR for year in years if year * DAYS_PER_YEAR <= tau])
    null = np.tile(censoring.kaplan_meier_at(*fold.train, grid), (len(fold.risk), 1))
    null_marks = np.tile(censoring.kaplan_meier_at(*fold.train, marks), (len(fold.risk), 1))

    def scores(survival: Floats | None, at: Floats) -> Floats:
        assert survival is not None  # refused above
        return censoring.brier_scores(curve, *fold.test, survival, at)

    ibs = {
        "model": censoring.integrated(scores(fold.survival_at(grid), grid), grid),
        "kaplan_meier": censoring.integrated(scores(null, grid), grid),
    }
    model_marks, km_marks = scores(fold.survival_at(marks), marks), scores(null_marks, marks)
    brier = {
        f"{day / DAYS_PER_YEAR:g}": {"model": float(m), "kaplan_meier": float(k)}
        for day, m, k in zip(marks, model_marks, km_marks, strict=True)
    }
    own = fold.at_own_times()
    assert own is not None  # as above
    spread = calibration.d_calibration(fold.test.event, own)
    ipa: float | None = censoring.ipa(ibs["model"], ibs["kaplan_meier"])
    if not ibs["kaplan_meier"] > 0:
        ipa, missing["ipa"] = None, "the Brier score of Kaplan-Meier is 0"
    return {
        "ibs": ibs,
        "ipa": ipa,
        "brier": brier,
        "d_calibration": {"p": spread.p, "shares": list(spread.shares)},
    }


def pooled_calibration(folds: Sequence[FoldPredictions], year: float) -> Calibration | Estimate:
    """Calibration at one horizon over the test patients of all folds.

    Probabilities of several models may be pooled, since they have a unit.
    """
    if any(fold.survival is None for fold in folds):
        return Estimate(None, "this loss gives no survival curves")
    day = np.asarray([year * DAYS_PER_YEAR])
    if any(day[0] > fold.edges[-1] for fold in folds):
        return Estimate(None, "the time bins end before")
    predicted = np.concatenate([fold.survival_at(day)[:, 0] for fold in folds])  # type: ignore[index]
    return calibration.calibration(
        np.concatenate([fold.test.time for fold in folds]),
        np.concatenate([fold.test.event for fold in folds]),
        predicted,
        float(day[0]),
        np.repeat(np.arange(len(folds)), [len(fold.risk) for fold in folds]),
    )


def hazard_ratios(folds: Sequence[FoldPredictions]) -> dict[str, Any]:
    """Hazard ratios of the risk groups and of one standard deviation of risk, over folds.

    Risks are standardized, and groups cut, by the training patients of each fold.

    Returns:
        {"groups": {"value", "ci95"}, "per_sd": ..., "missing": {name: {fold position: why}}}.
    """
    groups, scaled = [], []
    unknown = [number for number, fold in enumerate(folds) if fold.risk_sd is None]
    for fold in folds:
        groups.append((*fold.test, (fold.risk > fold.cut).astype(np.float64)))
        # Without a standard deviation there is no unit, so the fold has no ratio.
        scaled.append((*fold.test, fold.risk / fold.risk_sd if fold.risk_sd else 0.0 * fold.risk))
    numbers: dict[str, Any] = {"missing": {}}
    for name, parts in (("groups", groups), ("per_sd", scaled)):
        ratio, reasons = calibration.hazard_ratio(parts, WIDENING)
        numbers[name] = None
        if ratio is not None:
            numbers[name] = {"value": ratio.value, "ci95": list(ratio.interval)}
        if name == "per_sd":
            reasons |= dict.fromkeys(
                unknown, "the spread of the training risks is not recorded; run steph_jax.evaluate"
            )
        if name == "groups":
            reasons |= {
                number: "all test patients are in one risk group"
                for number, (_, _, high) in enumerate(groups)
                if number in reasons and np.ptp(high) == 0.0
            }
        if reasons:
            numbers["missing"][name] = reasons
    return numbers
