"""A stored model on bags: opened on the devices, its predictions, C-index and loss.

loader = DeviceLoader.open(bags, batch_size)
outputs, aux = Predictor.load(model, loader)(rows)               without labels
evaluate = Evaluator.load(model, loader, table); evaluate(rows)     with labels
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steph_jax.checkpoints.saved_model import SavedModel, stored_objective
from steph_jax.data import clinical_coding
from steph_jax.data.clinical import ClinicalTable
from steph_jax.data.tables import SurvivalTable
from steph_jax.engine.bag_model import BagModel, LossFunction
from steph_jax.engine.frozen_encoders import Representations
from steph_jax.engine.loader import DeviceLoader
from steph_jax.engine.placement import replicate
from steph_jax.evaluation import predictions
from steph_jax.evaluation.predictions import Predictions, with_curves
from steph_jax.methods.base import Represent
from steph_jax.methods.registry import find_method
from steph_jax.models.abmil import Params
from steph_jax.survival import metrics
from steph_jax.survival.objectives import DAYS_PER_UNIT, HAZARD, LOG_RISK, Labels, Objective
from steph_jax.survival.time_bins import TimeBins


class SplitScores(NamedTuple):
    """A model on some patients of a cohort: predictions, and {"c_index", "nll"}."""

    rows: np.ndarray
    predicted: Predictions
    scores: dict[str, float]


def batch_labels(labels: dict[str, Any]) -> Labels:
    """The labels that losses read, of the labels of a batch."""
    return Labels(labels["time_bin"], labels["time"], labels["event"])


@functools.lru_cache(maxsize=8)
def loss_function(objective: Objective) -> LossFunction:
    """The loss of a batch as `engine.step.gradients` calls it."""

    def loss(logits: jax.Array, labels: dict[str, jax.Array], mask: jax.Array) -> jax.Array:
        return objective(logits, batch_labels(labels), mask)

    return loss


def label_rows(labels: dict[str, np.ndarray], rows: np.ndarray) -> Labels:
    """The labels of some patients."""
    return batch_labels({name: values[rows] for name, values in labels.items()})


def cohort_labels(table: SurvivalTable, bins: TimeBins) -> dict[str, np.ndarray]:
    """What losses need of every patient: time_bin, time (years) and event."""
    return {
        "time_bin": bins.index(table.time).astype(np.int32),
        "time": (table.time / DAYS_PER_UNIT).astype(np.float32),
        "event": table.event.astype(np.int32),
    }


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A stored model on the devices, dropout off: numbers of bags -> outputs [n, T] and aux.

    Attributes:
        model: what is computed of every bag.
        trainable, frozen: its parameters, on every device.
        loader: of the bags.
        labels: arrays [all bags, ...] that the method's head reads.
    """

    model: BagModel
    trainable: Params
    frozen: Params
    loader: DeviceLoader
    labels: dict[str, np.ndarray]

    @classmethod
    def load(
        cls,
        model: SavedModel,
        loader: DeviceLoader,
        compute_dtype: Any = None,
        represent: Represent | None = None,
        predictors: np.ndarray | None = None,
    ) -> "Predictor":
        """Brings a model to the devices, and computes its inputs other than patches.

        Args:
            model: of any kind.
            loader: of the bags.
            compute_dtype: of products over patches; None for float32.
            represent: the bags as frozen models see them, where several models share it.
            predictors: clinical ones of all bags, for a model that reads some.

        Raises:
            ValueError: there are none, and the model reads some.
        """
        method = find_method(model.kind)
        loaded = method.restore(model, compute_dtype)
        represent = represent or Representations(loader, compute_dtype)
        inputs = method.patient_inputs(model, represent, predictors)
        trainable, frozen = replicate(loader.mesh, (loaded.trainable, loaded.frozen))
        return cls(loaded.model, trainable, frozen, loader, inputs)

    def __call__(
        self,
        bags: Sequence[int],
        trainable: Params | None = None,
        progress: predictions.Progress = predictions.no_progress,
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Outputs and aux of some bags, in the order given.

        Args:
            bags: their numbers.
            trainable: parameters in the place of the model's own.
            progress: wraps the iteration over (batches, their number).
        """
        parameters = self.trainable if trainable is None else trainable
        return predictions.run(
            self.model, parameters, self.frozen, self.loader, bags, self.labels, progress
        )


def clinical_predictors(
    model: SavedModel, table: ClinicalTable | None, patients: Sequence[str]
) -> np.ndarray | None:
    """[P, K] predictors that a model makes of clinical columns; None without table or columns.

    Raises:
        ValueError: as `clinical_coding.values` does.
    """
    codings = find_method(model.kind).codings(model)
    if table is None or not codings:
        return None
    return clinical_coding.values(codings, table, patients)


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Runs a model on patients of a cohort, dropout off: their numbers -> `SplitScores`.

    Attributes:
        predict: the model on the cohort's bags; its labels are those of losses too.
        table: of the cohort.
        objective: the loss.
    """

    predict: Predictor
    table: SurvivalTable
    objective: Objective

    @classmethod
    def load(
        cls,
        model: SavedModel,
        loader: DeviceLoader,
        table: SurvivalTable,
        compute_dtype: Any = None,
        represent: Represent | None = None,
    ) -> "Evaluator":
        """Brings a model to the devices; its settings hold "bins", and the loss if they have one.

        Args:
            model, loader, compute_dtype, represent: as in `Predictor.load`.
            table: of the patients whose bags they are, in the same order.
        """
        predictors = clinical_predictors(model, table.clinical, table.patients)
        predict = Predictor.load(model, loader, compute_dtype, represent, predictors)
        labels = cohort_labels(table, TimeBins.from_json(model.metadata["bins"]))
        predict = dataclasses.replace(predict, labels=labels | predict.labels)
        return cls(predict, table, stored_objective(model))

    @property
    def labels(self) -> dict[str, np.ndarray]:
        """Of all patients of the cohort, arrays [n, ...] by name."""
        return self.predict.labels

    def __call__(self, rows: np.ndarray, trainable: Params | None = None) -> SplitScores:
        """The part of some patients; with other trainable parameters than the model's, if given."""
        outputs, aux = self.predict(rows.tolist(), trainable)
        return score_outputs(rows, outputs, aux, self.labels, self.table, self.objective)


def score_outputs(
    rows: np.ndarray,
    outputs: np.ndarray,
    aux: dict[str, np.ndarray],
    labels: dict[str, np.ndarray],
    table: SurvivalTable,
    objective: Objective,
) -> SplitScores:
    """Predictions and numbers from the outputs of a model on some patients."""
    predicted = predictions.predictions_of(
        [table.patients[i] for i in rows], outputs, aux, objective
    )
    scores = predictions.c_index_and_nll(
        predicted, table.time[rows], table.event[rows], label_rows(labels, rows), objective
    )
    return SplitScores(rows, predicted, scores)


def breslow(train: SplitScores, table: SurvivalTable, objective: Objective) -> dict[str, Any]:
    """Breslow's baseline, from which a stored Cox model gives survival curves.

    Args:
        train: the training patients.
        table: of the cohort.
        objective: the loss.

    Returns:
        {"baseline": as `metrics.Baseline.to_json`} for a Cox model, else {}.
    """
    if objective.output is not LOG_RISK:
        return {}
    time, event = table.time[train.rows], table.event[train.rows]
    return {"baseline": metrics.breslow_baseline(time, event, train.predicted.risk).to_json()}


def parts_with_curves(parts: dict[str, SplitScores], model: SavedModel) -> dict[str, SplitScores]:
    """The parts with the survival curves of the model's baseline, if it has one."""
    return {
        name: part._replace(predicted=with_curves(part.predicted, model.metadata))
        for name, part in parts.items()
    }


def null_model(null: SavedModel, evaluate: Evaluator, rows: np.ndarray) -> dict[str, float]:
    """C-index of the untrained null model, its outputs read as those of the model in its place.

    Args:
        null: theta_0.
        evaluate: of that model, for its data.
        rows: numbers of the patients in the cohort.
    """
    predict = evaluate.predict
    untrained = Predictor.load(null, predict.loader, predict.model.compute_dtype)
    outputs, _ = untrained(rows.tolist())
    risk = np.asarray(evaluate.objective.output.risk(jnp.asarray(outputs)))
    table = evaluate.table
    return {"c_index": metrics.concordance_index(table.time[rows], table.event[rows], risk)}


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
    if model.metadata.get("target_output", HAZARD.name) != evaluate.objective.output.name:
        return {}
    base = SavedModel("abmil", model.architecture, model.metadata, target)
    predict = evaluate.predict
    base_predictor = Predictor.load(base, predict.loader, predict.model.compute_dtype)
    base_predictor = dataclasses.replace(base_predictor, labels=evaluate.labels)
    return dataclasses.replace(evaluate, predict=base_predictor)(rows).scores
