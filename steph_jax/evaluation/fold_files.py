"""A finished fold as its files have it, whatever version of the program wrote them."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from steph_jax import run_directory
from steph_jax.checkpoints import saved_model
from steph_jax.data.cohort import Fold
from steph_jax.data.tables import SurvivalTable
from steph_jax.evaluation import fold_results, survival_metrics
from steph_jax.evaluation.survival_metrics import FoldPredictions, Labels
from steph_jax.survival.time_bins import TimeBins


@dataclasses.dataclass(frozen=True, eq=False)
class FoldFiles:
    """A finished fold as its files have it.

    Attributes:
        number: of the fold.
        metrics: its metrics.json.
        table: its patients.
        split: who is in which part.
        patients: ids of the test patients, in the order of `predictions`.
        predictions: of the test patients, with the training patients' labels.
    """

    number: int
    metrics: Mapping[str, Any]
    table: SurvivalTable
    split: Fold
    patients: tuple[str, ...]
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
    train = split.train
    return FoldFiles(
        number,
        numbers,
        table,
        split,
        tuple(rows["patient_id"]),
        FoldPredictions(
            train=Labels(table.time[train], table.event[train]),
            test=Labels(rows["t"].to_numpy(np.float64), rows["e"].to_numpy() > 0),
            risk=rows["risk"].to_numpy(np.float64),
            cut=float(numbers["risk_cut"]),
            risk_sd=numbers.get("risk_sd"),
            survival=curves,
            edges=_edges(directory, numbers, None if curves is None else curves.shape[1]),
        ),
    )


def _edges(
    directory: pathlib.Path, numbers: Mapping[str, Any], num_bins: int | None
) -> survival_metrics.Floats:
    """[T + 1] edges of the time bins; no use is made of them where there are no curves."""
    if num_bins is None:
        return np.array([0.0, 1.0])
    edges = numbers.get("bin_edges")
    if edges is None:  # of a run before metrics.json had them
        return np.asarray(saved_model.load_model(directory / "model").metadata["bins"]["edges"])
    try:
        bins = TimeBins(tuple(edges), "uniform")
    except ValueError as error:
        raise ValueError(
            f"{directory / 'metrics.json'}: bin_edges: {error}; {fold_results.rewrite(directory)}"
        ) from None
    if bins.num_bins != num_bins:
        raise ValueError(
            f"{directory / 'metrics.json'}: expected edges of {num_bins} bins, as many as "
            f"predictions_test.csv has, found {bins.num_bins}; {fold_results.rewrite(directory)}"
        )
    return np.asarray(bins.edges, np.float64)


def cohort_labels(folds: Sequence[FoldFiles]) -> Labels:
    """Labels of all patients of some folds, each once, validation patients among them."""
    labels: dict[str, tuple[float, bool]] = {}
    for fold in folds:
        rows = zip(fold.table.patients, fold.table.time, fold.table.event, strict=True)
        labels |= {patient: (time, event) for patient, time, event in rows}
    time, event = zip(*labels.values(), strict=True)
    return Labels(np.asarray(time, np.float64), np.asarray(event, bool))


def years_of(workdir: pathlib.Path) -> tuple[float, ...]:
    """The horizons of a run; the default for one that an earlier version has made.

    Raises:
        FileNotFoundError, ValueError: there are no settings, or they are damaged.
    """
    section = run_directory.load(workdir).get("evaluate", {"years": survival_metrics.YEARS})
    try:
        years = tuple(float(year) for year in section["years"])
        survival_metrics.expect_years(years)
    except (KeyError, TypeError, ValueError) as error:
        path = workdir / run_directory.SETTINGS
        raise ValueError(f"{path}: evaluate.years: {error}; restore the file") from None
    return years
