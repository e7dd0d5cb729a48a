"""The directory of a fold: who its patients are, and what training and evaluation leave there."""

import json
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from absl import logging

from steph_jax import files, records, run_directory
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.data.cohort import Fold
from steph_jax.data.tables import SurvivalTable
from steph_jax.evaluation import (
    drawing,
    patient_cells,
    predictions,
    source_share,
    survival_metrics,
)
from steph_jax.evaluation.evaluator import SplitScores
from steph_jax.evaluation.survival_metrics import FoldPredictions, Labels
from steph_jax.messages import join_names
from steph_jax.survival.time_bins import TimeBins

PATIENTS, PREDICTIONS = "patients.csv", "predictions_test.csv"
WEIGHTS = "merge_weights_test.csv"
_ADVICE = "restore the file, or remove the directory of the fold to train it again"

_SCORES = records.record({"c_index": records.or_null(records.within(0, 1))})
#: What is read again of a fold's training, and of its metrics.
_NOTED = {
    "method": records.NAME,
    "dataset": records.NAME,
    "fold": records.WHOLE,
    "trainable_parameters": records.WHOLE,
    "train_seconds": records.NUMBER,
}
_SELECTED = {"selected": records.mapping(records.ANYTHING)}
_TRAINING = records.record(_NOTED, _SELECTED)
_METRICS = records.record(
    _NOTED | {"train": _SCORES, "test": _SCORES, "risk_cut": records.NUMBER},
    _SELECTED
    | {
        "target_only": records.either(records.NOTHING, _SCORES),
        "null_model": _SCORES,
        "risk_sd": records.or_null(records.within(0, records.MOST)),
        "bin_edges": records.list_of(records.NUMBER, 2),
        "source_share": records.or_null(records.within(0, 1)),
    },
)


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
                **({} if table.competing is None else {"competing": table.competing[rows] + 0}),
                "slides": [json.dumps(table.slides[i]) for i in rows],
                **patient_cells.clinical_cells(table, [table.patients[i] for i in rows]),
            }
        )
        for part, rows in parts.items()
    ]
    files.write_table(directory / PATIENTS, pd.concat(frames))


def read_patients(directory: pathlib.Path) -> tuple[SurvivalTable, Fold]:
    """What `write_patients` wrote.

    Raises:
        FileNotFoundError, ValueError: it is missing or damaged; names the file, row and column.
    """
    path = directory / PATIENTS
    whole = _read_table(path, tuple(patient_cells.READERS))
    kinds = dict(patient_cells.READERS)
    if "competing" in whole:
        kinds["competing"] = patient_cells.event
    rows = whole[list(kinds)]
    values: dict[str, list[Any]] = {name: [] for name in kinds}
    for number, row in enumerate(rows.itertuples(index=False), 2):
        for (name, read), cell in zip(kinds.items(), row, strict=True):
            try:
                values[name].append(read(cell))
            except ValueError as error:
                raise ValueError(
                    f"{path}: row {number}, {name}: {error}, found {cell[:60]!r}; {_ADVICE}"
                ) from None
    patients = values["patient_id"]
    twice = [patient for patient, times in Counter(patients).items() if times > 1]
    if twice:
        raise ValueError(f"{path}: patients are there twice: {join_names(twice)}; {_ADVICE}")
    table = SurvivalTable(
        path=path,
        patients=tuple(patients),
        time=np.array(values["t"], np.float64),
        event=np.array(values["e"], bool),
        slides=tuple(map(tuple, values["slides"])),
        competing=np.array(values["competing"], bool) if "competing" in values else None,
        clinical=patient_cells.clinical_table(path, whole),
    )
    part = np.array(values["part"], np.str_)
    missing = [name for name in ("train", "test") if name not in part]
    if missing:
        raise ValueError(f"{path}: expected {missing[0]} patients, found none; {_ADVICE}")
    return table, Fold(*(np.flatnonzero(part == p) for p in patient_cells.PARTS))


