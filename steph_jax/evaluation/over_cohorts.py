"""The same comparison on several cohorts: what a gain is over all of them.

W/compare.csv        method, fold, seed, c_index, dataset; and control, train_patients, if any
W/over_cohorts.csv   a row per comparison: mean difference, 95 % interval, tests
W/by_cohort.csv      a row per comparison and cohort: difference, interval, weight in the mean
W/over_cohorts.md    both for people
W/forest.png         both as a picture

With several numbers of training patients, all but the first are in a folder for each of them.
"""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from steph_jax import files, plots
from steph_jax.evaluation import comparison, learning_curve, markup
from steph_jax.evaluation.comparison import LEVEL, Comparison, Difference
from steph_jax.messages import on_one_line
from steph_jax.methods.controls import parts_of
from steph_jax.plots.style import number, p_value, signed
from steph_jax.survival import meta_analysis

#: Comparisons by dataset.
Comparisons = Mapping[str, Comparison]
#: Half the width of a 95 % interval in standard errors.
_Z = 1.959964
TABLE, PAGE = "over_cohorts.csv", "over_cohorts.md"


class Gain(NamedTuple):
    """A method less the reference or one of its controls, on several cohorts.

    Attributes:
        method: its name.
        against: the reference, or the label of the control.
        by_cohort: dataset -> difference, of those where it is defined.
        errors: [C] standard error of each.
        total: over cohorts; None where fewer than two have a difference.
    """

    method: str
    against: str
    by_cohort: dict[str, Difference]
    errors: np.ndarray
    total: meta_analysis.OverCohorts | None


def expect_primary(primary: str, methods: Sequence[str], reference: str) -> None:
    """Checks the name of the primary comparison before anything is trained.

    Args:
        primary: a method, less the reference; or the label of a control that its method is less.
        methods: labels that are compared.
        reference: the method that differences are to.

    Raises:
        ValueError: there will be no such comparison.
    """
    method, control = parts_of(primary)
    is_there = primary in methods and method in methods
    if not is_there or (control == "none" and (primary == reference or reference not in methods)):
        raise ValueError(
            "--primary is a method other than --reference, or with --controls a label as "
            f"steph+permuted; --methods and --reference have no comparison {primary!r}"
        )


def write_all(
    workdir: pathlib.Path,
    comparisons: Mapping[int, Comparisons],
    command: str,
    primary: str = "",
    by_number: bool = False,
) -> None:
    """Writes what comparisons show together.

    By number of training patients, each has a folder, and W/learning_curve.png has their means.

    Args:
        workdir: where to; compare.csv is written last.
        comparisons: by number of training patients (0 = all), by dataset.
        command: that made them.
        primary: see `expect_primary`; "" for none.
        by_number: whether numbers of training patients were asked for.
    """
    gains = {}
    for number_of_patients, by_dataset in comparisons.items():
        place = learning_curve.directory(workdir, number_of_patients) if by_number else workdir
        gains[number_of_patients] = write(place, by_dataset, command, primary)
    rows = curve(comparisons, gains)
    if len(rows) and by_number:
        count = len(next(iter(comparisons.values())))
        title = f"What methods gain with how many training patients, {count} cohorts"
        plots.learning_curve(rows, workdir / "learning_curve.png", title)
        files.write_table(workdir / "learning_curve.csv", rows)
    tables = [
        contract_table(by_dataset).assign(train_patients=number_of_patients)
        for number_of_patients, by_dataset in comparisons.items()
    ]
    table = pd.concat(tables, ignore_index=True)
    if not by_number:
        table = table.drop(columns="train_patients")
    files.write_table(workdir / "compare.csv", table)


def write(
    workdir: pathlib.Path, comparisons: Comparisons, command: str, primary: str = ""
) -> list[Gain]:
    """Writes tables, page and picture of comparisons of the same methods; returns the gains."""
    gains = gains_of(comparisons)
    table, cohorts = total_table(gains, primary), cohort_table(gains)
    workdir.mkdir(parents=True, exist_ok=True)
    files.write_table(workdir / "by_cohort.csv", cohorts)
    pictures = []
    if len(table):
        pictures.append("forest.png")
        plots.forest(
            cohorts,
            table,
            workdir / pictures[0],
            f"Differences in C-index, {len(comparisons)} cohorts",
        )
    page = markdown(comparisons, table, command, pictures)
    files.write_text(workdir / PAGE, page)
    files.write_table(workdir / TABLE, table)
    return gains


def contract_table(comparisons: Comparisons) -> pd.DataFrame:
    """The rows of `comparison.contract_table`, with the dataset."""
    tables = [
        comparison.contract_table(result).assign(dataset=dataset)
        for dataset, result in comparisons.items()
    ]
    return pd.concat(tables, ignore_index=True)


