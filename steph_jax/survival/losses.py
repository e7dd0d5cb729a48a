"""Losses (docs/method.md, section 3): pure functions of a model's outputs and the patients' labels.

Losses that are a mean over patients return one number per patient and leave the mean to the caller
(`mean`); the Cox and the ranking loss compare patients and return the value of the batch.

Every loss takes an optional `mask` [B], False for slots of a batch that hold no patient: they get
0, and change neither the value nor the gradient of anything else, whatever their outputs are.

Likelihoods are computed from logarithms (log-sigmoid, log-softmax), where the published program
takes the logarithm of a product: the same numbers, clipped at the same 1e-7, but without the
rounding of 1 - hazard near 0, and with finite gradients for any finite logits.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

#: Arguments of logarithms in the likelihoods are clipped below at this.
LOG_CLIP = 1e-7
#: Cox: log risks are capped at this.
MAX_LOG_RISK = 10.0


def hazards(logits: Float[Array, "*batch T"]) -> Float[Array, "*batch T"]:
    """hazard_t = sigmoid(logits_t) [..., T]: probability of death in bin t once it is reached."""
    return jax.nn.sigmoid(logits)


def survival_from_hazards(hazards: Float[Array, "*batch T"]) -> Float[Array, "*batch T"]:
    """S_t = prod_{u <= t} (1 - hazard_u): probability of outliving bin t [..., T]."""
    return jnp.cumprod(1 - hazards, axis=-1)


def survival_from_incidence(incidence: Float[Array, "*batch T"]) -> Float[Array, "*batch T"]:
    """S_t = 1 - CIF_t = sum_{u > t} p_u of probabilities p of dying in each bin [..., T]."""
    at_or_after = jnp.flip(jnp.cumsum(jnp.flip(incidence, -1), axis=-1), -1)
    return jnp.concatenate([at_or_after[..., 1:], jnp.zeros_like(incidence[..., :1])], axis=-1)


def risk_from_survival(survival: Float[Array, "*batch T"]) -> Float[Array, "*batch"]:
    """risk = -sum_t S_t [...] of survival curves [..., T]; higher risk = shorter life."""
    return -jnp.sum(survival, axis=-1)


def mean(values: Float[Array, " B"], mask: Bool[Array, " B"] | None = None) -> Float[Array, ""]:
    """Mean of `values` [B] over the patients of the batch; 0 if there is none."""
    mask = _mask_or_all(values, mask)
    masked = jnp.where(mask, values, jnp.zeros_like(values))
    return jnp.sum(masked) / jnp.maximum(jnp.sum(mask, dtype=values.dtype), 1)


def _mask_or_all(
    values: Float[Array, "B ..."], mask: Bool[Array, " B"] | None
) -> Bool[Array, " B"]:
    """The mask as booleans [B]; all True if there is none."""
    return jnp.ones(values.shape[:1], bool) if mask is None else mask.astype(bool)


def _check(outputs: Array, ndim: int, *labels: Array | None) -> None:
    """A ValueError unless outputs have `ndim` axes and each vector an entry per patient.

    A [B, 1] against a [B] would broadcast to [B, B] without a word.
    """
    shapes = [label.shape for label in labels if label is not None]
    if outputs.ndim != ndim or any(shape != outputs.shape[:1] for shape in shapes):
        expected = "[B]" if ndim == 1 else "[B, T]"
        raise ValueError(
            f"expected outputs {expected} and labels and mask [B]; found outputs {outputs.shape}, "
            f"others {', '.join(map(str, shapes))}"
        )


def _only(mask: Bool[Array, " B"], values: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    """`values` [B] or [B, T] with zeros, and zero gradients, in slots without a patient."""
    where = mask if values.ndim == 1 else mask[:, None]
    return jnp.where(where, values, jnp.zeros_like(values))


def _clipped(log_value: Float[Array, " B"]) -> Float[Array, " B"]:
    """log max(value, LOG_CLIP)."""
    return jnp.maximum(log_value, math.log(LOG_CLIP))


#: (logits [B, T], y [B, 1], bins [1, T]) -> clipped log-likelihoods [B] of an event in bin y, and
#: of survival beyond it.
_LogLikelihoods = Callable[[Array, Array, Array], tuple[Array, Array]]


def _likelihood(
    log_likelihoods: _LogLikelihoods,
    logits: Float[Array, "B T"],
    time_bin: Int[Array, " B"],
    event: Shaped[Array, " B"],
    alpha: float,
    mask: Bool[Array, " B"] | None,
) -> Float[Array, " B"]:
    """(1 - alpha)(uncensored + censored) + alpha uncensored [B]."""
    _check(logits, 2, time_bin, event, mask)
    mask = _mask_or_all(logits, mask)
    bins = jnp.arange(logits.shape[1], dtype=time_bin.dtype)[None]
    log_density, log_survival = log_likelihoods(_only(mask, logits), time_bin[:, None], bins)
    died = event.astype(logits.dtype)
    uncensored = -died * log_density
    censored = -(1 - died) * log_survival
    return _only(mask, (1 - alpha) * (uncensored + censored) + alpha * uncensored)


def _of_hazards(
    logits: Float[Array, "B T"], y: Int[Array, "B 1"], bins: Int[Array, "1 T"]
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """log S_{y-1} + log hazard_y, and log S_y."""
    log_hazard, log_alive = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    zero = jnp.zeros_like(logits)
    log_hazard_y = jnp.sum(jnp.where(bins == y, log_hazard, zero), axis=1)
    log_survival_before = jnp.sum(jnp.where(bins < y, log_alive, zero), axis=1)
    log_survival_y = jnp.sum(jnp.where(bins <= y, log_alive, zero), axis=1)
    return _clipped(log_survival_before) + _clipped(log_hazard_y), _clipped(log_survival_y)


def _of_incidences(
    logits: Float[Array, "B T"], y: Int[Array, "B 1"], bins: Int[Array, "1 T"]
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """log p_y and log(1 - CIF_y)."""
    log_p = jax.nn.log_softmax(logits, axis=1)
    log_p_y = jnp.sum(jnp.where(bins == y, log_p, jnp.zeros_like(log_p)), axis=1)
    # Finite in place of -inf: there is nothing after the last bin, and nothing may become NaN.
    lowest = jnp.full_like(log_p, jnp.finfo(log_p.dtype).min / 2)
    log_survival_y = jax.nn.logsumexp(jnp.where(bins > y, log_p, lowest), axis=1)
    return _clipped(log_p_y), _clipped(log_survival_y)


def nll(
    logits: Float[Array, "B T"],
    time_bin: Int[Array, " B"],
    event: Shaped[Array, " B"],
    *,
    alpha: float = 0.5,
    mask: Bool[Array, " B"] | None = None,
) -> Float[Array, " B"]:
    """Negative log-likelihood of discrete-time hazards (equations 23 and 24 of docs/method.md).

        uncensored = -e     [log S_{y-1} + log hazard_y]      S_{-1} = 1
        censored   = -(1-e)  log S_y
        nll        = (1 - alpha)(uncensored + censored) + alpha * uncensored

    with hazard = sigmoid(logits), S_t = prod_{u <= t} (1 - hazard_u), and the argument of each of
    the three logarithms clipped below at 1e-7.

    Args:
        logits: [B, T].
        time_bin: [B] integers in [0, T), y.
        event: [B] booleans or {0, 1}, e.
        alpha: in [0, 1]; weight taken from the censored patients.
        mask: [B] False for slots without a patient.

    Returns:
        nll per patient [B].

    Raises:
        ValueError: for other shapes.
    """
    return _likelihood(_of_hazards, logits, time_bin, event, alpha, mask)


def incidence_nll(
    logits: Float[Array, "B T"],
    time_bin: Int[Array, " B"],
    event: Shaped[Array, " B"],
    *,
    alpha: float = 0.5,
    mask: Bool[Array, " B"] | None = None,
) -> Float[Array, " B"]:
    """Negative log-likelihood of incidences (equation 28 of docs/method.md).

        uncensored = -e log p_y,  censored = -(1-e) log(1 - CIF_y)

    weighted by alpha as in `nll`, with p = softmax(logits), CIF_t = sum_{u <= t} p_u, and the
    argument of each logarithm clipped below at 1e-7.

    Args:
        logits: [B, T].
        time_bin: [B] integers in [0, T), y.
        event: [B] booleans or {0, 1}, e.
        alpha: in [0, 1]; weight taken from the censored patients.
        mask: [B] False for slots without a patient.

    Returns:
        nll per patient [B].

    Raises:
        ValueError: for other shapes.
    """
    return _likelihood(_of_incidences, logits, time_bin, event, alpha, mask)


def log_risk(output: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """x = min(output, 10): the log risk of a Cox model, and its risk (higher = worse)."""
    return jnp.minimum(output, MAX_LOG_RISK)


def cox(
    output: Float[Array, " B"],
    time: Shaped[Array, " B"],
    event: Shaped[Array, " B"],
    *,
    mask: Bool[Array, " B"] | None = None,
) -> Float[Array, ""]:
    """Negative partial log-likelihood of a Cox model (equation 29 of docs/method.md).

        mean_i -e_i (x_i - log sum_{j: t_j >= t_i} exp x_j),   x = min(output, 10)

    The published program averages over a broadcast [B, B] here; this is the mean over B patients.

    Args:
        output: [B] the model's one output.
        time: [B] times in any unit.
        event: [B] booleans or {0, 1}.
        mask: [B] False for slots without a patient.

    Returns:
        the loss of the batch, a scalar; 0 without an event.

    Raises:
        ValueError: for other shapes.
    """
    _check(output, 1, time, event, mask)
    mask = _mask_or_all(output, mask)
    x = log_risk(_only(mask, output))
    outlives = (time[None, :] >= time[:, None]) & mask[None, :]
    at_risk = outlives | jnp.eye(len(x), dtype=bool)  # no empty row, for slots without a patient
    lowest = jnp.asarray(-jnp.inf, x.dtype)
    log_sum = jax.nn.logsumexp(
        jnp.where(at_risk, jnp.broadcast_to(x[None, :], at_risk.shape), lowest), axis=1
    )
    return mean(-event.astype(x.dtype) * (x - log_sum), mask)


def earth_mover(
    logits: Float[Array, "B T"],
    time_bin: Int[Array, " B"],
    event: Shaped[Array, " B"],
    *,
    scale: float = 10.0,
    mask: Bool[Array, " B"] | None = None,
) -> Float[Array, " B"]:
    """Squared earth mover's distance between predicted and seen incidence (equations 30 to 32).

        P = softmax(logits);  g = 1 at y, and for a censored patient at all later bins too
        target = softmax(s (2g - 1));  pred = softmax(e P + (1-e)((1-g) P + s g))
        emd = sum over bins of (CDF_pred - CDF_target)^2

    The second softmax over P is as published.

    Args:
        logits: [B, T].
        time_bin: [B] integers in [0, T), y.
        event: [B] booleans or {0, 1}, e.
        scale: s, how sharp the target is.
        mask: [B] False for slots without a patient.

    Returns:
        distance per patient [B].

    Raises:
        ValueError: for other shapes.
    """
    _check(logits, 2, time_bin, event, mask)
    mask = _mask_or_all(logits, mask)
    p = jax.nn.softmax(_only(mask, logits), axis=1)
    y, died = time_bin[:, None], event.astype(bool)[:, None]
    bins = jnp.arange(logits.shape[1], dtype=time_bin.dtype)[None]
    g = ((bins == y) | (~died & (bins > y))).astype(p.dtype)
    target = jax.nn.softmax(scale * (2 * g - 1), axis=1)
    prediction = jax.nn.softmax(jnp.where(died, p, (1 - g) * p + scale * g), axis=1)
    gap = jnp.cumsum(prediction, axis=1) - jnp.cumsum(target, axis=1)
    return _only(mask, jnp.sum(gap * gap, axis=1))


def ranking(
    output: Float[Array, " B"],
    time: Shaped[Array, " B"],
    event: Shaped[Array, " B"],
    *,
    mask: Bool[Array, " B"] | None = None,
) -> Float[Array, ""]:
    """Hinge loss over pairs of patients whose order is known (equation 33 of docs/method.md).

        mean over pairs with e_i = 1 and t_i < t_j of relu(1 + p_i - p_j)

    Args:
        output: [B] predicted times p.
        time: [B] times, of which only the order matters.
        event: [B] booleans or {0, 1}.
        mask: [B] False for slots without a patient.

    Returns:
        the loss of the batch, a scalar; 0 without such a pair.

    Raises:
        ValueError: for other shapes.
    """
    _check(output, 1, time, event, mask)
    mask = _mask_or_all(output, mask)
    p = _only(mask, output)
    ordered = (time[:, None] < time[None, :]) & (event.astype(bool) & mask)[:, None] & mask[None, :]
    hinge = jax.nn.relu(1 + p[:, None] - p[None, :])
    total = jnp.sum(jnp.where(ordered, hinge, jnp.zeros_like(hinge)))
    return total / jnp.maximum(jnp.sum(ordered, dtype=p.dtype), 1)


def reconstruction(
    output: Float[Array, " B"],
    time: Shaped[Array, " B"],
    event: Shaped[Array, " B"],
    *,
    alpha: float = 0.5,
    mask: Bool[Array, " B"] | None = None,
) -> Float[Array, " B"]:
    """Distance of a predicted time from the seen one (equation 34 of docs/method.md).

        o = e abs(p - t),  c = (1-e) relu(1 - (p - t)),  (1 - alpha)(o + c) + alpha o

    Args:
        output: [B] predicted times p.
        time: [B] times t, in the unit of p (the margin of 1 is in that unit as well); training
            gives years, which outputs that start near 0 can reach.
        event: [B] booleans or {0, 1}, e.
        alpha: in [0, 1]; weight taken from the censored patients.
        mask: [B] False for slots without a patient.

    Returns:
        loss per patient [B].

    Raises:
        ValueError: for other shapes.
    """
    _check(output, 1, time, event, mask)
    mask = _mask_or_all(output, mask)
    difference = _only(mask, output - time.astype(output.dtype))
    died = event.astype(output.dtype)
    observed = died * jnp.abs(difference)
    censored = (1 - died) * jax.nn.relu(1 - difference)
    return _only(mask, (1 - alpha) * (observed + censored) + alpha * observed)
