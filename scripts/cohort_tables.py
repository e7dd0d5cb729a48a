"""Tables and pictures of scripts/run_cohorts.py, of all runs of it that are finished.

    python scripts/cohort_tables.py --out runs/cohorts --into docs

Reads the runs of OUT and nothing else, so it can be called while they go on, and says what is
missing. A method counts on a cohort once all of its folds and seeds are there; a difference over
cohorts is over those that have both of its methods.

INTO/cohorts.md              C-index of every cohort, gains over cohorts, what is missing
INTO/tables/cohorts.csv      every fold of every run
INTO/tables/cohort_gains.csv every difference of every cohort
INTO/images/cohorts_{n}.png  real sources less permuted ones: forest plot, with n patients
INTO/images/cohorts_gain.png gains by number of training patients
"""

import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd
from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from steph_jax import cli, files, plots, run_directory
from steph_jax.evaluation import comparison, learning_curve, over_cohorts
from steph_jax.evaluation.comparison import Comparison
from steph_jax.evaluation.over_cohorts import Gain
from steph_jax.methods.controls import parts_of

#: Named before the runs: do linear models of other cancers know something of this one?
PRIMARY = "linear_pool+permuted"
FOLDS = (0, 1, 2, 3, 4)


class Part(NamedTuple):
    """What is finished with one number of training patients.

    Attributes:
        number: of training patients; 0 for all.
        comparisons: by cohort, of the methods that are finished there.
        missing: by cohort, what is not: "steph-seed_43: folds 2, 3, 4".
    """

    number: int
    comparisons: dict[str, Comparison]
    missing: dict[str, list[str]]

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.number} training patients" if self.number else "all training patients"

    @property
    def name(self) -> str:
        """For files."""
        return str(self.number or "all")


def main() -> int:
    """The entry point."""
    arguments = flags.FLAGS
    out = pathlib.Path(arguments.out)
    seeds = [int(seed) for seed in arguments.seeds]
    numbers = numbers_in(out)
    if not numbers:
        raise ValueError(
            f"{out}: expected runs of scripts/run_cohorts.py in {out}/COHORT/patients_N; found none"
        )
    parts = [
        finished(out, number, seeds if number else seeds[:1], arguments.methods)
        for number in numbers
    ]
    write(pathlib.Path(arguments.into), parts)
    return 0


def numbers_in(out: pathlib.Path) -> list[int]:
    """The numbers of training patients that some cohort was begun with; 0, all, comes last."""
    texts = {path.name.removeprefix("patients_") for path in out.glob("*/patients_*")}
    numbers = {
        0 if text == "all" else int(text) for text in texts if re.fullmatch(r"all|\d+", text)
    }
    return learning_curve.in_order(sorted(numbers)) if numbers else []


def finished(
    out: pathlib.Path, number: int, seeds: Sequence[int], methods: Sequence[str] = ()
) -> Part:
    """What is finished with a number of training patients.

    Args:
        out: of run_cohorts.py.
        number: of training patients.
        seeds: that a method has to be finished with.
        methods: labels; by default all that some cohort was begun with.
    """
    name = learning_curve.directory(pathlib.Path(), number).name
    places = {path.parent.name: path for path in sorted(out.glob(f"*/{name}"))}
    runs = {
        path.name.rpartition("-seed_")[0] for at in places.values() for path in at.glob("*-seed_*")
    }
    labels = list(methods) or sorted(runs, key=_order)
    comparisons, missing = {}, {}
    for cohort, place in places.items():
        gaps = {label: _gaps(place, label, seeds) for label in labels}
        missing[cohort] = [gap for label in labels for gap in gaps[label]]
        done = [label for label in labels if not gaps[label]]
        if done:
            comparisons[cohort] = comparison.compare_runs(place, cohort, done, seeds, FOLDS)
    return Part(number, comparisons, missing)


def _order(label: str) -> tuple[int, str]:
    """The reference first, a method before its controls."""
    return (int(label != comparison.REFERENCE), label)


def _gaps(place: pathlib.Path, label: str, seeds: Sequence[int]) -> list[str]:
    """What is not finished of the runs of a method."""
    gaps = []
    for seed in seeds:
        run = comparison.run_directory(place, label, seed)
        folds = [
            fold
            for fold in FOLDS
            if not run_directory.is_finished(run_directory.fold_directory(run, fold))
        ]
        if folds:
            which = "" if len(folds) == len(FOLDS) else f": folds {', '.join(map(str, folds))}"
            gaps.append(f"{run.name}{which}")
    return gaps


