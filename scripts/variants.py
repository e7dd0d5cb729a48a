"""Variants of `steph_target`, compared with it on inner folds of the training patients.

    python scripts/variants.py --shared DATA --out runs/comparison

Is there a variant as small as `steph_target` that does better? Test patients must not answer that:
the training patients of each outer fold are cut into inner folds (steph_jax/training/sweep.py). For
each, the target's model is fitted again without the held-out patients, and every variant is trained
on two and measured on the third; so are `abmil` and `roupkt`.

OUT/{cohort}/variants.csv   variant, fold, inner_fold, c_index
OUT/{cohort}/variants.md    means, and differences to `steph_target` within the inner folds

Uses the bags and the pool in OUT that run_comparison.py makes. Interrupted, it goes on where it
was; cohorts can be run side by side (`--cohorts`).
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import tcga_rna
from absl import flags

from steph_jax import files, run_directory
from steph_jax.checkpoints.pool import Pool
from steph_jax.survival import metrics
from steph_jax.training import experiment, sweep
from steph_jax.training.config import MAY_CHANGE_ON_RESUME, Config, defaults
from steph_jax.training.inner_folds import cut_inner_folds
from steph_jax.training.inner_pool import refitted_pool

REFERENCE = "steph_target"
#: Settings that differ from those of `steph_target`, by name of the variant.
VARIANTS: dict[str, dict[str, Any]] = {
    REFERENCE: {},
    "learning rate 3e-5": {"learning_rate": 3e-5},
    "learning rate 3e-4": {"learning_rate": 3e-4},
    "weights from 0.3": {"steph.initial_weight": 0.3},
    "3e-4 and from 0.3": {"learning_rate": 3e-4, "steph.initial_weight": 0.3},
    "the target among the sources": {"steph.include_target": True},
    "all sources": {"steph.top_k": 0},
    "abmil": {"method": "abmil"},
    "roupkt": {"method": "roupkt"},
}


def main() -> int:
    """The entry point."""
    arguments = flags.FLAGS
    shared, out = pathlib.Path(arguments.shared), pathlib.Path(arguments.out)
    unknown = [name for name in arguments.variants if name not in VARIANTS]
    if unknown or REFERENCE not in arguments.variants:
        raise ValueError(
            f"--variants are {REFERENCE} and others of {', '.join(VARIANTS)}; found "
            f"{', '.join(arguments.variants)}"
        )
    tcga_rna.prepare(shared, out, arguments.cohorts)
    variants = {name: VARIANTS[name] for name in arguments.variants}
    for cohort in arguments.cohorts:
        record = tcga_rna.config_of(cohort, REFERENCE, 42, shared, out)
        record["folds"] = [int(fold) for fold in arguments.folds]
        config = Config.from_dict(record)
        with run_directory.locked(out / cohort / "variants"):
            table = try_variants(config, variants, out / cohort / "variants")
        files.write_table(out / cohort / "variants.csv", table)
        text = markdown(cohort, table)
        files.write_text(out / cohort / "variants.md", text)
        print(f"\n{text}", flush=True)
    return 0


def try_variants(
    config: Config, variants: Mapping[str, dict[str, Any]], place: pathlib.Path
) -> pd.DataFrame:
    """The C-index of every variant on the held-out patients of every inner fold."""
    cohort = experiment.read_cohort(config)
    run = experiment.open_experiment(config, cohort, Pool(config.pool.root))
    rows = []
    for fold in config.folds:
        for number, cut in enumerate(cut_inner_folds(cohort, fold, config.seed)):
            within = place / f"fold_{fold}" / f"inner_{number}"
            label = f"fold {fold}, inner fold {number}"
            pool = refitted_pool(run, cut, within, f"{label}, target's model")
            for name, values in variants.items():
                variant = experiment.with_config(run, config.with_values(values))
                directory = within / name.replace(" ", "_")
                directory.mkdir(parents=True, exist_ok=True)
                run_directory.store_config(
                    directory, variant.config.record, MAY_CHANGE_ON_RESUME, defaults()
                )
                c_index = sweep.held_out_c_index(
                    dataclasses.replace(variant, pool=pool),
                    fold,
                    cut,
                    directory,
                    f"{label}, {name}",
                )
                rows.append((name, fold, number, c_index))
    return pd.DataFrame(rows, columns=["variant", "fold", "inner_fold", "c_index"])


def markdown(cohort: str, table: pd.DataFrame) -> str:
    """Mean C-index, and the difference to the reference within the inner folds."""
    lines = [
        f"| {cohort}, inner folds | C-index | difference: mean | sd | better in |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    values = table.pivot(index=["fold", "inner_fold"], columns="variant", values="c_index")
    for name in table["variant"].unique():
        text = f"| {name} | {values[name].mean():.4f} |"
        if name == REFERENCE:
            lines.append(f"{text} | | |")
            continue
        difference: Sequence[float] = (values[name] - values[REFERENCE]).dropna().tolist()
        if not difference:
            lines.append(f"| {name} | diverged | | | |")
            continue
        mean, sd = metrics.mean_sd(difference)
        better = sum(gain > 0 for gain in difference)
        lines.append(f"{text} {mean:+.4f} | {sd:.4f} | {better} of {len(difference)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    flags.DEFINE_list("folds", ["0", "1", "2", "3", "4"], "Outer folds.")
    flags.DEFINE_list("variants", list(VARIANTS), "Which variants.")
    tcga_rna.app_run(main, "runs/comparison", tcga_rna.TARGETS)
