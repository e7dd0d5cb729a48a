"""`rescaled`: the target's model at another distance from theta_0, and other cancers added to it.

Equations 59 and 60 of docs/method.md:

    theta = theta_0 + c tau_t + sum_s c_s tau_s

with a few numbers that are the same for all patients, chosen on inner folds of the training
patients. The head is the target's. c = 1 and c_s = 0, the target's own model, is a choice, and so
is c alone: what a merging method gains has to be measured against that. The result is one ABMIL,
and is stored as such.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.methods import abmil, controls, sources
from steph_jax.methods.base import FoldPatients, FoldSpec, HeldOut, Method
from steph_jax.models import task_vectors
from steph_jax.models.abmil import Params
from steph_jax.survival.cox import one_standard_error

#: Losses are float32: closer than this there is only rounding, on which a search would not end.
_STEPS = {"maxiter": 50, "maxfun": 200, "ftol": 1e-7}


@dataclasses.dataclass(frozen=True)
class Rescaling:
    """The section `rescaled` of a config.

    Attributes:
        factors: c to choose from, beside 1.
        spreads: prior standard deviations of c_s to choose from; that all are 0 is always a choice.
    """

    factors: tuple[float, ...] = (1.4, 2.0, 3.0, 4.0)
    spreads: tuple[float, ...] = (0.05, 0.2)

    def __post_init__(self) -> None:
        for name, values in (("factors", self.factors), ("spreads", self.spreads)):
            if not all(0 < value < math.inf for value in values):
                raise ValueError(f"rescaled.{name} are numbers above 0; found {list(values)}")

    @property
    def candidates(self) -> list[float]:
        """c from 1, the simplest, on."""
        others = {factor for factor in self.factors if factor != 1}
        return [1.0, *sorted(others, key=lambda factor: abs(math.log(factor)))]


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of `rescaled` (see `Method.options_type`)."""

    rescaled: Rescaling = dataclasses.field(default_factory=Rescaling)


def start(spec: FoldSpec[Options], pool: Pool) -> SavedModel:
    """The target's own model.

    Raises:
        FileNotFoundError: the pool lacks a model; with how to make it.
        ValueError: its time bins are not recorded, and it has another number of outputs.
    """
    target = pool.member(spec.dataset, spec.fold)
    outputs = sources.own_outputs(spec, target, "target's model")
    metadata = {"dataset": spec.dataset, "fold": spec.fold} | outputs
    return dataclasses.replace(target, metadata=metadata)


def merged(
    null: SavedModel,
    target: SavedModel,
    factor: float,
    models: Sequence[SavedModel] = (),
    coefficients: Sequence[float] = (),
) -> SavedModel:
    """The target's model with the encoder theta_0 + c tau_t + sum_s c_s tau_s.

    Args:
        null: theta_0.
        target: theta_t.
        factor: c.
        models: theta_s of the sources.
        coefficients: c_s, one of each.
    """
    used = [(c, theta) for c, theta in zip(coefficients, models, strict=True) if c]
    if factor == 1 and not used:
        return target
    weights = [factor, *(c for c, _ in used)]

    def leaf(base: np.ndarray, *thetas: np.ndarray) -> np.ndarray:
        added = [
            weight * (np.asarray(theta, np.float64) - base)
            for weight, theta in zip(weights, thetas, strict=True)
        ]
        return (base + sum(added)).astype(np.asarray(base).dtype)

    trees: list[Params] = [
        task_vectors.parts_of(model.params, "mil_encoder")
        for model in (null, target, *(theta for _, theta in used))
    ]
    return dataclasses.replace(target, params=target.params | jax.tree.map(leaf, *trees))


class _Inner:
    """An inner fold: the target's model without its patients, merged with given numbers."""

    def __init__(
        self, held_out: HeldOut, spec: FoldSpec[Options], models: Sequence[SavedModel]
    ) -> None:
        self.held_out = held_out
        self._null = held_out.pool.null()
        self._target = held_out.pool.member(spec.dataset, spec.fold)
        self._models = models

    def c_index(self, factor: float, coefficients: Sequence[float] = ()) -> float:
        """On the held-out patients."""
        models = self._models if len(coefficients) else ()
        model = merged(self._null, self._target, factor, models, coefficients)
        return self.held_out.c_index(model)

    def linearize(self, factor: float, step: float) -> "Linearized":
        """The outputs as a linear function of c_s, by finite differences of a step."""
        base = self.held_out.outputs(merged(self._null, self._target, factor))
        slopes = [
            (self.held_out.outputs(merged(self._null, self._target, factor, [m], [step])) - base)
            / step
            for m in self._models
        ]
        return Linearized(self.held_out, self._target, base, np.stack(slopes, axis=-1))


