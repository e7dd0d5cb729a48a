"""The numbers of a report, from the files that a run has left."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from steph_jax import run_directory
from steph_jax.data.clinical import ClinicalTable
from steph_jax.data.folds import describe_sites
from steph_jax.evaluation import (
    clinical_gain,
    competing_risks,
    fold_files,
    run_metrics,
    source_share,
)
from steph_jax.evaluation.fold_files import FoldFiles
from steph_jax.evaluation.run_metrics import ends, or_none
from steph_jax.reports import provenance, verdicts
from steph_jax.survival import metrics, significance
from steph_jax.survival.significance import FoldRisks
from steph_jax.survival.time_bins import DAYS_PER_YEAR


def report_numbers(workdir: pathlib.Path, clinical: ClinicalTable | None = None) -> dict[str, Any]:
    """The content of a report of a run, as JSON.

    Args:
        workdir: of a run with a finished fold or more.
        clinical: columns that the risk is compared with.

    Raises:
        FileNotFoundError, ValueError: no run, no finished fold, or damaged files.
    """
    settings = run_directory.load(workdir)
    numbers = run_directory.finished_folds(workdir)
    if not numbers:
        raise ValueError(f"{workdir}: no fold is finished yet; run steph_jax.train to its end")
    folds = [fold_files.read_fold(workdir, number) for number in numbers]
    years = fold_files.years_of(workdir)
    over_folds = run_metrics.run_metrics(folds, years)
    record = provenance.read(workdir)
    share = _mean([fold.metrics.get("source_share") for fold in folds])
    has_shares = any("source_share" in fold.metrics for fold in folds)
    report = {
        "dataset": settings["dataset"],
        "method": settings["method"],
        "control": settings.get("control", "none"),
        "seed": settings["seed"],
        "folds": numbers,
        "participants": _participants(folds, record),
        "c_index": _c_index(folds),
        **over_folds,
        **_means(over_folds),
        "over_folds": {name: over_folds[name] for name in ("auc", "ibs", "ipa", "brier")},
        "gain": _gain(folds),
        "clinical": None if clinical is None else clinical_gain.clinical_gain(folds, clinical),
        "competing": competing_risks.competing_risks(folds, years),
        "merges": any(
            (run_directory.fold_directory(workdir, number) / "merge_weights_test.csv").is_file()
            for number in numbers
        ),
        "source_share": share if has_shares else None,
        "sources": source_share.in_words(share) if has_shares else None,
        "settings": settings,
        "provenance": record,
    }
    return report | {"verdict": verdicts.of_run(report)}


def _means(over_folds: Mapping[str, Any]) -> dict[str, Any]:
    """Means over folds in the place of the numbers that `run_metrics` gives with their spread."""

    def means(spreads: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value["mean"] for name, value in spreads.items()}

    ibs, ipa = over_folds["ibs"], over_folds["ipa"]
    return {
        "auc": means(over_folds["auc"]),
        "ibs": None if ibs is None else means(ibs),
        "ipa": None if ipa is None else ipa["mean"],
        "brier": {year: means(both) for year, both in over_folds["brier"].items()},
    }


def _participants(folds: Sequence[FoldFiles], record: Mapping[str, Any] | None) -> dict[str, Any]:
    """Who was studied: patients, slides, events, follow-up.

    `flow` has who else is in the table, and why they were not studied; None where that was not
    recorded at the start of the run.
    """
    cohort = fold_files.cohort_labels(folds)
    slides = {slide for fold in folds for of_patient in fold.table.slides for slide in of_patient}
    size = None if record is None else record.get("table")
    follow_up = metrics.kaplan_meier(cohort.time, ~cohort.event)
    below = np.flatnonzero(follow_up.survival <= 0.5)
    return {
        "patients": len(cohort.time),
        "slides": len(slides),
        "flow": None if size is None else _flow(size, len(cohort.time), len(slides)),
        "events": int(cohort.event.sum()),
        "event_rate": float(cohort.event.mean()),
        "median_follow_up_years": (
            float(follow_up.times[below[0]]) / DAYS_PER_YEAR if len(below) else None
        ),
        "tested": _tested(folds),
        "sites": describe_sites(
            (
                [fold.table.patients[i] for i in fold.split.train],
                [fold.table.patients[i] for i in fold.split.test],
            )
            for fold in folds
        ),
        "validated": any(len(fold.split.validation) for fold in folds),
        "folds": [
            {
                "fold": fold.number,
                "validation": len(fold.split.validation),
                "train": len(fold.split.train),
                "train_events": int(fold.predictions.train.event.sum()),
                "test": len(fold.predictions.risk),
                "test_events": int(fold.predictions.test.event.sum()),
            }
            for fold in folds
        ],
    }


def _tested(folds: Sequence[FoldFiles]) -> dict[str, int]:
    """Patients who are a test patient of some fold, and events among them."""
    events = {
        fold.table.patients[i]: bool(fold.table.event[i]) for fold in folds for i in fold.split.test
    }
    return {"patients": len(events), "events": sum(events.values())}


def _flow(size: Mapping[str, int], patients: int, slides: int) -> dict[str, dict[str, int]]:
    """Patients and slides from the table to the study.

    Args:
        size: fields of `cohort.TableSize`.
        patients, slides: that were studied.
    """
    left_out = size["patients_without_outcome"], size["slides_without_outcome"]
    return {
        "in_table": {"patients": size["patients"], "slides": size["slides"]},
        "without_outcome": {"patients": left_out[0], "slides": left_out[1]},
        "in_no_split": {
            "patients": size["patients"] - left_out[0] - patients,
            "slides": size["slides"] - left_out[1] - slides,
        },
        "studied": {"patients": patients, "slides": slides},
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
        "mean": or_none(mean),
        "sd": or_none(sd),
        "folds": [or_none(value) for value in values],
        "ci95": ends(interval),
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
        "ci95": ends(interval),
        "p": or_none(significance.corrected_t_test(differences, num_train, num_test)),
    }


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None where a value is missing."""
    return None if None in values or not values else float(np.mean([_or_nan(v) for v in values]))
