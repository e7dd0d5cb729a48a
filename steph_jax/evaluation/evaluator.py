"""A model on patients of a cohort: its predictions, C-index and loss, compiled once for all."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.data.tables import SurvivalTable
from steph_jax.engine.loader import Feed
from steph_jax.engine.method import LossFunction
from steph_jax.engine.step import Program, program_of
from steph_jax.evaluation import predictions
from steph_jax.evaluation.predictions import Predictions, with_curves
from steph_jax.methods.abmil import AbmilMethod
from steph_jax.models.abmil import Params
from steph_jax.survival.objectives import DAYS_PER_UNIT, HAZARD, Labels, Objective
from steph_jax.survival.time_bins import TimeBins


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


def cohort_labels(table: SurvivalTable, bins: TimeBins) -> dict[str, np.ndarray]:
    """What losses need of every patient: time_bin, time (years) and event."""
    return {
        "time_bin": bins.index(table.time).astype(np.int32),
        "time": (table.time / DAYS_PER_UNIT).astype(np.float32),
        "event": table.event.astype(np.int32),
    }


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
        outputs, record = predictions.run(
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
    predicted = predictions.predictions_of(
        [table.patients[i] for i in rows], outputs, record, objective
    )
    scores = predictions.score(
        predicted, table.time[rows], table.event[rows], label_rows(labels, rows), objective
    )
    return Part(rows, predicted, scores)


def baseline(train: Part, table: SurvivalTable, objective: Objective) -> dict[str, Any]:
    """What a stored model needs for survival curves, from its training patients."""
    rows = train.rows
    return predictions.fitted_baseline(
        train.predicted, table.time[rows], table.event[rows], objective
    )


def parts_with_curves(parts: dict[str, Part], model: SavedModel) -> dict[str, Part]:
    """The parts with the survival curves of the model's baseline, if it has one."""
    return {
        name: part._replace(predicted=with_curves(part.predicted, model.settings))
        for name, part in parts.items()
    }


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
