"""How far a cross-validated gain over clinical variables is from the gain on new patients.

    python scripts/clinical_leak.py --out docs/tables/clinical_leak.csv

Patients are drawn many times from one population, with an age and a stage beside features. Each
time a ridge Cox model of the features is cross-validated in five folds, and
`clinical.cross_validated_gain` says what its risk adds to age and stage. Its fits are on risks of
models that were trained on patients of the fold that is scored, so some of their outcome leaks; the
same fits are scored on 1,500 new patients, whom nothing has seen. The table has the means of both
over the draws.
"""

import argparse
import pathlib
import sys

import numpy as np
import pandas as pd
from tqdm import tqdm

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from steph_jax import files
from steph_jax.survival import clinical, cox, metrics
from steph_jax.survival.clinical import TestPatients

#: (patients, features, sd of the log hazard by features, whether age and stage matter).
SETTINGS = ((150, 10, 0.0, True), (345, 50, 0.0, True), (345, 50, 0.0, False), (345, 10, 0.8, True))
NUM_FOLDS, NEW_PATIENTS = 5, 1500


def draw(setting, number: int, rng: np.random.Generator):
    """Features [P, K] and patients, whose risks are not known yet; about half are censored."""
    _, num_features, signal, matters = setting
    x = rng.normal(size=(number, num_features))
    age, stage = rng.normal(size=number), rng.integers(0, 3, number)
    clinic = 0.5 * age + 0.7 * stage if matters else 0.0
    death = rng.exponential(np.exp(-(signal * x.sum(axis=1) / np.sqrt(num_features) + clinic)))
    censored = rng.uniform(0.0, 1.5, number)
    columns = np.column_stack([age, stage == 1, stage == 2]).astype(np.float64)
    ids = np.arange(number).astype(str)
    zero = np.zeros(number)
    patients = TestPatients(
        *(ids, zero.astype(int), np.minimum(death, censored), death <= censored, zero),
        *(columns, ("age", "stage 1", "stage 2")),
    )
    return x, patients


def with_risks(patients: TestPatients, fold, risk) -> TestPatients:
    """The patients with folds and risks."""
    values = (patients.patient, fold, patients.time, patients.event, risk)
    return TestPatients(*values, patients.clinical, patients.names)


def differences(train: TestPatients, *tests: TestPatients) -> list[float]:
    """C-index with the risk less that of clinical variables alone, on several sets of patients."""
    everyone = TestPatients.joined(tests)
    places = np.cumsum([len(test.time) for test in tests])[:-1]
    alone, both = (
        np.split(clinical.log_risks(train, everyone, with_risk), places)
        for with_risk in (False, True)
    )
    return [
        metrics.concordance_index(test.time, test.event, two)
        - metrics.concordance_index(test.time, test.event, one)
        for test, one, two in zip(tests, alone, both, strict=True)
    ]


def one_draw(setting, seed: int) -> tuple[float, float]:
    """The cross-validated gain, and that of the same fits on new patients."""
    rng = np.random.default_rng([seed, *map(int, setting)])
    x, patients = draw(setting, setting[0], rng)
    new_x, new = draw(setting, NEW_PATIENTS, rng)
    (fold_of,) = cox.inner_folds(patients.event, NUM_FOLDS, seed)
    risk, of_new = np.empty(len(x)), []
    for fold in range(NUM_FOLDS):
        train = fold_of != fold
        beta = cox.ridge_cox(x[train], patients.time[train], patients.event[train], 10.0)
        scale = (x[train] @ beta).std(ddof=1)
        risk[~train] = x[~train] @ beta / scale
        of_new.append(new_x @ beta / scale)
    known = with_risks(patients, fold_of, risk)
    gains = []
    for fold in range(NUM_FOLDS):
        train, test = (known.take(np.flatnonzero(m)) for m in (fold_of != fold, fold_of == fold))
        gains.append(differences(train, test, with_risks(new, new.fold, of_new[fold])))
    inside, outside = np.mean(gains, axis=0)
    return float(inside), float(outside)


def simulate(setting, draws: int) -> dict[str, float]:
    """One row of the table."""
    progress = tqdm(range(draws), desc=str(setting), disable=not sys.stderr.isatty())
    inside, outside = np.array([one_draw(setting, seed) for seed in progress]).T
    return {
        "patients": setting[0],
        "features": setting[1],
        "sd_log_hazard": setting[2],
        "clinic_matters": setting[3],
        "draws": draws,
        "cross_validated": inside.mean(),
        "new_patients": outside.mean(),
        "leak": (inside - outside).mean(),
        "standard_error": (inside - outside).std(ddof=1) / np.sqrt(draws),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the table, CSV")
    parser.add_argument("--draws", type=int, default=100, help="cohorts drawn per setting")
    arguments = parser.parse_args()
    table = pd.DataFrame([simulate(setting, arguments.draws) for setting in SETTINGS]).round(4)
    files.write_table(arguments.out, table)
    print(table.to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
