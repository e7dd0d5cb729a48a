"""Finished runs of several methods on the same folds, side by side.

A method's number on a fold is the mean over its seeds. Differences are to a reference, paired: the
same folds, the same patients, the same resamples of them.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from steph_jax.evaluation import fold_results
from steph_jax.methods.controls import label_of, parts_of
from steph_jax.run_directory import fold_directory
from steph_jax.survival import metrics, significance
from steph_jax.survival.significance import FoldRisks, Interval

#: The method that differences are to, unless another is named.
REFERENCE = "abmil"
LEVEL = 0.05


def run_directory(workdir: pathlib.Path, method: str, seed: int) -> pathlib.Path:
    """Where the run of a method and a seed keeps its files."""
    return workdir / f"{method}-seed_{seed}"


class FoldRun(NamedTuple):
    """One fold of one run.

    Attributes:
        method, seed, fold: which.
        numbers: its metrics.json.
        predictions: of its test patients: patient_id, t, e, risk.
        num_train: training patients.
    """

    method: str
    seed: int
    fold: int
    numbers: dict[str, Any]
    predictions: pd.DataFrame
    num_train: int

    @property
    def c_index(self) -> float:
        """On the test patients; NaN where no two of them can be compared."""
        value = self.numbers["test"]["c_index"]
        return math.nan if value is None else float(value)


class Difference(NamedTuple):
    """A method less the reference.

    Attributes:
        mean: of the C-index over folds.
        interval: of that mean over patients.
        p: of the t-test over folds.
        folds: [J] difference on each fold.
    """

    mean: float
    interval: Interval
    p: float
    folds: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """What several methods came to.

    Attributes:
        dataset: the target.
        methods: names in the order asked for.
        seeds: of the runs.
        folds: numbers of the folds.
        runs: of every method, seed and fold.
        c_index: by method, [J] mean over seeds on each fold.
        intervals: by method, of the mean over folds, over patients.
        differences: by method, to `reference`; empty without that among the methods.
        undefined: share of the resamples that some fold left without a comparable pair.
        control_differences: by label of a control, its method less the control.
        reference: the method, or label of a control, that differences are to.
    """

    dataset: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    folds: tuple[int, ...]
    runs: tuple[FoldRun, ...]
    c_index: Mapping[str, np.ndarray]
    intervals: Mapping[str, Interval]
    differences: Mapping[str, Difference]
    undefined: float
    control_differences: Mapping[str, Difference] = dataclasses.field(default_factory=dict)
    reference: str = REFERENCE

    def null_c_index(self, method: str) -> float | None:
        """Mean over folds of the null model's C-index, for a method that reports it."""
        values = [
            run.numbers["null_model"]["c_index"]
            for run in self.runs
            if (run.method, run.seed) == (method, self.seeds[0]) and "null_model" in run.numbers
        ]
        if not values:
            return None
        return float(np.mean([math.nan if value is None else value for value in values]))

    def seed_sd(self, method: str) -> float:
        """Standard deviation (n - 1) over seeds of the mean over folds; NaN for one seed."""
        means = [
            float(np.mean([r.c_index for r in self.runs if (r.method, r.seed) == (method, seed)]))
            for seed in self.seeds
        ]
        return metrics.mean_sd(means)[1]


def read_fold(workdir: pathlib.Path, method: str, seed: int, fold: int) -> FoldRun:
    """A finished fold of a run.

    Raises:
        FileNotFoundError, ValueError: a file of it is missing or damaged.
    """
    directory = fold_directory(run_directory(workdir, method, seed), fold)
    numbers = fold_results.read_metrics(directory)
    _, split = fold_results.read_patients(directory)
    return FoldRun(
        method, seed, fold, numbers, fold_results.read_predictions(directory), len(split.train)
    )


def compare_runs(
    workdir: pathlib.Path,
    dataset: str,
    methods: Sequence[str],
    seeds: Sequence[int],
    folds: Sequence[int],
    resamples: int = significance.RESAMPLES,
    reference: str = REFERENCE,
) -> Comparison:
    """Reads finished runs and compares them.

    Args:
        workdir: that holds the runs.
        dataset: the target.
        methods: names.
        seeds: that every method was run with.
        folds: numbers.
        resamples: of the bootstrap.
        reference: what differences are to.

    Raises:
        FileNotFoundError, ValueError: a run that is missing or damaged, or runs that were tested on
            other patients.
    """
    runs = [
        read_fold(workdir, method, seed, fold)
        for method in methods
        for seed in seeds
        for fold in folds
    ]
    by_fold = {fold: [run for run in runs if run.fold == fold] for fold in folds}
    risks = [_risks(workdir, by_fold[fold], methods) for fold in folds]
    means = significance.bootstrap_means(risks, resamples)
    c_index = {
        method: np.array(
            [np.mean([r.c_index for r in by_fold[fold] if r.method == method]) for fold in folds]
        )
        for method in methods
    }
    num_train = [by_fold[fold][0].num_train for fold in folds]
    num_test = [len(fold.time) for fold in risks]

    def difference(method: str, other: str) -> Difference:
        by_folds = c_index[method] - c_index[other]
        mean = float(by_folds.mean())
        return Difference(
            mean,
            significance.interval_of_mean(means[method] - means[other], mean),
            significance.corrected_t_test(by_folds, num_train, num_test),
            by_folds,
        )

    return Comparison(
        dataset=dataset,
        methods=tuple(methods),
        seeds=tuple(seeds),
        folds=tuple(folds),
        runs=tuple(runs),
        c_index=c_index,
        intervals={
            method: significance.interval_of_mean(
                resampled, float(c_index[method].mean()), 0.0, 1.0
            )
            for method, resampled in means.items()
        },
        differences={
            method: difference(method, reference)
            for method in methods
            if reference in methods and method != reference
        },
        reference=reference,
        control_differences={
            label: difference(parts_of(label)[0], label)
            for label in methods
            if parts_of(label)[1] != "none" and parts_of(label)[0] in methods
        },
        undefined=float(np.mean(np.isnan(means[methods[0]]))),
    )


