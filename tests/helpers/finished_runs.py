"""Finished runs that nobody trained: the files that reports read, of simulated patients."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pandas as pd

from steph_jax import run_directory
from steph_jax.data.cohort import Fold, TableSize
from steph_jax.data.tables import SurvivalTable
from steph_jax.evaluation import fold_results
from steph_jax.reports import provenance
from steph_jax.survival import metrics

EDGES = np.arange(9) * 365.0


@dataclasses.dataclass
class Patients:
    """Simulated patients, and what a model says of them.

    Attributes:
        table: of all patients; a test changes what it is about.
        log_hazard: [P] the truth.
        risk: [P] what the model says, higher = worse.
        fold: [P] in which each is tested.
    """

    table: SurvivalTable
    log_hazard: np.ndarray
    risk: np.ndarray
    fold: np.ndarray


def patients(number: int = 120, num_folds: int = 3, seed: int = 0) -> Patients:
    """Patients with ages and stages; about half die of the disease, some of something else."""
    rng = np.random.default_rng(seed)
    log_hazard = rng.normal(size=number)
    death = rng.exponential(1500 * np.exp(-log_hazard))
    other = rng.exponential(8000, number)
    censored = rng.uniform(300, 4000, number)
    time = np.ceil(np.minimum(np.minimum(death, other), censored))
    table = SurvivalTable(
        path=pathlib.Path("table.csv"),
        patients=tuple(f"P{i:04d}" for i in range(number)),
        time=time,
        event=(death <= other) & (death <= censored),
        slides=tuple((f"S{i:04d}",) for i in range(number)),
        competing=(other < death) & (other <= censored),
    )
    risk = 0.7 * log_hazard + rng.normal(size=number)
    return Patients(table, log_hazard, risk, np.arange(number) % num_folds)


def write(
    workdir: pathlib.Path, who: Patients, curves: bool = True, **numbers: Any
) -> pathlib.Path:
    """Writes the run; `numbers` are further entries of each metrics.json. Returns `workdir`."""
    folds = sorted(set(who.fold.tolist()))
    method = numbers.pop("method", "steph")
    settings = {
        "dataset": "simulated",
        "method": method,
        "seed": 1,
        "folds": folds,
        "data": {"root": str(workdir), "columns": {"patient": "patient_id", "time": "t"}},
    }
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / run_directory.SETTINGS).write_text(json.dumps(settings))
    size = TableSize.measure(who.table)._asdict()
    record = {"command": "train", "versions": provenance.versions(), "table": size}
    (workdir / provenance.FILE).write_text(json.dumps(record))
    for fold in folds:
        _write_fold(run_directory.fold_directory(workdir, fold), who, fold, curves, numbers, method)
    return workdir


def _write_fold(
    directory: pathlib.Path,
    who: Patients,
    fold: int,
    curves: bool,
    numbers: dict[str, Any],
    method: str,
) -> None:
    directory.mkdir()
    train, test = np.flatnonzero(who.fold != fold), np.flatnonzero(who.fold == fold)
    fold_results.write_patients(directory, who.table, Fold(train, test, test[:0]))
    table, risk = who.table, who.risk[test]
    columns: dict[str, Any] = {
        "patient_id": [table.patients[i] for i in test],
        "t": table.time[test],
        "e": table.event[test].astype(int),
        "risk": risk,
    }
    if curves:
        survival = np.exp(-np.exp(0.5 * risk)[:, None] * EDGES[1:] / 2500)
        columns |= {f"surv_{k + 1}": survival[:, k] for k in range(len(EDGES) - 1)}
    pd.DataFrame(columns).to_csv(directory / fold_results.PREDICTIONS, index=False)
    c_index = metrics.concordance_index(table.time[test], table.event[test], risk)
    score = {"c_index": None if np.isnan(c_index) else c_index}
    record = {
        "method": method,
        "dataset": "simulated",
        "fold": fold,
        "trainable_parameters": 1,
        "train_seconds": 1.0,
        "train": score,
        "test": score,
        "risk_cut": float(np.median(who.risk[train])),
        "risk_sd": float(np.std(who.risk[train], ddof=1)),
        "bin_edges": EDGES.tolist(),
    }
    (directory / "metrics.json").write_text(json.dumps(record | numbers))
