"""`ridge_cox`: a Cox model of the mean and standard deviation of a patient's features.

Equation 56 of docs/method.md. The ridge penalty is chosen on inner folds of the training patients.
No other cancer, no neural network: the baseline that a gain has to be measured against. It is
stored as all models are, and a bag goes through `engine.step.forward`, so that whatever reads a
model reads this one too.
"""

import dataclasses
from typing import Any

import numpy as np

from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.methods import moments
from steph_jax.methods.base import (
    FoldPatients,
    FoldSpec,
    Method,
    PatientMoments,
    with_metadata,
    with_trainable,
)
from steph_jax.models.abmil import Params
from steph_jax.survival import cox, shrinkage
from steph_jax.survival.objectives import Objective, objective_record
from steph_jax.survival.shrinkage import Standard

#: Inner folds that penalties are compared on.
NUM_INNER_FOLDS = 3
_MOST_REPEATS = 1000


@dataclasses.dataclass(frozen=True)
class Linear:
    """The section `linear` of a config.

    Attributes:
        penalties: ridge penalties to choose from, per feature: a = this times 2D. The columns are
            standardized, so what suits does not depend on their number.
        inner_repeats: how often the training patients are dealt to three inner folds; choices rest
            on all draws. More than one has not been shown to choose better, and costs as much more.
    """

    penalties: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    inner_repeats: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.inner_repeats <= _MOST_REPEATS:
            raise ValueError(
                f"linear.inner_repeats is a whole number from 1 to {_MOST_REPEATS}; found "
                f"{self.inner_repeats}"
            )
        if not self.penalties or not all(0 < penalty < np.inf for penalty in self.penalties):
            raise ValueError(
                f"linear.penalties are numbers above 0, one or more; found {list(self.penalties)}"
            )

    def ridge(self, num_features: int) -> list[float]:
        """a of each."""
        return [penalty * num_features for penalty in self.penalties]

    def inner_folds(self, event: np.ndarray, seed: int) -> np.ndarray:
        """[R, n] inner fold of each patient, in each draw."""
        return cox.inner_folds(event, NUM_INNER_FOLDS, seed, self.inner_repeats)


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of `ridge_cox` (see `Method.options_type`)."""

    linear: Linear = dataclasses.field(default_factory=Linear)


def start(spec: FoldSpec[Any], pool: Pool) -> SavedModel:
    """A linear model with coefficients of 0, for features as the pool's models read them."""
    architecture = pool.null().architecture if pool.has_null() else spec.architecture
    metadata = {
        "dataset": spec.dataset,
        "fold": spec.fold,
        "objective": objective_record(Objective((("cox", 1.0),))),
    }
    params = moments.empty_params(architecture.feature_dim)
    return SavedModel("ridge_cox", moments.linear_architecture(architecture), metadata, params)


def expect_events(spec: FoldSpec[Any], name: str, event: np.ndarray) -> None:
    """Raises ValueError where the patients of a cohort have too few events for inner folds."""
    number = int(event.sum())
    if number < 2:
        raise ValueError(
            f"{spec.dataset}, fold {spec.fold}: a Cox model with a penalty chosen on inner folds "
            f"needs two events among the training patients of {name}, found {number}"
        )


def linear_params(patients: PatientMoments, standard: Standard, coefficients: np.ndarray) -> Params:
    """Parameters of a `moments.LinearModel`; columns that are constant have no coefficient."""
    varies = np.isfinite(standard.scale)
    trees = {
        "trainable": {
            "center": patients.center,
            "coefficients": np.where(varies, coefficients, 0.0),
        },
        "frozen": {"mean": standard.mean, "scale": np.where(varies, standard.scale, 1.0)},
    }
    return as_float32(trees)


def as_float32(trees: dict[str, dict[str, np.ndarray]]) -> Params:
    """Two trees of parameters as they are stored."""
    return {
        branch: {name: leaf.astype(np.float32) for name, leaf in tree.items()}
        for branch, tree in trees.items()
    }


def fit(spec: FoldSpec[Options], pool: Pool, patients: FoldPatients) -> SavedModel:
    """The model of a fold's training patients.

    Raises:
        ValueError: fewer than two events.
    """
    own = patients.moments()
    expect_events(spec, spec.dataset, own.event)
    standard = shrinkage.standardize(own.values)
    x = standard(own.values)
    linear = spec.options.linear
    folds = linear.inner_folds(own.event, spec.seed)
    ridge = shrinkage.fit_ridge(x, own.time, own.event, folds, linear.ridge(x.shape[1]))
    model = start(spec, pool)
    model = dataclasses.replace(model, params=linear_params(own, standard, ridge.coefficients))
    return with_metadata(
        model, penalty=ridge.penalty / x.shape[1], fitted_parameters=int(x.shape[1])
    )


METHOD = Method("ridge_cox", start, moments.restore, with_trainable, Options, trains=False, fit=fit)
