"""Cox models of a few predictors, by lifelines; a doubtful fit is none."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike

from steph_jax.survival.labels import survival_labels

#: Standard error of a log hazard ratio per standard deviation beyond which it counts as infinite.
_LARGEST_ERROR = 10.0


class CoxFit(NamedTuple):
    """A Cox model at the maximum of its likelihood.

    Attributes:
        coefficients: [K] log hazard ratios per unit of each predictor.
        errors: [K] their standard errors.
        log_likelihood: Efron's partial log likelihood there.
    """

    coefficients: Float64[np.ndarray, " K"]
    errors: Float64[np.ndarray, " K"]
    log_likelihood: float


@contextmanager
def _quiet(doubts: str) -> Iterator[None]:
    """lifelines' warnings are turned into errors ("error") or not shown ("ignore")."""
    with warnings.catch_warnings():
        warnings.simplefilter(doubts)  # type: ignore[arg-type]
        # Of numpy and autograd within the optimizer, on its way to a fit that is checked.
        warnings.simplefilter("ignore", RuntimeWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def fit_cox(
    time: ArrayLike,
    event: ArrayLike,
    x: Float64[np.ndarray, "P K"],
    strata: ArrayLike | None = None,
    *,
    names: Sequence[str] = (),
    penalty: float = 0.0,
) -> CoxFit:
    """Fits a Cox model (Efron's ties).

    Args:
        time, event: [P].
        x: [P, K] predictors.
        strata: [P] whose baseline hazards differ, or None.
        names: of the predictors, for messages.
        penalty: a ridge penalty of penalty / 2 times the square of each coefficient of a
            standardized predictor, on the likelihood per patient. It bounds coefficients where
            a predictor separates the patients, which is an error without it.

    Raises:
        ValueError: where no event was seen or the likelihood has no maximum, with the reason.
    """
    import lifelines
    import pandas as pd
    from lifelines.exceptions import ConvergenceError

    times, events = survival_labels(time, event)
    if not events.any():
        raise ValueError("no event was seen")
    table = pd.DataFrame({f"x{k}": column for k, column in enumerate(x.T)})
    table["time"], table["event"] = times, events
    if strata is not None:
        table["stratum"] = np.asarray(strata)
    try:
        with _quiet("ignore" if penalty else "error"):
            fit = lifelines.CoxPHFitter(penalizer=penalty)
            fit.fit(table, "time", "event", strata=None if strata is None else ["stratum"])
    except (ConvergenceError, Warning, ValueError, np.linalg.LinAlgError) as problem:
        first = (str(problem).strip() or "no convergence").splitlines()[0]
        for k, name in enumerate(names):
            first = first.replace(f"x{k}", name)
        raise ValueError(f"a Cox model cannot be fitted: {first}") from None
    errors = fit.standard_errors_.to_numpy(np.float64)
    spread = errors * x.std(axis=0)
    if not penalty and not (np.isfinite(spread).all() and spread.max() <= _LARGEST_ERROR):
        worst = int(np.argmax(np.where(np.isfinite(spread), spread, np.inf)))
        name = names[worst] if names else "the predictor"
        raise ValueError(f"a Cox model cannot be fitted: {name} separates the patients")
    coefficients = fit.params_.to_numpy(np.float64)
    return CoxFit(coefficients, errors, float(fit.log_likelihood_))


def cox_coefficient(
    time: ArrayLike, event: ArrayLike, x: ArrayLike, strata: ArrayLike | None = None
) -> tuple[float, float]:
    """Coefficient of one predictor in a Cox model, and its standard error.

    Args:
        time, event, x: [P] labels and predictor.
        strata: [P] whose baseline hazards differ, or None.

    Raises:
        ValueError: where the model cannot be fitted, with the reason.
    """
    predictor = np.asarray(x, np.float64)
    if np.ptp(predictor) == 0.0:
        raise ValueError("the predictor is the same for all patients")
    fit = fit_cox(time, event, predictor[:, None], strata)
    return float(fit.coefficients[0]), float(fit.errors[0])
