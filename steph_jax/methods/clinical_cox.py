"""`clinical_cox`: a Cox model of clinical columns of the survival table, and of no slide.

Equation 56 of docs/method.md, with what is known of a patient without slides for x. The ridge
penalty is chosen on inner folds of the training patients. What a model of slides adds is measured
against this one, and by the report's `--clinical` columns.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging

from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.data import clinical_coding
from steph_jax.data.clinical_coding import Coding
from steph_jax.engine.bag_model import (
    BagMeans,
    HeadOutputs,
    MergedModels,
    PooledBags,
    SharedEncoder,
)
from steph_jax.messages import join_names
from steph_jax.methods import ridge_cox
from steph_jax.methods.abmil import unpenalized
from steph_jax.methods.base import (
    FoldPatients,
    FoldSpec,
    LoadedModel,
    Method,
    with_metadata,
    with_trainable,
)
from steph_jax.models.abmil import Architecture, Params
from steph_jax.models.layers import matmul
from steph_jax.survival import shrinkage


@dataclasses.dataclass(frozen=True)
class Clinical:
    """The section `clinical_cox` of a config.

    Attributes:
        columns: of the survival table: of numbers, or of categories as words or numbers.
    """

    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.columns)) < len(self.columns):
            raise ValueError(
                f"clinical_cox.columns are different columns; found {join_names(self.columns)}"
            )


@dataclasses.dataclass(frozen=True)
class Options(ridge_cox.Options):
    """Options of `clinical_cox` (see `Method.options_type`)."""

    clinical_cox: Clinical = dataclasses.field(default_factory=Clinical)


@dataclasses.dataclass(frozen=True)
class ClinicalModel(SharedEncoder):
    """A linear model of clinical predictors; outputs [B, 1], the log risk.

    Its trainable tree holds "coefficients" [K] of the standardized predictors, its frozen tree
    "mean" and "scale" [K] of the training patients.

    Attributes:
        architecture: of features that are not read.
        compute_dtype: not used.
    """

    architecture: Architecture
    compute_dtype: Any = None

    @property
    def has_encoder(self) -> bool:
        return False

    def merge(self, trainable: Params, frozen: Params, bags: BagMeans) -> MergedModels:
        return MergedModels({}, {}, jnp.zeros(bags.num_bags, jnp.float32), {})

    def encoder(self, frozen: Params, merged: Params) -> Params:
        raise AssertionError("a model of clinical columns has no encoder")

    def head(self, trainable: Params, frozen: Params, bags: PooledBags) -> HeadOutputs:
        x = bags.labels["clinical"]
        mean, scale = (jnp.broadcast_to(frozen[name], x.shape) for name in ("mean", "scale"))
        return unpenalized(matmul((x - mean) / scale, trainable["coefficients"][:, None]))


def start(spec: FoldSpec[Options], pool: Pool) -> SavedModel:
    """A model without predictors yet.

    Raises:
        ValueError: the config names no columns.
    """
    if not spec.options.clinical_cox.columns:
        raise ValueError(
            "method clinical_cox reads columns of the survival table; name them by "
            "--config.clinical_cox.columns=\"('age','stage')\""
        )
    model = ridge_cox.start(spec, pool)
    return dataclasses.replace(model, kind="clinical_cox", params={"trainable": {}, "frozen": {}})


def fit(spec: FoldSpec[Options], pool: Pool, patients: FoldPatients) -> SavedModel:
    """The model of a fold's training patients.

    Raises:
        ValueError: fewer than two events; columns that cannot be used.
    """
    own, linear = patients.clinical(), spec.options.linear
    ridge_cox.expect_events(spec, spec.dataset, own.event)
    codings = clinical_coding.code(own.table, own.patients)
    say_missing(codings, len(own.patients), f"{spec.dataset}, fold {spec.fold}")
    predictors = clinical_coding.values(codings, own.table, own.patients)
    standard = shrinkage.standardize(predictors)
    x = standard(predictors)
    folds = linear.inner_folds(own.event, spec.seed)
    ridge = shrinkage.fit_ridge(x, own.time, own.event, folds, linear.ridge(x.shape[1]))
    varies = np.isfinite(standard.scale)
    params = {
        "trainable": {"coefficients": np.where(varies, ridge.coefficients, 0.0)},
        "frozen": {"mean": standard.mean, "scale": np.where(varies, standard.scale, 1.0)},
    }
    model = dataclasses.replace(start(spec, pool), params=ridge_cox.as_float32(params))
    return with_metadata(
        model,
        clinical=[coding.to_json() for coding in codings],
        penalty=ridge.penalty / x.shape[1],
        fitted_parameters=int(x.shape[1]),
    )


def say_missing(codings: list[Coding], number: int, what: str) -> None:
    """Logs for how many of some training patients a column has no cell, and what they take."""
    for coding in codings:
        if coding.missing:
            stands = f"their mean, {coding.mean:.4g}" if coding.mean is not None else "a category"
            logging.info(
                "%s: %d of %d training patients have no %s; %s stands for it",
                *(what, coding.missing, number, coding.column, stands),
            )


def codings_of(model: SavedModel) -> list[Coding]:
    """How a stored model reads columns; [] before it is fitted."""
    return [Coding.from_json(record) for record in model.metadata.get("clinical", [])]


def restore(model: SavedModel, compute_dtype: Any) -> LoadedModel:
    """The model that was stored.

    Raises:
        ValueError: other parameters than those of its columns.
    """
    expected = (sum(coding.width for coding in codings_of(model)),)
    for branch, name in (("trainable", "coefficients"), ("frozen", "mean"), ("frozen", "scale")):
        shape = np.shape(model.params.get(branch, {}).get(name, 0.0))
        if shape != expected:
            raise ValueError(
                f"a model of kind {model.kind!r}: expected {branch}.{name} of shape {expected}, "
                f"found {shape or 'none'}; make the model again"
            )
    bag_model = ClinicalModel(model.architecture, compute_dtype)
    return LoadedModel(bag_model, model.params["trainable"], model.params["frozen"])


METHOD = Method(
    "clinical_cox",
    start,
    restore,
    with_trainable,
    Options,
    trains=False,
    fit=fit,
    columns=lambda options: options.clinical_cox.columns,
    codings=codings_of,
)
