"""Methods that are fitted otherwise than by gradient steps: what they read of the patients."""

import dataclasses
import time
from typing import Any

import numpy as np

from steph_jax.data.cohort import Fold
from steph_jax.data.splits import read_split, split_path
from steph_jax.evaluation import predictions
from steph_jax.evaluation.evaluator import Evaluator
from steph_jax.methods.base import PatientMoments
from steph_jax.methods.moments import MomentsModel
from steph_jax.models.abmil import Architecture
from steph_jax.training.experiment import Experiment, fold_spec, with_run_outputs
from steph_jax.training.loop import TrainResult
from steph_jax.training.preflight import check_feature_dim


@dataclasses.dataclass(frozen=True, eq=False)
class SplitPatients:
    """The training patients of a split, as `methods.base.FoldPatients`.

    Attributes:
        run: config and data.
        split: its patients.
    """

    run: Experiment
    split: Fold

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


def fit_split(run: Experiment, fold: int, split: Fold) -> TrainResult:
    """Fits the model of a split by `Method.fit`.

    Args:
        run: config and data.
        fold: number of the fold whose models of the pool are read.
        split: its patients.

    Raises:
        ValueError: as `preflight.check_feature_dim` and the method do.
    """
    method = run.method
    assert method.fit is not None
    spec = fold_spec(run.config, run.cohort, fold, split)
    check_feature_dim(method.start(spec, run.pool), run)
    began = time.perf_counter()
    model = method.fit(spec, run.pool, SplitPatients(run, split))
    seconds = time.perf_counter() - began
    model = with_run_outputs(model, run, split)
    evaluate = Evaluator.load(
        model, run.loader, run.cohort.table, run.config.precision.operands, run.represent
    )
    return TrainResult(model, evaluate.predict.trainable, [], evaluate, fit_seconds=seconds)
