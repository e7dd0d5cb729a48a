"""The numbers of a report, from the files that a run has left."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from steph_jax import run_directory
from steph_jax.checkpoints import saved_model
from steph_jax.data.cohort import Fold
from steph_jax.data.tables import SurvivalTable
from steph_jax.evaluation import fold_results, source_share, survival_metrics
from steph_jax.evaluation.survival_metrics import FoldPredictions, Labels
from steph_jax.survival import calibration, metrics, significance
from steph_jax.survival.calibration import Calibration
from steph_jax.survival.significance import FoldRisks, Interval

OWN_METHOD = "abmil"


@dataclasses.dataclass(frozen=True, eq=False)
class FoldFiles:
    """A finished fold as its files have it.

    Attributes:
        number: of the fold.
        metrics: its metrics.json.
        table: its patients.
        split: who is in which part.
        predictions: of the test patients, with the training patients' labels.
    """

    number: int
    metrics: Mapping[str, Any]
    table: SurvivalTable
    split: Fold
    predictions: FoldPredictions


def read_fold(workdir: pathlib.Path, number: int) -> FoldFiles:
    """Reads a finished fold of any version of the program.

    Raises:
        FileNotFoundError, ValueError: a file of it is missing or damaged.
    """
    directory = run_directory.fold_directory(workdir, number)
    numbers = fold_results.read_metrics(directory)
    table, split = fold_results.read_patients(directory)
    rows = fold_results.read_predictions(directory)
    curves = fold_results.read_survival_curves(directory)
    edges = numbers.get("bin_edges")
    if edges is None and curves is not None:  # metrics.json of older runs has none
        edges = saved_model.load_model(directory / "model").metadata["bins"]["edges"]
    train = split.train
    return FoldFiles(
        number,
        numbers,
        table,
        split,
        FoldPredictions(
            train=Labels(table.time[train], table.event[train]),
            test=Labels(rows["t"].to_numpy(np.float64), rows["e"].to_numpy() > 0),
            risk=rows["risk"].to_numpy(np.float64),
            cut=float(numbers["risk_cut"]),
            risk_sd=numbers.get("risk_sd"),
            survival=curves,
            edges=np.asarray(edges if edges is not None else [0.0, 1.0], np.float64),
        ),
    )


def report_numbers(
    workdir: pathlib.Path, years: Sequence[float] = survival_metrics.YEARS
) -> dict[str, Any]:
    """The content of a report of a run, as JSON.

    Args:
        workdir: of a run with a finished fold or more.
        years: horizons of AUC, Brier scores and calibration.

    Raises:
        FileNotFoundError, ValueError: no run, no finished fold, or damaged files.
    """
    settings = run_directory.load(workdir)
    numbers = run_directory.finished_folds(workdir)
    if not numbers:
        raise ValueError(f"{workdir}: no fold is finished yet; run steph_jax.train to its end")
    folds = [read_fold(workdir, number) for number in numbers]
    predictions = [fold.predictions for fold in folds]
    cohort = _cohort(folds[0])
    tau = survival_metrics.horizon(cohort, years)
    per_fold = [survival_metrics.fold_metrics(fold, tau, years) for fold in predictions]
    gain = _gain(folds)
    share = _mean([fold.metrics.get("source_share") for fold in folds])
    has_shares = any("source_share" in fold.metrics for fold in folds)
    report = {
        "dataset": settings["dataset"],
        "method": settings["method"],
        "seed": settings["seed"],
        "folds": numbers,
        "participants": _participants(folds, cohort),
        "c_index": _c_index(folds),
        "tau_days": tau,
        **_discrimination(per_fold, years),
        **_probabilities(predictions, per_fold, years),
        **_ratios(predictions),
        "gain": gain,
        "merges": any(
            (run_directory.fold_directory(workdir, number) / "merge_weights_test.csv").is_file()
            for number in numbers
        ),
        "source_share": share if has_shares else None,
        "sources": source_share.in_words(share) if has_shares else None,
        "settings": settings,
        "missing": {
            f"fold {number}": reasons["missing"]
            for number, reasons in zip(numbers, per_fold, strict=True)
            if reasons["missing"]
        },
    }
    return report | {"verdict": verdict(report)}


def _cohort(fold: FoldFiles) -> Labels:
    """Labels of all patients that the folds name, each once."""
    rows = np.unique(np.concatenate([fold.split.train, fold.split.test, fold.split.validation]))
    return Labels(fold.table.time[rows], fold.table.event[rows])


def _participants(folds: Sequence[FoldFiles], cohort: Labels) -> dict[str, Any]:
    """Who was studied: patients, slides, events, follow-up."""
    first = folds[0]
    rows = np.unique(np.concatenate([first.split.train, first.split.test, first.split.validation]))
    follow_up = metrics.kaplan_meier(cohort.time, ~cohort.event)
    below = np.flatnonzero(follow_up.survival <= 0.5)
    return {
        "patients": len(rows),
        "slides": sum(len(first.table.slides[row]) for row in rows),
        "events": int(cohort.event.sum()),
        "median_follow_up_years": (
            float(follow_up.times[below[0]]) / survival_metrics.DAYS_PER_YEAR
            if len(below)
            else None
        ),
        "folds": [
            {
                "fold": fold.number,
                "train": len(fold.split.train),
                "train_events": int(fold.predictions.train.event.sum()),
                "test": len(fold.predictions.risk),
                "test_events": int(fold.predictions.test.event.sum()),
            }
            for fold in folds
        ],
    }


def _c_index(folds: Sequence[FoldFiles]) -> dict[str, Any]:
    """Harrell's C per fold, mean, sd, and the widened interval over patients."""
    values = [_or_nan(fold.metrics["test"]["c_index"]) for fold in folds]
    mean, sd = metrics.mean_sd(values)
    tested = [
        FoldRisks(p.test.time, p.test.event, {"model": p.risk[None]})
        for p in (fold.predictions for fold in folds)
    ]
    resampled = significance.bootstrap_means(tested)["model"]
    interval = significance.interval_of_mean(resampled, mean, 0.0, 1.0)
    return {
        "mean": _or_none(mean),
        "sd": _or_none(sd),
        "folds": [_or_none(value) for value in values],
        "ci95": _ends(interval),
    }


