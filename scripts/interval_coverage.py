"""How often a 95 % interval of a cross-validated C-index holds the truth.

    python scripts/interval_coverage.py --out docs/tables/interval_coverage.csv

Patients are drawn many times from one population; each time two ridge Cox models are
cross-validated in five folds, one on each half of the features. The halves are alike, so the true
difference is 0, and the true C-index of the procedure is its mean over all draws. For each draw the
bootstrap over patients gives an interval, as it is and widened (`significance.WIDENING`), for the
mean C-index over folds and for the difference. The table gives the share of draws whose interval
holds the truth, and the share in which the corrected t-test calls the equal methods different.
"""

import argparse
import pathlib
import sys

import numpy as np
import pandas as pd
from tqdm import tqdm

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from steph_jax import files
from steph_jax.survival import cox, metrics, significance
from steph_jax.survival.significance import FoldRisks, Interval

#: (patients, features, sd of the log hazard), the rows of the table.
SETTINGS = ((150, 10, 0.0), (345, 50, 0.0), (345, 10, 0.8), (150, 10, 0.8))
NUM_FOLDS = 5


def draw(num_patients: int, num_features: int, signal: float, rng: np.random.Generator):
    """Features, times and events; about half of the patients are censored."""
    x = rng.normal(size=(num_patients, num_features))
    log_hazard = signal * x.sum(axis=1) / np.sqrt(num_features)
    death = rng.exponential(np.exp(-log_hazard))
    censored = rng.uniform(0.0, 2.0, num_patients)
    return x, np.minimum(death, censored), death <= censored


def cross_validated(x, time, event, seed: int) -> list[FoldRisks]:
    """Risks of the two models on the test patients of every fold."""
    (fold_of,) = cox.inner_folds(event, NUM_FOLDS, seed)
    halves = {"first": x[:, ::2], "second": x[:, 1::2]}
    folds = []
    for fold in range(NUM_FOLDS):
        train, test = fold_of != fold, fold_of == fold
        risks = {
            name: (half[test] @ cox.ridge_cox(half[train], time[train], event[train], 10.0))[None]
            for name, half in halves.items()
        }
        folds.append(FoldRisks(time[test], event[test], risks))
    return folds


def simulate(setting, draws: int, resamples: int) -> dict[str, float]:
    """One row of the table."""
    num_patients, num_features, signal = setting
    means, intervals, excluded, p_values = [], [], [], []
    for seed in tqdm(range(draws), desc=f"n = {num_patients}", disable=not sys.stderr.isatty()):
        rng = np.random.default_rng([seed, num_patients, num_features, int(10 * signal)])
        x, time, event = draw(*setting, rng)
        folds = cross_validated(x, time, event, seed)
        c_index = {
            name: [metrics.concordance_index(f.time, f.event, f.risk[name][0]) for f in folds]
            for name in ("first", "second")
        }
        resampled = significance.bootstrap_means(folds, resamples, seed)
        mean = float(np.mean(c_index["first"]))
        difference = np.subtract(c_index["first"], c_index["second"])
        plain = (
            significance.percentile_interval(resampled["first"]),
            significance.percentile_interval(resampled["first"] - resampled["second"]),
        )
        wide = (
            significance.widened(plain[0], mean),
            significance.widened(plain[1], float(difference.mean())),
        )
        means.append(mean)
        intervals.append((plain[0], wide[0]))
        excluded.append([interval.excludes_zero() for interval in (plain[1], wide[1])])
        sizes = [len(f.time) for f in folds]
        trained = [num_patients - size for size in sizes]
        p_values.append(significance.corrected_t_test(difference, trained, sizes))
    truth = float(np.mean(means))

    def held(which: int) -> float:
        ends = [Interval(*pair[which]) for pair in intervals]
        return float(np.mean([end.low <= truth <= end.high for end in ends]))

    return {
        "patients": num_patients,
        "features": num_features,
        "sd_log_hazard": signal,
        "draws": draws,
        "mean_c_index": truth,
        "c_index_plain": held(0),
        "c_index_widened": held(1),
        "difference_plain": 1 - float(np.mean(excluded, axis=0)[0]),
        "difference_widened": 1 - float(np.mean(excluded, axis=0)[1]),
        "t_test_below_0.05": float(np.mean(np.asarray(p_values) < 0.05)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the table, CSV")
    parser.add_argument("--draws", type=int, default=400, help="cohorts drawn per setting")
    parser.add_argument("--resamples", type=int, default=500, help="of the bootstrap")
    arguments = parser.parse_args()
    rows = [simulate(setting, arguments.draws, arguments.resamples) for setting in SETTINGS]
    table = pd.DataFrame(rows).round(4)
    files.write_table(arguments.out, table)
    print(table.to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
