"""STEPH on simulated cancers, from data to pictures: what `make demo` runs.

    python scripts/demo.py

Simulates four cancers whose hazards are partly shared (steph_jax/simulate.py), fits a pool of base
models (ABMIL) on them, trains STEPH for one cancer over five folds, and compares the two.
Everything lies in demo_output/; run again, it goes on where it was.

150 patches a patient keep it within ten minutes on two slow cores, installation included;
`--patches=100` takes two thirds of that.
"""

import pathlib
import sys
import time
from typing import Any

import pandas as pd
from absl import flags

from steph_jax import cli, files, plots, run_directory, train
from steph_jax.reports import run_page
from steph_jax.simulate import Settings, simulate
from steph_jax.survival import metrics
from steph_jax.training.config import as_dict


def main() -> int:
    """The entry point."""
    began = time.perf_counter()
    out = pathlib.Path(flags.FLAGS.out)
    folds = tuple(range(flags.FLAGS.folds))
    simulated = Settings(cohorts=4, patients=flags.FLAGS.patients, patches=flags.FLAGS.patches)
    print(f"1. simulating {simulated.cohorts} cancers", flush=True)
    truth = simulate(out / "data", simulated)
    target = simulated.datasets[-1]

    print("2. fitting the pool of base models (ABMIL)", flush=True)
    for dataset in simulated.datasets:
        # A source needs its fold-0 model, the target one of every fold.
        needed = folds if dataset == target else (0,)
        run(out, dataset, "abmil", needed, save=True)

    print(f"3. training STEPH for {target}", flush=True)
    run(out, target, "steph", folds, save=False)

    summarize(out, target, truth)
    print(f"\ndone in {(time.perf_counter() - began) / 60:.1f} minutes")
    return 0


def run(out: pathlib.Path, dataset: str, method: str, folds: tuple[int, ...], save: bool) -> None:
    """Trains a method on a dataset of the demo."""
    from configs import demo

    config = demo.get_config()
    config.dataset, config.method, config.folds = dataset, method, folds
    config.epochs = flags.FLAGS.epochs
    config.data.root = str(out / "data")
    config.data.features = str(out / "data" / "features" / "{dataset}")
    config.pool.root = str(out / "pool")
    config.pool.save = save
    train.train(as_dict(config), out / "runs" / f"{dataset}-{method}")


def summarize(out: pathlib.Path, target: str, truth: dict[str, Any]) -> None:
    """Writes and prints the table of the two methods, and where everything lies."""
    workdirs = {name: out / "runs" / f"{target}-{name}" for name in ("abmil", "steph")}
    scores = {
        name: run_directory.load_summary(workdir)["c_index"]["folds"]
        for name, workdir in workdirs.items()
    }
    names = {"abmil": "target-only ABMIL", "steph": "STEPH"}
    rows = []
    for name, values in scores.items():
        mean, sd = metrics.mean_sd(values)
        folds = {f"fold {fold}": value for fold, value in enumerate(values)}
        rows.append({"model": names[name]} | folds | {"mean": mean, "sd": sd})
    table = pd.DataFrame(rows)
    files.write_table(out / "c_index.csv", table)
    picture = plots.folds(
        {names[name]: values for name, values in scores.items()},
        out / "c_index.png",
        f"Simulated cancer {target}, test patients",
    )
    print(f"\nTest C-index of {target} (the true hazard has {oracle(truth, target):.3f}):\n")
    print(table.to_string(index=False, float_format=lambda x: f"{x:.4f}"))
    print(f"\ntable    {out / 'c_index.csv'}\npictures {picture}")
    for name in ("risk_groups.png", "training_curves.png", "fold_0/source_weights.png"):
        print(f"         {workdirs['steph'] / name}")
    print(f"report   {run_page.write(workdirs['steph'])}")
    print(f"runs     {workdirs['abmil']}\n         {workdirs['steph']}\npool     {out / 'pool'}")


def oracle(truth: dict[str, Any], target: str) -> float:
    """C-index of the true log hazards of a cohort."""
    return float(truth["cohorts"][target]["oracle_c_index"])


if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    flags.DEFINE_string("out", "demo_output", "Where everything is written.")
    flags.DEFINE_integer("patients", 100, "Patients of each cancer.", lower_bound=20)
    flags.DEFINE_integer("patches", 150, "Mean number of patches of a patient.", lower_bound=8)
    flags.DEFINE_integer("epochs", 20, "Epochs of every training.", lower_bound=1)
    flags.DEFINE_integer("folds", 5, "Folds of the target.", lower_bound=1, upper_bound=5)
    cli.app_run(main)