def _discrimination(
    per_fold: Sequence[Mapping[str, Any]], years: Sequence[float]
) -> dict[str, Any]:
    """Means over folds of Uno's C and AUC; None where a fold has none."""
    uno = [fold["uno"] for fold in per_fold]
    return {
        "uno": {"mean": _mean(uno), "sd": _sd(uno), "folds": uno},
        "auc": {
            f"{year:g}": _mean([fold["auc"][f"{year:g}"] for fold in per_fold]) for year in years
        },
        "largest_weight": max(fold["largest_weight"] for fold in per_fold),
    }


def _probabilities(
    predictions: Sequence[FoldPredictions],
    per_fold: Sequence[Mapping[str, Any]],
    years: Sequence[float],
) -> dict[str, Any]:
    """Brier scores as means over folds; calibration over the patients of all folds."""
    empty: dict[str, Any] = {
        "ibs": None,
        "ipa": None,
        "brier": {},
        "d_calibration": None,
        "calibration": {},
    }
    if any(fold["ibs"] is None for fold in per_fold):
        return empty
    both = ("model", "kaplan_meier")
    ibs = {name: _mean([fold["ibs"][name] for fold in per_fold]) for name in both}
    marks = [year for year in per_fold[0]["brier"] if all(year in f["brier"] for f in per_fold)]
    own = [p.at_own_times() for p in predictions]
    survival = np.concatenate([x for x in own if x is not None])
    spread = calibration.d_calibration(
        np.concatenate([p.test.event for p in predictions]), survival
    )
    return {
        "ibs": ibs,
        "ipa": _mean([fold["ipa"] for fold in per_fold]),
        "brier": {
            year: {name: _mean([fold["brier"][year][name] for fold in per_fold]) for name in both}
            for year in marks
        },
        "d_calibration": {"p": spread.p, "shares": list(spread.shares)},
        "calibration": {
            f"{year:g}": _calibration(survival_metrics.pooled_calibration(predictions, year))
            for year in years
        },
    }


