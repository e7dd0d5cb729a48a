"""What a run leaves behind: its numbers over the folds, pictures, and the C-index on the screen."""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import pandas as pd

from steph_jax import files, run_directory
from steph_jax.evaluation import drawing, fold_files, fold_results, run_metrics
from steph_jax.messages import setting_values
from steph_jax.survival import metrics


def write(
    workdir: pathlib.Path, dataset: str, method: str, seed: int, folds: Sequence[int]
) -> dict[str, Any]:
    """Draws, writes and prints what a run came to; summary.json, of all its numbers, last.

    Args:
        workdir: of the run.
        dataset: the target.
        method: value of `config.method`.
        seed: of the run.
        folds: numbers of the finished ones.
    """
    plots = drawing.pictures()
    directories = [run_directory.fold_directory(workdir, fold) for fold in folds]
    metrics_of_folds = [fold_results.read_metrics(directory) for directory in directories]
    values = [_or_nan(record["test"]["c_index"]) for record in metrics_of_folds]
    mean, sd = metrics.mean_sd(values)
    summary = {
        "method": method,
        "dataset": dataset,
        "seed": seed,
        "fold_numbers": list(folds),
        "c_index": {"folds": values, "mean": mean, "sd": sd},
    }
    summary |= run_metrics_of(workdir, folds)
    # What a sweep selected for each fold (`sweep`).
    selected = [record.get("selected", {}) for record in metrics_of_folds]
    if any(selected):
        summary["selected"] = selected
    title = f"{dataset}, {method}"
    by_method = {method: values}
    if all(record.get("target_only") for record in metrics_of_folds):
        target_only = [_or_nan(record["target_only"]["c_index"]) for record in metrics_of_folds]
        by_method = {"target-only ABMIL": target_only} | by_method
    plots.folds(by_method, workdir / "c_index.png", title, folds)
    plot_mean_weights(workdir, folds, title)
    histories = [fold_results.read_history(directory) for directory in directories]
    if all(len(history) for history in histories):
        curves = [history.assign(fold=k) for k, history in zip(folds, histories, strict=True)]
        plots.training_curves(pd.concat(curves), workdir / "training_curves.png", title)
    tables = [
        fold_results.read_predictions(directory).assign(fold=fold, cut=record["risk_cut"])
        for fold, directory, record in zip(folds, directories, metrics_of_folds, strict=True)
    ]
    plots.risk_groups(pd.concat(tables), workdir / "risk_groups.png", f"{title}, test patients")
    # Last: this file marks the run as complete.
    files.write_json(workdir / "summary.json", summary)
    print(f"\n{title}: test C-index")
    for fold, value, swept in zip(folds, values, selected, strict=True):
        print(f"  fold {fold}  {value:.4f}  {setting_values(swept)}".rstrip())
    print(f"  mean    {mean:.4f}   sd {sd:.4f}\nwritten to {workdir}")
    return summary


def run_metrics_of(workdir: pathlib.Path, folds: Sequence[int]) -> dict[str, Any]:
    """`run_metrics` of some folds of a run, by the horizons of its settings."""
    every = [fold_files.read_fold(workdir, fold) for fold in folds]
    return run_metrics.run_metrics(every, fold_files.years_of(workdir))


def plot_mean_weights(workdir: pathlib.Path, folds: Sequence[int], title: str) -> None:
    """The mean weight of each source on the test patients, by fold, where a method has weights."""
    directories = [run_directory.fold_directory(workdir, fold) for fold in folds]
    if not all((directory / fold_results.WEIGHTS).is_file() for directory in directories):
        return
    means = {
        f"fold {fold}": fold_results.read_weights(directory)
        .groupby("source", sort=False)["source_coefficient"]
        .mean()
        for fold, directory in zip(folds, directories, strict=True)
    }
    table = pd.DataFrame(means).rename_axis("Source").rename_axis("Fold", axis="columns")
    label = "Mean coefficient, test patients"
    drawing.pictures().matrix(table, workdir / "source_weights.png", title, label)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)
