"""What merging gains where the truth is known: simulated cancers, related ones and strangers.

    python scripts/simulated_truth.py --out runs/simulated_truth

Simulates a small target cohort and larger cohorts of other cancers (steph_jax/simulate.py) in two
scenarios, each with several seeds; fits the pool of base models, then every method on the target:

    shared      the target's hazard has cosine 0.9 with that of every second other cancer (sim_c,
                sim_e), and 0 with that of the rest (sim_b, sim_d)
    not shared  the hazards of all cancers are orthogonal

Protocol and settings are those of configs/default.py, but for the sizes in `Study` and for
`steph.top_k`, which is half of the sources.
As patients cost nothing here, every fold is tested on the same fresh patients of the target, whom
no fold was trained on; the folds differ in their training patients: four fifths of `--patients`.

OUT/results.csv   scenario, seed, method, fold, c_index, oracle_c_index (of the true log hazards)
OUT/weights.csv   scenario, seed, method, fold, source, cosine (of the hazard vectors); means over
                  test patients: weight (w), selected (share), used (w (1 - lambda) where selected)
OUT/results.md, OUT/results.png, and a folder for each scenario and seed. Interrupted, it goes on
where it was when the same command is given again.
"""

import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Sequence

import pandas as pd
from absl import flags

from steph_jax import cli, files, plots, run_directory, train
from steph_jax.data.simulation import draw_cancer, split_folds
from steph_jax.data.splits import split_path
from steph_jax.data.tables import table_path
from steph_jax.simulate import Settings, simulate
from steph_jax.survival import metrics
from steph_jax.training.config import as_dict

SCENARIOS = {"shared": {"shared": 0.9, "groups": 2}, "not shared": {"shared": 0.0, "groups": 1}}
REFERENCE = "abmil"
#: The pool and every method start from this seed; what varies is the simulation.
_TRAINING_SEED = 42


@dataclasses.dataclass(frozen=True)
class Study:
    """Sizes of the study; see the flags."""

    scenarios: tuple[str, ...] = tuple(SCENARIOS)
    seeds: tuple[int, ...] = (1, 2, 3)
    methods: tuple[str, ...] = ("abmil", "zero_shot", "average", "steph", "steph_target")
    cohorts: int = 5
    patients: int = 80
    source_patients: int = 300
    test_patients: int = 200
    patches: int = 60
    feature_dim: int = 1536
    embed_dim: int = 256
    attention_dim: int = 128
    epochs: int = 20
    folds: int = 3

    def simulation(self, scenario: str, seed: int) -> Settings:
        """What is simulated; the first cohort is the target's."""
        sources = (self.source_patients,) * (self.cohorts - 1)
        return Settings(
            cohorts=self.cohorts,
            patients=(self.patients + self.test_patients, *sources),
            patches=self.patches,
            feature_dim=self.feature_dim,
            seed=seed,
            **SCENARIOS[scenario],
        )


def run(study: Study, out: pathlib.Path) -> pd.DataFrame:
    """Runs what is not finished, writes tables and picture; returns the rows of results.csv.

    Raises:
        ValueError: `out` holds a study of other sizes; an unknown scenario.
    """
    began, done = time.perf_counter(), 0
    unknown = [name for name in study.scenarios if name not in SCENARIOS]
    if unknown:
        raise ValueError(f"scenarios are {', '.join(SCENARIOS)}; found {unknown[0]!r}")
    cases = [(scenario, seed) for seed in study.seeds for scenario in study.scenarios]
    methods = [name for name in study.methods if name != REFERENCE]
    total = len(cases) * (study.cohorts + len(methods))
    scores, weights = [], []
    with run_directory.locked(out):
        run_directory.store_config(
            out, dataclasses.asdict(study), ("scenarios", "seeds", "methods")
        )
        for scenario, seed in cases:
            home = out / f"{scenario.replace(' ', '_')}-seed_{seed}"
            simulated = study.simulation(scenario, seed)
            print(f"{scenario}, simulation {seed}: {home}", flush=True)
            simulate(home / "data", simulated)
            target, *sources = simulated.datasets
            hold_out(home, study, simulated)
            jobs = [(name, REFERENCE) for name in (*sources, target)]
            for dataset, method in jobs + [(target, name) for name in methods]:
                done += 1
                minutes = (time.perf_counter() - began) / 60
                label = f"[{done}/{total}, {minutes:.1f} min] {scenario}, simulation {seed}"
                print(f"{label}: {method} on {dataset}", flush=True)
                fit(study, home, dataset, method, range(study.folds) if dataset == target else (0,))
            keys = {"scenario": scenario, "seed": seed}
            for method in (REFERENCE, *methods):
                scores += [keys | row for row in scores_of(study, home, target, method)]
                weights += [keys | row for row in weights_of(study, home, target, method)]
            # A study that was cut off leaves the tables of what is finished.
            table = pd.DataFrame(scores)
            write(study, out, table, pd.DataFrame(weights))
    return table


