"""New patients by all models of a run: each fold's risk, the mean rank, and the group.

Risks of different folds' models have no common unit. So each model ranks the patients that are
predicted together, and the ranks are averaged; and each model places a patient above or below its
own cut, the median risk of its training patients. A patient whom half of the models or more place
above their cuts is in the group at high risk.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from steph_jax.evaluation import fold_results

HIGH, LOW = "high", "low"


class Cut(NamedTuple):
    """Of a fold: the median risk of its training patients."""

    fold: int
    risk: float


def read_cuts(models: Mapping[int | None, pathlib.Path]) -> list[Cut]:
    """The cuts of folds, from where their models are.

    Raises:
        FileNotFoundError, ValueError: the metrics of a fold are missing or damaged.
    """
    return [
        Cut(fold, float(fold_results.read_metrics(model.parent)["risk_cut"]))
        for fold, model in models.items()
        if fold is not None
    ]


def table(
    patients: Sequence[str], risks: Sequence[np.ndarray], cuts: Sequence[Cut]
) -> pd.DataFrame:
    """A row for each patient.

    Args:
        patients: n ids.
        risks: [n] of each fold's model, higher = worse.
        cuts: of each fold.

    Returns:
        patient_id; risk_fold_{k} of each model; mean_rank, the mean over models of the patient's
        rank among these n (1 = lowest risk; equal risks share their mean rank); models_above_cut,
        how many models place the patient above their cut; group, "high" or "low".
    """
    above = np.sum([risk > cut.risk for risk, cut in zip(risks, cuts, strict=True)], axis=0)
    columns = {f"risk_fold_{cut.fold}": risk for risk, cut in zip(risks, cuts, strict=True)}
    return pd.DataFrame(
        {"patient_id": list(patients)}
        | columns
        | {
            "mean_rank": np.mean([pd.Series(risk).rank() for risk in risks], axis=0),
            "models_above_cut": above,
            "group": np.where(2 * above >= len(cuts), HIGH, LOW),
        }
    )