@dataclasses.dataclass(frozen=True, eq=False)
class Linearized:
    """Outputs of held-out patients, linear in c_s.

    Attributes:
        held_out: the patients.
        model: whose loss reads the outputs.
        base: [n, T] at c_s = 0.
        slopes: [n, T, S].
    """

    held_out: HeldOut
    model: SavedModel
    base: np.ndarray
    slopes: np.ndarray

    def loss(self, coefficients: jax.Array) -> jax.Array:
        """The sum of the patients' losses."""
        outputs = jnp.asarray(self.base) + jnp.asarray(self.slopes) @ coefficients
        return self.held_out.loss(self.model, outputs)


def penalized_coefficients(parts: Sequence[Linearized], spread: float) -> np.ndarray:
    """c_s [S] that minimize the loss of held-out patients plus |c_s|^2 / (2 spread^2).

    Args:
        parts: inner folds.
        spread: prior standard deviation.
    """

    @jax.jit
    @jax.value_and_grad
    def objective(coefficients: jax.Array) -> jax.Array:
        prior = jnp.sum(coefficients**2) / (2 * spread**2)
        return sum((part.loss(coefficients) for part in parts), prior)

    def both(values: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = objective(jnp.asarray(values, jnp.float32))
        return float(value), np.asarray(gradient, np.float64)

    num_sources = parts[0].slopes.shape[-1]
    from scipy.optimize import minimize  # here, since every program imports every method

    result = minimize(both, np.zeros(num_sources), jac=True, method="L-BFGS-B", options=_STEPS)
    return np.asarray(result.x, np.float64)


def fit(spec: FoldSpec[Options], pool: Pool, patients: FoldPatients) -> SavedModel:
    """The merged model of a fold, its numbers chosen on inner folds.

    Raises:
        FileNotFoundError: the pool lacks a model; with how to make it.
        ValueError: too few patients or events for inner folds.
    """
    options = spec.options.rescaled
    own = start(spec, pool)
    null = pool.null()
    names = sources.source_names(spec, pool, include_target=False)
    is_without = spec.control == controls.NO_SOURCES or not options.spreads
    names = () if is_without else names
    models = sources.source_models(spec, pool, names, own)
    inner = [_Inner(held_out, spec, models) for held_out in patients.held_out_parts()]
    candidates = options.candidates
    scores = [[part.c_index(factor) for part in inner] for factor in candidates]
    chosen = one_standard_error(scores)
    factor = candidates[chosen]
    coefficients = np.zeros(len(models))
    if models:
        coefficients = source_coefficients(inner, factor, scores[chosen], options.spreads)
    sum_of_sources = float(np.abs(coefficients).sum())
    model = merged(null, own, factor, models, coefficients.tolist())
    metadata = own.metadata | {
        "sources": [*names, spec.dataset],
        "weights": [*coefficients.tolist(), factor],
        "source_share": sum_of_sources / (factor + sum_of_sources),
        "fitted_parameters": 1 + len(names),
    }
    return dataclasses.replace(model, metadata=metadata)


def source_coefficients(
    inner: Sequence[_Inner], factor: float, without: Sequence[float], spreads: Sequence[float]
) -> np.ndarray:
    """c_s [S]: fitted on the held-out patients of all inner folds, or 0 where that is as good.

    A spread is judged by the C-index on each inner fold with the c_s that the others give.

    Args:
        inner: the inner folds.
        factor: c.
        without: [J] C-index with c_s = 0.
        spreads: to choose from.
    """
    ordered = sorted(spreads)
    linearized = [part.linearize(factor, ordered[-1]) for part in inner]
    scores = [list(without)]
    for spread in ordered:
        row = []
        for number, part in enumerate(inner):
            others = [one for other, one in enumerate(linearized) if other != number]
            row.append(part.c_index(factor, penalized_coefficients(others, spread).tolist()))
        scores.append(row)
    chosen = one_standard_error(scores)
    if chosen == 0:
        return np.zeros(linearized[0].slopes.shape[-1])
    return penalized_coefficients(linearized, ordered[chosen - 1])


METHOD = Method(
    "rescaled",
    start,
    abmil.restore,
    abmil.METHOD.store,
    Options,
    trains=False,
    members=sources.members,
    fit=fit,
    uses_task_vectors=True,
    uses_sources=True,
)
