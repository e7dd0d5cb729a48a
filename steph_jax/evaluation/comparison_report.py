"""A comparison for people: Markdown, LaTeX, CSV and pictures, with what the numbers are."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from steph_jax import files, plots
from steph_jax.evaluation import comparison, markup
from steph_jax.evaluation.comparison import REFERENCE, Comparison
from steph_jax.messages import on_one_line
from steph_jax.plots.style import number, p_value, signed
from steph_jax.survival import significance

#: Title of each column beside the folds, its name in the table, and how a number of it is written.
_SCORES: dict[str, Callable[[pd.Series], str]] = {
    "mean": lambda row: number(row["mean"], 4),
    "sd": lambda row: number(row["sd"], 4),
    "sd of seeds": lambda row: number(row["seed_sd"], 4),
}
_DIFFERENCE: dict[str, Callable[[pd.Series], str]] = {
    f"difference to {REFERENCE} [95 %]": lambda row: _difference(row),
    "p": lambda row: (
        ""
        if row["method"] == REFERENCE
        else p_value(row["p"]).removeprefix("p ").removeprefix("= ")
    ),
}
_COSTS: dict[str, Callable[[pd.Series], str]] = {
    "trained parameters": lambda row: f"{int(row['trainable_parameters']):,}",
    "training, s per fold": lambda row: f"{row['train_seconds_per_fold']:,.0f}",
    "GFLOP per slide": lambda row: f"{row['flops_per_slide'] / 1e9:.3g}",
    "ms per slide": lambda row: f"{1000 * row['seconds_per_slide']:.3g}",
}


def write(
    workdir: pathlib.Path, of: Comparison, costs: Mapping[str, Mapping[str, Any]], command: str
) -> None:
    """Writes compare.csv, compare.md, compare.tex, compare_table.csv and the pictures.

    Args:
        workdir: where to.
        of: the comparison.
        costs: by method: "flops_per_slide", "seconds_per_slide", "num_patches", "device".
        command: that made it.
    """
    table = comparison.table(of, costs)
    files.write_table(workdir / "compare.csv", comparison.contract_table(of))
    files.write_table(workdir / "compare_table.csv", table)
    files.write_text(workdir / "compare.tex", latex(of, table))
    seeds = "" if len(of.seeds) == 1 else f", mean of {len(of.seeds)} seeds"
    plots.folds(
        {method: values.tolist() for method, values in of.c_index.items()},
        workdir / "compare.png",
        f"{of.dataset}, test patients{seeds}",
        of.folds,
        of.intervals,
    )
    pictures = ["compare.png"]
    if of.differences:
        plots.intervals(
            pd.DataFrame(
                [(m, d.mean, *d.interval) for m, d in of.differences.items()],
                columns=["method", "difference", "low", "high"],
            ),
            workdir / "differences.png",
            f"{of.dataset}, differences to {REFERENCE}{seeds}",
            REFERENCE,
            pd.DataFrame(
                [(m, of_fold) for m, d in of.differences.items() for of_fold in d.folds],
                columns=["method", "difference"],
            ),
        )
        pictures.append("differences.png")
    files.write_text(workdir / "compare.md", markdown(of, table, costs, command, pictures))


def columns(of: Comparison) -> dict[str, Callable[[pd.Series], str]]:
    """What the table for people shows, by title."""
    folds = {
        f"fold {fold}": lambda row, name=f"fold_{fold}": number(row[name], 4) for fold in of.folds
    }
    scores = {
        title: show
        for title, show in _SCORES.items()
        if title != "sd of seeds" or len(of.seeds) > 1
    }
    shown = {"method": lambda row: str(row["method"])} | folds | scores
    return shown | (_DIFFERENCE if of.differences else {}) | _COSTS


def cells(of: Comparison, table: pd.DataFrame) -> list[list[str]]:
    """The table as texts, without its header."""
    shown = columns(of).values()
    return [[show(row) for show in shown] for _, row in table.iterrows()]


def markdown(
    of: Comparison,
    table: pd.DataFrame,
    costs: Mapping[str, Mapping[str, Any]],
    command: str,
    pictures: Sequence[str],
) -> str:
    """The page for people."""
    titles = list(columns(of))
    named = [[markup.markdown(method), *numbers] for method, *numbers in cells(of, table)]
    rows = [titles, ["---", *["---:"] * (len(titles) - 1)], *named]
    title = f"# {markup.markdown(of.dataset)}: methods compared"
    lines = [title, "", f"    {on_one_line(command)}", ""]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", *(f"![{name}]({name})" for name in pictures), ""]
    lines += ["## What the differences are worth", "", *words(of), ""]
    lines += ["## What the numbers are", "", *(f"- {note}" for note in notes(of, costs)), ""]
    return "\n".join(lines)


def words(of: Comparison) -> list[str]:
    """A sentence for every difference to the reference, or why there is none."""
    if REFERENCE not in of.methods:
        return [
            f"`{REFERENCE}` is not among the methods, so differences to it are left out; add it to "
            "--methods."
        ]
    if not of.differences:
        return [f"There is no method beside `{REFERENCE}`."]
    lines = [
        f"- {markup.code(method)}: {signed(found.mean)} [{signed(found.interval.low)}, "
        f"{signed(found.interval.high)}], {p_value(found.p)}: {comparison.verdict(found)}."
        for method, found in of.differences.items()
    ]
    if len(of.differences) > 1:
        lines += [
            "",
            f"These are {len(of.differences)} comparisons, none corrected for their number: of 20 "
            "that differ in nothing, one would be expected beyond the noise of patients.",
        ]
    return lines


def notes(of: Comparison, costs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What every column is, and how it was measured."""
    one = costs[of.methods[0]]
    seeds = ", ".join(map(str, of.seeds))
    lines = [
        "C-index of the test patients of each fold (Harrell; risk higher = shorter life), "
        + (f"seed {seeds}." if len(of.seeds) == 1 else f"mean of the seeds {seeds}.")
        + " sd: standard deviation (n - 1) over folds.",
    ]
    if len(of.seeds) > 1:
        lines.append("sd of seeds: standard deviation (n - 1) over seeds of the mean over folds.")
    lines.append(
        f"[95 %]: percentiles of {significance.RESAMPLES} bootstrap resamples of the patients "
        "within each fold, the same for all methods; C-index per fold, then their mean. The fitted "
        "models stay as they are, so what another training would change is not in it."
    )
    if of.undefined:
        lines.append(
            f"{100 * of.undefined:.1f} % of the resamples left some fold without two patients that "
            "can be compared; the intervals are of the others."
        )
    if of.differences:
        lines.append(
            "p: corrected resampled t-test over folds (Nadeau and Bengio 2003), two-sided, not "
            "corrected for the number of comparisons."
        )
    lines += _starts(of)
    lines += [
        "training: wall time of the epochs of a fold, starts that died included; what ROUPKT's "
        "sources make of the patients is computed before, once for all folds, and is not in it.",
        f"GFLOP and ms per slide: inference on a slide of N = {one['num_patches']} patches (the "
        "median of the test patients), from features in memory, in batches of "
        f"{one['batch_size']} on {markup.markdown(one['device'])}. Operations are those of matrix "
        "products, 2 per multiply-add, counted from shapes (steph_jax/evaluation/cost.py has the "
        "formulas); for ROUPKT they include all its source models.",
    ]
    return lines


