"""Losses by name, and weighted sums of them, for programs that choose them by config.

The outputs of a model have a meaning that depends on the loss; `Output` defines it, and how risk
(higher = worse under every loss) and a survival curve follow from them.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from steph_jax.survival import losses

#: Losses read times in years: with days, `recon` would drive a head that starts near 0 to
#: thousands by steps of 1e-4. The margins of `rank` and `recon` are 1.
DAYS_PER_UNIT = 365.25


class Labels(NamedTuple):
    """Survival labels of the patients of a batch.

    Attributes:
        time_bin: [B] integers in [0, T), the bin that holds `time`.
        time: [B] time to the event or to the end of follow-up, at least 0, in units of
            `DAYS_PER_UNIT`. A model that predicts times (`recon`) predicts them in this unit.
        event: [B] True or 1 where death was seen.
    """

    time_bin: Int[Array, " B"]
    time: Shaped[Array, " B"]
    event: Shaped[Array, " B"]


@dataclasses.dataclass(frozen=True)
class Output:
    """What the outputs of a model mean.

    Attributes:
        name: of this meaning.
        per_bin: True for an output per time bin, False for a single one.
        risk: outputs [B, O] -> risk [B], higher = worse.
        survival: outputs [B, T] -> survival curve [B, T]; None where the outputs give none (a Cox
            model's curve comes from `metrics.breslow_baseline`).
    """

    name: str
    per_bin: bool
    risk: Callable[[Array], Array]
    survival: Callable[[Array], Array] | None

    def num_outputs(self, num_bins: int) -> int:
        """O: outputs of a model for `num_bins` time bins."""
        return num_bins if self.per_bin else 1


def _survival_of_hazard_logits(logits: Float[Array, "*batch T"]) -> Float[Array, "*batch T"]:
    return losses.survival_from_hazards(losses.hazards(logits))


def _survival_of_incidence_logits(logits: Float[Array, "*batch T"]) -> Float[Array, "*batch T"]:
    return losses.survival_from_incidence(jax.nn.softmax(logits, axis=-1))


HAZARD = Output(
    "hazard",
    True,
    lambda logits: losses.risk_from_survival(_survival_of_hazard_logits(logits)),
    _survival_of_hazard_logits,
)
INCIDENCE = Output(
    "incidence",
    True,
    lambda logits: losses.risk_from_survival(_survival_of_incidence_logits(logits)),
    _survival_of_incidence_logits,
)
LOG_RISK = Output("log_risk", False, lambda outputs: losses.log_risk(outputs[..., 0]), None)
TIME = Output("time", False, lambda outputs: -outputs[..., 0], None)


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss by name, for programs that choose one by config.

    Attributes:
        name: key in `LOSSES`.
        output: meaning of the model outputs that the loss reads.
        value: (outputs [B, O], labels, objective, mask [B] or None) -> the loss of the batch.
    """

    name: str
    output: Output
    value: "Value"


@dataclasses.dataclass(frozen=True)
class Objective:
    """A weighted sum of losses that read the outputs of a model the same way.

    Attributes:
        terms: pairs of a name in `LOSSES` and its weight.
        alpha: of `nll`, `incidence_nll` and `recon`.
        scale: of `emd`.

    Raises:
        ValueError: for unknown names, one named twice, weights that are negative or not finite,
            alpha outside [0, 1], or losses that need different outputs.
    """

    terms: tuple[tuple[str, float], ...] = (("nll", 1.0),)
    alpha: float = 0.5
    scale: float = 10.0

    def __post_init__(self) -> None:
        names = [name for name, _ in self.terms]
        unknown = [name for name in names if name not in LOSSES]
        if unknown or not names:
            names_found = ", ".join(map(repr, unknown)) or "none"
            raise ValueError(f"losses are {', '.join(LOSSES)}; found {names_found}")
        if len(set(names)) < len(names):
            raise ValueError(f"each loss is named once, found {', '.join(names)}")
        if not all(math.isfinite(weight) and weight >= 0 for _, weight in self.terms):
            raise ValueError(f"weights of losses are finite and at least 0, found {self.terms}")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is in [0, 1], not {self.alpha}")
        if len({LOSSES[name].output.name for name in names}) > 1:
            kinds = ", ".join(f"{name} ({LOSSES[name].output.name})" for name in names)
            raise ValueError(
                f"losses of a sum must read the model's outputs the same way; found {kinds}"
            )

    @property
    def output(self) -> Output:
        """Meaning of the model outputs that all of its losses read."""
        return LOSSES[self.terms[0][0]].output

    def values(
        self, outputs: Float[Array, "B O"], labels: Labels, mask: Bool[Array, " B"] | None = None
    ) -> dict[str, Float[Array, ""]]:
        """Each loss of the batch by name, without its weight.

        Args:
            outputs: [B, O] of the model.
            labels: of the patients.
            mask: [B] False for slots without a patient.
        """
        return {name: LOSSES[name].value(outputs, labels, self, mask) for name, _ in self.terms}

    def __call__(
        self, outputs: Float[Array, "B O"], labels: Labels, mask: Bool[Array, " B"] | None = None
    ) -> Float[Array, ""]:
        """The weighted sum, a scalar; arguments as of `values`."""
        values = self.values(outputs, labels, mask)
        total = jnp.zeros((), outputs.dtype)
        for name, weight in self.terms:
            total = total + weight * values[name]
        return total


#: (outputs [B, O], labels, objective, mask [B] or None) -> the loss of a batch.
Value = Callable[[Array, Labels, Objective, Array | None], Array]


def _single(outputs: Float[Array, "B ..."]) -> Float[Array, " B"]:
    """[B] of outputs [B, 1]."""
    if outputs.ndim != 2 or outputs.shape[1] != 1:
        raise ValueError(f"expected one output per patient, [B, 1]; found {outputs.shape}")
    return outputs[:, 0]


def _of_bins(loss: Callable[..., Array], option: str) -> Value:
    """A loss [B] over time bins with one option of the objective, as the mean over the patients."""

    def value(
        outputs: Float[Array, "B O"],
        labels: Labels,
        objective: Objective,
        mask: Bool[Array, " B"] | None,
    ) -> Float[Array, ""]:
        options = {option: getattr(objective, option)}
        values = loss(outputs, labels.time_bin, labels.event, mask=mask, **options)
        return losses.mean(values, mask)

    return value


def _of_pairs(loss: Callable[..., Array]) -> Value:
    """A loss of single outputs that compares patients."""

    def value(
        outputs: Float[Array, "B O"],
        labels: Labels,
        objective: Objective,
        mask: Bool[Array, " B"] | None,
    ) -> Float[Array, ""]:
        return loss(_single(outputs), labels.time, labels.event, mask=mask)

    return value


def _recon(
    outputs: Float[Array, "B O"],
    labels: Labels,
    objective: Objective,
    mask: Bool[Array, " B"] | None,
) -> Float[Array, ""]:
    values = losses.reconstruction(
        _single(outputs), labels.time, labels.event, alpha=objective.alpha, mask=mask
    )
    return losses.mean(values, mask)


LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss("nll", HAZARD, _of_bins(losses.nll, "alpha")),
        Loss("incidence_nll", INCIDENCE, _of_bins(losses.incidence_nll, "alpha")),
        Loss("cox", LOG_RISK, _of_pairs(losses.cox)),
        Loss("emd", INCIDENCE, _of_bins(losses.earth_mover, "scale")),
        Loss("rank", TIME, _of_pairs(losses.ranking)),
        Loss("recon", TIME, _recon),
    )
}


def objective(loss: dict[str, Any]) -> Objective:
    """The training loss, from the section `loss`."""
    try:
        terms = tuple((str(name), float(weight)) for name, weight in loss["terms"])
    except (TypeError, ValueError):
        raise ValueError(
            f"loss.terms are names and weights, as (('nll', 1.0),); found {loss['terms']!r}"
        ) from None
    return Objective(terms, float(loss["alpha"]), float(loss["scale"]))


def objective_record(loss: Objective) -> dict[str, Any]:
    """JSON-able form of a loss, for the metadata of a model."""
    return dataclasses.asdict(loss) | {"terms": [list(term) for term in loss.terms]}
