"""What risk adds to clinical variables: a multivariable Cox model, and its gain over them.

Risks of different folds' models have no common unit: each is divided by the standard deviation of
the fold's training risks, and every fold has a baseline hazard of its own (equation 48 of
docs/method.md).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int
from numpy.typing import ArrayLike

from steph_jax.survival import metrics, significance
from steph_jax.survival.calibration import IntervalEstimate
from steph_jax.survival.cox_models import fit_cox
from steph_jax.survival.significance import WIDENING, FoldRisks, Interval

#: Of the fits whose predictions are scored: bounds a category without events in the other folds.
_PENALTY = 1e-3
#: 97.5 % point of the normal distribution.
_Z = 1.959963984540054


_ARRAYS = ("patient", "fold", "time", "event", "risk", "clinical")


@dataclasses.dataclass(frozen=True, eq=False)
class TestPatients:
    """Test patients of several folds, with nothing missing.

    Attributes:
        patient: [P] ids; a patient may be tested in several folds.
        fold: [P] number of the fold.
        time: [P] in days.
        event: [P] True where death was seen.
        risk: [P] in standard deviations of the training risks of the fold; higher = shorter life.
        clinical: [P, K] clinical variables.
        names: [K] of these.
    """

    patient: np.ndarray
    fold: Int[np.ndarray, " P"]
    time: Float64[np.ndarray, " P"]
    event: Bool[np.ndarray, " P"]
    risk: Float64[np.ndarray, " P"]
    clinical: Float64[np.ndarray, "P K"]
    names: Sequence[str]

    __test__ = False  # not a class of tests, whatever its name

    def take(self, rows: ArrayLike) -> "TestPatients":
        """Some of the patients."""
        arrays: dict[str, Any] = {name: getattr(self, name)[rows] for name in _ARRAYS}
        return dataclasses.replace(self, **arrays)

    @classmethod
    def joined(cls, parts: Sequence["TestPatients"]) -> "TestPatients":
        """The patients of all parts, one after another."""
        arrays: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS
        }
        return dataclasses.replace(parts[0], **arrays)

    def predictors(self, with_risk: bool) -> Float64[np.ndarray, "P M"]:
        """The risk, if it is to be among them, and the clinical variables."""
        return np.column_stack([self.risk, self.clinical]) if with_risk else self.clinical


class Multivariable(NamedTuple):
    """A Cox model of the risk and the clinical variables.

    Attributes:
        risk: hazard ratio of one standard deviation of the risk, its interval widened.
        clinical: [K] hazard ratios of the clinical variables.
        likelihood_ratio: statistic of adding the risk, divided by `WIDENING` squared.
        p: of that statistic, by the chi-squared distribution with one degree of freedom.
    """

    risk: IntervalEstimate
    clinical: tuple[IntervalEstimate, ...]
    likelihood_ratio: float
    p: float


def multivariable(patients: TestPatients) -> Multivariable:
    """Hazard ratios and the likelihood-ratio test (equations 48 and 49 of docs/method.md).

    A patient who is tested in several folds counts in the first of them.

    Raises:
        ValueError: where the model cannot be fitted, with the reason.
    """
    from scipy.stats import chi2

    _, first = np.unique(patients.patient, return_index=True)
    once = patients.take(np.sort(first))
    labels = once.time, once.event
    both = fit_cox(*labels, once.predictors(True), once.fold, names=("risk", *once.names))
    alone = fit_cox(*labels, once.predictors(False), once.fold, names=once.names)
    ratio = 2.0 * (both.log_likelihood - alone.log_likelihood) / WIDENING**2
    widths = np.where(np.arange(len(both.errors)) == 0, WIDENING, 1.0) * both.errors
    risk, *clinical = (_hazard_ratio(*row) for row in zip(both.coefficients, widths, strict=True))
    return Multivariable(risk, tuple(clinical), ratio, float(chi2.sf(max(ratio, 0.0), 1)))


def _hazard_ratio(coefficient: float, error: float) -> IntervalEstimate:
    low, high = (math.exp(coefficient + side * _Z * error) for side in (-1, 1))
    return IntervalEstimate(math.exp(coefficient), Interval(low, high))


class Gain(NamedTuple):
    """C-index of clinical variables and risk together less that of the former, on test patients.

    Attributes:
        clinical, both: [J] C-index on each fold.
        mean: of the difference over folds.
        interval: of that mean, over patients, widened.
        p: of the corrected t-test over folds.
    """

    clinical: Float64[np.ndarray, " J"]
    both: Float64[np.ndarray, " J"]
    mean: float
    interval: Interval
    p: float


def cross_validated_gain(patients: TestPatients) -> Gain:
    """The gain in the C-index, each fold by models of the other folds (equation 50).

    Both models are fitted on the test patients of the other folds, whose risks are out-of-fold as
    those of the fold that is scored; training patients' own risks are over-fitted, and a
    coefficient for them would be too. Nobody who is tested in the fold is among those fitted.

    Raises:
        ValueError: for a single fold, or where no event is left to fit on.
    """
    folds = np.unique(patients.fold)
    if len(folds) < 2:
        raise ValueError("a single fold cannot be cross-validated")
    tested, trained = [], []
    for fold in folds:
        test = patients.take(patients.fold == fold)
        others = (patients.fold != fold) & ~np.isin(patients.patient, test.patient)
        train = patients.take(others)
        scores = {
            name: log_risks(train, test, with_risk)[None]
            for name, with_risk in (("clinical", False), ("both", True))
        }
        tested.append(FoldRisks(test.time, test.event, scores))
        trained.append(len(train.time))
    c_index = {
        name: np.array(
            [metrics.concordance_index(f.time, f.event, f.risk[name][0]) for f in tested]
        )
        for name in ("clinical", "both")
    }
    difference = c_index["both"] - c_index["clinical"]
    resampled = significance.bootstrap_means(tested)
    mean = float(difference.mean())
    return Gain(
        c_index["clinical"],
        c_index["both"],
        mean,
        significance.interval_of_mean(resampled["both"] - resampled["clinical"], mean),
        significance.corrected_t_test(difference, trained, [len(f.time) for f in tested]),
    )


def log_risks(
    train: TestPatients, test: TestPatients, with_risk: bool
) -> Float64[np.ndarray, " P"]:
    """[P] log risks of some patients by a Cox model of others, stratified by fold.

    Args:
        train: who it is fitted on, with a small ridge penalty.
        test: whose log risks are predicted.
        with_risk: whether the risk is a predictor beside the clinical variables.

    Raises:
        ValueError: where nothing can be fitted.
    """
    x = train.predictors(with_risk)
    varies = np.ptp(x, axis=0) > 0 if len(x) else np.zeros(x.shape[1], bool)
    if not varies.any():
        raise ValueError("no clinical variable differs between the patients of the other folds")
    fit = fit_cox(train.time, train.event, x[:, varies], train.fold, penalty=_PENALTY)
    return test.predictors(with_risk)[:, varies] @ fit.coefficients
