"""What other cancers add on eight cohorts of real patients, against controls and linear models.

    python scripts/run_cohorts.py --shared DATA --out runs/cohorts

docs/results.md says where DATA come from. Builds the bags of RNA-seq of the TCGA cohorts, imports
the pool of PyTorch checkpoints, trains the own models that it lacks (abmil, every cohort and fold),
and then, on five folds of every cohort, all methods with their controls: on `--few` training
patients, drawn again with each seed, and on all of them with the first seed.

OUT/pool/                          models of all cohorts and folds
OUT/{cohort}/patients_{n}/         a comparison (steph_jax.compare)
OUT/patients_{n}/over_cohorts.*    what it comes to over cohorts, with a forest plot
OUT/learning_curve.*, compare.csv  both numbers of patients side by side
OUT/{cohort}/compare.csv           the same of one cohort, and its learning curve

These are whole when all is done; scripts/cohort_tables.py makes tables and pictures of what is
finished at any time. Interrupted, it goes on where it was when the same command is given again.
`--jobs 2` does two runs at a time, each in a process of its own (extra `jobs`); `--cohorts` and
`--methods` do a part.
"""

import pathlib
import shlex
import sys
from collections.abc import Mapping, Sequence

import tcga_rna
from absl import flags, logging
from cohort_tables import PRIMARY

from steph_jax import train
from steph_jax.checkpoints.pool import Pool
from steph_jax.compare import compare_datasets, run_jobs, with_controls
from steph_jax.evaluation import learning_curve, over_cohorts
from steph_jax.evaluation.comparison import Comparison
from steph_jax.jobs.job import Launcher
from steph_jax.training.compared_runs import Request

METHODS = (
    *("abmil", "mean_pool", "ridge_cox", "linear_pool"),
    *("rescaled", "roupkt", "steph", "steph_target"),
)


def main() -> int:
    """The entry point."""
    arguments = flags.FLAGS
    shared, out = pathlib.Path(arguments.shared), pathlib.Path(arguments.out)
    cohorts = arguments.cohorts or tcga_rna.all_cohorts(shared)
    tcga_rna.prepare(shared, out, tcga_rna.all_cohorts(shared))
    seeds = [int(seed) for seed in arguments.seeds]
    complete_pool(cohorts, seeds[0], shared, out)
    record = tcga_rna.config_of(cohorts[0], METHODS[0], seeds[0], shared, out)
    if arguments.epochs:
        record["epochs"] = arguments.epochs
    labels = with_controls(arguments.methods)
    command = shlex.join(["python", *sys.argv])
    jobs = arguments.jobs
    launcher = Launcher("local", jobs, out / "jobs") if jobs > 1 else None
    primary = PRIMARY if PRIMARY in labels else ""
    results = {}
    for number, seeds_of_number in ((arguments.few, seeds), (0, seeds[:1])):
        asked = record, labels, seeds_of_number, out, command, cohorts, [number]
        if launcher is not None:
            run_jobs(Request(*asked, primary=primary), launcher)
        results |= compare_datasets(*asked, primary=primary)
    write_both(out, results, command, primary)
    print(f"written to {out}")
    return 0


def write_both(
    out: pathlib.Path, results: Mapping[int, Mapping[str, Comparison]], command: str, primary: str
) -> None:
    """Writes what both numbers of patients show together; each wrote what it shows alone.

    Args:
        out: where to.
        results: comparisons by number of patients (0 = all), by cohort.
        command: that made them.
        primary: see `over_cohorts.expect_primary`; "" for none.
    """
    for cohort in next(iter(results.values())):
        of_cohort = {number: by_cohort[cohort] for number, by_cohort in results.items()}
        learning_curve.write(out / cohort, of_cohort, command)
    over_cohorts.write_all(out, results, command, primary, by_number=True)


def complete_pool(
    cohorts: Sequence[str], seed: int, shared: pathlib.Path, out: pathlib.Path
) -> None:
    """Trains the models of cohorts and folds that the pool lacks.

    Args:
        cohorts: whose models are needed.
        seed: of the training.
        shared: folder with the data.
        out: has features/ and pool/, and keeps the runs in pool_runs/.
    """
    for cohort in cohorts:
        config = tcga_rna.config_of(cohort, "abmil", seed, shared, out)
        there = Pool(out / "pool").members().get(cohort, [])
        folds = tuple(fold for fold in config["folds"] if fold not in there)
        if folds:
            logging.info("%s: own models of folds %s", cohort, ", ".join(map(str, folds)))
            config |= {"folds": folds, "pool": config["pool"] | {"save": True}}
            train.train(config, out / "pool_runs" / cohort)


if __name__ == "__main__":
    flags.DEFINE_list("methods", list(METHODS), "Methods, abmil among them.")
    flags.DEFINE_list("seeds", ["42", "43", "44"], "Seeds; the first alone with all patients.")
    flags.DEFINE_integer("few", 80, "The smaller number of training patients.", lower_bound=1)
    flags.DEFINE_integer("epochs", 0, "Epochs, to try the script out; 0 for those of the paper.")
    flags.DEFINE_integer("jobs", 1, "Runs at a time.", lower_bound=1)
    tcga_rna.app_run(main, "runs/cohorts", ())