def _calibration(result: Calibration | calibration.Estimate) -> dict[str, Any]:
    """JSON of the calibration at one horizon, or why there is none."""
    if not isinstance(result, Calibration):
        return {"missing": result.reason}
    slope = result.slope
    return {
        "slope": None if slope is None else {"value": slope.value, "ci95": _ends(slope.interval)},
        "in_the_large": result.in_the_large,
        "ici": result.ici,
        "fifths": [
            {
                "patients": fifth.patients,
                "predicted": fifth.predicted,
                "observed": fifth.observed.value,
                "ci95": _ends(fifth.observed.interval),
            }
            for fifth in result.fifths
        ],
        "missing": result.missing,
    }


def _ratios(predictions: Sequence[FoldPredictions]) -> dict[str, Any]:
    ratios = survival_metrics.hazard_ratios(predictions)
    return {
        "hazard_ratio": ratios["groups"],
        "hazard_ratio_per_sd": ratios["per_sd"],
        "hazard_ratio_missing": {
            name: sorted(set(reasons.values())) for name, reasons in ratios["missing"].items()
        },
    }


def _gain(folds: Sequence[FoldFiles]) -> dict[str, Any] | None:
    """C-index less that of the target's own model, fold by fold; None where that is not known."""
    pairs = [
        (fold.metrics["test"]["c_index"], (fold.metrics.get("target_only") or {}).get("c_index"))
        for fold in folds
    ]
    if any(own is None or value is None for value, own in pairs):
        return None
    differences = [value - own for value, own in pairs]
    num_train = [len(fold.split.train) for fold in folds]
    num_test = [len(fold.predictions.risk) for fold in folds]
    interval = significance.corrected_t_interval(differences, num_train, num_test)
    return {
        "own_model": float(np.mean([own for _, own in pairs])),
        "mean": float(np.mean(differences)),
        "folds": differences,
        "ci95": _ends(interval),
        "p": _or_none(significance.corrected_t_test(differences, num_train, num_test)),
    }


def verdict(report: Mapping[str, Any]) -> str:
    """What the run came to, in a sentence or two, with its uncertainty."""
    c_index, gain = report["c_index"], report["gain"]
    if c_index["mean"] is None:
        return "Not computable: some fold has no two test patients that can be compared."
    sentences = [f"C-index {c_index['mean']:.3f}{_interval(c_index['ci95'])} on test patients."]
    if gain is None and report["method"] == OWN_METHOD:
        sentences.append("This is the cancer's own model: there is none to compare it with here.")
    elif gain is None:
        sentences.append("The cancer's own model was not evaluated.")
    else:
        low, high = gain["ci95"] or (math.nan, math.nan)
        size = f"{gain['mean']:+.3f}{_interval(gain['ci95'], '+.3f')} in the C-index"
        if math.isnan(low):
            sentences.append(f"One fold cannot distinguish it from the cancer's own model: {size}.")
        elif low > 0:
            sentences.append(f"Better than the cancer's own model: {size}.")
        elif high < 0:
            sentences.append(f"Worse than the cancer's own model: {size}.")
        else:
            sentences.append(f"Not distinguishable from the cancer's own model: {size}.")
    if report["sources"]:
        words = report["sources"]
        sentences.append(f"{words[0].upper()}{words[1:]}.")
        sentences.append(
            "Whether other cancers are the cause of a gain, only a control can show: "
            "the same method with permuted task vectors."
        )
    return " ".join(sentences)


def _interval(ends: Sequence[float] | None, form: str = ".3f") -> str:
    return "" if ends is None else f" [95 %: {ends[0]:{form}} to {ends[1]:{form}}]"


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None where a value is missing."""
    return None if None in values or not values else float(np.mean([_or_nan(v) for v in values]))


def _sd(values: Sequence[float | None]) -> float | None:
    if None in values:
        return None
    return _or_none(metrics.mean_sd([_or_nan(v) for v in values])[1])


def _ends(interval: Interval) -> list[float] | None:
    """Both ends; None where there is no interval."""
    return list(interval) if all(map(math.isfinite, interval)) else None
