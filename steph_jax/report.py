"""What a fold leaves behind: tables, numbers and pictures, from training as from `evaluate`."""

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from steph_jax import evaluation, files, metrics, plots, runs
from steph_jax.abmil import Params
from steph_jax.checkpoints import SavedModel
from steph_jax.data.bins import TimeBins
from steph_jax.data.cohort import Fold
from steph_jax.data.survival import SurvivalTable
from steph_jax.evaluation import Predictions
from steph_jax.feed import Feed
from steph_jax.fitting import Epoch
from steph_jax.methods.abmil import AbmilMethod
from steph_jax.objectives import DAYS_PER_UNIT, HAZARD, Labels, Objective
from steph_jax.phases import LossFunction
from steph_jax.program import Program, program_of

#: Weights of all sources together below which a model says next to nothing of them; starts that
#: live had 0.04 and more in their first epoch on real patients.
STARVED_WEIGHT = 0.01


class Part(NamedTuple):
    """A model on some patients of a cohort: predictions, and {"c_index", "nll"}."""

    rows: np.ndarray
    predicted: Predictions
    scores: dict[str, float]


def batch_labels(labels: dict[str, Any]) -> Labels:
    """The labels that losses read, of the labels of a batch."""
    return Labels(labels["time_bin"], labels["time"], labels["event"])


@functools.lru_cache(maxsize=8)
def loss_function(objective: Objective) -> LossFunction:
    """The loss of a batch as `program.Program` calls it."""

    def loss(logits: jax.Array, labels: dict[str, jax.Array], mask: jax.Array) -> jax.Array:
        return objective(logits, batch_labels(labels), mask)

    return loss


def label_rows(labels: dict[str, np.ndarray], rows: np.ndarray) -> Labels:
    """The labels of some patients."""
    return batch_labels({name: jnp.asarray(values[rows]) for name, values in labels.items()})


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Runs a model on patients of a cohort, dropout off: (trainable, their numbers) -> `Part`.

    Attributes:
        program: the compiled method.
        frozen: its parameters that are not trained.
        feed: of the cohort's bags.
        labels: of all patients of the cohort.
        table: of the cohort.
        objective: the loss.
    """

    program: Program
    frozen: Params
    feed: Feed
    labels: dict[str, np.ndarray]
    table: SurvivalTable
    objective: Objective

    def __call__(self, trainable: Params, rows: np.ndarray) -> Part:
        outputs, record = evaluation.run(
            self.program,
            trainable,
            self.frozen,
            self.feed,
            rows.tolist(),
            self.labels,
        )
        return scored(rows, outputs, record, self.labels, self.table, self.objective)


def scored(
    rows: np.ndarray,
    outputs: np.ndarray,
    record: dict[str, np.ndarray],
    labels: dict[str, np.ndarray],
    table: SurvivalTable,
    objective: Objective,
) -> Part:
    """Predictions and numbers from the outputs of a model on some patients."""
    predicted = evaluation.predictions(
        [table.patients[i] for i in rows], outputs, record, objective
    )
    scores = evaluation.score(
        predicted, table.time[rows], table.event[rows], label_rows(labels, rows), objective
    )
    return Part(rows, predicted, scores)


def baseline(train: Part, table: SurvivalTable, objective: Objective) -> dict[str, Any]:
    """What a stored model needs for survival curves, from its training patients."""
    rows = train.rows
    return evaluation.fitted_baseline(
        train.predicted, table.time[rows], table.event[rows], objective
    )


def with_curves(parts: dict[str, Part], model: SavedModel) -> dict[str, Part]:
    """The parts with the survival curves of the model's baseline, if it has one."""
    return {
        name: part._replace(predicted=evaluation.with_curves(part.predicted, model.settings))
        for name, part in parts.items()
    }


