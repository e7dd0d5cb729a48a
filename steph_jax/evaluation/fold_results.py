"""The directory of a fold: who its patients are, and what training and evaluation leave there."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from absl import logging

from steph_jax import files, plots, run_directory
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.data.cohort import Fold
from steph_jax.data.tables import SurvivalTable
from steph_jax.evaluation import predictions, source_share, survival_metrics
from steph_jax.evaluation.evaluator import SplitScores
from steph_jax.evaluation.survival_metrics import FoldPredictions, Labels
from steph_jax.survival.time_bins import TimeBins

PATIENTS = "patients.csv"


def write_patients(directory: pathlib.Path, table: SurvivalTable, fold: Fold) -> None:
    """Who the fold's patients are, so that the fold can be evaluated from its directory alone."""
    parts = {"train": fold.train, "test": fold.test, "validation": fold.validation}
    frames = [
        pd.DataFrame(
            {
                "patient_id": [table.patients[i] for i in rows],
                "part": part,
                "t": table.time[rows],
                "e": table.event[rows].astype(int),
                "slides": [json.dumps(table.slides[i]) for i in rows],
            }
        )
        for part, rows in parts.items()
    ]
    files.write_table(directory / PATIENTS, pd.concat(frames))


def read_patients(directory: pathlib.Path) -> tuple[SurvivalTable, Fold]:
    """What `write_patients` wrote.

    Raises:
        FileNotFoundError, ValueError: it is missing or damaged.
    """
    path = directory / PATIENTS
    try:
        rows = pd.read_csv(
            path,
            dtype={"patient_id": str, "part": str, "slides": str},
            keep_default_na=False,
        )
        table = SurvivalTable(
            path=path,
            patients=tuple(rows["patient_id"]),
            time=rows["t"].to_numpy(np.float64),
            event=rows["e"].to_numpy() > 0,
            slides=tuple(tuple(json.loads(slides)) for slides in rows["slides"]),
        )
        part = rows["part"].to_numpy()
    except (KeyError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: expected the patients of a fold; {error}") from None
    return table, Fold(*(np.flatnonzero(part == p) for p in ("train", "test", "validation")))


def write_results(
    directory: pathlib.Path,
    parts: dict[str, SplitScores],
    table: SurvivalTable,
    model: SavedModel,
    numbers: dict[str, Any],
) -> None:
    """Predictions, weights and metrics of a fold; metrics.json last.

    Args:
        directory: of the fold.
        parts: "train" and "test".
        table: of the cohort.
        model: the trained model.
        numbers: further entries of metrics.json ("dataset", "method", "fold" among them).
    """
    test = parts["test"]
    time, event = table.time[test.rows], table.event[test.rows]
    shown = predictions.predictions_table(test.predicted, time, event)
    files.write_table(directory / "predictions_test.csv", shown)
    # Patients are at high risk above the median of the training patients, who alone were seen.
    cut = float(np.median(parts["train"].predicted.risk))
    title = f"{numbers['dataset']}, {numbers['method']}, fold {numbers['fold']}"
    on_test = f"{title}, test patients"
    plots.risk_groups(shown.assign(cut=cut), directory / "risk_groups_test.png", on_test)
    if test.predicted.survival is not None:
        widths = np.diff(TimeBins.from_json(model.settings["bins"]).edges).tolist()
        plots.survival_curves(shown, directory / "survival_curves_test.png", on_test, widths)
    history_path = directory / "history.csv"
    history = pd.read_csv(history_path) if history_path.is_file() else None
    if history is not None and len(history):
        plots.training_curves(history, directory / "training_curves.png", title)
    if "weight" in test.predicted.record:
        weights = predictions.merge_weights_table(
            test.predicted, model.settings["sources"], numbers["dataset"]
        )
        files.write_table(directory / "merge_weights_test.csv", weights)
        onto_target = model.settings.get("options", {}).get("base") == "target"
        share = source_share.source_share(weights, onto_target=onto_target)
        numbers = numbers | {"source_share": share}
        logging.info("%s: %s", title, source_share.in_words(share))
        if history is not None:
            plots.source_weights(history, weights, directory / "source_weights.png", title)
    scores: dict[str, dict[str, Any]] = {name: dict(part.scores) for name, part in parts.items()}
    risk_sd = float(np.std(parts["train"].predicted.risk, ddof=1))
    edges = TimeBins.from_json(model.settings["bins"]).edges
    scores["test"] |= _survival_metrics(parts, table, edges, cut, risk_sd)
    scale = {"risk_cut": cut, "risk_sd": risk_sd, "bin_edges": list(edges)}
    files.write_json(directory / "metrics.json", scores | numbers | scale)


def _survival_metrics(
    parts: dict[str, SplitScores],
    table: SurvivalTable,
    edges: Sequence[float],
    cut: float,
    risk_sd: float,
) -> dict[str, Any]:
    """Numbers of the test patients beside the C-index (`survival_metrics.fold_metrics`)."""
    train, test = parts["train"], parts["test"]
    cohort = np.union1d(train.rows, test.rows)
    fold = FoldPredictions(
        train=Labels(table.time[train.rows], table.event[train.rows]),
        test=Labels(table.time[test.rows], table.event[test.rows]),
        risk=np.asarray(test.predicted.risk, np.float64),
        cut=cut,
        risk_sd=risk_sd,
        survival=test.predicted.survival,
        edges=np.asarray(edges),
    )
    tau = survival_metrics.horizon(Labels(table.time[cohort], table.event[cohort]))
    return survival_metrics.fold_metrics(fold, tau)


def read_metrics(directory: pathlib.Path) -> dict[str, Any]:
    """metrics.json of a finished fold.

    Raises:
        ValueError: it is missing or damaged.
    """
    return _read_json(directory / "metrics.json", "the metrics of a finished fold")


def read_training(directory: pathlib.Path) -> dict[str, Any]:
    """training.json of a trained fold: entries of metrics.json that evaluating cannot find again.

    Raises:
        ValueError: it is missing or damaged.
    """
    return _read_json(
        run_directory.training_record(directory), "what a trained fold notes of its training"
    )


def _read_json(path: pathlib.Path, what: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected {what}; {error}") from None
