"""`linear_pool`: `ridge_cox` shrunk towards the linear models of other cancers.

Equations 57 and 58 of docs/method.md. A linear model of each source is fitted on the fold-0
training patients of its cohort; linear models merge exactly, so nothing is lost in the sum. How far
the target's coefficients are drawn to them is chosen on inner folds of its training patients, and
not at all is a choice: then the model is that of `ridge_cox`.
"""

import dataclasses
import math
import zlib
from collections.abc import Sequence

import numpy as np

from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.methods import controls, joint, moments, ridge_cox
from steph_jax.methods.base import FoldPatients, FoldSpec, Method, with_metadata, with_trainable
from steph_jax.methods.ridge_cox import NUM_INNER_FOLDS, linear_params
from steph_jax.survival import cox, shrinkage
from steph_jax.survival.shrinkage import PooledGrid


@dataclasses.dataclass(frozen=True)
class Shrinkage:
    """The section `linear_pool` of a config.

    Attributes:
        common: p_0 to choose from, penalties of the weight of the sources' mean direction. Scores
            of the pool have a standard deviation of 1, so 1 / sqrt(p_0) is how far the log risk may
            go with the pool.
        own: p_1 to choose from, penalties of the weight of each source's direction; that none has
            one is always a choice.
    """

    common: tuple[float, ...] = (100.0, 10.0, 1.0)
    own: tuple[float, ...] = (30.0,)

    def __post_init__(self) -> None:
        for name, penalties in (("common", self.common), ("own", self.own)):
            if not all(0 < penalty < math.inf for penalty in penalties):
                raise ValueError(f"linear_pool.{name} are numbers above 0; found {list(penalties)}")
        if not self.common:
            raise ValueError("linear_pool.common has one number or more; found none")

    @property
    def grid(self) -> PooledGrid:
        """From the strongest shrinkage to 0, the simplest, on."""
        descending = sorted(self.common, reverse=True), sorted(self.own, reverse=True)
        return PooledGrid(tuple(descending[0]), (math.inf, *descending[1]))


@dataclasses.dataclass(frozen=True)
class Options(ridge_cox.Options):
    """Options of `linear_pool` (see `Method.options_type`)."""

    linear_pool: Shrinkage = dataclasses.field(default_factory=Shrinkage)


def cohorts(spec: FoldSpec[Options], pool: Pool) -> Sequence[str]:
    """The cohorts whose patients are read (`Method.joins`); none where sources are left out.

    Raises:
        FileNotFoundError, ValueError: as `joint.cohorts` does.
    """
    return () if spec.control == controls.NO_SOURCES else joint.cohorts(spec, pool)


def direction(spec: FoldSpec[Options], name: str, patients: FoldPatients) -> np.ndarray:
    """b_s [2D]: the coefficients of a source's own model, with length 1.

    Raises:
        ValueError: its training patients have fewer than two events.
    """
    source = patients.source_moments(name)
    ridge_cox.expect_events(spec, name, source.event)
    x = shrinkage.standardize(source.values)(source.values)
    # One draw: the patients of a source are not few.
    folds = cox.inner_folds(source.event, NUM_INNER_FOLDS, spec.seed)
    penalties = spec.options.linear.ridge(x.shape[1])
    fit = shrinkage.fit_ridge(x, source.time, source.event, folds, penalties)
    return shrinkage.unit(fit.coefficients)


def directions(spec: FoldSpec[Options], pool: Pool, patients: FoldPatients) -> np.ndarray:
    """b_s [S, 2D] of all sources, as the control of the fold leaves them."""
    rows = []
    for name in cohorts(spec, pool):
        key = ("direction", name, spec.seed, spec.options.linear)
        if key not in patients.shared:
            patients.shared[key] = direction(spec, name, patients)
        rows.append(patients.shared[key])
        if spec.control == controls.PERMUTED:
            rng = np.random.default_rng([spec.seed, zlib.crc32(name.encode())])
            halves = np.split(rows[-1], 2)  # means and deviations, the tensors of this model
            rows[-1] = np.concatenate([rng.permutation(half) for half in halves])
    return np.stack(rows)


def fit(spec: FoldSpec[Options], pool: Pool, patients: FoldPatients) -> SavedModel:
    """The model of a fold's training patients.

    Raises:
        FileNotFoundError, ValueError: no source, or fewer than two events.
    """
    if spec.control == controls.NO_SOURCES:
        return with_metadata(ridge_cox.fit(spec, pool, patients), source_share=0.0)
    own = patients.moments()
    ridge_cox.expect_events(spec, spec.dataset, own.event)
    standard = shrinkage.standardize(own.values)
    x = standard(own.values)
    sources = directions(spec, pool, patients)
    pooled = shrinkage.fit_pooled(
        x,
        own.time,
        own.event,
        spec.options.linear.inner_folds(own.event, spec.seed),
        spec.options.linear.ridge(x.shape[1]),
        sources,
        spec.options.linear_pool.grid,
    )
    model = ridge_cox.start(spec, pool)
    params = linear_params(own, standard, pooled.coefficients)
    return with_metadata(
        dataclasses.replace(model, params=params),
        cohorts=list(cohorts(spec, pool)),
        penalty=pooled.penalty / x.shape[1],
        pool_weights={
            "mean": pooled.kappa,
            **dict(zip(cohorts(spec, pool), pooled.kappa_s.tolist(), strict=True)),
        },
        source_share=pooled.share,
        fitted_parameters=int(x.shape[1]) + 1 + len(sources),
    )


METHOD = Method(
    "linear_pool",
    ridge_cox.start,
    moments.restore,
    with_trainable,
    Options,
    trains=False,
    joins=cohorts,
    fit=fit,
    uses_sources=True,
)
