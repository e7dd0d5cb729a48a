"""Whether the machinery finds transfer where there is some, and none where there is none.

    python scripts/positive_control.py --out runs/positive_control

Simulates a small target cohort and larger cohorts of other cancers (steph_jax/simulate.py), several
times, in the scenarios of simulated_truth.py: hazards that the target shares with every second
other cancer, and orthogonal ones. In each, `steph_jax.compare` runs methods with their controls; a
mean over simulations is taken as over cohorts. Real less permuted sources must be above 0 where
hazards are shared, and not where they are not.

OUT/{scenario}-seed_{seed}/compare/   a comparison
OUT/{scenario}/over_cohorts.*         what it comes to over simulations, with a forest plot
OUT/positive_control.csv              both scenarios

Linear methods need no pool and take a minute a simulation; others (`--methods steph_target`) need
own models, which are trained on the way. Tables are written after every simulation, from the second
one of a scenario on. Interrupted, it goes on where it was.
"""

import pathlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from scripts import simulated_truth
from scripts.simulated_truth import SCENARIOS, Study
from steph_jax import cli, files, train
from steph_jax.compare import compare, with_controls
from steph_jax.evaluation import over_cohorts
from steph_jax.evaluation.comparison import Comparison
from steph_jax.methods.registry import find_method
from steph_jax.simulate import simulate
from steph_jax.training.config import as_dict

REFERENCE = "ridge_cox"
_TRAINING_SEED = 42


def main() -> int:
    """The entry point."""
    arguments = flags.FLAGS
    study = Study(
        patients=arguments.patients,
        source_patients=arguments.source_patients,
        test_patients=arguments.test_patients,
        feature_dim=arguments.feature_dim,
        epochs=arguments.epochs,
        folds=arguments.folds,
    )
    seeds = [int(seed) for seed in arguments.seeds]
    table = run(study, seeds, arguments.methods, pathlib.Path(arguments.out))
    print(table.to_string(index=False))
    return 0


def run(
    study: Study, seeds: Sequence[int], methods: Sequence[str], out: pathlib.Path
) -> pd.DataFrame:
    """Runs what is not finished; returns the rows of positive_control.csv.

    Args:
        study: sizes of the simulations.
        seeds: of the simulations, two or more.
        methods: that use other cancers.
        out: where everything is written.
    """
    labels = [REFERENCE, *with_controls(methods)]
    command = shlex.join(["python", *sys.argv])
    results: dict[str, dict[str, Comparison]] = {scenario: {} for scenario in SCENARIOS}
    table = pd.DataFrame()
    for seed in seeds:
        for scenario, finished in results.items():
            home = out / f"{folder_of(scenario)}-seed_{seed}"
            record = prepared(study, scenario, seed, methods, home)
            finished[f"simulation {seed}"] = compare(
                record, labels, [_TRAINING_SEED], home / "compare", command, reference=REFERENCE
            )
            if len(finished) > 1:
                over_cohorts.write(out / folder_of(scenario), finished, command)
        table = total_table(results)
        files.write_table(out / "positive_control.csv", table)
    return table


def folder_of(scenario: str) -> str:
    """What the folders of a scenario are called."""
    return scenario.replace(" ", "_")


def total_table(results: Mapping[str, Mapping[str, Comparison]]) -> pd.DataFrame:
    """A row per scenario and comparison, of comparisons by scenario and simulation."""
    tables = [
        over_cohorts.total_table(over_cohorts.gains_of(finished)).assign(scenario=scenario)
        for scenario, finished in results.items()
    ]
    columns = ["scenario", "method", "against", "cohorts", "better", "mean", "low", "high", "p"]
    return pd.concat(tables, ignore_index=True)[[*columns, "p_corrected"]].round(5)


def prepared(
    study: Study, scenario: str, seed: int, methods: Sequence[str], home: pathlib.Path
) -> dict[str, Any]:
    """Settings for a simulation's target; makes its data, and the pool where a method takes one."""
    from configs import default

    simulated = study.simulation(scenario, seed)
    if not (home / "data" / "truth.json").is_file():
        simulate(home / "data", simulated)
    simulated_truth.hold_out(home, study, simulated)
    target, *sources = simulated.datasets
    config = default.get_config()
    config.dataset, config.sources = target, tuple(sources)
    config.folds, config.epochs = tuple(range(study.folds)), study.epochs
    config.data.root = str(home / "data")
    config.data.features = str(home / "data" / "features" / "{dataset}")
    config.pool.root = str(home / "pool")
    for name in ("feature_dim", "embed_dim", "attention_dim"):
        config.model[name] = getattr(study, name)
    record = as_dict(config)
    if any(find_method(name).joins is None for name in methods):
        for dataset in (*sources, target):
            folds = config.folds if dataset == target else (0,)
            own = record | {"dataset": dataset, "sources": (), "method": "abmil", "folds": folds}
            own["pool"] = record["pool"] | {"save": True}
            train.train(own, home / "runs" / dataset)
    return record


if __name__ == "__main__":
    flags.DEFINE_string("out", "runs/positive_control", "Where everything is written.")
    flags.DEFINE_list("methods", ["linear_pool"], "Methods that use other cancers.")
    flags.DEFINE_list("seeds", [str(seed) for seed in range(1, 9)], "Seeds of the simulations.")
    for name, value, text in (
        ("patients", 60, "Patients of the target that folds are made of."),
        ("source_patients", 300, "Patients of each other cancer."),
        ("test_patients", 200, "Fresh patients of the target, the test part of every fold."),
        ("feature_dim", 64, "D, dimensions of a patch feature."),
        ("epochs", 20, "Epochs of every training."),
        ("folds", 3, "Folds of the target."),
    ):
        flags.DEFINE_integer(name, value, text, lower_bound=1)
    cli.app_run(main)