def gains_of(comparisons: Comparisons) -> list[Gain]:
    """Each method less the reference, then each less its controls."""
    pairs: dict[tuple[str, str], dict[str, Difference]] = {}
    for dataset, result in comparisons.items():
        for label, difference in result.differences.items():
            if parts_of(label)[1] == "none":
                pairs.setdefault((label, result.reference), {})[dataset] = difference
        for label, difference in result.control_differences.items():
            pairs.setdefault((parts_of(label)[0], label), {})[dataset] = difference
    order = sorted(pairs, key=lambda pair: parts_of(pair[1])[1] != "none")
    return [_gain(pair, pairs[pair], comparisons) for pair in order]


def _gain(
    pair: tuple[str, str], differences: dict[str, Difference], comparisons: Comparisons
) -> Gain:
    defined = {
        dataset: difference
        for dataset, difference in differences.items()
        if np.isfinite([difference.mean, *difference.interval]).all()
    }
    errors = np.array(
        [standard_error(comparisons[name], *pair, gain) for name, gain in defined.items()]
    )
    means = [difference.mean for difference in defined.values()]
    total = meta_analysis.random_effects(means, errors) if len(defined) > 1 else None
    return Gain(*pair, defined, errors, total)


def standard_error(result: Comparison, method: str, against: str, difference: Difference) -> float:
    """Of a cohort's difference: noise of patients, as its interval has it, and of seeds."""
    low, high = difference.interval
    patients = (high - low) / (2 * _Z)
    if len(result.seeds) < 2:
        return patients
    by_seed = [_mean(result, method, seed) - _mean(result, against, seed) for seed in result.seeds]
    seeds = float(np.var(by_seed, ddof=1)) / len(by_seed)
    return math.sqrt(patients**2 + seeds)


def _mean(result: Comparison, label: str, seed: int) -> float:
    """Mean over folds of a run."""
    runs = [run for run in result.runs if (run.method, run.seed) == (label, seed)]
    return float(np.mean([run.c_index for run in runs]))


def cohort_table(gains: Sequence[Gain]) -> pd.DataFrame:
    """A row per comparison and cohort."""
    rows = [
        (gain.method, gain.against, dataset, one.mean, *one.interval, error, weight)
        for gain in gains
        if gain.total is not None
        for (dataset, one), error, weight in zip(
            gain.by_cohort.items(), gain.errors, gain.total.weights, strict=True
        )
    ]
    names = ["method", "against", "dataset", "difference", "low", "high", "standard_error"]
    return pd.DataFrame(rows, columns=[*names, "weight"])


def total_table(gains: Sequence[Gain], primary: str = "") -> pd.DataFrame:
    """A row per comparison with a mean over cohorts.

    Columns: method, against, cohorts, better (number of them above 0), mean, low, high, tau, p,
    p_corrected (by Holm, for the number of comparisons that are not primary; p itself for the
    primary one), p_wilcoxon (not corrected), primary.

    Args:
        gains: of `gains_of`.
        primary: see `expect_primary`; "" for none.
    """
    rows = []
    for gain in gains:
        if gain.total is None:
            continue
        values = np.array([one.mean for one in gain.by_cohort.values()])
        is_control = parts_of(gain.against)[1] != "none"
        rows.append(
            {
                "method": gain.method,
                "against": gain.against,
                "cohorts": len(values),
                "better": int((values > 0).sum()),
                "mean": gain.total.mean,
                "low": gain.total.interval.low,
                "high": gain.total.interval.high,
                "tau": gain.total.tau,
                "p": gain.total.p,
                "p_corrected": gain.total.p,
                "p_wilcoxon": meta_analysis.wilcoxon(values),
                "primary": primary == (gain.against if is_control else gain.method),
            }
        )
    names = ["method", "against", "cohorts", "better", "mean", "low", "high", "tau", "p"]
    table = pd.DataFrame(rows, columns=[*names, "p_corrected", "p_wilcoxon", "primary"])
    others = ~table["primary"].astype(bool)
    table.loc[others, "p_corrected"] = meta_analysis.holm(table.loc[others, "p"].tolist())
    return table


def verdict(row: Mapping[str, Any]) -> str:
    """What a mean difference over cohorts is worth, in words."""
    if not row["p_corrected"] < LEVEL:
        return "within the noise of cohorts"
    return ("better" if row["mean"] > 0 else "worse") + ", beyond the noise of cohorts"