def epoch_row(
    passed: Epoch,
    table: SurvivalTable,
    feed: Feed,
    labels: dict[str, np.ndarray],
    objective: Objective,
    sources: Sequence[str],
) -> dict[str, float]:
    """What a training epoch says of itself: losses, C-index and weights of its own passes."""
    rows, outputs, record = evaluation.collect(passed.batches, passed.outputs, len(table.patients))
    part = scored(rows, outputs, record, labels, table, objective)
    row = {f"train_{name}": value for name, value in part.scores.items()}
    row["train_loss"] = float(np.mean(jax.device_get([o.loss for o in passed.outputs])))
    patches = int(feed.bags.num_patches[rows].sum())
    row |= {
        "seconds": passed.seconds,
        "slides_per_second": len(rows) / passed.seconds,
        "patches_per_second": patches / passed.seconds,
        "waiting_share": passed.waited / passed.seconds,
    }
    for name, column in (("weight", "weight"), ("selected", "selected")):
        if name in record:
            means = np.asarray(record[name], np.float64).mean(axis=0)
            row |= {f"{column}_{s}": float(m) for s, m in zip(sources, means, strict=True)}
    return row


def is_dead(history: list[dict[str, float]]) -> bool:
    """Whether the last epoch gave no slide any source, or the last three gave next to none."""
    totals = [total_weight(row) for row in history]
    starved = len(totals) >= 3 and max(totals[-3:]) < STARVED_WEIGHT
    return starved or totals[-1] == 0


def total_weight(row: dict[str, float]) -> float:
    """Weights of all sources together in an epoch, mean over slides; infinite for other methods."""
    weights = [value for name, value in row.items() if name.startswith("weight_")]
    return sum(weights) if weights else math.inf


def epoch_line(row: dict[str, float]) -> str:
    """An epoch in one line of a log."""
    text = f"loss {row['train_loss']:.4f}, train C {row['train_c_index']:.4f}"
    if "test_c_index" in row:
        text += f", test C {row['test_c_index']:.4f}"
    if total_weight(row) < STARVED_WEIGHT:
        text += f" (weights of all sources together: {total_weight(row):.1g})"
    return (
        f"{text}, {row['slides_per_second']:.1f} slides/s, {row['patches_per_second']:.0f} "
        f"patches/s, {100 * row['waiting_share']:.0f}% waiting for data"
    )


def training_numbers(history: list[dict[str, float]], dead_seconds: float) -> dict[str, Any]:
    """What metrics.json says of how long a fold was trained, starts that died included.

    Args:
        history: of the start that lived.
        dead_seconds: that the epochs of the others took.
    """
    return {
        "epochs": len(history),
        "train_seconds": dead_seconds + sum(row["seconds"] for row in history),
        "train_slides_per_second": median_speed(pd.DataFrame(history)) if history else None,
    }


def history_table(history: list[dict[str, float]]) -> pd.DataFrame:
    """A row per epoch; the columns alone where nothing was trained."""
    return pd.DataFrame(history, columns=None if history else ["epoch", "learning_rate"])


