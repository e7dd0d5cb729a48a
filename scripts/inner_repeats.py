"""Whether more draws of inner folds choose better for `linear_pool` (docs/method.md, section 11).

    python scripts/inner_repeats.py --shared DATA --out runs/inner_repeats.csv

docs/results.md says where DATA come from. Only the training patients of fold 0 of each cohort are
used, so that no test patient has a part in the choice: 40, 80 and 160 of them train (drawn again
with each seed), the others test. `ridge_cox` and `linear_pool` are fitted with one draw of the
inner folds and with ten. Interrupted, it goes on where it was.
"""

import pathlib
import sys
from typing import NamedTuple

import numpy as np
import pandas as pd
import tcga_rna
from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from steph_jax import files
from steph_jax.data.splits import read_split, split_path
from steph_jax.data.tables import read_table, table_path
from steph_jax.data.training_subsets import spread_order
from steph_jax.methods.linear_pool import Shrinkage
from steph_jax.methods.ridge_cox import NUM_INNER_FOLDS, Linear
from steph_jax.survival import cox, metrics, shrinkage

NUMBERS, REPEATS = (40, 80, 160), (1, 10)
_SEED = 42


class Patients(NamedTuple):
    """Moments [P, 2G] of the bags of some patients, and their outcomes."""

    moments: np.ndarray
    time: np.ndarray
    event: np.ndarray

    def take(self, rows: np.ndarray) -> "Patients":
        """Some of them."""
        return Patients(self.moments[rows], self.time[rows], self.event[rows])


def main() -> int:
    """The entry point."""
    arguments = flags.FLAGS
    home, out = pathlib.Path(arguments.shared) / "tcga_rna", pathlib.Path(arguments.out)
    cohorts = arguments.cohorts or tcga_rna.all_cohorts(home.parent)
    patients = {name: read_patients(home, name) for name in cohorts}
    directions = {name: direction(part) for name, part in patients.items()}
    rows = pd.read_csv(out).to_dict("records") if out.is_file() else []
    done = {(row["cohort"], row["patients"], row["seed"]) for row in rows}
    for number in NUMBERS:
        for seed in map(int, arguments.seeds):
            for name in cohorts:
                if (name, number, seed) in done:
                    continue
                pool = np.stack([directions[other] for other in cohorts if other != name])
                scores = c_indices(patients[name], number, seed, pool)
                rows.append({"cohort": name, "patients": number, "seed": seed} | scores)
                files.write_table(out, pd.DataFrame(rows).round(5))
    print(summary(pd.DataFrame(rows)).to_string(index=False))
    return 0


def read_patients(home: pathlib.Path, cohort: str) -> Patients:
    """The training patients of fold 0; moments of their bags (`tcga_rna.bag_of_profile`)."""
    with np.load(home / "pathways.npz") as pathways:
        member = pathways["member"].astype(np.float64)
    with np.load(home / cohort / "expression.npz") as expression:
        profiles = dict(zip(expression["patient_id"], expression["rna"], strict=True))
    table = read_table(table_path(home, cohort))
    rows = table.rows(read_split(split_path(home, cohort, 0)).train)
    genes = np.stack([profiles[table.patients[row]] for row in rows]).astype(np.float64)
    # The entries of a gene are 0, or its expression times the factor of a pathway.
    factors = member * np.sqrt(member.shape[1] / member.sum(axis=1, keepdims=True))
    moments = np.concatenate([genes * factors.mean(axis=0), abs(genes) * factors.std(axis=0)], 1)
    return Patients(moments, table.time[rows], table.event[rows])


def direction(source: Patients) -> np.ndarray:
    """b_s of a source, as `linear_pool` makes it."""
    x = shrinkage.standardize(source.moments)(source.moments)
    folds = cox.inner_folds(source.event, NUM_INNER_FOLDS, _SEED)
    penalties = Linear().ridge(x.shape[1])
    fit = shrinkage.fit_ridge(x, source.time, source.event, folds, penalties)
    return shrinkage.unit(fit.coefficients)


def c_indices(
    patients: Patients, number: int, seed: int, directions: np.ndarray
) -> dict[str, float]:
    """C-index of {method}_{repeats}, of some patients, on the others.

    Args:
        patients: all of them.
        number: of those that are trained on.
        seed: that draws them.
        directions: [S, 2G] of the sources.
    """
    order = spread_order(patients.event, np.random.default_rng([seed, 0]))
    train, test = patients.take(order[:number]), patients.take(order[number:])
    standard = shrinkage.standardize(train.moments)
    x, penalties = standard(train.moments), Linear().ridge(patients.moments.shape[1])
    scores = {}
    for repeats in REPEATS:
        folds = Linear(inner_repeats=repeats).inner_folds(train.event, _SEED)
        fold_of_patients = x, train.time, train.event, folds, penalties
        ridge = shrinkage.fit_ridge(*fold_of_patients)
        pooled = shrinkage.fit_pooled(*fold_of_patients, directions, Shrinkage().grid)
        for name, fit in (("ridge_cox", ridge), ("linear_pool", pooled)):
            risk = standard(test.moments) @ fit.coefficients
            value = metrics.concordance_index(test.time, test.event, risk)
            scores[f"{name}_{repeats}"] = value
    return scores


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """A row per number of patients and draws: means over cohorts, and the worst of these.

    Args:
        table: cohort, patients, seed, and C-index of {method}_{draws}.
    """
    rows = []
    for number, runs in table.groupby("patients"):
        for repeats in REPEATS:
            ridge, pooled = runs[f"ridge_cox_{repeats}"], runs[f"linear_pool_{repeats}"]
            gain = pooled - ridge
            by_cohort = gain.groupby(runs["cohort"]).mean()
            error = by_cohort.std() / np.sqrt(len(by_cohort))
            rows.append(
                (
                    *(number, repeats, ridge.groupby(runs["cohort"]).mean().mean()),
                    *(by_cohort.mean(), error, by_cohort.min(), gain.min()),
                )
            )
    names = ["patients", "draws", "ridge_cox", "gain", "error", "worst_cohort", "worst_run"]
    return pd.DataFrame(rows, columns=names).round(4)


if __name__ == "__main__":
    flags.DEFINE_list("seeds", [str(seed) for seed in range(1, 7)], "Seeds of the draws.")
    tcga_rna.app_run(main, "runs/inner_repeats.csv", ())