def markdown(
    comparisons: Comparisons, table: pd.DataFrame, command: str, pictures: Sequence[str]
) -> str:
    """C-indices by cohort and gains over cohorts, as a page of Markdown."""
    lines = [f"# Methods on {len(comparisons)} cohorts", "", f"    {on_one_line(command)}", ""]
    lines += ["## C-index", "", *c_index_lines(comparisons), "", "## Gains over cohorts", ""]
    if len(table):
        lines += [*gain_lines(table), "", *(f"![{name}]({name})" for name in pictures), ""]
        lines += map(_sentence, _rows(table))
    else:
        lines += ["No comparison is defined on two cohorts or more."]
    return "\n".join([*lines, "", "## Notes", "", *notes(table), ""])


def c_index_lines(comparisons: Comparisons) -> list[str]:
    """A table of Markdown: the C-index of every method on every cohort, and the means.

    A method that some cohort lacks has no mean.
    """
    names = list(comparisons)
    lines = [f"| method | {' | '.join(map(markup.markdown, names))} | mean |"]
    lines += ["| --- |" + " ---: |" * (len(names) + 1)]
    labels = dict.fromkeys(label for result in comparisons.values() for label in result.methods)
    for label in labels:
        scores = [
            float(result.c_index[label].mean()) if label in result.methods else math.nan
            for result in comparisons.values()
        ]
        cells = [number(score, 4) for score in [*scores, float(np.mean(scores))]]
        lines.append(f"| {markup.markdown(label)} | {' | '.join(cells)} |")
    return lines


def gain_lines(table: pd.DataFrame) -> list[str]:
    """A table of Markdown, of a `total_table` with a row or more."""
    titles = ["method less", "cohorts", "better in", "mean [95 %]", "tau", "p", "p corrected"]
    lines = [f"| {' | '.join([*titles, 'p Wilcoxon'])} |", "| --- |" + " ---: |" * 7]
    return [*lines, *map(_row, _rows(table))]


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table by the names of its columns."""
    names = [str(name) for name in table]
    return [dict(zip(names, row, strict=True)) for row in table.itertuples(index=False)]


def _sentence(row: Mapping[str, Any]) -> str:
    pair = f"{markup.code(row['method'])} less {markup.code(row['against'])}"
    mean = f"{signed(row['mean'])} [{signed(row['low'])}, {signed(row['high'])}]"
    primary = " (the primary comparison)" if row["primary"] else ""
    return f"- {pair}: {mean}: {verdict(row)}{primary}."


def _row(row: Mapping[str, Any]) -> str:
    """A comparison as a row of the table."""
    names = " less ".join(markup.markdown(row[name]) for name in ("method", "against"))
    cells = [
        *(names, str(row["cohorts"]), str(row["better"])),
        f"{signed(row['mean'])} [{signed(row['low'])}, {signed(row['high'])}]",
        number(row["tau"]),
        *(p_value(row[name]).removeprefix("p = ") for name in ("p", "p_corrected", "p_wilcoxon")),
    ]
    return f"| {' | '.join(cells)} |"


def notes(table: pd.DataFrame) -> list[str]:
    """How the numbers were made."""
    others = int((~table["primary"].astype(bool)).sum())
    holm = "p corrected: by Holm, for the number of comparisons"
    if others < len(table):
        holm += f" but the primary one, which was named before ({others})"
    return [
        "- mean [95 %]: random effects over cohorts (DerSimonian and Laird), interval and p of "
        "Hartung and Knapp (docs/method.md, section 13). tau: standard deviation of the true "
        "differences between cohorts.",
        "- A cohort's error is that of its patients, widened for cross-validation, and of its "
        "seeds. Where two methods predict the same on some cohort, all cohorts weigh the same.",
        f"- {holm}. p Wilcoxon: signed ranks of the cohorts' differences, not corrected.",
        "- Cohorts on which a difference is undefined are left out of its mean. That cohorts are "
        "sources of each other is not allowed for.",
    ]


def curve(
    comparisons: Mapping[int, Comparisons], gains: Mapping[int, Sequence[Gain]]
) -> pd.DataFrame:
    """Means over cohorts by number of training patients, as `plots.learning_curve` reads them.

    Args:
        comparisons: by number of training patients (0 = all), by dataset.
        gains: by the same numbers.
    """
    rows = [
        (train_patients, patients, gain.method, gain.against, gain.total.mean, *gain.total.interval)
        for train_patients, by_dataset in comparisons.items()
        for patients in [float(np.mean([*map(learning_curve.num_train, by_dataset.values())]))]
        for gain in gains[train_patients]
        if gain.total is not None
    ]
    names = ["train_patients", "patients", "method", "against", "difference", "low", "high"]
    return pd.DataFrame(rows, columns=names)