def _risks(
    workdir: pathlib.Path, fold_runs: Sequence[FoldRun], methods: Sequence[str]
) -> FoldRisks:
    """The risks of the test patients of a fold by all runs, which must have the same patients."""
    first = fold_runs[0]
    labels = ["patient_id", "t", "e"]
    for run in fold_runs[1:]:
        if not run.predictions[labels].equals(first.predictions[labels]):
            one, other = (run_directory(workdir, r.method, r.seed) for r in (first, run))
            raise ValueError(
                f"{one} and {other} were tested on other patients, or with other outcomes, in fold "
                f"{first.fold}: table or splits changed between them; remove the older run, or use "
                "another --workdir"
            )
    return FoldRisks(
        first.predictions["t"].to_numpy(np.float64),
        first.predictions["e"].to_numpy() > 0,
        {
            method: np.stack(
                [
                    run.predictions["risk"].to_numpy(np.float64)
                    for run in fold_runs
                    if run.method == method
                ]
            )
            for method in methods
        },
    )


def contract_table(comparison: Comparison) -> pd.DataFrame:
    """compare.csv: method, fold, seed, c_index; and control, where there are any."""
    rows = [(*parts_of(run.method), run.fold, run.seed, run.c_index) for run in comparison.runs]
    table = pd.DataFrame(rows, columns=["method", "control", "fold", "seed", "c_index"])
    if (table["control"] == "none").all():
        return table.drop(columns="control")
    return table[["method", "fold", "seed", "c_index", "control"]]


def labels_of(table: pd.DataFrame) -> list[str]:
    """The labels of the methods of a `contract_table`, in its order."""
    control = table["control"] if "control" in table else ["none"] * len(table)
    pairs = zip(table["method"], control, strict=True)
    return list(dict.fromkeys(label_of(str(m), str(c)) for m, c in pairs))


def table(comparison: Comparison, costs: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """A row per method, numbers as they are.

    Args:
        comparison: of the methods.
        costs: by method, "flops_per_slide" and "seconds_per_slide".
    """
    rows = []
    for method in comparison.methods:
        values = comparison.c_index[method]
        mean, sd = metrics.mean_sd(values)
        row: dict[str, Any] = {"method": method}
        row |= {f"fold_{fold}": v for fold, v in zip(comparison.folds, values, strict=True)}
        row |= {"mean": mean, "sd": sd, "seed_sd": comparison.seed_sd(method)}
        row |= _ends("", comparison.intervals[method])
        if comparison.differences:
            difference = comparison.differences.get(method)
            undefined = Difference(math.nan, Interval(math.nan, math.nan), math.nan, values)
            gain = undefined if difference is None else difference
            row |= {"difference": gain.mean, **_ends("difference_", gain.interval), "p": gain.p}
        method_runs = [run.numbers for run in comparison.runs if run.method == method]
        row |= {
            "trainable_parameters": method_runs[0]["trainable_parameters"],
            "train_seconds_per_fold": float(
                np.mean([numbers["train_seconds"] for numbers in method_runs])
            ),
            "flops_per_slide": costs[method]["flops_per_slide"],
            "seconds_per_slide": costs[method]["seconds_per_slide"],
        }
        rows.append(row)
    return pd.DataFrame(rows)


def _ends(prefix: str, interval: Interval) -> dict[str, float]:
    return {f"{prefix}low": interval.low, f"{prefix}high": interval.high}


def _no_test(difference: Difference) -> str:
    if len(difference.folds) < 2:
        return "there are too few folds for a test over them"
    return "all folds differ alike, so there is no test over them"


def control_verdict(difference: Difference) -> str:
    """What a method has beyond one of its controls, in words."""
    if not math.isfinite(difference.mean):
        return "not known: the C-index of some fold is undefined"
    if not difference.interval.excludes_zero():
        return "whether it is more than without its cause cannot be told"
    return "more than without the cause" if difference.mean > 0 else "less than without the cause"


def verdict(difference: Difference) -> str:
    """What a difference to the reference is worth, in words.

    It is called a difference where the interval over patients and the t-test over folds both show
    so (the interval alone, where too few folds were run for a test).
    """
    if not math.isfinite(difference.mean):
        return "not known: the C-index of some fold is undefined"
    sure_of_patients = difference.interval.excludes_zero()
    direction = "better" if difference.mean > 0 else "worse"
    if not sure_of_patients and difference.p < LEVEL:
        return "within the noise: the folds agree, but other patients might not"
    if not sure_of_patients:
        return "within the noise"
    if math.isnan(difference.p):
        return f"{direction}, as far as patients go; {_no_test(difference)}"
    if difference.p >= LEVEL:
        return (
            f"within the noise of folds, though {direction} beyond that of patients: a hint, no "
            "more"
        )
    return f"{direction}, beyond the noise of patients and of folds"
