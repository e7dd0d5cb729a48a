"""What the risk of a run adds to clinical columns, as JSON for its report."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from steph_jax.data import clinical as clinical_columns
from steph_jax.data.clinical import ClinicalTable, Variable
from steph_jax.evaluation.fold_files import FoldFiles
from steph_jax.evaluation.run_metrics import ends, or_none, spread
from steph_jax.survival import clinical
from steph_jax.survival.calibration import IntervalEstimate
from steph_jax.survival.clinical import Gain, TestPatients


def clinical_gain(folds: Sequence[FoldFiles], table: ClinicalTable) -> dict[str, Any]:
    """Hazard ratios of the risk and the columns together, and the gain over the columns alone.

    Patients with a missing value are left out of all of it, and counted.

    Args:
        folds: the finished ones.
        table: clinical columns.

    Returns:
        columns; patients and events that are used; missing {column: patients}, left_out; variables
        [{"name", "unit", "value", "ci95"}], the risk first; likelihood_ratio {"statistic", "p"};
        c_index {"clinical", "both", "difference"}; and reasons {name: why} of what is null.
    """
    tested = dict.fromkeys(patient for fold in folds for patient in fold.patients)
    missing = {
        name: sum(patient not in column for patient in tested)
        for name, column in table.columns.items()
    }
    complete = clinical_columns.complete(table, tested)
    result: dict[str, Any] = {
        "columns": list(table.columns),
        "patients": len(complete),
        "missing": missing,
        "left_out": len(tested) - len(complete),
        "variables": [],
        "likelihood_ratio": None,
        "c_index": None,
        "reasons": {},
    }
    try:
        made = clinical_columns.variables(table, complete)
        if any(fold.predictions.risk_sd is None for fold in folds):
            raise ValueError(
                "the spread of the training risks is not recorded; run steph_jax.evaluate"
            )
        if not all(fold.predictions.risk_sd for fold in folds):
            raise ValueError("all training patients of a fold have the same risk")
    except ValueError as problem:
        reason = str(problem)
        return result | {"events": None, "reasons": {"variables": reason, "c_index": reason}}
    patients = _test_patients(folds, complete, made)
    _, first = np.unique(patients.patient, return_index=True)
    result["events"] = int(patients.event[first].sum())
    try:
        model = clinical.multivariable(patients)
        units = [("risk", "per standard deviation"), *((v.column, v.unit) for v in made)]
        result["variables"] = [
            _variable(*names, estimate)
            for names, estimate in zip(units, (model.risk, *model.clinical), strict=True)
        ]
        result["likelihood_ratio"] = {"statistic": model.likelihood_ratio, "p": model.p}
    except ValueError as problem:
        result["reasons"]["variables"] = str(problem)
    try:
        result["c_index"] = _gain(clinical.cross_validated_gain(patients))
    except ValueError as problem:
        result["reasons"]["c_index"] = str(problem)
    return result


def _test_patients(
    folds: Sequence[FoldFiles], complete: Sequence[str], made: Sequence[Variable]
) -> TestPatients:
    """The test patients of all folds who have every column."""
    row_of = {patient: row for row, patient in enumerate(complete)}
    values = np.stack([variable.values for variable in made], axis=1)
    names = [f"{variable.column} ({variable.unit})" for variable in made]
    parts = []
    for fold in folds:
        at = [i for i, patient in enumerate(fold.patients) if patient in row_of]
        rows = [row_of[fold.patients[i]] for i in at]
        of_fold = fold.predictions
        parts.append(
            TestPatients(
                patient=np.asarray(complete)[rows],
                fold=np.full(len(at), fold.number),
                time=of_fold.test.time[at],
                event=of_fold.test.event[at],
                risk=of_fold.risk[at] / (of_fold.risk_sd or math.nan),
                clinical=values[rows],
                names=names,
            )
        )
    return TestPatients.joined(parts)


def _variable(name: str, unit: str, estimate: IntervalEstimate) -> dict[str, Any]:
    return {"name": name, "unit": unit, "value": estimate.value, "ci95": ends(estimate.interval)}


def _gain(gain: Gain) -> dict[str, Any]:
    def of_folds(values: np.ndarray) -> dict[str, Any]:
        return spread([or_none(value) for value in values.tolist()])

    return {
        "clinical": of_folds(gain.clinical),
        "both": of_folds(gain.both),
        "difference": {
            "mean": or_none(gain.mean),
            "ci95": ends(gain.interval),
            "p": or_none(gain.p),
        },
    }
