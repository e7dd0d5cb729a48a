"""Comparisons with several numbers of training patients: what a gain is worth with how many.

W/compare.csv          method, fold, seed, c_index, train_patients; and control, if there is any
W/learning_curve.csv   differences to the reference and to controls, per number of patients
W/learning_curve.md    both for people
W/learning_curve.png   the differences over the number of patients
"""

import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from steph_jax import files, plots
from steph_jax.evaluation import comparison, markup
from steph_jax.evaluation.comparison import Comparison, Difference
from steph_jax.messages import on_one_line
from steph_jax.methods.controls import parts_of
from steph_jax.plots.style import number, signed

#: Comparisons by `train_patients`, in the order of the numbers; 0, all patients, comes last.
Comparisons = Mapping[int, Comparison]


def in_order(numbers: Sequence[int]) -> list[int]:
    """Numbers of training patients from the smallest to 0, which stands for all.

    Raises:
        ValueError: none, a negative one, or one that is named twice.
    """
    if not numbers or min(numbers) < 0 or len(set(numbers)) < len(numbers):
        raise ValueError(
            "--train_patients are different numbers of patients, 0 for all, as 40,80,0; found "
            f"{','.join(map(str, numbers))}"
        )
    return sorted(numbers, key=lambda one: one or math.inf)


def directory(workdir: pathlib.Path, train_patients: int) -> pathlib.Path:
    """Where the comparison with a number of training patients is kept."""
    return workdir / f"patients_{train_patients or 'all'}"


def write(workdir: pathlib.Path, comparisons: Comparisons, command: str) -> None:
    """Writes tables, page and picture; compare.csv last.

    Args:
        workdir: where to.
        comparisons: of the same methods, seeds and folds.
        command: that made them.
    """
    gains = table(comparisons)
    files.write_table(workdir / "learning_curve.csv", gains)
    picture = "learning_curve.png"
    if len(gains):
        first = next(iter(comparisons.values()))
        plots.learning_curve(
            gains,
            workdir / picture,
            f"{first.dataset}: what methods gain with how many training patients",
        )
    pictures = [picture] if len(gains) else []
    files.write_text(workdir / "learning_curve.md", markdown(comparisons, gains, command, pictures))
    files.write_table(workdir / "compare.csv", contract_table(comparisons))


def contract_table(comparisons: Comparisons) -> pd.DataFrame:
    """The rows of `comparison.contract_table`, with the number of training patients (0 = all)."""
    tables = [
        comparison.contract_table(result).assign(train_patients=train_patients)
        for train_patients, result in comparisons.items()
    ]
    return pd.concat(tables, ignore_index=True)


def num_train(result: Comparison) -> float:
    """Training patients of a fold, the mean over folds."""
    return float(np.mean([run.num_train for run in result.runs]))


def table(comparisons: Comparisons) -> pd.DataFrame:
    """A row per number of patients, method, and what the method is compared with.

    Columns: train_patients (0 = all), patients (of a fold, their mean), method, against (the
    reference, or the label of the method's own control), difference, low, high and p.
    """
    rows = []
    for train_patients, result in comparisons.items():
        patients = num_train(result)
        pairs = [
            (label, result.reference, difference)
            for label, difference in result.differences.items()
            if parts_of(label)[1] == "none"
        ]
        pairs += [
            (parts_of(label)[0], label, difference)
            for label, difference in result.control_differences.items()
        ]
        rows += [
            (train_patients, patients, method, against, gain.mean, *gain.interval, gain.p)
            for method, against, gain in pairs
        ]
    names = ["train_patients", "patients", "method", "against", "difference", "low", "high", "p"]
    return pd.DataFrame(rows, columns=names)


def _title(train_patients: int, result: Comparison) -> str:
    """A number of patients for people."""
    return f"{train_patients}" if train_patients else f"all ({num_train(result):.0f})"


def markdown(
    comparisons: Comparisons, gains: pd.DataFrame, command: str, pictures: Sequence[str]
) -> str:
    """C-index and gains by number of patients, as a page of Markdown."""
    first = next(iter(comparisons.values()))
    titles = [_title(*one) for one in comparisons.items()]
    head = [f"| method | {' | '.join(titles)} |", "| --- |" + " ---: |" * len(titles)]
    scores = [
        f"| {markup.markdown(label)} | "
        + " | ".join(number(float(c.c_index[label].mean()), 4) for c in comparisons.values())
        + " |"
        for label in first.methods
    ]
    lines = [f"# {markup.markdown(first.dataset)}: methods by number of training patients", ""]
    lines += [f"    {on_one_line(command)}", "", "## C-index", "", *head, *scores, ""]
    lines += [f"![{name}]({name})" for name in pictures]
    if len(gains):
        lines += ["", "## Gains", "", head[0].replace("method", "method less", 1), head[1]]
        lines += [
            f"| {markup.markdown(method)} less {markup.markdown(against)} | "
            + " | ".join(
                f"{signed(mean)} [{signed(low)}, {signed(high)}]"
                for mean, low, high in rows[["difference", "low", "high"]].to_numpy(float)
            )
            + " |"
            for (method, against), rows in gains.groupby(["method", "against"], sort=False)
        ]
        lines += ["", *words(comparisons)]
    return "\n".join([*lines, "", "## Notes", "", *notes(comparisons), ""])


def words(comparisons: Comparisons) -> list[str]:
    """With how many patients each gain is beyond the noise, a sentence each."""
    by_pair: dict[tuple[str, str], dict[str, Difference]] = {}
    for train_patients, result in comparisons.items():
        title = _title(train_patients, result)
        for label, gain in result.differences.items():
            if parts_of(label)[1] == "none":
                by_pair.setdefault((label, result.reference), {})[title] = gain
        for label, gain in result.control_differences.items():
            by_pair.setdefault((parts_of(label)[0], label), {})[title] = gain
    return [
        f"- {markup.code(method)} less {markup.code(against)}: {_sentence(gains)}"
        for (method, against), gains in by_pair.items()
    ]


def _sentence(gains: Mapping[str, Difference]) -> str:
    """Which of the gains of a method exclude zero."""
    better = [title for title, gain in gains.items() if gain.interval.low > 0]
    worse = [title for title, gain in gains.items() if gain.interval.high < 0]
    parts = [
        f"{word} with {', '.join(titles)}"
        for word, titles in (("better", better), ("worse", worse))
        if titles
    ]
    if not parts:
        return "within the noise of patients with any number of them."
    rest = len(gains) - len(better) - len(worse)
    return f"{'; '.join(parts)}; {'within the noise with the others' if rest else 'no other'}."


def notes(comparisons: Comparisons) -> list[str]:
    """How the numbers were made."""
    seeds = {_title(*one): ", ".join(map(str, one[1].seeds)) for one in comparisons.items()}
    text = "; ".join(f"{numbers} with {title}" for title, numbers in seeds.items())
    if len(set(seeds.values())) == 1:
        text = next(iter(seeds.values()))
    return [
        f"- Seeds {text}. The seed draws the training patients of a fold: a larger number holds "
        "the patients of a smaller one, and events are spread evenly. All methods have the same. "
        "Test patients are those of the folds, whatever the number.",
        "- The target's own model, which merging methods start from, is fitted again on these "
        "patients. Models of other cancers keep all of theirs.",
        "- [95 %] is of patients, widened for cross-validation (docs/method.md, section 8). One "
        "interval in twenty of a true difference of 0 leaves it out, and there is one for each "
        "number of patients: look at their course, not at the best one.",
    ]