def _starts(of: Comparison) -> list[str]:
    """What single runs started from, where that was chosen or drawn anew."""
    lines = []
    for method in of.methods:
        own = [run for run in of.runs if run.method == method]
        chosen = [
            f"{markup.markdown(run.numbers['source'])} (fold {run.fold})"
            for run in own
            if run.seed == of.seeds[0] and "source" in run.numbers
        ]
        if chosen:
            lines.append(f"{markup.markdown(method)} starts from the model of {', '.join(chosen)}.")
        again = sum(run.numbers.get("restarts", 0) > 0 for run in own)
        if again:
            lines.append(
                f"{markup.markdown(method)}: in {again} of {len(own)} trainings the weights of all "
                "sources died at first, and it was started anew."
            )
    return lines


def latex(of: Comparison, table: pd.DataFrame) -> str:
    """The table as a LaTeX tabular that needs no package."""
    titles = list(columns(of))
    rows = [" & ".join(map(markup.latex, row)) + r" \\" for row in [titles, *cells(of, table)]]
    return "\n".join(
        [
            rf"% {on_one_line(of.dataset)}: C-index of the test patients",
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
    if row["method"] == REFERENCE:
        return ""
    low, high = signed(row["difference_low"]), signed(row["difference_high"])
    return f"{signed(row['difference'])} [{low}, {high}]"
