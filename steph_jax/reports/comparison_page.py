"""The report of a comparison: its methods side by side on one page, and in words."""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import pandas as pd

from steph_jax import files, run_directory
from steph_jax.evaluation import comparison
from steph_jax.evaluation.comparison import REFERENCE, Comparison
from steph_jax.evaluation.source_share import in_words
from steph_jax.reports import pages, run_numbers
from steph_jax.survival.significance import Interval

#: Numbers of each method that are those of its first seed's run.
_OF_FIRST_RUN = ("uno", "auc", "ibs", "ipa", "brier", "hazard_ratio", "source_share", "sources")


def is_comparison(workdir: pathlib.Path) -> bool:
    """Whether `steph_jax.compare` has finished here."""
    return (workdir / "compare.csv").is_file()


def write(workdir: pathlib.Path) -> pathlib.Path:
    """Writes report.json and then report.html of a comparison; returns the page.

    Raises:
        FileNotFoundError, ValueError: a file of it is missing or damaged.
        OSError: the page cannot be written.
    """
    numbers = report_numbers(workdir)
    files.write_json(workdir / "report.json", numbers)
    images = {
        name: pages.uri((workdir / f"{name}.png").read_bytes())
        for name in ("compare", "differences")
        if (workdir / f"{name}.png").is_file()
    }
    page = workdir / "report.html"
    files.write_text(page, pages.render("comparison.html", n=numbers, images=images))
    return page


def report_numbers(workdir: pathlib.Path) -> dict[str, Any]:
    """The content of the page, as JSON.

    Raises:
        FileNotFoundError, ValueError: a file of the comparison is missing or damaged.
    """
    path = workdir / "compare.csv"
    try:
        table = pd.read_csv(path, dtype={"method": str})
        methods = comparison.labels_of(table)
        seeds, folds = (list(dict.fromkeys(table[name].tolist())) for name in ("seed", "fold"))
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path}: expected the table of a comparison; {error}; give the command of "
            "steph_jax.compare again"
        ) from None
    first = {method: comparison.run_directory(workdir, method, seeds[0]) for method in methods}
    dataset = run_directory.load(first[methods[0]])["dataset"]
    result = comparison.compare_runs(workdir, dataset, methods, seeds, folds)
    runs = {method: run_numbers.report_numbers(directory) for method, directory in first.items()}
    return {
        "dataset": dataset,
        "seeds": seeds,
        "folds": folds,
        "reference": REFERENCE,
        "methods": {
            method: {name: runs[method][name] for name in _OF_FIRST_RUN} | _scores(result, method)
            for method in methods
        },
        "verdict": verdict(result, runs),
    }


def _scores(result: Comparison, method: str) -> dict[str, Any]:
    """C-index of a method, and its difference to the reference; None where there is none."""
    values = result.c_index[method]
    difference = result.differences.get(method)
    return {
        "c_index": {
            "mean": _finite(float(values.mean())),
            "folds": [_finite(float(value)) for value in values],
            "ci95": _ends(result.intervals[method]),
        },
        "difference": None
        if difference is None
        else {
            "mean": _finite(difference.mean),
            "ci95": _ends(difference.interval),
            "p": _finite(difference.p),
            "verdict": comparison.verdict(difference),
        },
    }


def verdict(result: Comparison, runs: dict[str, dict[str, Any]]) -> Sequence[str]:
    """A sentence for every method that was compared with the reference."""
    sentences = []
    for method, difference in result.differences.items():
        text = f"{method}: {comparison.verdict(difference)}"
        if runs[method]["merges"] and runs[method]["sources"] is not None:
            text += f"; {in_words(runs[method]['source_share'])}"
        sentences.append(f"{text}.")
    for label, difference in result.control_differences.items():
        method, control = comparison.parts_of(label)
        sentences.append(
            f"{method} less the same with control={control}: "
            f"{comparison.control_verdict(difference)} ({difference.mean:+.3f})."
        )
    if not sentences:
        return [f"Nothing was compared with {REFERENCE}."]
    return sentences


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _ends(interval: Interval) -> list[float] | None:
    return list(interval) if all(map(math.isfinite, interval)) else None