def median_speed(history: pd.DataFrame) -> float:
    """Slides per second of the median epoch, without the first, which compiles, if it can be."""
    speeds = history["slides_per_second"].iloc[1 if len(history) > 1 else 0 :]
    return float(speeds.median())


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
                "slides": ["|".join(table.slides[i]) for i in rows],
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
            slides=tuple(tuple(slides.split("|")) for slides in rows["slides"]),
        )
        part = rows["part"].to_numpy()
    except (KeyError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: expected the patients of a fold; {error}") from None
    return table, Fold(*(np.flatnonzero(part == p) for p in ("train", "test", "validation")))


def cohort_labels(table: SurvivalTable, bins: TimeBins) -> dict[str, np.ndarray]:
    """What losses need of every patient: time_bin, time (years) and event."""
    return {
        "time_bin": bins.index(table.time).astype(np.int32),
        "time": (table.time / DAYS_PER_UNIT).astype(np.float32),
        "event": table.event.astype(np.int32),
    }


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
    return _read_json(runs.training_record(directory), "what a trained fold notes of its training")


def _read_json(path: pathlib.Path, what: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected {what}; {error}") from None


def target_only(model: SavedModel, evaluate: Evaluator, rows: np.ndarray) -> dict[str, float]:
    """C-index and loss of the target's own base model, which a merged model holds.

    {} without one, or where its outputs mean something else than the merged model's.

    Args:
        model: the merged model.
        evaluate: of the merged model, for its data.
        rows: numbers of the patients in the cohort.
    """
    target = model.params.get("frozen", {}).get("target")
    num_outputs = evaluate.objective.output.num_outputs(model.architecture.num_bins)
    if target is None or len(target["pred_head"]["bias"]) != num_outputs:
        return {}
    if model.settings.get("target_output", HAZARD.name) != evaluate.objective.output.name:
        return {}
    merged = evaluate.program
    method = AbmilMethod(model.architecture, merged.method.compute_dtype)
    program = program_of(method, None, merged.mesh, merged.num_slots)
    alone = dataclasses.replace(evaluate, program=program, frozen={})
    return alone(program.replicate(target), rows).scores


def write_fold(
    directory: pathlib.Path,
    parts: dict[str, Part],
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
    shown = evaluation.predictions_table(test.predicted, time, event)
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
        weights = evaluation.merge_weights_table(test.predicted, model.settings["sources"])
        files.write_table(directory / "merge_weights_test.csv", weights)
        if history is not None:
            plots.source_weights(history, weights, directory / "source_weights.png", title)
    scores = {part: of.scores for part, of in parts.items()}
    files.write_json(directory / "metrics.json", scores | numbers | {"risk_cut": cut})


def plot_mean_weights(workdir: pathlib.Path, folds: Sequence[int], title: str) -> None:
    """The mean weight of each source on the test patients, by fold, where a method has weights."""
    paths = [runs.fold_directory(workdir, fold) / "merge_weights_test.csv" for fold in folds]
    if not all(path.is_file() for path in paths):
        return
    means = {
        f"fold {fold}": pd.read_csv(path).groupby("source", sort=False)["weight"].mean()
        for fold, path in zip(folds, paths, strict=True)
    }
    table = pd.DataFrame(means).rename_axis("Source").rename_axis("Fold", axis="columns")
    label = "Mean weight w of the test patients"
    plots.matrix(table, workdir / "source_weights.png", title, label)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)


def setting_values(values: dict[str, Any]) -> str:
    """Settings and their values, by name, as a line shows them."""
    return ", ".join(f"{name}={value}" for name, value in values.items())


def summarize(workdir: pathlib.Path, config: dict[str, Any]) -> dict[str, Any]:
    """Writes, draws and prints the C-index over the folds of a run."""
    directories = [runs.fold_directory(workdir, fold) for fold in config["folds"]]
    found = [read_metrics(directory) for directory in directories]
    values = [_or_nan(of["test"]["c_index"]) for of in found]
    mean, sd = metrics.mean_sd(values)
    summary = {
        "method": config["method"],
        "dataset": config["dataset"],
        "seed": config["seed"],
        "fold_numbers": list(config["folds"]),
        "c_index": {"folds": values, "mean": mean, "sd": sd},
    }
    # What a sweep selected for each fold (`sweep`).
    selected = [of.get("selected", {}) for of in found]
    if any(selected):
        summary["selected"] = selected
    files.write_json(workdir / "summary.json", summary)
    title = f"{config['dataset']}, {config['method']}"
    shown = {config["method"]: values}
    if all(of.get("target_only") for of in found):
        alone = [_or_nan(of["target_only"]["c_index"]) for of in found]
        shown = {"target-only ABMIL": alone} | shown
    plots.folds(shown, workdir / "c_index.png", title, config["folds"])
    plot_mean_weights(workdir, config["folds"], title)
    histories = [pd.read_csv(directory / "history.csv") for directory in directories]
    if all(len(history) for history in histories):
        curves = [of.assign(fold=k) for k, of in zip(config["folds"], histories, strict=True)]
        plots.training_curves(pd.concat(curves), workdir / "training_curves.png", title)
    tables = [
        pd.read_csv(directory / "predictions_test.csv", dtype={"risk": np.float32}).assign(
            fold=fold, cut=of["risk_cut"]
        )
        for fold, directory, of in zip(config["folds"], directories, found, strict=True)
    ]
    plots.risk_groups(pd.concat(tables), workdir / "risk_groups.png", f"{title}, test patients")
    print(f"\n{title}: test C-index")
    for fold, value, swept in zip(config["folds"], values, selected, strict=True):
        print(f"  fold {fold}  {value:.4f}  {setting_values(swept)}".rstrip())
    print(f"  mean    {mean:.4f}   sd {sd:.4f}\nwritten to {workdir}")
    return summary
