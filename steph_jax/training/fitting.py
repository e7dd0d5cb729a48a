"""Methods that are fitted otherwise than by gradient steps: what they read of the patients."""

import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.saved_model import SavedModel, stored_objective
from steph_jax.data.cohort import Fold
from steph_jax.data.splits import read_split, split_path
from steph_jax.evaluation import predictions
from steph_jax.evaluation.evaluator import Evaluator, Predictor, cohort_labels, label_rows
from steph_jax.methods.base import PatientColumns, PatientMoments
from steph_jax.methods.moments import MomentsModel
from steph_jax.models.abmil import Architecture
from steph_jax.survival import metrics
from steph_jax.survival.time_bins import TimeBins
from steph_jax.training.experiment import Experiment, fold_spec, with_run_outputs
from steph_jax.training.inner_folds import InnerFold, cut_inner_folds
from steph_jax.training.inner_pool import refitted_pool
from steph_jax.training.loop import TrainResult
from steph_jax.training.preflight import check_feature_dim


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOutPatients:
    """The held-out patients of an inner fold, as `methods.base.HeldOut`.

    Attributes:
        run: config and data.
        cut: the inner fold.
        pool: with the target's model fitted without these patients.
    """

    run: Experiment
    cut: InnerFold
    pool: Pool

    def outputs(self, model: SavedModel) -> np.ndarray:
        predict = Predictor.load(model, self.run.loader, self.run.config.precision.operands)
        return predict(self.cut.held_out.tolist())[0]

    def c_index(self, model: SavedModel) -> float:
        risk = stored_objective(model).output.risk(jnp.asarray(self.outputs(model)))
        table, rows = self.run.cohort.table, self.cut.held_out
        return metrics.concordance_index(table.time[rows], table.event[rows], np.asarray(risk))

    def loss(self, model: SavedModel, outputs: jax.Array) -> jax.Array:
        bins = TimeBins.from_json(model.metadata["bins"])
        labels = label_rows(cohort_labels(self.run.cohort.table, bins), self.cut.held_out)
        labels = jax.tree.map(jnp.asarray, labels)
        return stored_objective(model)(outputs, labels) * len(self.cut.held_out)


@dataclasses.dataclass(frozen=True, eq=False)
class SplitPatients:
    """The training patients of a split, as `methods.base.FoldPatients`.

    Attributes:
        run: config and data.
        fold: number of the fold whose models of the pool are read.
        split: its patients.
        directory: where the inner folds' models are kept until the fold is finished.
        label: in the log.
    """

    run: Experiment
    fold: int
    split: Fold
    directory: pathlib.Path
    label: str

    @property
    def shared(self) -> dict[Any, Any]:
        return self.run.shared

    def moments(self) -> PatientMoments:
        return moments_of(self.run, self.split.train)

    def source_moments(self, dataset: str) -> PatientMoments:
        data, cohort = self.run.config.data, self.run.cohort
        training = set(read_split(split_path(data.folder, dataset, 0)).train)
        is_source = np.array(cohort.datasets_of_others) == dataset
        rows = [row for row in cohort.others[is_source] if cohort.table.patients[row] in training]
        if not rows:
            raise ValueError(
                f"{split_path(data.folder, dataset, 0)}: no training patient is in the table of "
                f"{dataset}, or all are {cohort.dataset}'s own; leave {dataset} out of `sources`"
            )
        return moments_of(self.run, np.array(rows))

    def clinical(self) -> PatientColumns:
        table, rows = self.run.cohort.table, self.split.train
        assert table.clinical is not None, "the method names no columns"
        patients = [table.patients[row] for row in rows]
        return PatientColumns(table.clinical, patients, table.time[rows], table.event[rows])

    def held_out_parts(self) -> Sequence[HeldOutPatients]:
        run = self.run
        cohort = dataclasses.replace(run.cohort, folds={self.fold: self.split})
        parts = []
        for number, cut in enumerate(cut_inner_folds(cohort, self.fold, run.config.seed)):
            label = f"{self.label}, inner fold {number}, target's model"
            within = inner_directory(self.directory) / f"inner_{number}"
            parts.append(HeldOutPatients(run, cut, refitted_pool(run, cut, within, label)))
        return parts


def inner_directory(directory: pathlib.Path) -> pathlib.Path:
    """Where a fold keeps the models of its inner folds while it is fitted."""
    return directory / "inner_folds"


def moments_of(run: Experiment, rows: np.ndarray) -> PatientMoments:
    """Mean and standard deviation of the features of some patients, in two passes.

    The first finds the center of their features, from which the second measures deviations.
    """
    table, dim = run.cohort.table, run.bags.feature_dim
    model = MomentsModel(Architecture(dim, 1, 0, num_bins=1, pooling="mean"))

    def values(center: np.ndarray) -> np.ndarray:
        trainable = {"center": center.astype(np.float32)}
        outputs, _ = predictions.run(model, trainable, {}, run.loader, rows.tolist(), {})
        return np.asarray(outputs, np.float64)

    center = values(np.zeros(dim))[:, :dim].mean(axis=0).astype(np.float32)
    return PatientMoments(values(center), center, table.time[rows], table.event[rows])


def fit_split(
    run: Experiment, fold: int, split: Fold, directory: pathlib.Path, label: str
) -> TrainResult:
    """Fits the model of a split by `Method.fit`.

    Args:
        run: config and data.
        fold: number of the fold whose models of the pool are read.
        split: its patients.
        directory: where the models of inner folds are kept.
        label: in the log.

    Raises:
        ValueError: as `preflight.check_feature_dim` and the method do.
    """
    method = run.method
    assert method.fit is not None
    spec = fold_spec(run.config, run.cohort, fold, split)
    check_feature_dim(method.start(spec, run.pool), run)
    began = time.perf_counter()
    model = method.fit(spec, run.pool, SplitPatients(run, fold, split, directory, label))
    seconds = time.perf_counter() - began
    model = with_run_outputs(model, run, split)
    evaluate = Evaluator.load(
        model, run.loader, run.cohort.table, run.config.precision.operands, run.represent
    )
    return TrainResult(model, evaluate.predict.trainable, [], evaluate, fit_seconds=seconds)
