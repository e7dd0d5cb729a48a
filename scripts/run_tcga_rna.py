"""STEPH and ABMIL on real patients, compared with the published program.

    python scripts/run_tcga_rna.py --shared DATA --out runs/tcga_rna

docs/results.md says where DATA come from. Builds the bags of RNA-seq of two TCGA cohorts, imports
the pool of PyTorch checkpoints, trains both methods on five folds with three seeds, and writes
OUT/results.csv and OUT/results.md. Interrupted, it goes on where it was. Several cohorts can be run
side by side, each in a process of its own (`--cohorts`); a last call without it writes the table of
all.
"""

import json
import pathlib

import pandas as pd
import tcga_rna
from absl import flags

from steph_jax import files, run_directory, train
from steph_jax.survival import metrics


def main() -> int:
    """The entry point."""
    shared, out = pathlib.Path(flags.FLAGS.shared), pathlib.Path(flags.FLAGS.out)
    tcga_rna.prepare(shared, out, flags.FLAGS.cohorts)
    for cohort in flags.FLAGS.cohorts:
        for method in flags.FLAGS.methods:
            for seed in flags.FLAGS.seeds:
                config = tcga_rna.config_of(cohort, method, int(seed), shared, out)
                train.train(config, workdir_of(out, cohort, method, int(seed)))
    write_results(shared, out)
    return 0


def workdir_of(out: pathlib.Path, cohort: str, method: str, seed: int) -> pathlib.Path:
    """Where a run keeps its files."""
    return out / f"{cohort}-{method}-seed_{seed}"


def write_results(shared: pathlib.Path, out: pathlib.Path) -> None:
    """The table of all finished runs and of the published program's."""
    reference = json.loads((shared / "parity" / "reference.json").read_text(encoding="utf-8"))
    rows = []
    for summary in sorted(out.glob("*/summary.json")):
        run = json.loads(summary.read_text(encoding="utf-8"))
        for fold, c_index in zip(run["fold_numbers"], run["c_index"]["folds"], strict=True):
            seconds = json.loads(
                (run_directory.fold_directory(summary.parent, fold) / "metrics.json").read_text()
            )["train_seconds"]
            keys = {name: run[name] for name in ("dataset", "method", "seed")}
            rows.append(keys | {"fold": fold, "c_index": c_index, "train_seconds": seconds})
    table = pd.DataFrame(rows)
    files.write_table(out / "results.csv", table)
    files.write_text(out / "results.md", markdown(table, reference))
    print((out / "results.md").read_text(encoding="utf-8"))


def markdown(table: pd.DataFrame, reference: dict) -> str:
    """Folds, means and differences to the published program, as a table."""
    lines = [
        "| cohort | program | seed | "
        + " | ".join(f"fold {k}" for k in range(5))
        + " | mean | sd |",
        "| --- | --- | --- |" + " --- |" * 7,
    ]
    means: dict[tuple[str, str, str], float] = {}

    def add(cohort: str, program: str, seed: object, folds: list[float]) -> None:
        mean, sd = metrics.mean_sd(folds)
        values = " | ".join(f"{value:.4f}" for value in folds)
        lines.append(f"| {cohort} | {program} | {seed} | {values} | {mean:.4f} | {sd:.4f} |")

    for (cohort, method), runs_ in table.groupby(["dataset", "method"]):
        published = {
            42: reference.get(method, {}).get(cohort),
            43: reference.get(f"{method}_seed_43", {}).get(cohort),
        }
        for seed, folds in published.items():
            if folds:
                add(cohort, f"{method}, published", seed, folds)
                means.setdefault((cohort, method, "published"), metrics.mean_sd(folds)[0])
        per_seed = []
        for seed, run in runs_.groupby("seed"):
            folds = run.sort_values("fold")["c_index"].tolist()
            add(cohort, f"{method}, ours", seed, folds)
            per_seed.append(metrics.mean_sd(folds)[0])
        means[cohort, method, "ours"] = sum(per_seed) / len(per_seed)
    lines += [
        "",
        "| cohort | what | ours, mean of seeds | published, seed 42 | difference |",
        "| --- | --- | --- | --- | --- |",
    ]
    for cohort in table["dataset"].unique():
        for what in ("abmil", "steph", "steph - abmil"):
            pair = []
            for program in ("ours", "published"):
                terms = [means.get((cohort, m, program)) for m in what.split(" - ")]
                if None in terms:
                    break
                pair.append(terms[0] - (terms[1] if len(terms) > 1 else 0))
            else:
                cells = " | ".join(f"{value:.4f}" for value in (*pair, pair[0] - pair[1]))
                lines.append(f"| {cohort} | {what} | {cells} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    flags.DEFINE_list("methods", ["steph", "abmil"], "Methods.")
    flags.DEFINE_list("seeds", ["42", "43", "44"], "Seeds.")
    tcga_rna.app_run(main, "runs/tcga_rna", tcga_rna.TARGETS)
