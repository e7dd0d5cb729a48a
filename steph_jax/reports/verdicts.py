"""What a run or a comparison came to, in words: better, worse, or it cannot be told."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from steph_jax.evaluation import comparison
from steph_jax.evaluation.comparison import Comparison, Difference
from steph_jax.evaluation.source_share import in_words
from steph_jax.methods.controls import parts_of
from steph_jax.reports.pages import number, signed

OWN_METHOD = "abmil"


def of_run(report: Mapping[str, Any]) -> str:
    """What a run came to, in a few sentences, with its uncertainty.

    Args:
        report: numbers of `run_numbers.report_numbers`.
    """
    c_index = report["c_index"]
    if c_index["mean"] is None:
        return "Not computable: some fold has no two test patients that can be compared."
    ends = c_index["ci95"] or (math.nan, math.nan)
    sentences = [
        f"{_capitalized(_side(ends, 0.5, 'it', 'chance'))}: C-index {number(c_index['mean'])}"
        f"{_interval(c_index['ci95'])} on test patients."
    ]
    sentences.append(_against_own(report))
    if report["sources"] and report["control"] == "none":
        sentences.append(f"{_capitalized(report['sources'])}.")
    if report["control"] != "none":
        sentences.append(
            f"This run is a control (control={report['control']}): what it gains is not knowledge "
            "of other cancers."
        )
    elif report["method"] != OWN_METHOD:
        sentences.append(
            "Whether other cancers are the cause of a gain, only a control can show: "
            "steph_jax.compare --controls runs the same method without its cause."
        )
    return " ".join(sentences)


def _against_own(report: Mapping[str, Any]) -> str:
    """The gain over the target's own model."""
    gain, own = report["gain"], "the cancer's own model"
    if gain is None:
        if report["method"] == OWN_METHOD:
            return f"This is {own}: there is none to compare it with here."
        return "The cancer's own model was not evaluated."
    size = f"{signed(gain['mean'])}{_interval(gain['ci95'], signed)} in the C-index"
    ends, folds = gain["ci95"], ""
    if ends is None:
        ends, folds = (-math.inf, math.inf), " from one fold"
    return f"{_capitalized(_side(ends, 0.0, 'it', own))}{folds}: {size}."


def of_comparison(result: Comparison, runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What each method came to beside the reference, a paragraph each, with its uncertainty.

    Args:
        result: the comparison.
        runs: numbers of a run of each method, by its label.
    """
    if not result.differences:
        return [f"Nothing was compared with {result.reference}."]
    paragraphs = []
    for label, difference in result.differences.items():
        if label in result.control_differences:
            continue  # a control has its part in the paragraph of its method
        words = comparison.verdict(difference)
        side, _, certainty = words.partition(",")
        if side in ("better", "worse"):
            first = f"{label} is {side} than {result.reference},{certainty}"
        else:
            first = f"{_capitalized(_untold(label, result.reference))} ({words})"
        sentences = [f"{first}: {_size(difference)} in the C-index."]
        is_control = parts_of(label)[1] != "none"
        if runs[label]["merges"] and runs[label]["sources"] is not None and not is_control:
            sentences.append(f"{_capitalized(in_words(runs[label]['source_share']))}.")
        null = result.null_c_index(label)
        if null is not None:
            sentences.append(f"The untrained null model has {null:.3f} on the same patients.")
        sentences += _against_controls(result, label)
        paragraphs.append(" ".join(sentences))
    if not result.control_differences:
        paragraphs.append(
            "No control was run (--controls), so a gain is not yet one from other cancers."
        )
    return paragraphs


def _against_controls(result: Comparison, label: str) -> list[str]:
    """Whether other cancers had a part in what a method came to; empty without controls of it."""
    controls = {
        parts_of(other)[1]: against
        for other, against in result.control_differences.items()
        if parts_of(other)[0] == label
    }
    if not controls:
        return []
    sizes = ", ".join(f"{_size(one)} ({name})" for name, one in controls.items())
    ahead = [one.mean > 0 and one.interval.excludes_zero() for one in controls.values()]
    part = "had a part in this" if all(ahead) else "had a part in this cannot be told"
    subject = "Other cancers" if all(ahead) else "Whether other cancers"
    return [f"Gain over controls, the same without its cause: {sizes}. {subject} {part}."]


def _size(difference: Difference) -> str:
    if not math.isfinite(difference.mean):
        return "no number"
    low, high = difference.interval
    ends = None if math.isnan(low) else (low, high)
    return f"{signed(difference.mean)}{_interval(ends, signed)}"


def _side(ends: Sequence[float], value: float, subject: str, other: str) -> str:
    """Where an interval of a difference, or of what is compared with a value, lies beside it."""
    low, high = ends
    if low > value:
        return f"better than {other}"
    return f"worse than {other}" if high < value else _untold(subject, other)


def _untold(subject: str, other: str) -> str:
    return f"whether {subject} is better or worse than {other} cannot be told"


def _capitalized(sentence: str) -> str:
    return f"{sentence[0].upper()}{sentence[1:]}"


def _interval(ends: Sequence[float] | None, form: Callable[[float], str] = number) -> str:
    return "" if ends is None else f" [95 %: {form(ends[0])} to {form(ends[1])}]"