def hold_out(home: pathlib.Path, study: Study, simulated: Settings) -> None:
    """Splits of the target: trained on folds of its first patients, tested on the fresh ones."""
    target = simulated.datasets[0]
    table = pd.read_csv(table_path(home / "data", target)).drop_duplicates("patient_id")
    patients, fresh = table.iloc[: study.patients], table.iloc[study.patients :]["patient_id"]
    cancer = draw_cancer(simulated, 0)
    left_out = split_folds(cancer, patients["e"].to_numpy() > 0)
    for fold, out in enumerate(left_out):
        columns = {"train": patients.loc[~out, "patient_id"], "test": fresh}
        split = pd.DataFrame(
            {name: column.reset_index(drop=True) for name, column in columns.items()}
        )
        files.write_table(pathlib.Path(split_path(home / "data", target, fold)), split)


def workdir_of(home: pathlib.Path, dataset: str, method: str) -> pathlib.Path:
    """Where a run keeps its files."""
    return home / "runs" / f"{dataset}-{method}"


def fit(study: Study, home: pathlib.Path, dataset: str, method: str, folds: Sequence[int]) -> None:
    """Trains a method on a dataset of one simulation, unless that is done."""
    from configs import default

    workdir = workdir_of(home, dataset, method)
    if (workdir / "summary.json").is_file():
        return
    config = default.get_config()
    config.dataset, config.method, config.folds = dataset, method, tuple(folds)
    config.seed, config.epochs = _TRAINING_SEED, study.epochs
    config.data.root = str(home / "data")
    config.data.features = str(home / "data" / "features" / "{dataset}")
    config.pool.root = str(home / "pool")
    config.pool.save = method == REFERENCE
    for name in ("feature_dim", "embed_dim", "attention_dim"):
        config.model[name] = getattr(study, name)
    config.steph.top_k = max(1, (study.cohorts - 1) // 2)
    train.train(as_dict(config), workdir)


def scores_of(study: Study, home: pathlib.Path, target: str, method: str) -> list[dict]:
    """C-index of each fold, and that of the true log hazards on the same patients."""
    truth = pd.read_csv(home / "data" / target / f"{target}_truth.csv")
    hazard = truth.set_index("patient_id")["log_hazard"]
    rows = []
    for fold in range(study.folds):
        directory = run_directory.fold_directory(workdir_of(home, target, method), fold)
        predictions = pd.read_csv(directory / "predictions_test.csv")
        risks = {
            "c_index": predictions["risk"],
            "oracle_c_index": hazard[predictions["patient_id"]].to_numpy(),
        }
        c_index = {
            name: metrics.concordance_index(predictions["t"], predictions["e"], risk)
            for name, risk in risks.items()
        }
        rows.append({"method": method, "fold": fold} | c_index)
    return rows


def weights_of(study: Study, home: pathlib.Path, target: str, method: str) -> list[dict]:
    """Means over test patients of what STEPH gave to each source; none for other methods."""
    truth = json.loads((home / "data" / "truth.json").read_text(encoding="utf-8"))
    rows = []
    for fold in range(study.folds):
        directory = run_directory.fold_directory(workdir_of(home, target, method), fold)
        path = directory / "merge_weights_test.csv"
        if not path.is_file():
            continue
        table = pd.read_csv(path)
        if "lambda" not in table:
            continue
        table["used"] = table["weight"] * (1 - table["lambda"]) * table["selected"]
        means = table.groupby("source")[["weight", "selected", "used"]].mean()
        for source, values in means.iterrows():
            cosine = truth["relatedness"][target][source]
            rows.append(
                {"method": method, "fold": fold, "source": source, "cosine": cosine} | dict(values)
            )
    return rows


def write(study: Study, out: pathlib.Path, scores: pd.DataFrame, weights: pd.DataFrame) -> None:
    """Tables and picture of what is finished."""
    files.write_table(out / "results.csv", scores)
    files.write_table(out / "weights.csv", weights)
    files.write_text(out / "results.md", markdown(scores, weights))
    gains = gains_of(scores)
    kinds = kinds_of(weights)
    table = gains[gains["method"] != REFERENCE].assign(
        scenario=lambda table: table["scenario"].map(lambda name: f"Hazards {name}")
    )
    if len(table):
        title = f"Simulated cancers: gain over {REFERENCE} with {study.patients} target patients"
        plots.simulated_truth(table, kinds, out / "results.png", title)


def gains_of(scores: pd.DataFrame) -> pd.DataFrame:
    """Means over folds: scenario, method, seed, c_index, oracle_c_index, gain (over `abmil`)."""
    keys = ["scenario", "method", "seed"]
    means = scores.groupby(keys, sort=False)[["c_index", "oracle_c_index"]].mean().reset_index()
    base = means[means["method"] == REFERENCE].set_index(["scenario", "seed"])["c_index"]
    places = pd.MultiIndex.from_frame(means[["scenario", "seed"]])
    return means.assign(gain=means["c_index"].to_numpy() - base.loc[places].to_numpy())


def kinds_of(weights: pd.DataFrame) -> pd.DataFrame:
    """Mean weights of related and unrelated sources where there are both: method, seed, kind."""
    columns = ["method", "seed", "kind"]
    values = ["weight", "selected", "used"]
    if weights.empty:
        return pd.DataFrame(columns=columns + values)
    some = weights.groupby("scenario")["cosine"].transform("max") > 0
    kind = (weights["cosine"] > 0).map({True: "related", False: "unrelated"})
    grouped = weights.assign(kind=kind)[some].groupby(columns, sort=False)[values]
    return grouped.mean().reset_index()


def markdown(scores: pd.DataFrame, weights: pd.DataFrame) -> str:
    """The tables in Markdown."""
    seeds = sorted(set(scores["seed"]))
    heads = " | ".join(f"simulation {seed}" for seed in seeds)
    rule = " --- |" * len(seeds)
    lines = [
        "Test C-index, mean over folds.",
        "",
        f"| scenario | method | {heads} | mean | gain over {REFERENCE}: mean | sd | better in |",
        f"| --- | --- |{rule} --- | --- | --- | --- |",
    ]
    gains = gains_of(scores)
    for scenario, rows in gains.groupby("scenario", sort=False):
        for method, runs in rows.groupby("method", sort=False):
            values = runs.set_index("seed")["c_index"].reindex(seeds)
            mean, sd = metrics.mean_sd(runs["gain"].to_numpy())
            gain = f"{mean:+.4f} | {sd:.4f} | {int((runs['gain'] > 0).sum())} of {len(runs)}"
            cells = " | ".join(f"{value:.4f}" for value in values)
            last = " | | " if method == REFERENCE else gain
            lines.append(f"| {scenario} | {method} | {cells} | {values.mean():.4f} | {last} |")
        oracle = rows[rows["method"] == REFERENCE].set_index("seed")["oracle_c_index"]
        cells = " | ".join(f"{value:.4f}" for value in oracle.reindex(seeds))
        lines.append(f"| {scenario} | the true hazard | {cells} | {oracle.mean():.4f} | | | |")
    kinds = kinds_of(weights)
    if len(kinds):
        lines += [
            "",
            "Sources in the scenario with related ones: means over sources, folds, test patients.",
            "",
            "| method | simulation | sources | weight w | selected for | used, w (1 - lambda) |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for row in kinds.sort_values(["method", "seed", "kind"]).itertuples():
            lines.append(
                f"| {row.method} | {row.seed} | {row.kind} | {row.weight:.4f} | "
                f"{row.selected:.1%} | {row.used:.4f} |"
            )
    if len(weights):
        keys = ["scenario", "seed", "method", "fold"]
        dead = int((weights.groupby(keys)["weight"].sum() == 0).sum())
        lines += ["", f"Folds in which the weights of all sources died (are 0): {dead}."]
    return "\n".join(lines) + "\n"


def main() -> int:
    """The entry point."""
    options = {field.name: getattr(flags.FLAGS, field.name) for field in dataclasses.fields(Study)}
    options |= {name: tuple(options[name]) for name in ("scenarios", "methods")}
    study = Study(**options | {"seeds": tuple(int(seed) for seed in options["seeds"])})
    out = pathlib.Path(flags.FLAGS.out)
    run(study, out)
    print((out / "results.md").read_text(encoding="utf-8"))
    print(f"picture {out / 'results.png'}")
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("out", "runs/simulated_truth", "Where everything is written.")
    flags.DEFINE_list("scenarios", list(Study.scenarios), "Scenarios.")
    flags.DEFINE_list("seeds", [str(seed) for seed in Study.seeds], "Seeds of the simulations.")
    flags.DEFINE_list("methods", list(Study.methods), "Methods; abmil is always one of them.")
    for name, lowest, text in (
        ("cohorts", 3, "Cancers, the target included."),
        ("patients", 20, "Patients of the target that folds are made of."),
        ("source_patients", 20, "Patients of each other cancer."),
        ("test_patients", 10, "Fresh patients of the target, the test part of every fold."),
        ("patches", 8, "Mean number of patches of a patient."),
        ("feature_dim", 1, "D, dimensions of a patch feature."),
        ("embed_dim", 1, "E, dimensions of the embedding."),
        ("attention_dim", 1, "A, dimensions of the attention."),
        ("epochs", 1, "Epochs of every training."),
        ("folds", 1, "Folds of the target."),
    ):
        flags.DEFINE_integer(name, getattr(Study, name), text, lower_bound=lowest)
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    cli.app_run(main)