def _read_table(path: pathlib.Path, columns: Sequence[str], advice: str = _ADVICE) -> pd.DataFrame:
    """A CSV as text, the columns asked for first.

    Raises:
        FileNotFoundError, ValueError: it is missing or damaged, or lacks a column; names the file.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: the file is missing; {advice}") from None
    except (OSError, ValueError, OverflowError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{path}: expected a table; {reason}; {advice}") from None
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise ValueError(f"{path}: expected the column {missing[0]}, found none; {advice}")
    return table


def write_results(
    directory: pathlib.Path,
    parts: dict[str, SplitScores],
    table: SurvivalTable,
    model: SavedModel,
    numbers: dict[str, Any],
    years: Sequence[float] = survival_metrics.YEARS,
) -> None:
    """Predictions, weights and metrics of a fold; metrics.json last.

    Args:
        directory: of the fold, which has its patients.
        parts: "train" and "test".
        table: of the cohort.
        model: the trained model.
        numbers: further entries of metrics.json ("dataset", "method", "fold" among them).
        years: horizons of AUC and Brier scores.
    """
    plots, test = drawing.pictures(), parts["test"]
    time, event = table.time[test.rows], table.event[test.rows]
    test_table = predictions.predictions_table(test.predicted, time, event)
    files.write_table(directory / PREDICTIONS, test_table)
    # Patients are at high risk above the median of the training patients, who alone were seen.
    cut = float(np.median(parts["train"].predicted.risk))
    title = f"{numbers['dataset']}, {numbers['method']}, fold {numbers['fold']}"
    on_test = f"{title}, test patients"
    plots.risk_groups(test_table.assign(cut=cut), directory / "risk_groups_test.png", on_test)
    if test.predicted.survival is not None:
        widths = np.diff(TimeBins.from_json(model.metadata["bins"]).edges).tolist()
        plots.survival_curves(test_table, directory / "survival_curves_test.png", on_test, widths)
    has_history = (directory / "history.csv").is_file()
    history = read_history(directory) if has_history else None
    if history is not None and len(history):
        plots.training_curves(history, directory / "training_curves.png", title)
    if "weight" in test.predicted.aux:
        weights = predictions.merge_weights_table(
            test.predicted, model.metadata["sources"], numbers["dataset"]
        )
        files.write_table(directory / WEIGHTS, weights)
        onto_target = model.metadata.get("options", {}).get("base") == "target"
        share = source_share.source_share(weights, onto_target=onto_target)
        numbers = numbers | {"source_share": share}
        logging.info("%s: %s", title, source_share.in_words(share))
        if history is not None:
            plots.source_weights(history, weights, directory / "source_weights.png", title)
    scores: dict[str, dict[str, Any]] = {name: dict(part.scores) for name, part in parts.items()}
    risk_sd = float(np.std(parts["train"].predicted.risk, ddof=1))
    edges = TimeBins.from_json(model.metadata["bins"]).edges
    train = table.time[parts["train"].rows], table.event[parts["train"].rows]
    fold = FoldPredictions(
        train=Labels(*train),
        test=Labels(time, event),
        risk=np.asarray(test.predicted.risk, np.float64),
        cut=cut,
        risk_sd=risk_sd,
        survival=test.predicted.survival,
        edges=np.asarray(edges),
    )
    # Of all patients of the fold, so that tau is that of the other folds.
    everyone, _ = read_patients(directory)
    tau = survival_metrics.horizon(Labels(everyone.time, everyone.event), years)
    scores["test"] |= survival_metrics.fold_metrics(fold, tau, years)
    scale = {"risk_cut": cut, "risk_sd": risk_sd, "bin_edges": list(edges)}
    files.write_json(directory / "metrics.json", scores | numbers | scale)


def read_metrics(directory: pathlib.Path) -> dict[str, Any]:
    """metrics.json of a finished fold.

    Raises:
        FileNotFoundError, ValueError: it is missing or damaged; names the file and the field.
    """
    return records.read(
        directory / "metrics.json", _METRICS, "the metrics of a finished fold", _ADVICE
    )


def read_training(directory: pathlib.Path) -> dict[str, Any]:
    """training.json of a trained fold: entries of metrics.json that evaluating cannot find again.

    Raises:
        FileNotFoundError, ValueError: it is missing or damaged; names the file and the field.
    """
    path = run_directory.training_record(directory)
    return records.read(path, _TRAINING, "what a trained fold notes of its training", _ADVICE)


def read_predictions(directory: pathlib.Path) -> pd.DataFrame:
    """Columns patient_id, t, e and risk (float32, as it was written) of predictions_test.csv.

    Raises:
        FileNotFoundError, ValueError: it is missing or damaged; names the file and the column.
    """
    path = directory / PREDICTIONS
    table = _read_table(path, ("patient_id", "t", "e", "risk"), rewrite(directory))
    return pd.DataFrame(
        {
            "patient_id": table["patient_id"],
            "t": _numbers(path, table["t"]),
            "e": _numbers(path, table["e"]).astype(np.int64),
            "risk": _numbers(path, table["risk"]).astype(np.float32),
        }
    )


def read_survival_curves(directory: pathlib.Path) -> survival_metrics.Floats | None:
    """[P, T] survival of the test patients at the ends of the time bins, by predictions_test.csv.

    None for a model without survival curves.

    Raises:
        FileNotFoundError, ValueError: it is missing or damaged; names the file and the column.
    """
    path = directory / PREDICTIONS
    table = _read_table(path, (), rewrite(directory))
    names = [name for name in table if str(name).startswith("surv_")]
    if not names:
        return None
    curves = np.stack([_numbers(path, table[name]) for name in names], axis=1)
    if (curves < 0).any() or (curves > 1).any():
        raise ValueError(
            f"{path}: expected survival from 0 to 1, found {curves.min():g} to {curves.max():g}; "
            f"{rewrite(directory)}"
        )
    return curves


def rewrite(directory: pathlib.Path) -> str:
    """What to do about a damaged file that evaluating a fold writes."""
    return f"python -m steph_jax.evaluate --workdir {directory.parent} writes it again"


def read_weights(directory: pathlib.Path) -> pd.DataFrame:
    """Columns source and source_coefficient of merge_weights_test.csv.

    Raises:
        FileNotFoundError, ValueError: it is missing or damaged; names the file and the column.
    """
    path, name = directory / WEIGHTS, "source_coefficient"
    table = _read_table(path, ("source", "source_coefficient"), rewrite(directory))
    return pd.DataFrame({"source": table["source"], name: _numbers(path, table[name])})


def read_history(directory: pathlib.Path) -> pd.DataFrame:
    """history.csv: a row per epoch; none for a method that is not trained.

    Raises:
        FileNotFoundError, ValueError: it is missing or damaged; names the file and the column.
    """
    path = directory / "history.csv"
    table = _read_table(path, ("epoch", "learning_rate"))
    return pd.DataFrame({name: _numbers(path, table[name], finite=False) for name in table.columns})


def _numbers(path: pathlib.Path, column: pd.Series, finite: bool = True) -> pd.Series:
    """A column of numbers; unless they must be finite, an empty cell is NaN."""
    numbers = pd.to_numeric(column, errors="coerce").astype(np.float64)
    bad = column[~np.isfinite(numbers) if finite else numbers.isna() & (column != "")]
    if len(bad):
        raise ValueError(
            f"{path}: row {int(bad.index[0]) + 2}, {column.name}: expected a number, found "
            f"{str(bad.iloc[0])[:60]!r}; {_ADVICE}"
        )
    return numbers
