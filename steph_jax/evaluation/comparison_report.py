"""Reports of a comparison: Markdown, LaTeX, CSV and pictures, with notes on every number."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from steph_jax import files, plots
from steph_jax.evaluation import comparison, markup
from steph_jax.evaluation.comparison import Comparison
from steph_jax.messages import on_one_line
from steph_jax.methods.controls import parts_of
from steph_jax.plots.style import number, p_value, signed
from steph_jax.survival import significance

#: Columns after those of the folds: a function from a row of the table to text, by title.
_SCORES: dict[str, Callable[[pd.Series], str]] = {
    "mean": lambda row: number(row["mean"], 4),
    "sd": lambda row: number(row["sd"], 4),
    "sd of seeds": lambda row: number(row["seed_sd"], 4),
}
_COSTS: dict[str, Callable[[pd.Series], str]] = {
    "trained parameters": lambda row: f"{int(row['trainable_parameters']):,}",
    "training, s per fold": lambda row: f"{row['train_seconds_per_fold']:,.0f}",
    "GFLOP per slide": lambda row: f"{row['flops_per_slide'] / 1e9:.3g}",
    "ms per slide": lambda row: f"{1000 * row['seconds_per_slide']:.3g}",
}


def write(
    workdir: pathlib.Path, result: Comparison, costs: Mapping[str, Mapping[str, Any]], command: str
) -> None:
    """Writes compare.csv, compare.md, compare.tex, compare_table.csv and the pictures.

    Args:
        workdir: where to.
        result: the comparison.
        costs: by method: "flops_per_slide", "seconds_per_slide", "num_patches", "device".
        command: that made it.
    """
    table = comparison.table(result, costs)
    files.write_table(workdir / "compare_table.csv", table)
    files.write_text(workdir / "compare.tex", latex(result, table))
    seeds = "" if len(result.seeds) == 1 else f", mean of {len(result.seeds)} seeds"
    plots.folds(
        {method: values.tolist() for method, values in result.c_index.items()},
        workdir / "compare.png",
        f"{result.dataset}, test patients{seeds}",
        result.folds,
        result.intervals,
    )
    pictures = ["compare.png"]
    if result.differences:
        plots.intervals(
            pd.DataFrame(
                [(m, d.mean, *d.interval) for m, d in result.differences.items()],
                columns=["method", "difference", "low", "high"],
            ),
            workdir / "differences.png",
            f"{result.dataset}, differences to {result.reference}{seeds}",
            result.reference,
            pd.DataFrame(
                [(m, difference) for m, d in result.differences.items() for difference in d.folds],
                columns=["method", "difference"],
            ),
        )
        pictures.append("differences.png")
    files.write_text(workdir / "compare.md", markdown(result, table, costs, command, pictures))
    files.write_table(workdir / "compare.csv", comparison.contract_table(result))


def columns(result: Comparison) -> dict[str, Callable[[pd.Series], str]]:
    """Columns of the printed table: a function from row to text, by title."""
    folds = {
        f"fold {fold}": lambda row, name=f"fold_{fold}": number(row[name], 4)
        for fold in result.folds
    }
    scores = {
        title: show
        for title, show in _SCORES.items()
        if title != "sd of seeds" or len(result.seeds) > 1
    }
    first = {"method": lambda row: str(row["method"])}
    return first | folds | scores | _differences(result) | _COSTS


def _differences(result: Comparison) -> dict[str, Callable[[pd.Series], str]]:
    """Columns of the differences to the reference; {} without any."""

    def unless_reference(text: Callable[[pd.Series], str]) -> Callable[[pd.Series], str]:
        return lambda row: "" if row["method"] == result.reference else text(row)

    if not result.differences:
        return {}
    return {
        f"difference to {result.reference} [95 %]": unless_reference(_difference),
        "p": unless_reference(lambda row: p_value(row["p"]).removeprefix("p ").removeprefix("= ")),
    }


def cells(result: Comparison, table: pd.DataFrame) -> list[list[str]]:
    """The table as texts, without its header."""
    formats = columns(result).values()
    return [[text(row) for text in formats] for _, row in table.iterrows()]


def markdown(
    result: Comparison,
    table: pd.DataFrame,
    costs: Mapping[str, Mapping[str, Any]],
    command: str,
    pictures: Sequence[str],
) -> str:
    """The report as a page of Markdown."""
    titles = list(columns(result))
    table_rows = [[markup.markdown(method), *numbers] for method, *numbers in cells(result, table)]
    rows = [titles, ["---", *["---:"] * (len(titles) - 1)], *table_rows]
    title = f"# {markup.markdown(result.dataset)}: methods compared"
    lines = [title, "", f"    {on_one_line(command)}", ""]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", *(f"![{name}]({name})" for name in pictures), ""]
    lines += ["## Differences", "", *words(result), *control_words(result), ""]
    lines += ["## Notes on the numbers", "", *(f"- {note}" for note in notes(result, costs)), ""]
    return "\n".join(lines)


def words(result: Comparison) -> list[str]:
    """A sentence for every difference to the reference, or why there is none."""
    if result.reference not in result.methods:
        return [
            f"`{result.reference}` is not among the methods, so differences to it are left out; "
            "add it to --methods."
        ]
    if not result.differences:
        return [f"There is no method but `{result.reference}`."]
    lines = [
        f"- {markup.code(method)}: {signed(difference.mean)} [{signed(difference.interval.low)}, "
        f"{signed(difference.interval.high)}], {p_value(difference.p)}: "
        f"{comparison.verdict(difference)}."
        for method, difference in result.differences.items()
    ]
    if len(result.differences) > 1:
        lines += [
            "",
            f"These are {len(result.differences)} comparisons, none corrected for their number: of "
            "20 that differ in nothing, one would be expected beyond the noise of patients.",
        ]
    return lines


def control_words(result: Comparison) -> list[str]:
    """A sentence for every control: what its method has beyond it."""
    if not result.control_differences:
        return []
    return ["", "Controls take the cause of a gain away (steph_jax/methods/controls.py):", ""] + [
        f"- {markup.code(parts_of(label)[0])} less {markup.code(label)}: "
        f"{signed(difference.mean)} [{signed(difference.interval.low)}, "
        f"{signed(difference.interval.high)}], {p_value(difference.p)}: "
        f"{comparison.control_verdict(difference)}."
        for label, difference in result.control_differences.items()
    ]


def notes(result: Comparison, costs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What every column is, and how it was measured."""
    one = costs[result.methods[0]]
    seeds = ", ".join(map(str, result.seeds))
    lines = [
        "C-index of the test patients of each fold (Harrell; risk higher = shorter life), "
        + (f"seed {seeds}." if len(result.seeds) == 1 else f"mean of the seeds {seeds}.")
        + " sd: standard deviation (n - 1) over folds.",
    ]
    if len(result.seeds) > 1:
        lines.append("sd of seeds: standard deviation (n - 1) over seeds of the mean over folds.")
    lines.append(
        f"[95 %]: percentiles of {significance.RESAMPLES} bootstrap resamples of the patients "
        "within each fold, the same for all methods; C-index per fold, then their mean. The "
        f"interval is {significance.WIDENING:.2f} times as wide as these percentiles, since the "
        "patients of one fold trained the models of the others (docs/method.md)."
    )
    if result.undefined:
        lines.append(
            f"{100 * result.undefined:.1f} % of the resamples left some fold without two patients "
            "that can be compared; the intervals are of the others."
        )
    if result.differences:
        lines.append(
            "p: corrected resampled t-test over folds (Nadeau and Bengio 2003), two-sided, not "
            "corrected for the number of comparisons."
        )
    lines += _starts(result)
    lines += [
        "training: wall time of the epochs of a fold, restarts after collapsed weights included. "
        "ROUPKT's frozen sources embed all patients before, once for all folds; that is not in it.",
        f"GFLOP and ms per slide: inference on a slide of N = {one['num_patches']} patches (the "
        "median of the test patients), from features in memory, in batches of "
        f"{one['batch_size']} on {markup.markdown(one['device'])}. Operations are those of matrix "
        "products, 2 per multiply-add, counted from shapes (steph_jax/evaluation/cost.py has the "
        "formulas); for ROUPKT they include all its source models.",
    ]
    return lines


