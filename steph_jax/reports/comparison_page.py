"""The report of a comparison: its methods side by side on one page, and in words."""

import pathlib
from collections.abc import Sequence
from typing import Any

import pandas as pd

from steph_jax import files, records, run_directory
from steph_jax.evaluation import comparison, run_metrics
from steph_jax.evaluation.comparison import REFERENCE, Comparison
from steph_jax.methods.controls import parts_of
from steph_jax.reports import clinical_file, pages, run_numbers, run_page, verdicts
from steph_jax.survival import metrics

#: Numbers of each method that are those of its first seed's run.
_OF_FIRST_RUN = (
    *("uno", "auc", "ibs", "ipa", "brier", "calibration", "d_calibration", "missing"),
    *("hazard_ratio", "hazard_ratio_per_sd", "hazard_ratio_missing", "source_share", "sources"),
    "clinical",
)
#: Numbers of the method that the comparison is about, beside those of all methods: a report of a
#: comparison has the keys of a report of a run.
_OF_SUBJECT = ("c_index", "uno", "auc", "ibs", "ipa", "d_calibration", "hazard_ratio")
#: Settings in which the runs of a comparison differ.
_OF_ONE_RUN = ("method", "control", "seed")


def is_comparison(workdir: pathlib.Path) -> bool:
    """Whether `steph_jax.compare` has finished here."""
    return (workdir / "compare.csv").is_file()


def write(workdir: pathlib.Path, reference: str | None = None) -> pathlib.Path:
    """Writes report.json and then report.html of a comparison; returns the page.

    Args:
        workdir: of the comparison.
        reference: what differences are to; by default that of the report that is there.

    Raises:
        FileNotFoundError, ValueError: a file of it is missing or damaged.
        OSError: the page cannot be written.
    """
    numbers = report_numbers(workdir, reference or _reference(workdir))
    files.write_json(workdir / "report.json", numbers)
    images = {
        name: pages.uri((workdir / f"{name}.png").read_bytes())
        for name in ("compare", "differences")
        if (workdir / f"{name}.png").is_file()
    }
    subject = comparison.run_directory(workdir, numbers["method"], numbers["seeds"][0])
    own = numbers["methods"][numbers["method"]]
    images |= run_page.pictures(
        subject, own | {name: numbers[name] for name in ("dataset", "method")}
    )
    why: dict[str, list[str]] = {}
    for method, of_method in numbers["methods"].items():
        reasons = pages.reasons(of_method["missing"], len(numbers["folds"]))
        for name, reason in reasons.items():
            why.setdefault(f"{pages.name_in_words(name)}: {reason}", []).append(method)
    text = pages.render(
        "comparison.html",
        n=numbers,
        images=images,
        why=why,
        # Whom a method is compared on, and by which columns, is alike for all.
        clinical=own["clinical"],
        settings=pages.settings_in_words(numbers["settings"]),
        outcome=pages.outcome(numbers["settings"]),
    )
    page = workdir / "report.html"
    files.write_text(page, text)
    return page


def _reference(workdir: pathlib.Path) -> str:
    """The reference of the report that is there; the default one without a report."""
    path = workdir / "report.json"
    if not path.is_file():
        return REFERENCE
    kind = records.record({}, {"reference": records.NAME})
    record = records.read(path, kind, "the report of a comparison", f"remove {path}")
    return str(record.get("reference", REFERENCE))


def report_numbers(workdir: pathlib.Path, reference: str = REFERENCE) -> dict[str, Any]:
    """The content of the page, as JSON.

    Args:
        workdir: of the comparison.
        reference: what differences are to.

    Raises:
        FileNotFoundError, ValueError: a file of the comparison is missing or damaged.
    """
    methods, seeds, folds = _contents(workdir)
    first = {method: comparison.run_directory(workdir, method, seeds[0]) for method in methods}
    dataset = run_directory.load(first[methods[0]])["dataset"]
    result = comparison.compare_runs(workdir, dataset, methods, seeds, folds, reference=reference)
    clinical = clinical_file.read(workdir)
    runs = {method: run_numbers.report_numbers(path, clinical) for method, path in first.items()}
    one = runs[methods[0]]
    by_method = {
        method: {name: runs[method][name] for name in _OF_FIRST_RUN} | _scores(result, method)
        for method in methods
    }
    subject = subject_of(methods, reference)
    verdict = verdicts.of_comparison(result, runs)
    return {
        "dataset": dataset,
        "participants": one["participants"],
        "years": [f"{year:g}" for year in one["years"]],
        "tau_days": one["tau_days"],
        "seeds": seeds,
        "folds": folds,
        "reference": reference,
        "method": subject,
        **{name: by_method[subject][name] for name in _OF_SUBJECT},
        "methods": by_method,
        "verdict": " ".join(verdict),
        "verdicts": verdict,
        "settings": {
            name: value for name, value in one["settings"].items() if name not in _OF_ONE_RUN
        },
        "provenance": one["provenance"],
    }


def subject_of(methods: Sequence[str], reference: str) -> str:
    """What a comparison is about: the last method named that is no control and not the reference.

    Args:
        methods: labels in the order in which they were named.
        reference: what differences are to.
    """
    subjects = [name for name in methods if parts_of(name)[1] == "none"]
    others = [name for name in subjects if name != reference]
    return [*methods[:1], *subjects, *others][-1]


def first_run(workdir: pathlib.Path) -> pathlib.Path:
    """Directory of a run of a comparison.

    Raises:
        FileNotFoundError, ValueError: compare.csv is missing or damaged.
    """
    methods, seeds, _ = _contents(workdir)
    return comparison.run_directory(workdir, methods[0], seeds[0])


def _contents(workdir: pathlib.Path) -> tuple[list[str], list[int], list[int]]:
    """Labels of methods, seeds and folds of a comparison."""
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
    if "dataset" in table or "train_patients" in table:
        raise ValueError(
            f"{path}: expected a comparison on one dataset with one number of training patients, "
            "found several; each has its page in a folder beside this table"
        )
    if not methods:
        raise ValueError(f"{path}: expected a row per method, seed and fold, found none")
    return methods, seeds, folds


def _scores(result: Comparison, method: str) -> dict[str, Any]:
    """C-index of a method, and its difference to the reference; None where there is none."""
    values = result.c_index[method]
    mean, sd = metrics.mean_sd(values)
    difference = result.differences.get(method)
    return {
        "c_index": {
            "mean": run_metrics.or_none(mean),
            "sd": run_metrics.or_none(sd),
            "folds": [run_metrics.or_none(float(value)) for value in values],
            "ci95": run_metrics.ends(result.intervals[method]),
        },
        "null_c_index": result.null_c_index(method),
        "difference": None
        if difference is None
        else {
            "mean": run_metrics.or_none(difference.mean),
            "ci95": run_metrics.ends(difference.interval),
            "p": run_metrics.or_none(difference.p),
            "verdict": comparison.verdict(difference),
        },
    }