def write(into: pathlib.Path, parts: Sequence[Part]) -> None:
    """Writes everything, cohorts.md last."""
    for folder in ("tables", "images"):
        (into / folder).mkdir(parents=True, exist_ok=True)
    some = [part for part in parts if part.comparisons]
    gains = {part.number: over_cohorts.gains_of(part.comparisons) for part in some}
    if some:
        rows = [
            over_cohorts.contract_table(part.comparisons).assign(train_patients=part.number)
            for part in some
        ]
        table = pd.concat(rows, ignore_index=True)
        if "control" in table:  # a cohort without finished controls has no such column
            table = table.fillna({"control": "none"})
        files.write_table(into / "tables" / "cohorts.csv", table)
        by_cohort = [
            over_cohorts.cohort_table(gains[part.number]).assign(train_patients=part.number)
            for part in some
        ]
        table = pd.concat(by_cohort, ignore_index=True).round(5)
        files.write_table(into / "tables" / "cohort_gains.csv", table)
    pictures = draw(into / "images", some, gains)
    text = page(parts, gains, pictures)
    files.write_text(into / "cohorts.md", text)
    print(f"written to {into / 'cohorts.md'}")


def draw(
    folder: pathlib.Path, parts: Sequence[Part], gains: Mapping[int, Sequence[Gain]]
) -> dict[str, str]:
    """Draws what can be drawn; returns file names by what they show: a number, or "gain"."""
    pictures = {}
    for part in parts:
        real = [gain for gain in gains[part.number] if parts_of(gain.against)[1] == "permuted"]
        means = over_cohorts.total_table(real)
        if len(means):
            pictures[part.name] = f"cohorts_{part.name}.png"
            plots.forest(
                over_cohorts.cohort_table(real),
                means,
                folder / pictures[part.name],
                f"Real sources less permuted ones, {part.title}",
            )
    by_number = {part.number: part.comparisons for part in parts}
    curve = over_cohorts.curve(by_number, gains)
    if len(curve):
        pictures["gain"] = "cohorts_gain.png"
        title = "Gains over cohorts by number of training patients"
        plots.learning_curve(curve, folder / pictures["gain"], title)
    return pictures


def page(
    parts: Sequence[Part], gains: Mapping[int, Sequence[Gain]], pictures: Mapping[str, str]
) -> str:
    """The tables and pictures as a page of Markdown."""
    cohorts = dict.fromkeys(cohort for part in parts for cohort in part.missing)
    lines = [
        *(f"# {len(cohorts)} cohorts", ""),
        "    python scripts/run_cohorts.py --shared DATA --out OUT",
        *("    python scripts/cohort_tables.py --out OUT --into docs", ""),
        "C-index of test patients, mean of five folds. Each gene is ranked within each cohort over",
        *("all its patients, test patients included ([data](results.md#data)).", ""),
    ]
    for part in parts:
        lines += [f"## With {part.title}", ""]
        if not part.comparisons:
            lines += ["Nothing is finished yet.", ""]
            continue
        seeds = next(iter(part.comparisons.values())).seeds
        lines += [f"Seeds: {', '.join(map(str, seeds))}.", ""]
        lines += [*over_cohorts.c_index_lines(part.comparisons), ""]
        table = over_cohorts.total_table(gains[part.number], PRIMARY)
        if len(table):
            lines += [*over_cohorts.gain_lines(table), "", *over_cohorts.notes(table), ""]
        if part.name in pictures:
            lines += [_picture("real sources less permuted ones", pictures[part.name]), ""]
    if "gain" in pictures:
        lines += ["## By number of training patients", ""]
        lines += [_picture("gains by number of training patients", pictures["gain"]), ""]
    missing = [
        f"- {part.title}, {cohort}: {'; '.join(gaps)}"
        for part in parts
        for cohort, gaps in part.missing.items()
        if gaps
    ]
    if missing:
        lines += ["## Not finished", "", *missing, ""]
    return "\n".join(lines)


def _picture(text: str, name: str) -> str:
    return f"![{text}](images/{name})"


if __name__ == "__main__":
    flags.DEFINE_string("out", "runs/cohorts", "Where scripts/run_cohorts.py writes.")
    flags.DEFINE_string("into", "runs/cohorts/tables", "Where the tables and pictures go.")
    flags.DEFINE_list("methods", [], "Labels, as steph+permuted; all that were begun by default.")
    flags.DEFINE_list("seeds", ["42", "43", "44"], "Seeds; the first alone with all patients.")
    cli.app_run(main)