def _starts(result: Comparison) -> list[str]:
    """How single runs were initialized, where a source was chosen or weights collapsed."""
    lines = []
    for method in result.methods:
        runs = [run for run in result.runs if run.method == method]
        restarted = [
            f"{markup.markdown(run.numbers['source'])} (fold {run.fold})"
            for run in runs
            if run.seed == result.seeds[0] and "source" in run.numbers
        ]
        if restarted:
            lines.append(
                f"{markup.markdown(method)} starts from the model of {', '.join(restarted)}."
            )
        null = result.null_c_index(method)
        if null is not None:
            lines.append(
                f"{markup.markdown(method)}: the untrained null model has a C-index of "
                f"{number(null, 4)} on the same patients; a source's model keeps part of that "
                "ranking, so a C-index off 0.5 need not come from what it learned."
            )
        again = sum(run.numbers.get("restarts", 0) > 0 for run in runs)
        if again:
            lines.append(
                f"{markup.markdown(method)}: in {again} of {len(runs)} trainings the weights of "
                "all sources collapsed to 0 at first, and training started again from other random "
                "numbers."
            )
    return lines


def latex(result: Comparison, table: pd.DataFrame) -> str:
    """The table as a LaTeX tabular that needs no package."""
    titles = list(columns(result))
    rows = [" & ".join(map(markup.latex, row)) + r" \\" for row in [titles, *cells(result, table)]]
    return "\n".join(
        [
            rf"% {on_one_line(result.dataset)}: C-index of the test patients",
            rf"\begin{{tabular}}{{l{'r' * (len(titles) - 1)}}}",
            r"\hline",
            rows[0],
            r"\hline",
            *rows[1:],
            r"\hline",
            r"\end{tabular}",
            "",
        ]
    )


def _difference(row: pd.Series) -> str:
    low, high = signed(row["difference_low"]), signed(row["difference_high"])
    return f"{signed(row['difference'])} [{low}, {high}]"
