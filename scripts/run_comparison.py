"""Every method on real patients, with the statistics of `steph_jax.compare`, and what transfers.

    python scripts/run_comparison.py --shared DATA --out runs/comparison

docs/results.md says where DATA come from. Builds the bags of RNA-seq of the TCGA cohorts and
imports the pool of PyTorch checkpoints, then, on
five folds of tcga_gbmlgg and tcga_kirc,

OUT/{cohort}/compare.*         all methods with the first seed
OUT/{cohort}/seeds/compare.*   those of SEVERAL_SEEDS with all seeds
OUT/transfer/                  the zero-shot matrix of all cohorts
OUT/published.md               with the published program's numbers, where it has any

Interrupted, it goes on where it was. After a call with `--only_prepare`, cohorts and methods can be
run side by side, each in a process of its own (`--cohorts`, `--methods`, `--notransfer`); a last
call without these writes the tables of all.
"""

import json
import pathlib
import shlex
import sys
import time
from collections.abc import Sequence

import pandas as pd
import tcga_rna
from absl import flags

from steph_jax import files
from steph_jax.compare import compare
from steph_jax.methods.registry import METHODS
from steph_jax.transfer import transfer

#: What is run with all seeds; everything else with the first one.
SEVERAL_SEEDS = {
    "tcga_gbmlgg": ("abmil", "steph_target"),
    "tcga_kirc": ("abmil", "roupkt", "steph", "steph_target"),
}


def main() -> int:
    """The entry point."""
    arguments = flags.FLAGS
    shared, out = pathlib.Path(arguments.shared), pathlib.Path(arguments.out)
    tcga_rna.prepare(shared, out, tcga_rna.all_cohorts(shared))
    if arguments.only_prepare:
        return 0
    seeds = [int(seed) for seed in arguments.seeds]
    for cohort in arguments.cohorts:
        began = time.perf_counter()
        run_cohort(cohort, arguments.methods, seeds, shared, out)
        minutes = (time.perf_counter() - began) / 60
        print(f"{cohort}: {minutes:.1f} minutes, less what was done before", flush=True)
    if arguments.transfer:
        config = tcga_rna.config_of(arguments.cohorts[0], "zero_shot", seeds[0], shared, out)
        transfer(config, out / "transfer")
    write_published(shared, out, arguments.cohorts)
    return 0


def run_cohort(
    cohort: str,
    methods: Sequence[str],
    seeds: Sequence[int],
    shared: pathlib.Path,
    out: pathlib.Path,
) -> None:
    """Both comparisons of a cohort; they share their runs."""
    config = tcga_rna.config_of(cohort, methods[0], seeds[0], shared, out)
    command = shlex.join(["python", *sys.argv])
    compare(config, methods, seeds[:1], out / cohort, command)
    several = [method for method in SEVERAL_SEEDS.get(cohort, ()) if method in methods]
    if several and len(seeds) > 1:
        compare(config, several, seeds, out / cohort, command, out / cohort / "seeds")


def write_published(shared: pathlib.Path, out: pathlib.Path, cohorts: Sequence[str]) -> None:
    """Our mean C-index, of the first seed, and the published program's of seed 42."""
    reference = json.loads((shared / "parity" / "reference.json").read_text(encoding="utf-8"))
    rows = []
    for cohort in cohorts:
        actual = pd.read_csv(out / cohort / "compare.csv")
        for method, runs in actual.groupby("method", sort=False):
            published = reference.get(method, {}).get(cohort)
            if published:
                means = (
                    runs.groupby("fold")["c_index"].mean().mean(),
                    sum(published) / len(published),
                )
                rows.append((cohort, method, *means, means[0] - means[1]))
    lines = ["| cohort | method | ours | published | difference |", "| --- | --- |" + " ---: |" * 3]
    lines += [
        f"| {cohort} | {method} | {a:.4f} | {b:.4f} | {c:+.4f} |"
        for cohort, method, a, b, c in rows
    ]
    files.write_text(out / "published.md", "\n".join(lines) + "\n")
    print((out / "published.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    flags.DEFINE_list("methods", list(METHODS), "Methods.")
    flags.DEFINE_list("seeds", ["42", "43", "44"], "Seeds; the first is the one of all methods.")
    flags.DEFINE_bool("only_prepare", False, "Make bags and pool, and nothing else.")
    flags.DEFINE_bool("transfer", True, "Whether to make the zero-shot matrix too.")
    tcga_rna.app_run(main, "runs/comparison", tcga_rna.TARGETS)
